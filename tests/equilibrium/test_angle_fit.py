"""The angle fitted once for all pairs, against roots found with 60 digits."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from mpmath import mp
from torch import Tensor

from gp_deq.equilibrium.angle_fit import fit_angle, newton_step

EPSILON = torch.finfo(torch.float64).eps
TOLERANCE = 1e-9
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


def solve(gap: float, bend: float) -> tuple[Tensor, int]:
    fit = fit_angle((gap,), (bend,), EPSILON, TOLERANCE)
    sine0 = torch.tensor(SINES, dtype=torch.float64).reshape(1, 1, -1)
    scaled = sine0 * fit.reach
    sine = fit.evaluate(scaled, slice(None))
    constants = (torch.full((1, 1, 1), value, dtype=torch.float64) for value in (gap, bend))
    gaps, bends = constants
    for _ in range(fit.steps):
        sine, _ = newton_step(sine, scaled / fit.reach, gaps, bends, precise=True)
    return sine.flatten(), fit.steps


@pytest.mark.parametrize(
    ("weight_variance", "steps"),
    [
        *((w, 0) for w in (1e-6, 0.02, 0.5, 1.0, 1.7, 1.8, 1.98, 1.998)),
        (1.9998, 1),
        (2 - 2e-6, None),
        (2 - 2e-12, None),
    ],
)
def test_relu(weight_variance: float, steps: int | None) -> None:
    """To a few roundings in relative terms, for most weight variances without a Newton step.

    A polynomial of up to 36 terms and the rounding of t0 leave up to 24 units; the root's own
    condition is at most one.
    """
    gap, bend = (2 - weight_variance) / 2, weight_variance / (2 * math.pi)
    found, taken = solve(gap, bend)
    assert steps is None or taken == steps
    for sine0, sine in zip(SINES, found.tolist(), strict=True):
        expected = root(gap, bend, sine0)
        assert abs(sine / expected - 1) <= 24 * EPSILON, sine0


def test_linear_network() -> None:
    """Without a bend the angle is that of the injected input."""
    found, taken = solve(0.7, 0.0)
    assert taken == 0
    torch.testing.assert_close(
        found, torch.tensor(SINES, dtype=torch.float64), rtol=4 * EPSILON, atol=0
    )


def test_batches_share_a_degree_and_not_a_solution() -> None:
    weights = (0.3, 1.5)
    gaps, bends = tuple(1 - w / 2 for w in weights), tuple(w / (2 * math.pi) for w in weights)
    fit = fit_angle(gaps, bends, EPSILON, TOLERANCE)
    assert fit.steps == 0
    together = fit.evaluate(
        torch.full((2, 1, 1), 0.4, dtype=torch.float64) * fit.reach, slice(0, 2)
    )
    for index in range(2):
        expected = root(gaps[index], bends[index], 0.4)
        assert abs(together[index].item() / expected - 1) <= 16 * EPSILON


def test_accuracy_of_single_precision_needs_fewer_terms() -> None:
    double = fit_angle((0.5,), (0.5 / math.pi,), EPSILON, TOLERANCE)
    single = fit_angle((0.5,), (0.5 / math.pi,), torch.finfo(torch.float32).eps, 1e-4)
    assert single.coefficients.shape[-1] < double.coefficients.shape[-1]
