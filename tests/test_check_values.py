"""Frozen values of the DEQ kernels, for the package and for the tests' own reference.

The numbers were computed with 40 digits independently of the package and of ``oracles.py``
(the parameters are the doubles nearest to what is written) and are printed with 16 digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from oracles import ACTIVATIONS, TRAINED, Activation, LeakyReLU, Real, deq, injected, mp

from gp_deq import DEQNNGPKernel, DEQNTKKernel

A = (0.5, -1.25, 0.75)
B = (-0.25, 0.375, 1.125)
C = (0.5 + 2.0**-20, -1.25, 0.75)
D = (-1.0, 2.5, -1.5)
POINTS = {"A": A, "B": B, "C": C, "D": D}
ARD = (1.0, 2.0, 0.5)

# activation, weight variance, bias variance, lengthscale, pair,
# DEQ-NNGP, DEQ-NTK "all", squared kernel distance of the NNGP, of the NTK
TABLE = """
relu 0.5 0.25 1 AB 0.3276175832755928 0.5168836638186288 0.5322648334488143 1.737066005696076
relu 1.5 0.0 ARD AB 2.253164801532996 7.100928040436177 0.8608578969340081 12.63408141912765
relu 1.98 0.25 1 AB 41.06484680245031 320.7687066621417 6.93280639509931 8353.775086675701
relu 1.98 0.25 1 AC 52.08334128061926 5260.331684917267 1.515809190056725e-11 0.1715688520785736
relu 0.5 0.25 1 AC 0.6944445504082574 1.620370414274001 2.021099065039449e-13 4.066910035582646e-7
relu 1.5 0.0 1 AD 0.9796970604116771 0.9350092798028186 5.957272545843312 37.7133147737277
erf 0.5 0.25 1 AB 0.1646355394471674 0.3758254000278179 0.64281288093581 1.898065899986036
erf 0.75 0.0 ARD AB 0.4173151543675857 1.088363912283074 0.2909877322287479 1.323480893759924
erf 0.75 0.25 1 AC 0.5326448952599645 1.647456413494144 2.204190783554083e-13 1.251451588663441e-12
tanh 0.5 0.25 1 AA 0.4364675176767195 1.114498975471506 0 0
tanh 0.5 0.25 1 AB 0.1423433312516891 0.3189631842590918 0.5329454107729159 1.441003841862336
tanh 0.9375 0.0 ARD AB 0.3730006645592147 0.9710966245368596 0.247060042632644 1.047488798293219
tanh 0.5 0.25 1 AC 0.4364675425448678 1.114499045461869 1.530535128739479e-13 5.58899722216772e-13
"""


def parse(line: str) -> tuple:
    """One row: names, parameters, the two values, the two squared distances."""
    name, w, bias, lengthscale, pair, *numbers = line.split()
    scale = ARD if lengthscale == "ARD" else float(lengthscale)
    nngp, ntk, nngp_distance, ntk_distance = map(float, numbers)
    return name, float(w), float(bias), scale, pair, (nngp, ntk), (nngp_distance, ntk_distance)


ROWS = [parse(line) for line in TABLE.strip().splitlines()]
IDS = [f"{row[0]}-{row[1]}-{row[4]}" for row in ROWS]


def kernel_for(cls: type, name: str, w: float, bias: float, lengthscale, **kwargs):
    """A double-precision kernel with the given hyperparameters."""
    ard = None if isinstance(lengthscale, float) else len(lengthscale)
    kernel = cls(activation=name, ard_num_dims=ard, **kwargs).double()
    kernel.lengthscale = torch.tensor(lengthscale, dtype=torch.float64)
    kernel.weight_variance = w
    kernel.bias_variance = bias
    return kernel


def exact_parameters(kernel) -> tuple[float, float, list[float]]:
    """Weight variance, bias variance and lengthscales as the kernel has them."""
    return (
        kernel.weight_variance.item(),
        kernel.bias_variance.item(),
        kernel.lengthscale.detach().flatten().tolist(),
    )


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_reference_equals_the_table(row: tuple) -> None:
    """oracles.py reproduces the 16 printed digits, squared distances at near duplicates too."""
    name, w, bias, lengthscale, pair, (nngp, ntk), (nngp_distance, ntk_distance) = row
    phi, x, y = ACTIVATIONS[name], POINTS[pair[0]], POINTS[pair[1]]
    got = []
    for trained in (None, "all"):
        k11, k22, k12 = (
            deq(phi, w, injected(p, q, bias, lengthscale), trained)
            for p, q in ((x, x), (y, y), (x, y))
        )
        got += [k12, k11 + k22 - 2 * k12]
    expected = [nngp, nngp_distance, ntk, ntk_distance]
    # half a unit of the 16th digit (or of the 13th to 15th where a row ends in zeros) and the
    # rounding of the literal to a double
    for value, literal in zip(got, expected):
        assert abs(value - literal) <= 6e-16 * abs(literal)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_kernels_equal_the_table(row: tuple) -> None:
    name, w, bias, lengthscale, pair, (nngp, ntk), _ = row
    x, y = (torch.tensor([POINTS[p]], dtype=torch.float64) for p in pair)
    # 1e-12: the problem's condition number in w, 1/(1 - w/critical), is 100 at most, times the
    # few eps by which setting and reading w through its constraint may move it.  For tanh at
    # degree 64 the series ends at about 1e-9 relative at these variances (below 0.8) where
    # r = 1, and below 1e-12 for the pairs of other points.
    rtol = 1e-9 if name == "tanh" else 1e-12
    for cls, expected in ((DEQNNGPKernel, nngp), (DEQNTKKernel, ntk)):
        kernel = kernel_for(cls, name, w, bias, lengthscale)
        for value in (kernel(x, y).to_dense(), kernel(x, y, diag=True)):
            assert value.item() == pytest.approx(expected, rel=rtol, abs=0)


@pytest.mark.parametrize("trained", TRAINED)
def test_relu_diagonal(trained: str) -> None:
    """The closed forms of the diagonal for ReLU: v = b/(1 - w/2), G = v/2, P = 1/2."""
    w, bias = 1.5, 0.25
    v = ((0.25 + 1.5625 + 0.5625) / 3 + bias) / 0.25
    gain = 1 / (1 - w / 2)
    expected = {
        "all": v / 2 * (1 + gain),
        "hidden": v / 2 * gain,
        "recurrent": v / 2 * gain,
        "preactivation": v * gain,
    }[trained]
    kernel = kernel_for(DEQNTKKernel, "relu", w, bias, 1.0, trained=trained)
    x = torch.tensor([A], dtype=torch.float64)
    assert kernel(x, diag=True).item() == pytest.approx(expected, rel=1e-13)
    assert float(deq(ACTIVATIONS["relu"], w, injected(A, A, bias), trained)) == pytest.approx(
        expected, rel=1e-15
    )


# ------------------------------------------------------------------------------------------
# The closed forms that the reference uses, against quadrature
# ------------------------------------------------------------------------------------------


def trapezoid(f: Callable, g: Callable, v1: Real, v2: Real, c: Real) -> Real:
    """E f(u) g(v) for entire f and g.

    Growing at most like exp(s^2 y^2) off the real line, s^2 < 1.7 here, the integrand times
    the Gaussian makes the rule of step h err by exp(-pi^2/(h^2 (2 s^2 + 1/2))): 1e-25 at 0.2.
    """
    h = mp.mpf(1) / 5
    s1, r = mp.sqrt(v1), c / mp.sqrt(v1 * v2)
    along, across = mp.sqrt(v2) * r, mp.sqrt(v2 * (1 - r * r))
    nodes = [(k * h, h * mp.npdf(k * h)) for k in range(-54, 55)]
    total = mp.mpf(0)
    for z1, w1 in nodes:
        inner = mp.fsum(w2 * g(along * z1 + across * z2) for z2, w2 in nodes)
        total += w1 * f(s1 * z1) * inner
    return total


def polar(phi: LeakyReLU, of: str, v1: Real, v2: Real, c: Real) -> Real:
    """The same for a piecewise linear function: z = R (cos t, sin t), E R^2 = 2."""
    s1, s2 = mp.sqrt(v1), mp.sqrt(v2)
    angle = mp.acos(c / (s1 * s2))  # u = s1 R cos t, v = s2 R cos(t - angle)
    f = phi.phi if of == "G" else phi.slope

    def integrand(t: Real) -> Real:
        return f(s1 * mp.cos(t)) * f(s2 * mp.cos(t - angle))

    kinks = sorted({-mp.pi / 2, mp.pi / 2, angle - mp.pi / 2, angle + mp.pi / 2, 3 * mp.pi / 2})
    total = mp.quad(integrand, kinks)  # one period, split where a factor changes sign
    return total / mp.pi if of == "G" else total / (2 * mp.pi)


PAIRS = [("0.3", "1.7", "0.4"), ("0.9", "0.8", "-0.6"), ("1.25", "0.05", "0.2")]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", ["erf", "sin", "gelu"])
def test_closed_forms_of_smooth_activations(name: str, pair: tuple) -> None:
    phi: Activation = ACTIVATIONS[name]
    with mp.workdps(30):
        v1, v2, c = (mp.mpf(v) for v in pair)
        assert abs(trapezoid(phi.phi, phi.phi, v1, v2, c) - phi.G(v1, v2, c)) < 1e-20
        assert abs(trapezoid(phi.slope, phi.slope, v1, v2, c) - phi.P(v1, v2, c)) < 1e-20


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("negative_slope", [0.0, 0.01, 0.5, -1.0])
def test_closed_forms_of_piecewise_linear_activations(negative_slope: float, pair: tuple) -> None:
    phi = LeakyReLU(negative_slope)
    with mp.workdps(30):
        v1, v2, c = (mp.mpf(v) for v in pair)
        assert abs(polar(phi, "G", v1, v2, c) - phi.G(v1, v2, c)) < 1e-25
        assert abs(polar(phi, "P", v1, v2, c) - phi.P(v1, v2, c)) < 1e-25


@pytest.mark.parametrize("name", ["erf", "gelu", "tanh", "sin"])
def test_lipschitz_constants(name: str) -> None:
    """The reference's sup |phi'|, on a grid of step 2e-3 refined by its own second difference."""
    phi = ACTIVATIONS[name]
    with mp.workdps(20):
        slopes = [abs(phi.slope(mp.mpf(k) / 500)) for k in range(-3500, 3501)]
    # a maximum between nodes is missed by at most h^2/8 sup|phi'''| < 5e-7 sup|phi'''|, and
    # sup|phi'''| <= 4/sqrt(pi) for these four
    assert -1e-19 < phi.lipschitz - max(slopes) < 5e-7 * 4 / math.sqrt(math.pi)
