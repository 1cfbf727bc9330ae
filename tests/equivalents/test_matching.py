"""Designs of explicit networks: the equations they are to satisfy, evaluated by other means."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import oracles
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import Real, mp

from gp_deq.equivalents import high_dimensional_coefficients
from gp_deq.equivalents.matching import (
    Layer,
    Target,
    hard_tanh_design,
    leaky_relu_design,
    propagate,
)

Function = Callable[[np.ndarray], np.ndarray]


def layer(sigma: Function, tau: float, kinks: tuple[float, ...]) -> tuple[Layer, float]:
    """Expectations of a centred function and its mean.

    Gauss-Legendre rules of 20 nodes on panels of width one at most between the kinks, on [-12, 12]:
    polynomials times the normal density there, to rounding.
    """
    edges = sorted({*range(-12, 13), *(kink / tau for kink in kinks if abs(kink) < 12 * tau)})
    points, masses = np.polynomial.legendre.leggauss(20)
    middle, half = np.add(edges[1:], edges[:-1]) / 2, np.diff(edges) / 2
    z = (middle[:, None] + half[:, None] * points).ravel()
    weights = (half[:, None] * masses).ravel() * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    value = sigma(tau * z)
    mean = float(weights @ value)
    square = (value - mean) ** 2
    first, second = weights @ (z * value) / tau, weights @ ((z * z - 1) * value) / tau**2
    bend = weights @ ((z * z - 1) * square) / tau**2
    return Layer(float(first**2), float(second**2), float(bend), float(weights @ square)), mean


def leaky_network(parameters: tuple[float, ...], tau0: float) -> Target:
    layers, tau = [], tau0
    for a, b in (parameters[:2], parameters[2:]):
        found, _ = layer(lambda u, a=a, b=b: np.maximum(a * u, b * u), tau, (0.0,))
        layers.append(found)
        tau = math.sqrt(found.variance)
    return propagate(layers, tau0)


def hard_tanh_network(parameters: tuple[float, ...], tau0: float) -> Target:
    a, c = parameters
    return propagate([layer(lambda u: a * u.clip(-c, c), tau0, (-c, c))[0]], tau0)


def target(activation: str, weight: float, unit: float, tau0: float) -> Target:
    """With respect to XX^T."""
    found = high_dimensional_coefficients(activation, weight, unit, tau0).paper_scaling()
    alphas = (found.alpha_1.item(), found.alpha_2.item(), found.alpha_3.item())
    return Target(*alphas, found.gamma.item() ** 2, tau0)


def check(found: Target, expected: Target, rtol: float) -> None:
    """The four equations."""
    unit = expected.tau0**2
    scale = max(expected.alpha_1, expected.variance / unit)
    assert found.alpha_1 == pytest.approx(expected.alpha_1, abs=rtol * scale)
    assert found.alpha_2 * unit == pytest.approx(expected.alpha_2 * unit, abs=rtol * scale)
    assert found.alpha_3 * unit == pytest.approx(expected.alpha_3 * unit, abs=rtol * scale)
    rest = found.variance / unit - found.alpha_1
    assert rest == pytest.approx(expected.variance / unit - expected.alpha_1, abs=rtol * scale)


# ------------------------------------------------------------------------------------------
# The recursion
# ------------------------------------------------------------------------------------------


def test_propagation_is_the_expansion_of_the_composed_kernel() -> None:
    """Two layers of exact expectations, differentiated at orthogonal inputs of equal norm.

    Sixty digits and differences of step 1e-12: what is left is 1e-24; the layers' expectations are
    quadrature to 1e-14.
    """
    tau0, slopes = mp.mpf("1.3"), [("0.9", "0.2"), ("1.4", "-0.3")]
    level, tau, layers = tau0**2, float(tau0), []
    functions: list[tuple[oracles.LeakyReLU, Real]] = []
    for positive, negative in slopes:
        reference = oracles.LeakyReLU(mp.mpf(negative), mp.mpf(positive))
        found, mean = layer(
            lambda u, p=float(positive), n=float(negative): np.where(u > 0, p * u, n * u),
            tau,
            (0.0,),
        )
        layers.append(found)
        variance = reference.G(level, level, level)
        constant = (reference.p - reference.n) * mp.sqrt(level / (2 * mp.pi))
        assert mean == pytest.approx(float(constant), rel=1e-12)
        functions.append((reference, constant))
        level = variance - constant**2
        tau = float(mp.sqrt(level))

    def composed(v1: Real, v2: Real, c: Real) -> Real:
        for reference, constant in functions:

            def centred(
                x: Real, y: Real, z: Real, f: oracles.LeakyReLU = reference, m: Real = constant
            ) -> Real:
                means = (f.p - f.n) * (mp.sqrt(x) + mp.sqrt(y)) / mp.sqrt(2 * mp.pi)
                return f.G(x, y, z) - m * means + m**2

            v1, v2, c = centred(v1, v1, v1), centred(v2, v2, v2), centred(v1, v2, c)
        return c

    h, v = mp.mpf("1e-12"), tau0**2
    zero = mp.mpf(0)
    up, down, middle = (composed(v, v, c) for c in (h, -h, zero))
    corners = [i * j * composed(v + i * h, v + j * h, zero) for i in (1, -1) for j in (1, -1)]
    found = propagate(layers, float(tau0))
    assert found.alpha_1 == pytest.approx(float((up - down) / (2 * h)), rel=1e-11)
    assert found.alpha_2 == pytest.approx(float(sum(corners) / (4 * h**2)), rel=1e-11)
    assert found.alpha_3 == pytest.approx(float((up + down - 2 * middle) / (2 * h**2)), rel=1e-11)
    assert found.variance == pytest.approx(float(composed(v, v, v)), rel=1e-11)


# ------------------------------------------------------------------------------------------
# Designs
# ------------------------------------------------------------------------------------------

# Solutions printed by others to four digits, for XX^T with sigma_b^2 = 1 - w and tau0 = 1.
PRINTED = [
    ("relu", 0.1, (2.0460, 1.4724, 0.5460, 0.0001)),
    ("relu", 0.2, (0.3529, 0.2171, 3.2167, 0.0033)),
    ("relu", 0.3, (0.2589, 0.1387, 4.3648, 0.0114)),
    ("tanh", 0.1, (0.7804, 1.1878)),
    ("tanh", 0.2, (0.7643, 1.1965)),
    ("tanh", 0.3, (0.7459, 1.2069)),
]
row = pytest.mark.parametrize(
    "name, weight, parameters", PRINTED, ids=[f"{name}-{weight}" for name, weight, _ in PRINTED]
)


@row
def test_printed_solutions(name: str, weight: float, parameters: tuple[float, ...]) -> None:
    """The last digit, half a unit of 1e-4 in a slope of 0.14 at least, is 4e-4 of a square."""
    network = leaky_network if len(parameters) == 4 else hard_tanh_network
    check(network(parameters, 1.0), target(name, weight, 1 - weight, 1.0), 5e-4)


@row
def test_designs_of_the_table(name: str, weight: float, parameters: tuple[float, ...]) -> None:
    wanted = target(name, weight, 1 - weight, 1.0)
    if name == "tanh":
        design = hard_tanh_design(wanted)
        assert tuple(round(value, 4) for value in design.parameters) == parameters
        found = hard_tanh_network(design.parameters, 1.0)
    else:  # not unique
        design = leaky_relu_design(wanted)
        found = leaky_network(design.parameters, 1.0)
    assert design.family == ("hard-tanh" if name == "tanh" else "leaky-relu")
    assert design.residual < 1e-20
    # the root of the residual's bound; the quadrature is good to 1e-14
    check(found, wanted, 1e-10)


@pytest.mark.parametrize("tau0", [1e-3, 0.6, 50.0])
@pytest.mark.parametrize(
    "activation, weight", [("relu", 1e-6), ("relu", 0.2), ("relu", 0.7), ("leaky_relu", 0.3)]
)
def test_leaky_relu_designs(activation: str, weight: float, tau0: float) -> None:
    wanted = target(activation, weight, 1.0, tau0)
    design = leaky_relu_design(wanted)
    assert design.residual < 1e-20
    check(leaky_network(design.parameters, tau0), wanted, 1e-10)


@pytest.mark.parametrize("tau0", [0.1, 1.0, 3.0])
@pytest.mark.parametrize(
    "activation, weight", [("tanh", 1e-6), ("tanh", 0.7), ("erf", 0.5), ("sigmoid", 3.0)]
)
def test_hard_tanh_designs(activation: str, weight: float, tau0: float) -> None:
    wanted = target(activation, weight, 1.0, tau0)
    design = hard_tanh_design(wanted)
    assert design.residual < 1e-20
    check(hard_tanh_network(design.parameters, tau0), wanted, 1e-10)


@settings(max_examples=60, deadline=None)
@given(a=st.floats(0.05, 5.0), ratio=st.floats(0.05, 3.5), tau0=st.floats(1e-4, 1e4))
def test_hard_tanh_is_recovered(a: float, ratio: float, tau0: float) -> None:
    """The parameters are unique; tau^2/g1 is flat at both ends, which limits the digits of c."""
    c = ratio * tau0
    wanted = hard_tanh_network((a, c), tau0)
    design = hard_tanh_design(wanted)
    assert design.residual < 1e-20
    assert design.parameters == pytest.approx((a, c), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    first=st.tuples(st.floats(0.3, 3.0), st.floats(-0.9, 0.9)),
    second=st.tuples(st.floats(0.3, 3.0), st.floats(-0.9, 0.9)),
    tau0=st.floats(1e-3, 1e3),
)
def test_a_leaky_network_has_a_match(
    first: tuple[float, float], second: tuple[float, float], tau0: float
) -> None:
    """What two layers have, two layers can have: found, if not with the same slopes."""
    assume(min(abs(first[1]), abs(second[1])) > 0.05)  # with a little curvature in each
    slopes = [(a, a * ratio) for a, ratio in (first, second)]
    wanted = leaky_network((*slopes[0], *slopes[1]), tau0)
    design = leaky_relu_design(wanted)
    assert design.residual < 1e-20
    check(leaky_network(design.parameters, tau0), wanted, 1e-9)


def test_best_there_is() -> None:
    """Without a match the residual says so."""
    assert leaky_relu_design(target("tanh", 0.2, 0.8, 1.0)).residual > 1e-4
    assert hard_tanh_design(target("relu", 0.2, 0.8, 1.0)).residual > 1e-4
    # tau^2 / g1 of a hard tanh lies between 1 and pi/2 times tau0^2
    for variance in (0.1, 5.0):
        assert hard_tanh_design(Target(0.5, 0.0, 0.0, variance, 1.0)).residual > 1e-2
