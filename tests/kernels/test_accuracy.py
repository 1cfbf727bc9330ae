"""The DEQ kernels against many-digit values over the whole region that users can reach.

Asked: an error of at most 64 eps/(1 - w/critical) times the mean of the two kernel variances.
The equilibrium multiplies relative errors of the injected input and of w by 1/(1 - w/critical)
at most, the NTKs by twice that; 64 leaves room for some thirty roundings.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    ACTIVATIONS,
    TRAINED,
    Quadrature,
    Real,
    deq,
    hermite_coefficients,
    injected,
    mp,
)
from torch import Tensor

from gp_deq import DEQNNGPKernel, DEQNTKKernel

CLOSED_FORM = ["relu", "leaky_relu", "erf", "sin", "gelu", "identity"]
DTYPES = [torch.float64, torch.float32]
KINDS = [None, *TRAINED]  # None is the DEQ-NNGP


def make(
    name: str, trained: str | None, w: float, bias: float, dtype: torch.dtype, **kwargs: object
):
    """A kernel with lengthscale one."""
    cls = DEQNNGPKernel if trained is None else DEQNTKKernel
    options = {} if trained is None else {"trained": trained}
    kernel = cls(activation=name, **options, **kwargs).to(dtype)
    kernel.lengthscale = torch.ones_like(kernel.lengthscale)
    kernel.weight_variance = w
    kernel.bias_variance = bias
    return kernel


def worst_ratio(
    kernel,
    name: str,
    trained: str | None,
    x: Tensor,
    y: Tensor,
    got: Tensor,
) -> tuple[float, tuple[int, int]]:
    """Largest error in units of eps/(1 - w/critical) times the mean variance, and its pair.

    The reference takes the inputs and hyperparameters as the kernel has them, exactly.
    """
    phi = ACTIVATIONS[name]
    w, bias = kernel.weight_variance.item(), kernel.bias_variance.item()
    scale = kernel.lengthscale.detach().flatten().tolist()
    scale = scale * x.shape[-1] if len(scale) == 1 else scale
    unit = torch.finfo(got.dtype).eps / float(1 - mp.mpf(w) / phi.critical)

    def value(p: tuple, q: tuple) -> Real:
        return deq(phi, w, injected(p, q, bias, scale), trained)

    rows, columns = ([tuple(r) for r in t.tolist()] for t in (x, y))
    variances = {r: value(r, r) for r in {*rows, *columns}}
    seen: dict[tuple, Real] = {}
    worst, where = 0.0, (0, 0)
    for (i, p), (j, q) in itertools.product(enumerate(rows), enumerate(columns)):
        key = (min(p, q), max(p, q))
        if key not in seen:
            seen[key] = value(*key)
        error = abs(mp.mpf(got[i, j].item()) - seen[key])
        ratio = float(error / (variances[p] + variances[q]) * 2) / unit
        if not ratio <= worst:
            worst, where = ratio, (i, j)
    return worst, where


def critical_points(dtype: torch.dtype) -> Tensor:
    """Near (1e-8 and more), parallel, antipodal, orthogonal, zero, far."""
    base = [0.75, -0.5, 0.0]
    rows = [base, [0.0, 0.0, 0.0]]
    rows += [[0.75, -0.5, distance] for distance in (1e-8, 1e-5, 1e-3, 0.03)]
    rows += [[factor * v for v in base] for factor in (-1.0, 1 + 2**-12, 0.0625, -12.0, 12.0)]
    rows += [[0.5, 0.75, 0.0], [0.3, 2.0, -9.0]]
    return torch.tensor(rows, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("fraction", [1e-6, 0.3, 0.9, 0.995])
@pytest.mark.parametrize("name", CLOSED_FORM)
def test_values(name: str, fraction: float, dtype: torch.dtype) -> None:
    x = critical_points(dtype)
    w = fraction * float(ACTIVATIONS[name].critical)
    failures = []
    for bias, trained in itertools.product((1e-8, 0.1, 100.0), KINDS):
        kernel = make(name, trained, w, bias, dtype)
        with torch.no_grad():
            got = kernel(x).to_dense()
        assert got.dtype == dtype
        ratio, (i, j) = worst_ratio(kernel, name, trained, x, x, got)
        if not ratio <= 64:
            failures.append(
                f"bias {bias}, {trained}, {x[i].tolist()}, {x[j].tolist()}: {ratio:.0f}"
            )
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("name", CLOSED_FORM)
def test_very_far_inputs(name: str, dtype: torch.dtype) -> None:
    """A thousand away from the centre, both ways."""
    rows = [[700.0, -800.0], [-700.0, 800.0], [700.5, -800.0], [900.0, 100.0], [0.3, 0.4]]
    x = torch.tensor(rows, dtype=dtype)
    w = 0.8 * float(ACTIVATIONS[name].critical)
    failures = []
    for trained in KINDS:
        kernel = make(name, trained, w, 0.1, dtype)
        ratio, pair = worst_ratio(kernel, name, trained, x, x, kernel(x).to_dense())
        if not ratio <= 64:
            failures.append(f"{trained} {pair}: {ratio:.0f}")
    assert not failures, "\n".join(failures)


def pairs(dtype: torch.dtype) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    """Two points of R^3: generic, near, parallel, antipodal or one of them zero."""
    floats = st.floats(-4, 4, allow_subnormal=False, width=32).map(
        lambda v: 0.0 if abs(v) < 1e-6 else v
    )
    point = st.tuples(floats, floats, floats).map(lambda p: torch.tensor([p], dtype=dtype))

    def partner(x: Tensor) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
        exponents = st.floats(-8, 0)
        near = st.tuples(exponents, point).map(lambda t: (x, x + 10.0 ** t[0] * t[1]))
        along = st.floats(-3, 3, width=32).map(lambda factor: (x, factor * x))
        special = st.sampled_from([(x, -x), (x, 0 * x), (x, x.clone())])
        return st.one_of(point.map(lambda y: (x, y)), near, along, special)

    return point.flatmap(partner)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, torch.dtype, float, float, list[float], Tensor, Tensor]:
    name = draw(st.sampled_from(CLOSED_FORM))
    dtype = draw(st.sampled_from(DTYPES))
    fraction = draw(st.one_of(st.floats(-6, 0).map(lambda e: 0.9 * 10**e), st.floats(0.9, 0.995)))
    bias = 10 ** draw(st.floats(-8, 2))
    scale = [10 ** draw(st.floats(-0.5, 0.5)) for _ in range(3)]
    return (name, dtype, fraction, bias, scale, *draw(pairs(dtype)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases(), trained=st.sampled_from(KINDS))
def test_random_hyperparameters(case: tuple, trained: str | None) -> None:
    """The rectangular and the elementwise path, with ARD lengthscales."""
    name, dtype, fraction, bias, scale, x, y = case
    w = fraction * float(ACTIVATIONS[name].critical)
    kernel = make(name, trained, w, bias, dtype, ard_num_dims=3)
    kernel.lengthscale = torch.tensor(scale, dtype=dtype)
    both = torch.cat((x, y))
    with torch.no_grad():
        got = kernel(both, y).to_dense()
        elementwise = kernel(x, y, diag=True)
    ratio, _ = worst_ratio(kernel, name, trained, both, y, got)
    assert ratio <= 64
    ratio, _ = worst_ratio(kernel, name, trained, x, y, elementwise[:, None])
    assert ratio <= 64


@pytest.mark.parametrize("trained", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
def test_center(trained: str | None, dtype: torch.dtype) -> None:
    """Subtracted from both inputs, exactly the origin of the kernel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, generator=generator).to(dtype)
    center = (0.5, -0.25, 1.5)
    kernel = make("relu", trained, 1.2, 0.3, dtype, center=torch.tensor(center))
    plain = make("relu", trained, 1.2, 0.3, dtype)
    got, shifted = kernel(x).to_dense(), plain(x - torch.tensor(center, dtype=dtype)).to_dense()
    assert torch.equal(got, shifted)
    w, bias = kernel.weight_variance.item(), kernel.bias_variance.item()
    x00 = injected(tuple(x[0].tolist()), tuple(x[1].tolist()), bias, 1.0, center)
    truth = float(deq(ACTIVATIONS["relu"], w, x00, trained))
    mean = (got[0, 0] + got[1, 1]).item() / 2
    assert abs(got[0, 1].item() - truth) <= 64 * torch.finfo(dtype).eps / (1 - w / 2) * mean


