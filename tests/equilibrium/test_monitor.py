"""The record of the solves."""

from __future__ import annotations

import math

import torch

from gp_deq.equilibrium import SolverMonitor, SolverReport


def test_nothing_solved() -> None:
    assert SolverMonitor().report() == SolverReport(0, 0.0, True)


def test_the_worst_of_several_solves() -> None:
    monitor = SolverMonitor()
    monitor.record(3, torch.tensor([1e-12, 1e-10], dtype=torch.float64), 1e-9)
    monitor.record(7, torch.tensor([[1e-11]], dtype=torch.float64), 1e-9)
    monitor.record(1, torch.empty(0, 4), 1e-9)
    assert monitor.report() == SolverReport(7, 1e-10, True)
    monitor.record(2, torch.tensor([1e-3], dtype=torch.float64), 1e-4)
    assert monitor.report().converged is False


def test_nan_is_not_convergence() -> None:
    monitor = SolverMonitor()
    monitor.record(2, torch.tensor([math.nan, 0.0]), 1e-9)
    monitor.record(2, torch.tensor([1.0]), 2.0)
    report = monitor.report()
    assert not report.converged and math.isnan(report.residual)
