"""A safeguarded Newton iteration for many scalar equations at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import settings
from .report import SolverMonitor


def newton(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    lower: Tensor,
    upper: Tensor,
    scale: Tensor,
    noise: float,
    monitor: SolverMonitor,
    plain_steps: int = 0,
) -> Tensor:
    """Roots of increasing functions, elementwise, without a graph.

    The bracket shrinks with each step, and a step that leaves it is replaced by a bisection, so
    convergence does not depend on the start. All elements stop together, when every step is within
    the tolerance.

    Args:
        function: Maps points to values and slopes, all of the shape of ``start``.
        start: First points.
        lower: Lower ends of brackets of the roots.
        upper: Upper ends.
        scale: What ``settings.solver_tolerance`` is relative to.
        noise: Rounding level of the steps, also relative to ``scale``. After ten steps, steps
            within it are accepted too.
        monitor: Is told iterations and last steps.
        plain_steps: Number of first steps that are only cut off at the ends of the bracket, which
            is cheaper and does for functions without another root there.

    Returns:
        The roots.
    """
    tolerance = settings.solver_tolerance.value(start.dtype)
    point = torch.minimum(torch.maximum(start, lower), upper)
    limit, rounding = tolerance * scale, noise * scale
    step, count = torch.zeros_like(point), 0
    while count < settings.max_solver_iterations.value():
        count += 1
        value, slope = function(point)
        if count <= plain_steps:
            proposal = torch.minimum(torch.maximum(point - value / slope, lower), upper)
        else:
            lower = torch.where(value <= 0, point, lower)
            upper = torch.where(value >= 0, point, upper)
            proposal = point - value / slope
            inside = (proposal >= lower) & (proposal <= upper)
            proposal = torch.where(inside, proposal, (lower + upper) / 2)
        step, point = (proposal - point).abs_(), proposal
        if bool((step <= (limit if count < 10 else torch.maximum(limit, rounding))).all()):
            break
    accepted = tolerance if count < 10 else max(tolerance, noise)
    monitor.record(count, step / scale.masked_fill(scale == 0, 1.0), accepted)
    return point
