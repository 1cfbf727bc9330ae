"""Expectations of a centred and scaled activation against quadrature in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import oracles
import pytest
import torch
from oracles import mp
from torch import Tensor

from gp_deq import DEQNNGPKernel
from gp_deq.activations import GELU, Activation, LeakyReLU, PairCovariance, ReLU, get_activation
from gp_deq.equivalents import Centered

CONSTANT, SCALE = 0.37, 1.7
# variances and covariance, the last two at the ends of the correlations
PAIRS = [(1.0, 1.0, 0.3), (0.25, 2.0, -0.4), (3.0, 0.5, 1.1), (1.5, 1.5, 1.5), (0.5, 2.0, -1.0)]

Function = Callable[[np.ndarray], np.ndarray]
SMOOTH: dict[str, tuple[Function, Function]] = {
    "tanh": (np.tanh, lambda u: 1 / np.cosh(u) ** 2),
    "softplus": (lambda u: np.logaddexp(u, 0), lambda u: 1 / (1 + np.exp(-u))),
}
NAMES = ["relu", "leaky_relu", "gelu", *SMOOTH]


def activation(name: str) -> Activation:
    return LeakyReLU(0.2) if name == "leaky_relu" else get_activation(name)


def grid(v1: float, v2: float, c: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of the given covariance and weights: the trapezoidal rule on [-9, 9]^2.

    With the pole of tanh at pi/2 and a standard deviation of 1.8, step 0.06 errs by
    exp(-2 pi (pi/2) / (1.8 * 0.06)) = 1e-39, and the cut by 1e-18.
    """
    z = 0.06 * np.arange(-150, 151)
    weights = np.exp(-(z[:, None] ** 2 + z**2) / 2) * 0.06**2 / (2 * math.pi)
    s1, s2 = math.sqrt(v1), math.sqrt(v2)
    r = c / (s1 * s2)
    u = s1 * z[:, None] + 0 * z
    v = s2 * (r * z[:, None] + math.sqrt(max(0.0, 1 - r * r)) * z)
    return u, v, weights


def reference(name: str, v1: float, v2: float, c: float) -> tuple[float, float]:
    """E psi(u) psi(v) and E psi'(u) psi'(v) of psi = SCALE (phi - CONSTANT)."""
    if name in SMOOTH:
        phi, slope = SMOOTH[name]
        u, v, weights = grid(v1, v2, c)
        value = (weights * (phi(u) - CONSTANT) * (phi(v) - CONSTANT)).sum()
        return SCALE**2 * value, SCALE**2 * (weights * slope(u) * slope(v)).sum()
    if name == "gelu":
        base: oracles.Activation = oracles.GELU_
        means = [v / math.sqrt(2 * math.pi * (1 + v)) for v in (v1, v2)]
    else:
        base = oracles.LeakyReLU(0.2 if name == "leaky_relu" else 0.0)
        means = [(1 - float(base.n)) * math.sqrt(v / (2 * math.pi)) for v in (v1, v2)]
    exact = [mp.mpf(x) for x in (v1, v2, c)]
    value = float(base.G(*exact)) - CONSTANT * sum(means) + CONSTANT**2
    return SCALE**2 * value, SCALE**2 * float(base.P(*exact))


