"""Scalars of the equivalents against quadrature, iteration and the exact equilibrium."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Real, mp
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from gp_deq import DEQNNGPKernel, DEQNTKKernel
from gp_deq.activations import Hermite
from gp_deq.equivalents import HighDimensionalCoefficients, high_dimensional_coefficients

Function = Callable[[float], float]
NAMES = [
    "tau",
    "gamma",
    "alpha_1",
    "alpha_2",
    "alpha_3",
    "alpha_4",
    "beta_1",
    "beta_2",
    "beta_3",
    "kappa",
]


def wave(u: Tensor) -> Tensor:
    return torch.sin(u) + torch.cos(u) / 2


class Smooth(NamedTuple):
    """A function and its first two derivatives; a kink at zero of slope ``kink``."""

    torch_name: Any
    phi: Function
    slope: Function
    bend: Function
    kink: float = 0.0


FUNCTIONS = {
    "relu": Smooth("relu", lambda u: max(u, 0.0), lambda u: float(u > 0), lambda u: 0.0, 1.0),
    "tanh": Smooth(
        "tanh",
        math.tanh,
        lambda u: 1 - math.tanh(u) ** 2,
        lambda u: -2 * math.tanh(u) * (1 - math.tanh(u) ** 2),
    ),
    "erf": Smooth(
        "erf",
        math.erf,
        lambda u: 2 / math.sqrt(math.pi) * math.exp(-u * u),
        lambda u: -4 * u / math.sqrt(math.pi) * math.exp(-u * u),
    ),
    "gelu": Smooth(
        "gelu",
        lambda u: u * norm.cdf(u),
        lambda u: norm.cdf(u) + u * norm.pdf(u),
        lambda u: (2 - u * u) * norm.pdf(u),
    ),
    "callable": Smooth(
        wave,
        lambda u: math.sin(u) + math.cos(u) / 2,
        lambda u: math.cos(u) - math.sin(u) / 2,
        lambda u: -math.sin(u) - math.cos(u) / 2,
    ),
}


def expectation(f: Function, tau: float) -> float:
    """E f(tau z), the two half lines apart."""
    parts = [
        quad(lambda z: f(tau * z) * norm.pdf(z), *ends, epsabs=1e-13, epsrel=1e-12, limit=200)[0]
        for ends in ((-12.0, 0.0), (0.0, 12.0))
    ]
    return sum(parts)


class Equations:
    """The scalar equations, with derivatives as they are and not by partial integration."""

    def __init__(self, function: Smooth, weight: float, injected: float) -> None:
        self.function, self.weight = function, weight
        self.tau = math.sqrt(
            brentq(
                lambda v: v - weight * self.variance(math.sqrt(v)) - injected,
                injected,
                injected + 40,
                xtol=1e-14,
            )
        )
        tau, mean = self.tau, expectation(function.phi, self.tau)
        # a kink adds a delta function to the second derivative
        delta = function.kink * norm.pdf(0) / tau
        self.g1 = expectation(function.slope, tau) ** 2
        self.g2 = (expectation(function.bend, tau) + delta) ** 2
        self.slope = expectation(lambda u: function.slope(u) ** 2, tau)
        outer = expectation(lambda u: (function.phi(u) - mean) * function.bend(u), tau)
        self.g4 = 2 * self.slope + 2 * outer + 2 * (function.phi(0.0) - mean) * delta

    def variance(self, tau: float) -> float:
        mean = expectation(self.function.phi, tau)
        return expectation(lambda u: (self.function.phi(u) - mean) ** 2, tau)

    def iterate(self, steps: int = 400) -> dict[str, float]:
        """Layers of the linearised network, the input injected into each, until nothing changes.

        The contraction is w (E phi')^2 or w E phi'^2, 0.8 or less here: 0.8^400 = 2e-39.
        """
        w, g1, g2 = self.weight, self.g1, self.g2
        a1 = a2 = a3 = a4 = b1 = b2 = b3 = k = 0.0
        variance = self.variance(self.tau)
        for _ in range(steps):
            a1, a2, a3, a4 = (
                g1 * (1 + w * a1),
                g1 * w * a2 + g2 * a4**2 / 4,
                g1 * w * a3 + g2 * (1 + w * a1) ** 2 / 2,
                1 + w * self.g4 * a4 / 2,
            )
            # K = G + w P K, with P = g1 + g2 times the covariance (1 + w a1) b
            b1, b2, b3, k = (
                a1 + w * g1 * b1,
                a2 + w * g1 * b2,
                a3 + w * g1 * b3 + w * g2 * (1 + w * a1) * b1,
                variance + w * self.slope * k,
            )
        values = [self.tau, math.sqrt(variance), a1, a2, a3, a4, b1, b2, b3, math.sqrt(k)]
        return dict(zip(NAMES, values, strict=True))


def check(found: HighDimensionalCoefficients, expected: dict[str, Any], rtol: float) -> None:
    for name, value in expected.items():
        # g2 of an odd function is zero up to rounding
        assert getattr(found, name).item() == pytest.approx(float(value), rel=rtol, abs=1e-20), name


# ------------------------------------------------------------------------------------------
# Values
# ------------------------------------------------------------------------------------------

# To five digits: alpha_1 to alpha_4 and gamma^2 with respect to XX^T, inputs of norm one and
# sigma_b^2 = 1 - w.
TABLE = [
    ("relu", 0.1, 0.23077, 0.03802, 0.07464, 0.93176, 0.31759),
    ("relu", 0.2, 0.21053, 0.03596, 0.06919, 0.85852, 0.29262),
    ("relu", 0.3, 0.18919, 0.03354, 0.06319, 0.77973, 0.26577),
    ("tanh", 0.1, 0.35650, 0.0, 0.0, 0.91771, 0.38274),
    ("tanh", 0.2, 0.34499, 0.0, 0.0, 0.83435, 0.36992),
    ("tanh", 0.3, 0.33208, 0.0, 0.0, 0.74972, 0.35557),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_table(row: tuple[Any, ...]) -> None:
    name, weight, *expected = row
    found = high_dimensional_coefficients(name, weight, 1 - weight, 1.0).paper_scaling()
    values = [found.alpha_1, found.alpha_2, found.alpha_3, found.alpha_4, found.gamma**2]
    assert [round(value.item(), 5) for value in values] == expected
    assert found.input_variance.item() == 1


def test_paper_scaling_is_a_change_of_units() -> None:
    """b = s XX^T, so that a coefficient of b times b is one of XX^T times s."""
    unit = 0.37
    found = high_dimensional_coefficients("gelu", 0.5, unit, 1.4)
    paper = found.paper_scaling()
    powers = [0, 0, 1, 2, 2, 1, 1, 2, 2, 0]
    for name, power in zip(NAMES, powers, strict=True):
        ratio = (getattr(paper, name) / getattr(found, name)).item()
        assert ratio == pytest.approx(unit**power, rel=1e-15)
    torch.testing.assert_close(paper.paper_scaling(), paper, rtol=0, atol=0)


CASES = [
    ("relu", 1.5),
    ("relu", 0.2),
    ("tanh", 0.7),
    ("erf", 0.5),
    ("gelu", 0.6),
    ("callable", 0.6),
]


@pytest.mark.parametrize("unit, tau0", [(1.0, 0.5), (0.7, 1.9)])
@pytest.mark.parametrize("name, weight", CASES)
def test_equations(name: str, weight: float, unit: float, tau0: float) -> None:
    """Quadrature to 1e-12, with derivatives not by parts, and layers iterated to convergence."""
    function = FUNCTIONS[name]
    found = high_dimensional_coefficients(function.torch_name, weight, unit, tau0)
    expected = Equations(function, weight, unit * tau0**2).iterate()
    check(found, expected, 1e-10)
    assert found.input_variance.item() == unit


class Centred(oracles.Activation):
    """A reference activation less a constant."""

    def __init__(
        self, base: oracles.Activation, mean: Callable[[Real], Real], constant: Real
    ) -> None:
        self.name, self.base, self.mean, self.constant = base.name, base, mean, constant

    def phi(self, u: Real) -> Real:
        return self.base.phi(u) - self.constant

    def G(self, v1: Real, v2: Real, c: Real) -> Real:
        means = self.mean(v1) + self.mean(v2)
        return self.base.G(v1, v2, c) - self.constant * means + self.constant**2

    def P(self, v1: Real, v2: Real, c: Real) -> Real:
        return self.base.P(v1, v2, c)


MEANS: dict[str, Callable[[Real], Real]] = {
    "relu": lambda v: mp.sqrt(v / (2 * mp.pi)),
    "erf": lambda v: mp.mpf(0),
    "gelu": lambda v: v / mp.sqrt(2 * mp.pi * (1 + v)),
}


@pytest.mark.parametrize(
    "name, weight", [("relu", 0.2), ("relu", 1.7), ("erf", 0.6), ("gelu", 0.7)]
)
def test_are_derivatives_of_the_exact_equilibrium(name: str, weight: float) -> None:
    """G and K of a pair, expanded around orthogonal inputs of equal norm.

    Sixty digits and central differences of step 1e-12: what is left is 1e-24.
    """
    base, mean, w, level = oracles.ACTIVATIONS[name], MEANS[name], mp.mpf(weight), mp.mpf("1.25")
    variance = oracles.bracketed_root(
        lambda v: v - w * (base.G(v, v, v) - mean(v) ** 2) - level, level, 100 * level
    )
    phi = Centred(base, mean, mean(variance))

    def pair(b1: Real, b2: Real, b12: Real) -> tuple[Real, Real]:
        v1, v2 = phi.solve_variance(w, b1), phi.solve_variance(w, b2)
        c = v1 if b1 == b2 == b12 else phi.solve_covariance(w, v1, v2, b12)
        value = phi.G(v1, v2, c)
        return value, value / (1 - w * phi.P(v1, v2, c))

    h, zero = mp.mpf("1e-12"), mp.mpf(0)
    up, down, middle = pair(level, level, h), pair(level, level, -h), pair(level, level, zero)
    corners = [(i * j, pair(level + i * h, level + j * h, zero)) for i in (1, -1) for j in (1, -1)]
    diagonal = pair(level, level, level)
    expected = {"tau": mp.sqrt(variance)}
    first = [(up[i] - down[i]) / (2 * h) for i in (0, 1)]
    mixed = [sum(sign * value[i] for sign, value in corners) / (4 * h**2) for i in (0, 1)]
    second = [(up[i] + down[i] - 2 * middle[i]) / (2 * h**2) for i in (0, 1)]
    expected |= {"alpha_1": first[0], "alpha_2": mixed[0], "alpha_3": second[0]}
    expected |= {"beta_1": first[1], "beta_2": mixed[1], "beta_3": second[1]}
    expected |= {"gamma": mp.sqrt(diagonal[0]), "kappa": mp.sqrt(diagonal[1])}
    grown = phi.solve_variance(w, level + h) - phi.solve_variance(w, level - h)
    expected["alpha_4"] = grown / (2 * h)
    # the package loses a few digits in 1 - w E phi'^2, 0.15 at least
    check(high_dimensional_coefficients(name, weight, 1.0, math.sqrt(1.25)), expected, 1e-13)


def test_of_a_kernel() -> None:
    kernel = DEQNNGPKernel("gelu").double()
    kernel.weight_variance = 0.4
    tangent = DEQNTKKernel("gelu", trained="recurrent").double()
    tangent.weight_variance = 0.4
    expected = high_dimensional_coefficients("gelu", 0.4, 0.9, 1.3)
    for source in (kernel, tangent):
        found = high_dimensional_coefficients(source, input_variance=0.9, tau0=1.3)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_arguments_keep_double_precision() -> None:
    """A float is not rounded to the default dtype, which is float32, on its way."""
    found = high_dimensional_coefficients("relu", 0.1, 0.9, 1.1)
    wide = high_dimensional_coefficients(
        "relu", *(torch.tensor(value, dtype=torch.float64) for value in (0.1, 0.9, 1.1))
    )
    torch.testing.assert_close(found, wide, rtol=0, atol=0)
    assert found.input_variance.item() == 0.9


# ------------------------------------------------------------------------------------------
# Edges
# ------------------------------------------------------------------------------------------


def relu_in_closed_form(weight: float, injected: float) -> dict[str, float]:
    """E phi = tau / sqrt(2 pi), E phi^2 = tau^2/2, and derivatives of these."""
    rest = 1 / 2 - 1 / (2 * math.pi)
    variance = injected / (1 - weight * rest)
    g2, gap = 1 / (2 * math.pi * variance), 1 - weight / 4
    a1, a4 = 0.25 / gap, 1 / (1 - weight * rest)
    a2, a3 = g2 * a4**2 / (4 * gap), g2 * (1 + weight * a1) ** 2 / (2 * gap)
    b3 = (a3 + a1 / gap * weight * g2 * (1 + weight * a1)) / gap
    gamma2 = variance * rest
    kappa = math.sqrt(gamma2 / (1 - weight / 2))
    values = [math.sqrt(variance), math.sqrt(gamma2), a1, a2, a3, a4, a1 / gap, a2 / gap, b3, kappa]
    return dict(zip(NAMES, values, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    weight=st.floats(1e-9, 2 - 1e-9),
    unit=st.floats(-6, 6).map(lambda e: 10.0**e),
    tau0=st.floats(-6, 6).map(lambda e: 10.0**e),
)
def test_relu_is_homogeneous(weight: float, unit: float, tau0: float) -> None:
    """Inputs of another size change the coefficients by powers of it, over twelve decades."""
    found = high_dimensional_coefficients("relu", weight, unit, tau0)
    expected = relu_in_closed_form(weight, unit * tau0**2)
    # 1 - w/2 is good to eps / (1 - w/2)
    rtol = 1e-12 + 4 * 2.0**-52 / (1 - weight / 2)
    check(found, expected, rtol)


@pytest.mark.parametrize("name", [*FUNCTIONS])
def test_small_weights(name: str) -> None:
    """One layer: the expectations at the input's own scale, and no tangent but the kernel."""
    function, tau0 = FUNCTIONS[name], 0.8
    found = high_dimensional_coefficients(function.torch_name, 1e-13, 1.0, tau0)
    mean = expectation(function.phi, tau0)
    g1 = expectation(function.slope, tau0) ** 2
    g2 = (expectation(function.bend, tau0) + function.kink * norm.pdf(0) / tau0) ** 2
    gamma = math.sqrt(expectation(lambda u: (function.phi(u) - mean) ** 2, tau0))
    expected = dict(zip(NAMES, [tau0, gamma, g1, g2 / 4, g2 / 2, 1.0], strict=False))
    expected |= {"beta_1": g1, "beta_2": g2 / 4, "beta_3": g2 / 2, "kappa": gamma}
    check(found, expected, 1e-10)


@pytest.mark.parametrize("tau0", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("name, critical", [("tanh", 1.0), ("erf", math.pi / 4)])
def test_weights_near_critical(name: str, critical: float, tau0: float) -> None:
    """Newton's method converges where the slope of the equation nearly vanishes.

    An error dv of the root shows in the residual as dv times that slope, 1e-2 or more relative to
    what cancels; the quadrature of the oracle limits the residual to 1e-11 of tau^2.
    """
    weight = critical * (1 - 1e-9)
    found = high_dimensional_coefficients(name, weight, 1.0, tau0)
    assert all(bool(value.isfinite()) for value in found)
    tau = found.tau.item()
    variance = expectation(lambda u: FUNCTIONS[name].phi(u) ** 2, tau)
    assert tau**2 - weight * variance == pytest.approx(tau0**2, abs=1e-11 * tau**2)
    assert found.gamma.item() ** 2 == pytest.approx(variance, rel=1e-10)


@pytest.mark.parametrize("weight", [0.05, 0.9])
def test_tiny_and_huge_inputs(weight: float) -> None:
    """tanh is the identity of tiny inputs and the sign of huge ones."""
    tiny = high_dimensional_coefficients("tanh", weight, 1.0, 1e-6)
    a1 = 1 / (1 - weight)
    # tanh u = u (1 - u^2/3): relative corrections of the order tau^2 / (1 - w) = 1e-10
    linear = {"tau": 1e-6 * math.sqrt(a1), "gamma": 1e-6 * math.sqrt(a1)}
    linear |= {"alpha_1": a1, "alpha_4": a1, "beta_1": a1**2, "kappa": 1e-6 * a1}
    check(tiny, linear, 1e-8)
    huge = high_dimensional_coefficients("tanh", weight, 1.0, 1e6)
    # E tanh' = density of u at zero times 2; the next terms are 1/tau smaller
    sign = {"tau": 1e6, "gamma": 1.0, "alpha_1": 2 / math.pi * 1e-12, "alpha_4": 1.0}
    check(huge, sign | {"beta_1": 2 / math.pi * 1e-12, "kappa": 1.0}, 1e-5)
    for found in (tiny, huge):
        assert float(found.alpha_2) * float(found.tau) ** 2 < 1e-25
        assert float(found.alpha_3) * float(found.tau) ** 2 < 1e-25


# ------------------------------------------------------------------------------------------
# Derivatives and precision
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "callable"])
def test_gradients(name: str) -> None:
    activation = FUNCTIONS[name].torch_name

    def function(*arguments: Tensor) -> Tensor:
        return torch.stack(high_dimensional_coefficients(activation, *arguments))

    point = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.4, 0.8, 1.2)]
    # differences of step 1e-6 are good to 1e-9 or so
    assert torch.autograd.gradcheck(function, point, eps=1e-6, atol=1e-8, rtol=1e-7)


