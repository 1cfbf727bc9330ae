"""Newton's iteration for many equations at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gp_deq import settings
from gp_deq.equilibrium import SolverMonitor, newton

EPSILON = torch.finfo(torch.float64).eps


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def cubic(values: Tensor):
    """Equation of cube roots, and the accuracies that it was asked for."""
    asked: list[float | None] = []

    def equation(point: Tensor, accuracy: float | None) -> tuple[Tensor, Tensor]:
        asked.append(accuracy)
        return point**3 - values, 3 * point.square()

    return equation, asked


@pytest.mark.parametrize("start", [0.0, 1e-9, 1.0, 1e3])
@pytest.mark.parametrize("plain_steps", [0, 4])
def test_roots_from_any_start(start: float, plain_steps: int) -> None:
    """At a start of zero the slope vanishes, so that the first step leaves any bracket."""
    values = tensor(1e-9, 0.5, 8.0, 1e6)
    equation, _ = cubic(values)
    monitor = SolverMonitor()
    found = newton(
        equation,
        torch.full_like(values, start),
        torch.zeros_like(values),
        torch.full_like(values, 1e3),
        values ** (1 / 3),
        0.0,
        monitor,
        plain_steps=plain_steps,
    )
    assert monitor.report().converged
    torch.testing.assert_close(found.point, values ** (1 / 3), rtol=4 * EPSILON, atol=0)


def test_evaluation_is_that_before_the_last_step() -> None:
    equation, _ = cubic(tensor(8.0))
    monitor = SolverMonitor()
    found = newton(equation, tensor(3.0), tensor(0.0), tensor(8.0), tensor(1.0), 0.0, monitor)
    before = found.point - found.change
    torch.testing.assert_close(found.evaluation[0], before**3 - 8, rtol=1e-6, atol=1e-14)
    assert found.change.abs().item() <= 1e-9


def test_steps_of_low_accuracy_are_not_the_last_ones() -> None:
    """Also where the start is the root already."""
    equation, asked = cubic(tensor(8.0))
    newton(
        equation,
        tensor(2.0),
        tensor(0.0),
        tensor(8.0),
        tensor(1.0),
        0.0,
        SolverMonitor(),
        plain_steps=8,
        accuracies={1: 1e-4, 2: 1e-9},
    )
    assert asked == [1e-4, 1e-9, None]


def test_rounding_is_accepted_after_ten_steps() -> None:
    """An equation whose value never settles, as by rounding: steps within the noise do."""
    sign = 1.0

    def equation(point: Tensor, _: float | None) -> tuple[Tensor, Tensor]:
        nonlocal sign
        sign = -sign
        return torch.full_like(point, sign * 1e-6), torch.ones_like(point)

    for noise, converged in ((1e-5, True), (1e-8, False)):
        monitor = SolverMonitor()
        arguments = tensor(1.0), tensor(0.0), tensor(2.0), tensor(1.0)
        newton(equation, *arguments, noise, monitor, plain_steps=100)
        report = monitor.report()
        assert report.converged is converged
        assert report.iterations == (10 if converged else settings.max_solver_iterations.value())


def test_too_few_iterations_are_told() -> None:
    equation, _ = cubic(tensor(8.0))
    monitor = SolverMonitor()
    with settings.max_solver_iterations(2):
        newton(equation, tensor(100.0), tensor(0.0), tensor(1e3), tensor(1.0), 0.0, monitor)
    report = monitor.report()
    assert not report.converged and report.iterations == 2 and report.residual > 1


def test_no_equation() -> None:
    equation, _ = cubic(tensor())
    found = newton(equation, tensor(), tensor(), tensor(), tensor(), 0.0, SolverMonitor())
    assert found.point.shape == (0,)
