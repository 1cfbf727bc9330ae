"""The angle as a series fitted once for all pairs, against roots found with 60 digits."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from mpmath import mp
from torch import Tensor

from gp_deq import settings
from gp_deq.equilibrium import SolverMonitor
from gp_deq.equilibrium.fixed_point import solve_angle
from gp_deq.equilibrium.pair_angle import AngleFit, fit_angle

EPSILON = torch.finfo(torch.float64).eps
# t0, on both sides of every crossover
SINES = [*(10.0**-k for k in range(9, 0, -1)), 0.3, 0.55, 0.8, 0.95, 0.999, 1.0]


def root(gap: float, bend: float, sine0: float) -> mpmath.mpf:
    """The root ``t`` of ``(1 - A)(t^2 - t0^2) + B S / 2``, by bisection of the logarithm of t."""
    with mp.workdps(60):

        def excess(sine: mpmath.mpf) -> mpmath.mpf:
            theta = 2 * mp.asin(sine)
            curve = mp.sin(theta) - theta * mp.cos(theta)
            return gap * (sine**2 - mp.mpf(sine0) ** 2) + bend * curve / 2

        low, high = mp.mpf(sine0) * mp.mpf(10) ** -6, mp.mpf(sine0)
        for _ in range(70):
            middle = mp.sqrt(low * high)
            low, high = (middle, high) if excess(middle) < 0 else (low, middle)
        return high


def fit(
    gaps: tuple[float, ...], bends: tuple[float, ...], dtype: torch.dtype = torch.float64
) -> AngleFit:
    tolerance = settings.solver_tolerance.value(dtype)
    return fit_angle(gaps, bends, dtype, tolerance, settings.max_solver_iterations.value())


def solve(gaps: tuple[float, ...], bends: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """``t`` of each batch at :data:`SINES`."""
    found = fit(gaps, bends, dtype)
    sine0 = torch.tensor(SINES, dtype=torch.float64).to(dtype).expand(len(gaps), 1, -1)
    series = found.series
    sine = series.evaluate(sine0 * series.reach, found.kinds)
    if found.refine:
        monitor = SolverMonitor()
        sine = solve_angle(sine0, series.gap, series.bend, monitor, start=sine)
        assert monitor.report().converged
    return sine.squeeze(1)


def constants(*weights: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Those of ReLU at some weight variances."""
    return tuple((2 - w) / 2 for w in weights), tuple(w / (2 * math.pi) for w in weights)


@pytest.mark.parametrize(
    ("weight_variance", "refine"),
    [
        *((w, False) for w in (1e-6, 0.02, 0.5, 1.0, 1.7, 1.8, 1.98, 1.998)),
        (1.9998, True),
        (2 - 2e-6, True),
        (2 - 2e-12, True),
    ],
)
def test_relu(weight_variance: float, refine: bool) -> None:
    """To a few roundings in relative terms, for most weight variances without a Newton step.

    A polynomial of up to 36 terms and the rounding of t0 leave up to 24 units; the root's own
    condition is at most one.
    """
    gaps, bends = constants(weight_variance)
    assert fit(gaps, bends).refine is refine
    found = solve(gaps, bends, torch.float64)[0]
    for sine0, sine in zip(SINES, found.tolist(), strict=True):
        expected = root(gaps[0], bends[0], sine0)
        assert abs(sine / expected - 1) <= 24 * EPSILON, sine0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "weights", [(1.9949, 0.1), (0.1, 1.999), (1.7, 1.99, 1.9999), (1.0, 2 - 2e-6), (1.78, 1.79)]
)
def test_batches_do_not_disturb_each_other(weights: tuple[float, ...], dtype: torch.dtype) -> None:
    """A weight variance near the critical one beside others: as accurate as alone.

    The sines carry the rounding of t0 in the dtype, the roundings of the polynomial, and those that
    the powers of the variable leave, up to 16 over ``1 - A``.
    """
    gaps, bends = constants(*weights)
    together = solve(gaps, bends, dtype)
    for index, (gap, bend) in enumerate(zip(gaps, bends, strict=True)):
        allowed = (24 + 16 / gap) * torch.finfo(dtype).eps
        for sine0, sine in zip(SINES, together[index].tolist(), strict=True):
            given = torch.tensor(sine0, dtype=dtype).item()
            assert abs(sine / root(gap, bend, given) - 1) <= allowed, sine0


def test_linear_network() -> None:
    """Without a bend the angle is that of the injected input."""
    assert not fit((0.7,), (0.0,)).refine
    found = solve((0.7,), (0.0,), torch.float64)[0]
    torch.testing.assert_close(
        found, torch.tensor(SINES, dtype=torch.float64), rtol=4 * EPSILON, atol=0
    )


def test_accuracy_of_single_precision_needs_fewer_terms() -> None:
    double, single = (
        fit((0.5,), (0.5 / math.pi,), dtype) for dtype in (torch.float64, torch.float32)
    )
    assert single.series.coefficients.shape[-1] < double.series.coefficients.shape[-1]


def test_no_batch() -> None:
    found = fit((), ())
    empty = torch.empty(0, 3, 2, dtype=torch.float64)
    assert found.series.evaluate(empty, found.kinds).shape == (0, 3, 2)