def test_gradient_reaches_the_kernel() -> None:
    kernel = DEQNNGPKernel("tanh").double()
    kernel.weight_variance = 0.3
    high_dimensional_coefficients(kernel, tau0=0.9).alpha_1.backward()
    raw = kernel.raw_weight_variance
    assert raw.grad is not None
    gradient = raw.grad.item()
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            raw += step
            values.append(high_dimensional_coefficients(kernel, tau0=0.9).alpha_1.item())
            raw -= step
    # the difference errs by step^2, 1e-10, and by eps/step, 1e-11
    assert gradient == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-8)
    assert gradient != 0


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_single_precision(name: str) -> None:
    """Expectations are taken in double precision of a tau that is rounded, to 6e-8."""
    narrow, wide = DEQNNGPKernel(name), DEQNNGPKernel(name).double()
    narrow.weight_variance = 0.3
    wide.weight_variance = narrow.weight_variance.double()
    found = high_dimensional_coefficients(narrow, tau0=1.1)
    expected = high_dimensional_coefficients(wide, tau0=1.1)
    assert all(value.dtype == torch.float32 for value in found)
    for field, value, exact in zip(found._fields, found, expected, strict=True):
        # g2 of an odd function: (eps / tau^2)^2
        assert value.item() == pytest.approx(exact.item(), rel=3e-6, abs=1e-12), field


