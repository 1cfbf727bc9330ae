"""Gaussian expectations against many-digit values, and the properties every kernel relies on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    ACTIVATIONS,
    IDENTITY,
    RELU,
    Injected,
    LeakyReLU,
    Real,
    hermite_coefficients,
    mp,
    variance_after,
)
from oracles import Activation as Reference
from torch import Tensor

from gp_deq.activations import (
    GELU,
    Activation,
    Erf,
    Hermite,
    Identity,
    PairCovariance,
    ReLU,
    Sine,
    get_activation,
)
from gp_deq.activations import (
    LeakyReLU as PackageLeakyReLU,
)

EPS = 2.0**-52
CLOSED: dict[str, tuple[Activation, Reference]] = {
    "relu": (ReLU(), RELU),
    "leaky_relu": (PackageLeakyReLU(0.01), LeakyReLU(0.01)),
    "leaky_relu_steep": (PackageLeakyReLU(-0.6), LeakyReLU(-0.6)),
    "erf": (Erf(), ACTIVATIONS["erf"]),
    "sin": (Sine(), ACTIVATIONS["sin"]),
    "gelu": (GELU(), ACTIVATIONS["gelu"]),
    "identity": (Identity(), IDENTITY),
}
# What a squared distance after the activation may err by, relative (see `test_near_duplicates`).
DISTANCE_RTOL = {"erf": 1e-13, "gelu": 1e-13}


def points(*rows: list[float] | tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def exact(x: Tensor, y: Tensor, bias: float) -> Injected:
    """Variances and covariance of two points, from the doubles, without rounding."""
    p, q = ([mp.mpf(v) for v in t.tolist()] for t in (x, y))

    def inner(a: list[Real], b: list[Real]) -> Real:
        return mp.fsum(s * t for s, t in zip(a, b)) + mp.mpf(bias)

    return Injected(inner(p, p), inner(q, q), inner(p, q))


def random_points(seed: int, n: int, d: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------------------
# Values
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-4, 0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("name", CLOSED)
def test_duals(name: str, scale: float) -> None:
    """Covariance, both variances and the derivative's dual of generic pairs.

    The covariance is bounded by the mean of the variances after the activation and its error is
    held to 32 eps of that: the pair is given to a few eps of its variances, and by Price's
    theorem and Cauchy-Schwarz relative errors of the pair do not grow beyond a small factor.
    The derivative's dual is held to 32 eps (1 + v) of its own bound: it is a function of the
    angle between vectors of length sqrt(v), whose error v eps is not small for a bounded
    activation, where it falls off on the scale 1 of the pre-activation.
    """
    activation, reference = CLOSED[name]
    x1, x2 = random_points(1, 4, 3, scale), random_points(2, 5, 3, scale)
    pair = PairCovariance.from_inputs(x1, x2, 0.1)
    dual, slope = activation.dual(pair), activation.derivative_dual(pair)
    assert dual.cov.shape == slope.shape == (4, 5)
    bound = float(reference.lipschitz) ** 2
    for i in range(4):
        for j in range(5):
            s = exact(x1[i], x2[j], 0.1)
            g11, g22 = reference.G(s.b11, s.b11, s.b11), reference.G(s.b22, s.b22, s.b22)
            mean = float((g11 + g22) / 2)
            assert dual.var1[i, 0].item() == pytest.approx(float(g11), rel=16 * EPS, abs=0)
            assert dual.var2[0, j].item() == pytest.approx(float(g22), rel=16 * EPS, abs=0)
            assert abs(dual.cov[i, j].item() - reference.G(*s)) < 32 * EPS * mean
            assert abs(dual.vardiff[i, j].item() - (g11 - g22)) < 32 * EPS * mean
            room = 32 * EPS * (1 + float(max(s.b11, s.b22))) * bound
            assert abs(slope[i, j].item() - reference.P(*s)) < room


@pytest.mark.parametrize("name", CLOSED)
def test_diagonals(name: str) -> None:
    activation, reference = CLOSED[name]
    variance = torch.logspace(-16, 8, 25, dtype=torch.float64).unsqueeze(-1)
    got = activation.diagonal(variance), activation.derivative_diagonal(variance)
    for k, v in enumerate(variance.flatten().tolist()):
        v = mp.mpf(v)
        # a handful of roundings of well-conditioned closed forms of one variable
        assert got[0][k].item() == pytest.approx(float(reference.G(v, v, v)), rel=16 * EPS, abs=0)
        assert got[1][k].item() == pytest.approx(float(reference.P(v, v, v)), rel=16 * EPS, abs=0)


@pytest.mark.parametrize("name", CLOSED)
def test_zero_variance(name: str) -> None:
    """A zero pre-activation gives phi(0) = 0: no covariance, no distance from itself, no NaN."""
    activation, reference = CLOSED[name]
    x1, x2 = points([0.0, 0.0], [1.0, -0.5]), points([0.0, 0.0])
    pair = PairCovariance.from_inputs(x1, x2, 0.0)
    dual = activation.dual(pair)
    assert dual.cov[0, 0] == dual.sqdist[0, 0] == 0
    assert abs(dual.cov[1, 0].item()) <= EPS  # half of var1 - sqdist, a few ulp of 1 at most
    g = float(reference.G(mp.mpf(1.25), mp.mpf(1.25), mp.mpf(1.25)))
    assert dual.sqdist[1, 0].item() == pytest.approx(g, rel=8 * EPS)
    assert torch.isfinite(activation.derivative_dual(pair)).all()


@pytest.mark.parametrize("name", CLOSED)
def test_variance_slope(name: str) -> None:
    """dG/dv1 at fixed covariance, against a 20-digit difference of the many-digit dual.

    It is E phi''(u) phi(v)/2, at most Lip sup|phi| or so; the piecewise linear ones give
    sqrt(v2/v1) sin(angle)/(4 pi) times a constant.  The error allowed is 64 eps (1 + v2/v1).
    """
    activation, reference = CLOSED[name]
    x1, x2 = random_points(3, 4, 3, 0.8), random_points(4, 4, 3, 1.2)
    got = activation.variance_slope(PairCovariance.from_inputs(x1, x2, 0.2))
    for i in range(4):
        for j in range(4):
            s = exact(x1[i], x2[j], 0.2)
            room = 64 * EPS * float(1 + s.b22 / s.b11)
            assert abs(got[i, j].item() - reference.variance_slope(*s)) < room


@pytest.mark.parametrize("name", [name for name, (phi, _) in CLOSED.items() if phi.smooth])
def test_slopes_of_the_derivative(name: str) -> None:
    """dP/dc and dP/dv, against 20-digit differences of the many-digit P.

    Some twenty roundings of terms no larger than ``room``: 64 eps of it.
    """
    activation, reference = CLOSED[name]
    x1, x2 = random_points(3, 4, 3, 0.8), random_points(4, 4, 3, 1.2)
    pair = PairCovariance.from_inputs(x1, x2, 0.2)
    given = activation.features(pair.var1), activation.features(pair.var2.mT), pair.sqdist
    curvature = activation.curvature(*given)
    slopes = activation.derivative_variance_slopes(*given)
    for i in range(4):
        for j in range(4):
            s = exact(x1[i], x2[j], 0.2)
            v1, v2, c = s.b11, s.b22, s.b12
            h = v1 * mp.mpf(10) ** -14
            by_cov = (reference.P(v1, v2, c + h) - reference.P(v1, v2, c - h)) / (2 * h)
            by_var1 = (reference.P(v1 + h, v2, c) - reference.P(v1 - h, v2, c)) / (2 * h)
            by_var2 = (reference.P(v1, v2 + h, c) - reference.P(v1, v2 - h, c)) / (2 * h)
            room = 64 * EPS * float(reference.lipschitz) ** 2 * float(1 + max(v1, v2))
            assert abs(curvature[i, j].item() - by_cov) < room
            assert abs(slopes[0][i, j].item() - by_var1) < room
            assert abs(slopes[1][i, j].item() - by_var2) < room


def test_slopes_of_the_derivative_at_a_kink() -> None:
    """P = A - B theta: its slopes exist away from the cusp, and are zero on it."""
    relu = ReLU()
    assert not relu.smooth
    one = torch.ones(1, 1, dtype=torch.float64)
    # at unit variances and covariance c, theta = arccos(c): dtheta/dc = -1/sin, dtheta/dv = c/2sin
    sine, cov = 0.8, 0.6
    given = one, one, 2 * (1 - cov) * one
    by_cov, by_var = relu.curvature(*given), relu.derivative_variance_slopes(*given)
    assert by_cov.item() == pytest.approx(1 / (2 * math.pi * sine), rel=8 * EPS)
    for slope in by_var:
        assert slope.item() == pytest.approx(-cov / (4 * math.pi * sine), rel=8 * EPS)
    assert relu.curvature(one, one, 0 * one).item() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("dims", [1, 3, 40])
def test_differences_of_squared_norms(dims: int, dtype: torch.dtype) -> None:
    """In relative terms, far apart or close, however little the norms differ.

    Norms with twice the digits leave eps**2 of the variance, and the difference some roundings.
    """
    x = random_points(9, 6, dims, 1.3).to(dtype)
    y = torch.cat((x.flip(-1) * (1 + 2.0**-9), -x + 1e-4, x * 1e-3, 100 * x, x))
    got = PairCovariance.from_inputs(x, y, 0.0).vardiff
    eps = torch.finfo(dtype).eps
    for i in range(6):
        for j in range(30):
            first, second = (
                sum(mp.mpf(value) ** 2 for value in row.tolist()) for row in (x[i], y[j])
            )
            room = 4 * eps * abs(first - second) + 4 * dims * eps**2 * (first + second)
            assert abs(got[i, j].item() - (first - second)) <= room


def test_float32_stays_in_float32() -> None:
    for activation, _ in CLOSED.values():
        x = random_points(5, 3, 2, 1.0).float()
        dual = activation.dual(PairCovariance.from_inputs(x, x, 0.1))
        assert all(t.dtype == torch.float32 for t in (*dual, dual.cov))


# ------------------------------------------------------------------------------------------
# Squared distances at near duplicates
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
@pytest.mark.parametrize("name", CLOSED)
def test_near_duplicates(name: str, distance: float) -> None:
    """Squared distances in full relative precision, before and after the activation.

    1e-14 is 45 eps, a dozen roundings with room; erf and gelu have a quotient by a difference
    of products of the variances, so some more: 1e-13, for variances below 10.
    """
    activation, reference = CLOSED[name]
    x = random_points(6, 6, 3, 0.9)
    y = x + distance * torch.nn.functional.normalize(random_points(7, 6, 3, 1.0), dim=-1)
    for bias in (0.0, 0.5):
        pair = PairCovariance.from_inputs(x, y, bias)
        before, after = pair.sqdist.diagonal(), activation.dual(pair).sqdist.diagonal()
        for i in range(6):
            s = exact(x[i], y[i], bias)
            m = s.b11 + s.b22 - 2 * s.b12
            m_g = sum(reference.G(v, v, v) for v in (s.b11, s.b22)) - 2 * reference.G(*s)
            assert abs(before[i].item() / m - 1) < 1e-15
            assert abs(after[i].item() / m_g - 1) < DISTANCE_RTOL.get(name, 1e-14)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "sin", "erf", "gelu"])
def test_near_duplicates_along_the_ray(name: str) -> None:
    """Parallel inputs: all of the squared distance is the difference of the norms."""
    activation, reference = CLOSED[name]
    x = points([0.75, -0.5])
    for power in (10, 20, 26):
        y = x * (1 + 2.0**-power)  # exact
        pair = PairCovariance.from_inputs(x, y, 0.0)
        s = exact(x[0], y[0], 0.0)
        m_g = sum(reference.G(v, v, v) for v in (s.b11, s.b22)) - 2 * reference.G(*s)
        got = activation.dual(pair).sqdist.item()
        assert abs(got / m_g - 1) < DISTANCE_RTOL.get(name, 1e-14)


@pytest.mark.parametrize("name", CLOSED)
def test_identical_inputs_have_distance_zero(name: str) -> None:
    activation, _ = CLOSED[name]
    x = random_points(8, 5, 3, 1.0)
    dual = activation.dual(PairCovariance.from_inputs(x, x, 0.3))
    assert (dual.sqdist.diagonal() == 0).all()
    assert torch.equal(dual.cov.diagonal(), dual.var1.squeeze(-1))
    slope = activation.derivative_dual(PairCovariance.from_inputs(x, x, 0.3)).diagonal()
    variance = x.square().sum(-1, keepdim=True) + 0.3
    torch.testing.assert_close(
        slope, activation.derivative_diagonal(variance).squeeze(-1), rtol=16 * EPS, atol=0
    )


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("large", [1e2, 1e4, 1e6])
def test_large_variances(name: str, large: float) -> None:
    """Nothing overflows or cancels where the variances are large and the distance is not."""
    activation, reference = CLOSED[name]
    x = points([0.5, -1.0], [0.8, 0.1])
    pair = PairCovariance.from_inputs(x, x, large)
    dual, slope = activation.dual(pair), activation.derivative_dual(pair)
    s = exact(x[0], x[1], large)
    mean = float(sum(reference.G(v, v, v) for v in (s.b11, s.b22))) / 2
    assert abs(dual.cov[0, 1].item() - reference.G(*s)) < 32 * EPS * mean
    # P in relative terms: it is a function of the distance, given to a few eps, and the variance
    assert slope[0, 1].item() == pytest.approx(float(reference.P(*s)), rel=64 * EPS, abs=0)
    m_g = sum(reference.G(v, v, v) for v in (s.b11, s.b22)) - 2 * reference.G(*s)
    # gelu: terms of the size of sqrt(variance) cancel
    tolerance = max(1e-12, 64 * EPS * large**0.5) if name == "gelu" else 1e-12
    assert dual.sqdist[0, 1].item() == pytest.approx(float(m_g), rel=tolerance, abs=0)


# ------------------------------------------------------------------------------------------
# Properties
# ------------------------------------------------------------------------------------------

ALL_NAMES = [*CLOSED, "tanh", "sigmoid", "silu", "elu", "softplus"]
ALL: dict[str, Activation] = {
    name: CLOSED[name][0] if name in CLOSED else get_activation(name) for name in ALL_NAMES
}
coordinates = st.floats(-20, 20, allow_nan=False, width=32)


def point_sets(n: int, d: int) -> st.SearchStrategy[Tensor]:
    row = st.lists(coordinates, min_size=d, max_size=d)
    return st.lists(row, min_size=n, max_size=n).map(
        lambda rows: torch.tensor(rows, dtype=torch.float64)
    )


@pytest.mark.parametrize("outputs", ["distance", "slope", "both"])
@pytest.mark.parametrize("slope", [0.0, 0.3, -0.5])
def test_gradients_of_piecewise_linear_duals(slope: float, outputs: str) -> None:
    """Closed forms agree with automatic differentiation, also at zero and opposite inputs.

    The latter are taken where gradients have a graph.
    """
    torch.manual_seed(0)
    x1 = torch.randn(6, 3, dtype=torch.float64)
    x2 = torch.cat([torch.zeros(1, 3, dtype=torch.float64), -x1[:1], x1[1:2], x1[2:4] + 1e-6])
    x1[-1] = 0.0
    x1, x2 = x1.requires_grad_(), x2.requires_grad_()
    pair = PairCovariance.from_inputs(x1, x2, 0.0)
    dual, derivative = PackageLeakyReLU(slope).dual_and_derivative(pair)
    weights = torch.randn(2, 6, 5, dtype=torch.float64)
    values = {"distance": weights[0] * dual.sqdist, "slope": weights[1] * derivative}
    total = sum(v.sum() for k, v in values.items() if outputs in (k, "both"))
    closed = torch.autograd.grad(total, (x1, x2), retain_graph=True)
    graph = torch.autograd.grad(total, (x1, x2), create_graph=True)
    for found, expected in zip(closed, graph, strict=True):
        assert expected.abs().max() > 0.1
        # derivatives of the angle, up to 1e6 at the close inputs, amplify rounding by as much again
        torch.testing.assert_close(
            found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
        )


@pytest.mark.parametrize("name", ALL_NAMES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(x=point_sets(5, 2), bias=st.floats(1e-6, 10))
def test_dual_is_a_kernel(name: str, x: Tensor, bias: float) -> None:
    """Symmetry, Cauchy-Schwarz, positive semi-definiteness, contraction in distance."""
    activation = ALL[name]
    series = isinstance(activation, Hermite)
    x = x / 4 if series else x  # variances up to 75: a few seconds of quadrature in all
    pair = PairCovariance.from_inputs(x, x, bias)
    dual, slope = activation.dual(pair), activation.derivative_dual(pair)
    gram = dual.cov
    mean = (dual.var1 + dual.var2) / 2
    room = 64 * EPS * mean
    # elementwise functions differ in the last place between vector and scalar code; the kernels
    # are symmetric to the bit by other means
    assert ((gram - gram.mT).abs() <= room / 4).all()
    assert ((slope - slope.mT).abs() <= room.amax() / 4).all()
    # 2 |cov| <= 2 sqrt(var1 var2) <= var1 + var2, and sharper:
    assert (gram.abs() <= (dual.var1 * dual.var2).sqrt() + room).all()
    assert (dual.sqdist >= 0).all()
    # weyl: rounding 64 eps of each entry moves an eigenvalue by 64 eps n max|entry| at most
    least = torch.linalg.eigvalsh(gram).min()
    assert least >= -64 * EPS * 5 * gram.abs().max()
    # |phi(u) - phi(v)| <= Lip |u - v|, and E phi' phi' <= Lip^2
    lipschitz2 = 1 / activation.critical_weight_variance
    if isinstance(activation, (ReLU, PackageLeakyReLU)):
        lipschitz2 = max(1.0, activation.negative_slope**2)  # critical is 2/(p^2 + n^2) there
    # (a_k - a'_k)^2 of identical inputs is (a few eps)^2, not 0, where a matrix product rounds
    # rows differently
    floor = (16 * EPS) ** 2 * mean if series else 1e-300
    assert (dual.sqdist <= lipschitz2 * pair.sqdist * (1 + 1e-9) + floor).all()
    assert (slope.abs() <= lipschitz2 * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", ["relu", "leaky_relu_steep", "erf", "sin", "gelu"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(x=point_sets(2, 3), bias=st.floats(1e-6, 10))
def test_dual_equals_reference(name: str, x: Tensor, bias: float) -> None:
    activation, reference = CLOSED[name]
    got = activation.dual(PairCovariance.from_inputs(x[:1], x[1:], bias))
    s = exact(x[0], x[1], bias)
    total = sum(reference.G(v, v, v) for v in (s.b11, s.b22))
    truth = reference.G(*s)
    # the covariance is half of (the variances less the squared distance)
    room = DISTANCE_RTOL.get(name, 1e-14) * (total - 2 * truth) + 16 * EPS * total
    assert abs(got.cov.item() - truth) <= room / 2


@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(x=point_sets(4, 3), power=st.integers(-30, 30))
def test_positive_homogeneity(name: str, x: Tensor, power: int) -> None:
    """phi(a u) = a phi(u) for a > 0; exact in floating point for a power of two."""
    activation = CLOSED[name][0]
    one = activation.dual(PairCovariance.from_inputs(x, x, 0.0))
    two = activation.dual(PairCovariance.from_inputs(x * 2.0**power, x * 2.0**power, 0.0))
    tiny = (x != 0) & (x.abs() < 1e-3)  # products of tiny coordinates may be subnormal
    if not tiny.any():
        torch.testing.assert_close(two.cov, one.cov * 4.0**power, rtol=8 * EPS, atol=0)


# ------------------------------------------------------------------------------------------
# Critical weight variances
# ------------------------------------------------------------------------------------------

SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "erf": torch.erf,
    "sin": torch.sin,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "elu": torch.nn.functional.elu,
    "softplus": torch.nn.functional.softplus,
    "identity": lambda u: u,
}


@pytest.mark.parametrize("name", SLOPES)
def test_critical_weight_variance(name: str) -> None:
    """1/sup|phi'|^2; the sup by automatic differentiation on a grid of step 1e-4."""
    u = torch.arange(-400_000, 400_001, dtype=torch.float64).div_(1e4).requires_grad_()
    (slope,) = torch.autograd.grad(SLOPES[name](u).sum(), u)
    largest = slope.abs().max().item()
    # a smooth maximum between nodes is missed by h^2/8 |phi'''|: 1e-8 at most here
    assert get_activation(name).critical_weight_variance == pytest.approx(largest**-2, rel=1e-7)


