"""How a solve went."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ConvergenceWarning(UserWarning):
    """An equilibrium was not found to the tolerance asked for."""


class SolverReport(NamedTuple):
    """Record of the solves of one evaluation of a kernel.

    Args:
        iterations: Largest number of Newton steps that any variance or pair took.
        residual: Largest last Newton step, relative to the variances of its pair. An upper bound on
            the error before that step; after it, the error is of the order of the square.
        converged: Whether every residual is within ``settings.solver_tolerance``.
        method: "pairs" where each pair was solved for or looked up by its angle, "series" where a
            kernel over a base kernel of constant variance was interpolated.
    """

    iterations: int
    residual: float
    converged: bool
    method: str = "pairs"


class SolverMonitor:
    """Collects the steps of several solves; reads them off the device once, at the end."""

    def __init__(self) -> None:
        #: See :class:`SolverReport`.
        self.method = "pairs"
        self._iterations = 0
        self._residuals: list[tuple[Tensor, float]] = []

    def record(self, iterations: int, residual: Tensor, tolerance: float) -> None:
        """Add a solve.

        Args:
            iterations: Newton steps taken.
            residual: Its last relative steps, of any shape; reduced to the largest here.
            tolerance: The step that counts as converged.
        """
        self._iterations = max(self._iterations, iterations)
        if residual.numel():
            self._residuals.append((residual.detach().amax(), tolerance))

    def report(self) -> SolverReport:
        """The record so far."""
        if not self._residuals:
            return SolverReport(self._iterations, 0.0, True, self.method)
        worst = torch.stack([residual for residual, _ in self._residuals]).tolist()
        converged = all(
            value <= tolerance for value, (_, tolerance) in zip(worst, self._residuals, strict=True)
        )
        # NaN must not hide behind max()
        residual = max(worst, key=lambda value: float("inf") if value != value else value)
        return SolverReport(self._iterations, residual, converged, self.method)
