"""The error of every kernel over the whole region, against arithmetic of 60 digits.

Lengthscales from 1e-2 to 1e3, bias variances from 1e-10 to 1e5, inputs from 1e-4 to 1e4, near
duplicates, parallel and opposite inputs and the origin; both precisions. Asked: at most 64 eps
times the condition number of the equilibrium, ``1/(1 - w/critical)``, or of the layers, the sum of
``(w/critical)**l``, relative to the mean of the two kernel variances.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from oracles import ACTIVATIONS, TRAINED, Activation, Injected, Real, deq, finite, injected, mp
from torch import Tensor

from gp_deq import DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel, settings
from gp_deq.activations import Hermite

DEGREE = 32


class ErfSeries(Activation):
    """``Hermite(erf)`` cut at a degree: Taylor's series of the arc sine in Williams' formula."""

    name = "series"
    lipschitz = 2 / mp.sqrt(mp.pi)

    def _argument(self, v1: Real, v2: Real, c: Real) -> tuple[Real, Real]:
        scale = 2 / mp.sqrt((1 + 2 * v1) * (1 + 2 * v2))
        return c * scale, scale

    @staticmethod
    def _terms() -> list[tuple[int, Real]]:
        return [
            (2 * j + 1, mp.binomial(2 * j, j) / mp.mpf(4) ** j / (2 * j + 1))
            for j in range((DEGREE + 1) // 2)
        ]

    def phi(self, u: Real) -> Real:
        return mp.erf(u)

    def G(self, v1: Real, v2: Real, c: Real) -> Real:
        t, _ = self._argument(v1, v2, c)
        return 2 / mp.pi * mp.fsum(weight * t**k for k, weight in self._terms())

    def P(self, v1: Real, v2: Real, c: Real) -> Real:
        t, scale = self._argument(v1, v2, c)
        terms = (k * weight * t ** (k - 1) for k, weight in self._terms())
        return 2 / mp.pi * scale * mp.fsum(terms)


REFERENCES: dict[str, Activation] = {
    **{k: v for k, v in ACTIVATIONS.items() if k != "tanh"},
    "series": ErfSeries(),
}
DTYPES = [torch.float64, torch.float32]
#: Class, options.
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "DEQNNGP": (DEQNNGPKernel, {}),
    **{f"DEQNTK {t}": (DEQNTKKernel, {"trained": t}) for t in TRAINED},
    "NNGP": (NNGPKernel, {"depth": 3}),
    "NNGP injected": (NNGPKernel, {"depth": 4, "input_injection": True}),
    "NTK": (NTKKernel, {"depth": 3}),
    "NTK injected": (NTKKernel, {"depth": 4, "input_injection": True}),
    "NTK recurrent": (NTKKernel, {"depth": 3, "input_injection": True, "trained": "recurrent"}),
}


def points(generator: torch.Generator, dims: int, dtype: torch.dtype) -> Tensor:
    """Inputs of two sizes with near duplicates, multiples, antipodes and the origin."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def direction() -> Tensor:
        return torch.randn(dims, generator=generator, dtype=torch.float64)

    large, small = 10 ** uniform(-4, 4), 10 ** uniform(-4, 4)
    a, b = large * direction(), small * direction()
    rows = [a, b, torch.zeros(dims, dtype=torch.float64), -a, large * direction()]
    rows += [uniform(-2, 2) * a, a + 10 ** uniform(-9, 0) * large * direction()]
    rows += [a + b, -a + 10 ** uniform(-9, 0) * large * direction()]
    return torch.stack(rows).clamp(-1e4, 1e4).to(dtype)


