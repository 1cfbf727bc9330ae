"""A safeguarded Newton iteration for many scalar equations at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from .. import settings
from .monitor import SolverMonitor

#: Maps points, and the accuracy that their step needs, to the values of the functions and their
#: slopes, of the shape of the points; other results are handed on.
Equation = Callable[[Tensor, float | None], Sequence[Tensor]]

#: Steps after which one that is rounding is accepted: Newton's method has converged by then.
_PATIENCE = 10


class Root(NamedTuple):
    """The result of Newton's iteration.

    Args:
        point: The roots.
        change: The last step towards them.
        evaluation: The result of the equation before that step.
    """

    point: Tensor
    change: Tensor
    evaluation: Sequence[Tensor]


def newton(
    equation: Equation,
    start: Tensor,
    lower: Tensor,
    upper: Tensor,
    scale: Tensor,
    noise: float,
    monitor: SolverMonitor,
    *,
    plain_steps: int = 0,
    accuracies: Mapping[int, float] = MappingProxyType({}),
) -> Root:
    """Roots of increasing functions, elementwise, without a graph.

    The bracket shrinks with each step, and a step that leaves it is replaced by a bisection, so
    convergence does not depend on the start. All elements stop together, when every step is within
    the tolerance.

    Args:
        equation: See :data:`Equation`.
        start: First points.
        lower: Lower ends of brackets of the roots.
        upper: Upper ends.
        scale: The tolerance ``settings.solver_tolerance`` is relative to it.
        noise: Size of the steps that rounding makes, relative to ``scale`` too. After ten steps,
            steps within it are accepted.
        monitor: Is told the number of iterations and the last steps.
        plain_steps: Number of first steps that are only cut off at the ends of the bracket, which
            is cheaper and does for functions without another root there.
        accuracies: The accuracies that some of the first steps need, by their number; they are not
            the last ones. None, for rounding, is passed to ``equation`` in the other steps.
    """
    tolerance = settings.solver_tolerance.value(start.dtype)
    point = torch.minimum(torch.maximum(start, lower), upper)
    limit, count = tolerance * scale, 0
    while True:
        count += 1
        accuracy = accuracies.get(count)
        evaluation = equation(point, accuracy)
        value, slope = evaluation[:2]
        # buffers are used again: to allocate one costs more than to compute what it holds
        proposal = value / slope
        torch.sub(point, proposal, out=proposal)
        if count <= plain_steps:
            torch.minimum(torch.maximum(proposal, lower, out=proposal), upper, out=proposal)
        else:
            lower = torch.where(value <= 0, point, lower)
            upper = torch.where(value >= 0, point, upper)
            inside = (proposal >= lower) & (proposal <= upper)
            proposal = torch.where(inside, proposal, (lower + upper) / 2)
        change, point = torch.sub(proposal, point, out=point), proposal
        if count == _PATIENCE:
            limit = torch.maximum(limit, noise * scale)
        # a step of low accuracy is never the last one
        done = accuracy is None and bool((change.abs() <= limit).all())
        if done or count >= settings.max_solver_iterations.value():
            break
    accepted = tolerance if count < _PATIENCE else max(tolerance, noise)
    monitor.record(count, change.abs() / scale.masked_fill(scale == 0, 1.0), accepted)
    return Root(point, change, evaluation)