# ------------------------------------------------------------------------------------------
# Bad input
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, -0.1, 2.0, 3.0, math.nan, math.inf])
def test_weight_variance_outside_the_region(weight: float) -> None:
    with pytest.raises(ValueError, match="weight_variance must be between 0 and 2 for ReLU"):
        high_dimensional_coefficients("relu", weight)


def test_weight_variance_missing_or_given_twice() -> None:
    with pytest.raises(ValueError, match="Give a weight variance"):
        high_dimensional_coefficients("relu")
    for kernel in (DEQNNGPKernel(), DEQNTKKernel()):
        with pytest.raises(ValueError, match="has its weight variance"):
            high_dimensional_coefficients(kernel, 0.1)


def test_integer_weight_variance() -> None:
    """As a tensor of integers too: the other arguments are not rounded to its dtype."""
    found, expected = (
        high_dimensional_coefficients("relu", weight, input_variance=0.9, tau0=1.5)
        for weight in (torch.tensor(1), 1.0)
    )
    assert found == expected and found.tau.dtype == torch.float64


def test_batch_of_kernels() -> None:
    with pytest.raises(ValueError, match="batch"):
        high_dimensional_coefficients(DEQNNGPKernel(batch_shape=torch.Size([2])))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("argument", ["input_variance", "tau0"])
def test_scale_that_is_not_positive(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be positive"):
        high_dimensional_coefficients("relu", 0.1, **{argument: value})


def test_infinite_expectations() -> None:
    """E exp(2 u^2) is infinite from a variance of 1/4 on."""
    steep = Hermite(lambda u: u.square().exp(), lipschitz=1.0)
    with pytest.raises(ValueError, match="infinite Gaussian expectation"):
        high_dimensional_coefficients(steep, 0.5)


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="Unknown activation"):
        high_dimensional_coefficients("step", 0.1)
    with pytest.raises(TypeError, match="activation"):
        high_dimensional_coefficients(np.pi, 0.1)  # type: ignore[arg-type]