def worst_ratio(kind: str, name: str, dtype: torch.dtype, seed: int) -> tuple[float, str]:
    """Largest error over its unit in one random place of the region, and where it is."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    phi = REFERENCES[name]
    fraction = [10 ** uniform(-3, 0), 0.5, 0.9, 0.995][seed % 4]
    lengthscale, bias = 10 ** uniform(-2, 3), 10 ** uniform(-10, 5)
    x = points(generator, 1 + seed % 3, dtype)
    cls, options = KINDS[kind]
    activation = Hermite(torch.erf, DEGREE) if name == "series" else name
    kernel = cls(activation, **options).to(dtype)
    kernel.weight_variance = min(fraction, 0.995) * float(phi.critical)
    kernel.lengthscale, kernel.bias_variance = lengthscale, bias
    w, bias = kernel.weight_variance.item(), kernel.bias_variance.item()
    lengthscale = kernel.lengthscale.item()
    with torch.no_grad(), settings.warn_not_converged(False):
        got = kernel(x).to_dense()
    share = mp.mpf(w) / phi.critical
    deep = "depth" in options
    steps = options.get("depth", 0)
    condition = mp.fsum(share**k for k in range(steps)) if deep else 1 / (1 - share)
    unit = torch.finfo(dtype).eps * float(condition)

    def value(p: tuple, q: tuple) -> Real:
        s = injected(p, q, 0.0 if deep else bias, lengthscale)
        if not deep:
            return deq(phi, w, s, options.get("trained"))
        trained = options.get("trained", None if cls is NNGPKernel else "all")
        inject = options.get("input_injection", False)
        return finite(phi, w, Injected(*s), bias, steps, inject, trained)

    rows = [tuple(row) for row in x.tolist()]
    variances = [value(p, p) for p in rows]
    worst, where = 0.0, ""
    for (i, p), (j, q) in itertools.combinations_with_replacement(enumerate(rows), 2):
        truth = variances[i] if i == j else value(p, q)
        entry = got[i, j].item()
        error = abs(mp.mpf(entry) - truth) if math.isfinite(entry) else mp.inf
        ratio = float(error / (variances[i] + variances[j]) * 2) / unit
        if not ratio <= worst:
            worst = ratio
            v = [float(s) for s in injected(p, q, bias, lengthscale)]
            where = f"seed {seed} w {fraction:.3g} b {v[0]:.2g} {v[1]:.2g} {v[2]:.3g} ({i},{j})"
    if not kernel.solver_report.converged:
        where += f" NOT CONVERGED {kernel.solver_report.residual:.1e}"
    return worst, where


def failures(kind: str, name: str, dtype: torch.dtype, seeds: Iterable[int]) -> str:
    found = [worst_ratio(kind, name, dtype, seed) for seed in seeds]
    return "\n".join(f"{ratio:.0f}: {where}" for ratio, where in found if not ratio <= 64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("kind", KINDS)
def test_error_over_the_region(kind: str, name: str, dtype: torch.dtype) -> None:
    assert not failures(kind, name, dtype, range(40))


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["relu", "erf", "sin", "gelu", "series"])
@pytest.mark.parametrize("kind", ["DEQNNGP", "DEQNTK all", "NTK injected"])
def test_error_where_variances_are_far_apart(kind: str, name: str, dtype: torch.dtype) -> None:
    """Places that squared distances alone get wrong by a factor of 100 to 1e6 above the bound."""
    assert not failures(kind, name, dtype, (6, 25) if name == "sin" else (5, 23))


@pytest.mark.parametrize("distance", [1e-8, 1e-6, 4.7e-5, 1e-3])
def test_ntk_of_parallel_inputs(distance: float) -> None:
    """ReLU, depth 4, injected: the root of a rounding error in place of an angle of zero."""
    kernel = NTKKernel("relu", depth=4, input_injection=True).double()
    kernel.lengthscale, kernel.bias_variance, kernel.weight_variance = 1.0, 0.0, 0.6
    x = torch.tensor([[0.7], [0.7 * (1 + distance)], [-1.3]], dtype=torch.float64)
    got = kernel(x).to_dense()
    w = kernel.weight_variance.item()
    condition = sum((w / 2) ** layer for layer in range(4))
    for i, j in itertools.product(range(3), repeat=2):
        s = injected(tuple(x[i].tolist()), tuple(x[j].tolist()), 0.0, kernel.lengthscale.item())
        truth = finite(ACTIVATIONS["relu"], w, s, 0.0, 4, True, "all")
        mean = (got[i, i] + got[j, j]).item() / 2
        assert abs(got[i, j].item() - truth) <= 64 * torch.finfo(x.dtype).eps * condition * mean


@pytest.mark.parametrize("cls", [DEQNNGPKernel, DEQNTKKernel])
def test_zero_inputs_near_the_critical_weight_variance(cls: type) -> None:
    """The matrix and its diagonal agree, whatever other inputs are solved with them."""
    kernel = cls("erf").double()
    kernel.lengthscale, kernel.bias_variance = 1.0, 1e-8
    kernel.weight_variance = 0.995 * float(ACTIVATIONS["erf"].critical)
    generator = torch.Generator().manual_seed(0)
    for others in range(1, 9):
        x = torch.randn(others, 3, generator=generator, dtype=torch.float64)
        x = torch.cat((torch.zeros(2, 3, dtype=torch.float64), 10.0 ** (others / 2 - 2) * x))
        matrix, diagonal = kernel(x).to_dense(), kernel(x, diag=True)
        rounding = torch.finfo(x.dtype).eps / 0.005
        torch.testing.assert_close(matrix.diagonal(), diagonal, rtol=rounding, atol=0.0)
        torch.testing.assert_close(matrix[0, 1], diagonal[0], rtol=rounding, atol=0.0)