def pair(v1: float, v2: float, c: float) -> PairCovariance:
    values = [[[x]] for x in (v1, v2, v1 + v2 - 2 * c, v1 - v2)]
    return PairCovariance(*torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_expectations(name: str) -> None:
    psi = Centered(activation(name), CONSTANT, SCALE)
    for numbers in PAIRS:
        expected = reference(name, *numbers)
        found = pair(*numbers)
        # At correlations of one the series of tanh lacks a tail of 1e-8 for a variance of 3, and
        # the slope is that of an angle: the root of a rounded cosine.
        ends = numbers[2] ** 2 == numbers[0] * numbers[1]
        series = 1e-7 if name in SMOOTH else 1e-11
        dual = psi.dual(found)
        assert dual.cov.item() == pytest.approx(expected[0], abs=series if ends else 1e-11)
        slope = psi.derivative_dual(found).item()
        assert slope == pytest.approx(expected[1], abs=1e-6 if ends else 1e-11)
        variance = reference(name, numbers[0], numbers[0], numbers[0])[0]
        assert dual.var1.item() == pytest.approx(variance, abs=series)
        assert dual.vardiff.item() == pytest.approx((dual.var1 - dual.var2).item(), abs=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_diagonals(name: str) -> None:
    psi = Centered(activation(name), CONSTANT, SCALE)
    variances = [0.01, 0.3, 1.0, 3.0]
    column = torch.tensor(variances, dtype=torch.float64).reshape(-1, 1)
    expected = torch.tensor([reference(name, v, v, v) for v in variances], dtype=torch.float64)
    # the tail of the series, as above
    torch.testing.assert_close(psi.diagonal(column), expected[:, :1], rtol=1e-7, atol=0)
    torch.testing.assert_close(psi.derivative_diagonal(column), expected[:, 1:], rtol=1e-6, atol=0)
    h = 1e-5
    steps = [
        (reference(name, v + h, v + h, v + h)[0] - reference(name, v - h, v - h, v - h)[0])
        / (2 * h)
        for v in variances
    ]
    # differences err by h^2 g'''/6, where relu has sqrt(v) and v = 0.01 makes it 1e-5 of the slope
    expected = torch.tensor(steps, dtype=torch.float64).reshape(-1, 1)
    torch.testing.assert_close(psi.diagonal_slope(column), expected, rtol=1e-6, atol=1e-6)
    value, slope = psi.diagonal_and_slope(column)
    torch.testing.assert_close(value, psi.diagonal(column), rtol=1e-13, atol=0)
    torch.testing.assert_close(slope, psi.diagonal_slope(column), rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_variance_slopes(name: str) -> None:
    """By differences of the reference at fixed covariance."""
    psi, h = Centered(activation(name), CONSTANT, SCALE), 1e-5
    for v1, v2, c in PAIRS[:3]:
        found = pair(v1, v2, c)
        features = psi.features(found.var1), psi.features(found.var2.mT)
        slopes = psi.variance_slopes(*features, found.sqdist)
        first = (reference(name, v1 + h, v2, c)[0] - reference(name, v1 - h, v2, c)[0]) / (2 * h)
        second = (reference(name, v1, v2 + h, c)[0] - reference(name, v1, v2 - h, c)[0]) / (2 * h)
        # h^2 times a third derivative, of order v^-2, and eps/h
        assert slopes[0].item() == pytest.approx(first, abs=1e-8)
        assert slopes[1].item() == pytest.approx(second, abs=1e-8)
        assert psi.variance_slope(found).item() == slopes[0].item()


@pytest.mark.parametrize("name", [name for name in NAMES if activation(name).smooth])
def test_slopes_of_the_derivative(name: str) -> None:
    """By differences of the reference's P, which err by h^2 times a third derivative and eps/h."""
    psi, h = Centered(activation(name), CONSTANT, SCALE), 1e-5
    assert psi.smooth
    for v1, v2, c in PAIRS[:3]:
        found = pair(v1, v2, c)
        given = psi.features(found.var1), psi.features(found.var2.mT), found.sqdist
        by_cov = (reference(name, v1, v2, c + h)[1] - reference(name, v1, v2, c - h)[1]) / (2 * h)
        by_var1 = (reference(name, v1 + h, v2, c)[1] - reference(name, v1 - h, v2, c)[1]) / (2 * h)
        by_var2 = (reference(name, v1, v2 + h, c)[1] - reference(name, v1, v2 - h, c)[1]) / (2 * h)
        assert psi.curvature(*given).item() == pytest.approx(by_cov, abs=1e-8)
        slopes = [slope.item() for slope in psi.derivative_variance_slopes(*given)]
        assert slopes == pytest.approx([by_var1, by_var2], abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_many_pairs_at_once(name: str) -> None:
    """Batches of matrices have the values of their pairs."""
    psi = Centered(activation(name), CONSTANT, SCALE)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dual = psi.dual(PairCovariance.from_inputs(x, y, 0.1))
    assert dual.cov.shape == (2, 5, 4)
    for batch, i, j in ((0, 0, 0), (1, 4, 3), (0, 2, 3)):
        v1, v2 = x[batch, i].square().sum() + 0.1, y[batch, j].square().sum() + 0.1
        c = x[batch, i] @ y[batch, j] + 0.1
        expected = reference(name, v1.item(), v2.item(), c.item())[0]
        # variances up to 10: a longer tail of the series
        assert dual.cov[batch, i, j].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_zero_variance(name: str) -> None:
    """An input of variance zero is the constant psi(0), and its gradient is finite."""
    psi = Centered(activation(name), CONSTANT, SCALE)
    start = psi(torch.zeros((), dtype=torch.float64)).item()
    variance = torch.tensor([[0.0], [1.0]], dtype=torch.float64, requires_grad=True)
    sqdist = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    dual = psi.dual(PairCovariance(variance, variance.mT, sqdist, variance - variance.mT))
    assert dual.cov[0, 0].item() == pytest.approx(start**2, abs=1e-14)
    weights = np.exp(-np.square(np.arange(-900, 901) * 0.01) / 2) * 0.01 / math.sqrt(2 * math.pi)
    values = psi(torch.arange(-900, 901, dtype=torch.float64) * 0.01).numpy()
    # the step of the rule, squared over 12, at a kink
    assert dual.cov[0, 1].item() == pytest.approx(start * (weights @ values), abs=2e-5)
    assert psi.diagonal(variance)[0].item() == pytest.approx(start**2, abs=1e-14)
    slopes = psi.variance_slopes(*(psi.features(variance) for _ in range(2)), sqdist)
    for value in (*slopes, psi.diagonal_slope(variance), psi.derivative_diagonal(variance)):
        assert bool(value.isfinite().all())
    (gradient,) = torch.autograd.grad(dual.cov.sum() + psi.diagonal(variance).sum(), variance)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", ["gelu", "softplus", "tanh", "silu", "elu"])
def test_slope_at_zero_variance_is_that_of_differences(name: str) -> None:
    psi, h = Centered(activation(name), CONSTANT, SCALE), 1e-7
    steps = torch.tensor([[0.0], [h], [4 * h]], dtype=torch.float64)
    zero, one, four = psi.diagonal(steps).flatten().tolist()
    # weights without an error of order h^1.5: the second derivative of ELU jumps
    expected = (8 * (one - zero) - (four - zero)) / (4 * h)
    # they err by h times the second derivative, at most 6, and eps/h
    assert psi.diagonal_slope(steps[:1]).item() == pytest.approx(expected, abs=3e-6)


def test_slope_of_a_mean_at_zero_is_half_the_second_derivative() -> None:
    variances = torch.tensor([[0.0], [1e-20], [1e-10]], dtype=torch.float64)
    half = {"softplus": 0.125, "silu": 0.25, "gelu": 1 / math.sqrt(2 * math.pi), "tanh": 0.0}
    for name, expected in half.items():
        slope = Centered(activation(name), 1.0)._mean_slope(variances)
        # rounding of the expectation, 2^-53, over twice the root of 2^-52, a few times
        assert slope.flatten().tolist() == pytest.approx([expected] * 3, abs=2e-8), name


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_gradients(name: str) -> None:
    psi = Centered(activation(name), CONSTANT, SCALE)

    def function(var1: Tensor, var2: Tensor, sqdist: Tensor) -> tuple[Tensor, Tensor]:
        features = psi.features(var1), psi.features(var2.mT)
        return psi.expectations(*features, sqdist)[0], psi.diagonal(var1)

    point = [
        torch.tensor(x, dtype=torch.float64, requires_grad=True)
        for x in ([[0.7], [1.3]], [[0.9, 2.0]], [[1.1, 2.0], [1.5, 2.5]])
    ]
    assert torch.autograd.gradcheck(function, point, eps=1e-6, atol=1e-7)


def test_what_an_activation_tells() -> None:
    psi = Centered(ReLU(), CONSTANT, SCALE)
    assert psi.lipschitz == SCALE
    assert psi.critical_weight_variance == pytest.approx(2 / SCALE**2)
    assert not psi.homogeneous
    assert Centered(GELU(), 0.1, -2.0).lipschitz == pytest.approx(2 * GELU().lipschitz)
    u = torch.linspace(-2, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(psi(u), SCALE * (u.relu() - CONSTANT), rtol=0, atol=0)
    assert repr(psi) == "Centered(ReLU(), 0.37, 1.7)"


def test_constants_add_up() -> None:
    """Centred twice: s2 (s1 (phi - c1) - c2)."""
    twice = Centered(Centered(GELU(), 0.3, 1.5), -0.2, 0.8)
    once = Centered(GELU(), 0.3 - 0.2 / 1.5, 1.2)
    found = pair(0.7, 1.9, -0.5)
    torch.testing.assert_close(twice.dual(found), once.dual(found), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        twice.variance_slope(found), once.variance_slope(found), rtol=1e-12, atol=1e-13
    )
    u = torch.linspace(-2, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(twice(u), once(u))


def test_single_precision() -> None:
    psi = Centered(ReLU(), CONSTANT, SCALE)
    wide = pair(1.0, 2.0, 0.3)
    narrow = PairCovariance(*(value.float() for value in wide))
    assert psi.dual(narrow).cov.dtype == torch.float32
    torch.testing.assert_close(psi.dual(narrow).cov.double(), psi.dual(wide).cov, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_equilibrium(share: float, size: float) -> None:
    """The DEQ kernel of a centred activation solves Sigma = w G(Sigma) + b; 60 digits.

    Up to the critical weight variance, which for ReLU is twice what its largest slope allows.
    """
    psi = Centered(ReLU(), CONSTANT, SCALE)
    kernel = DEQNNGPKernel(psi).double()
    kernel.weight_variance = share * psi.critical_weight_variance
    kernel.lengthscale, kernel.bias_variance = 1.0, 0.2
    w = mp.mpf(kernel.weight_variance.item())
    x = size * torch.tensor([[0.7, -1.1], [1.9, 0.4]], dtype=torch.float64)
    base, scale, constant = oracles.RELU, mp.mpf(SCALE), mp.mpf(CONSTANT)

    class Reference(oracles.Activation):
        def phi(self, u: oracles.Real) -> oracles.Real:
            return scale * (base.phi(u) - constant)

        def G(self, v1: oracles.Real, v2: oracles.Real, c: oracles.Real) -> oracles.Real:
            means = (mp.sqrt(v1) + mp.sqrt(v2)) / mp.sqrt(2 * mp.pi)
            return scale**2 * (base.G(v1, v2, c) - constant * means + constant**2)

    phi = Reference()
    b = (x @ x.mT / 2 + kernel.bias_variance.item()).tolist()
    v1, v2 = (phi.solve_variance(w, mp.mpf(b[i][i])) for i in (0, 1))
    c = phi.solve_covariance(w, v1, v2, mp.mpf(b[0][1]))
    found = kernel(x).to_dense()
    # the injected covariance and the scale's square are rounded
    assert found[0, 1].item() == pytest.approx(float(phi.G(v1, v2, c)), rel=1e-12)
    assert found[0, 0].item() == pytest.approx(float(phi.G(v1, v1, v1)), rel=1e-12)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_distances_keep_their_digits(name: str) -> None:
    """A constant leaves them alone, also those of inputs that nearly coincide."""
    x = torch.tensor([[0.5, -1.25, 0.75]], dtype=torch.float64)
    pair = PairCovariance.from_inputs(x, x + 1e-7, 0.1)
    found = Centered(activation(name), CONSTANT, SCALE).dual(pair)
    expected = SCALE**2 * activation(name).dual(pair).sqdist
    assert torch.allclose(found.sqdist, expected, rtol=1e-14, atol=0.0)