def test_critical_weight_variance_of_piecewise_linear() -> None:
    assert ReLU().critical_weight_variance == 2.0
    for slope in (0.0, 0.01, 0.5, 1.0, -1.0, -2.0, 3.0):
        got = PackageLeakyReLU(slope).critical_weight_variance
        assert got == pytest.approx(2 / (1 + slope**2), rel=2 * EPS)


# ------------------------------------------------------------------------------------------
# Hermite series
# ------------------------------------------------------------------------------------------

NUMPY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "sigmoid": lambda u: 1 / (1 + np.exp(-u)),
    "silu": lambda u: u / (1 + np.exp(-u)),
    "softplus": lambda u: np.logaddexp(0, u),
    "elu": lambda u: np.where(u > 0, u, np.expm1(np.minimum(u, 0))),
}


@pytest.mark.parametrize("q", [0.1, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "silu", "softplus"])
def test_hermite_error_is_its_truncation(name: str, q: float) -> None:
    """What the series loses is the tail of the squared coefficients and nothing else.

    With K the degree the diagonal must be sum_{k<=K} a_k^2, and the covariance at correlation r
    sum_{k<=K} a_k a'_k r^k, to the error of the package's own quadrature, asked to be 1e-13 of
    the variance; so the error against the untruncated value is the documented tail.
    """
    fn, activation = NUMPY[name], get_activation(name)
    assert isinstance(activation, Hermite)
    K = activation.degree
    q2 = 0.7 * q
    a, b = hermite_coefficients(fn, q, K), hermite_coefficients(fn, q2, K)
    v1 = torch.tensor([[q]], dtype=torch.float64)
    v2 = torch.tensor([[q2]], dtype=torch.float64)
    diagonal = activation.diagonal(v1).item()
    assert diagonal == pytest.approx((a * a).sum(), rel=1e-13, abs=0)
    for r in (0.99999, 0.9, 0.3, 0.0, -0.5, -1.0):
        cov = r * math.sqrt(q * q2)
        pair = PairCovariance(v1, v2, v1 + v2 - 2 * cov, v1 - v2)
        got = activation.dual(pair).cov.item()
        want = (a * b * r ** np.arange(K + 1.0)).sum()
        assert abs(got - want) < 1e-13 * diagonal
        slope = activation.derivative_dual(pair).item()
        k = np.arange(1.0, K + 1)
        want = (k * a[1:] * b[1:] * r ** (k - 1)).sum() / math.sqrt(q * q2)
        assert abs(slope - want) < 1e-12
    # the documented bound: it is what is missing on the diagonal, and at most a known size
    tail = variance_after(fn, q) - (a * a).sum()
    documented = activation.truncation_error(q)
    assert documented == pytest.approx(tail / variance_after(fn, q), rel=0.05, abs=1e-13)
    if name == "tanh":
        assert tail / diagonal < {0.1: 1e-14, 1.0: 2e-10, 3.0: 2e-6, 10.0: 2e-3}[q]