# ------------------------------------------------------------------------------------------
# tanh, by its Hermite series
# ------------------------------------------------------------------------------------------

_REFERENCE = ACTIVATIONS["tanh"]
assert isinstance(_REFERENCE, Quadrature)
TANH20 = Quadrature(
    "tanh",
    _REFERENCE.both,
    _REFERENCE.numpy_phi,
    _REFERENCE.numpy_slope,
    _REFERENCE.pole,
    _REFERENCE.lipschitz,
    digits=20,
)


def tails(v: float, degree: int) -> tuple[float, float]:
    """What the series cut at `degree` loses of G and P on the diagonal (at r = 1)."""
    a = hermite_coefficients(TANH20.numpy_phi, v, degree + 300, step=2.0**-5)
    k = range(degree + 1, degree + 301)
    tail = sum(a[i] ** 2 for i in k)
    return tail, sum(i * a[i] ** 2 for i in k) / v


@pytest.mark.parametrize("fraction", [0.1, 0.6, 0.9])
def test_tanh_errs_by_its_truncation(fraction: float) -> None:
    """The tail of the series at r = 1 bounds every change, propagated by the implicit function.

    Let t and t' be the tails of G and P at the larger variance and x = w/(1 - w).  The slopes of
    tanh and of its duals are below one (g' <= 1, |dG/dv| <= sup|phi''|/2 < 0.4, P <= 1,
    E phi'' phi'' < 0.6, E phi''' phi'/2 <= 1), so the variances move by x t, the covariance by
    x t (1 + 0.8 x), G by t (1 + x)^2 =: g and P by t' + 0.6 x g + 2 x t =: p; then the NTK
    G + P c/(1 - wP) moves by at most g + (v p + x g)/(1 - w)^2.
    """
    x = torch.tensor([[0.75, -0.5], [0.75, -0.49], [-0.75, 0.5], [1.5, -1.0]], dtype=torch.float64)
    bias = 0.1
    kernels = {trained: make("tanh", trained, fraction, bias, x.dtype) for trained in (None, "all")}
    got = {trained: kernel(x).to_dense() for trained, kernel in kernels.items()}
    w = kernels[None].weight_variance.item()
    bias = kernels[None].bias_variance.item()
    assert w == kernels["all"].weight_variance.item()
    degree = kernels[None].activation.degree
    ratio = w / (1 - w)
    for i, j in [(0, 0), (0, 1), (0, 2), (1, 3)]:
        s = injected(tuple(x[i].tolist()), tuple(x[j].tolist()), bias)
        v = float(max(TANH20.solve_variance(mp.mpf(w), b) for b in s[:2]))
        t, tp = tails(v, degree)
        g = t * (1 + ratio) ** 2
        p = tp + 0.6 * ratio * g + 2 * ratio * t
        rounding = 64 * 2**-52 / (1 - w)
        truth = float(deq(TANH20, w, s))
        assert abs(got[None][i, j].item() - truth) <= g + rounding
        truth = float(deq(TANH20, w, s, "all"))
        room = g + (v * p + ratio * g) / (1 - w) ** 2 + rounding * v / (1 - w)
        assert abs(got["all"][i, j].item() - truth) <= room
        assert g < 1e-7 and room < 1e-3 and math.isfinite(room)  # so the bounds say something