def test_hermite_of_a_kink_in_the_slope() -> None:
    """ELU: phi'' jumps at 0, the tail is algebraic; 2e-7 to 3e-6 at degree 128."""
    for q in (0.1, 1.0, 10.0):
        activation = Hermite(torch.nn.functional.elu, degree=128)
        got = activation.diagonal(torch.tensor([[q]], dtype=torch.float64)).item()
        truth = variance_after(NUMPY["elu"], q)
        assert 0 < truth - got < 3e-6 * truth


@pytest.mark.parametrize("q", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_hermite_at_large_variance(name: str, q: float) -> None:
    """At large q these tend to a step: the quadrature must not miss the width 1/sqrt(q).

    a_1(q) = E phi(sqrt(q) z) z = sqrt(q) E phi'(sqrt(q) z), and phi' integrates to the height of
    the step: a_1 = height/sqrt(2 pi) (1 - E-of-phi' width^2/(2q) ...), so with the second moment
    of phi'/height, s2 = pi^2/12 for tanh and pi^2/3 for the sigmoid, it is known to O(q^-2).
    Degree 1 isolates a_1 (and a_0, 0 or 1/2): covariance = a_0^2 + a_1^2 r.
    """
    height, s2, a0 = {"tanh": (2.0, math.pi**2 / 12, 0.0), "sigmoid": (1.0, math.pi**2 / 3, 0.5)}[
        name
    ]
    a1 = height / math.sqrt(2 * math.pi) * (1 - s2 / (2 * q))
    fn = torch.tanh if name == "tanh" else torch.sigmoid
    got = Hermite(fn, degree=1).diagonal(torch.tensor([[q]], dtype=torch.float64)).item()
    # fourth moments are below 7 s2^2 for both: the next term is 7 s2^2/(8 q^2), twice in a_1^2
    room = 2 * 7 * s2**2 / (8 * q * q) + 1e-11
    assert got == pytest.approx(a0**2 + a1**2, rel=room)


@pytest.mark.parametrize(
    ("name", "degree"), [("erf", 40), ("sin", 40), ("gelu", 40), ("identity", 4), ("relu", 200)]
)
def test_hermite_agrees_with_closed_forms(name: str, degree: int) -> None:
    """The same function by series and in closed form, at correlations where the tail is small."""
    functions = {**SLOPES, "relu": torch.relu}
    series, (closed, _) = Hermite(functions[name], degree=degree, lipschitz=2.0), CLOSED[name]
    v1, v2 = (torch.tensor([[v]], dtype=torch.float64) for v in (0.8, 0.5))
    for r in (-0.4, 0.0, 0.4):
        cov = r * math.sqrt(0.4)
        pair = PairCovariance(v1, v2, v1 + v2 - 2 * cov, v1 - v2)
        # |r|^41 = 5e-17 and |r|^201: only rounding and quadrature are left
        assert series.dual(pair).cov.item() == pytest.approx(
            closed.dual(pair).cov.item(), abs=1e-13
        )
        assert series.derivative_dual(pair).item() == pytest.approx(
            closed.derivative_dual(pair).item(), abs=1e-12
        )
        assert series.variance_slope(pair).item() == pytest.approx(
            closed.variance_slope(pair).item(), abs=1e-12
        )
        if closed.smooth:
            got, expected = (
                torch.cat(
                    [
                        phi.curvature(*given),
                        *phi.derivative_variance_slopes(*given),
                    ]
                )
                for phi in (series, closed)
                for given in [(phi.features(v1), phi.features(v2), pair.sqdist)]
            )
            # 40^3 eps
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def test_slopes_of_a_series_of_degree_one() -> None:
    """P = b_0(v1) b_0(v2) does not depend on the covariance, but on the variances it does."""
    series = Hermite(torch.tanh, degree=1)
    v1, v2, sqdist = (torch.tensor([[v]], dtype=torch.float64) for v in (0.8, 0.5, 0.4))
    given = series.features(v1), series.features(v2), sqdist
    assert series.curvature(*given).item() == 0
    v1.requires_grad_()
    slope = series.expectations(series.features(v1), series.features(v2), sqdist)[1]
    (expected,) = torch.autograd.grad(slope, v1)
    got = series.derivative_variance_slopes(*given)[0]
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)
