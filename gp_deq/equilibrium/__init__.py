"""Fixed points of a layer, solved in-graph: solvers, implicit differentiation, diagnostics."""

from .fixed_point import contraction, equilibrium, equilibrium_variance
from .newton import newton
from .report import ConvergenceWarning, SolverMonitor, SolverReport

__all__ = [
    "ConvergenceWarning",
    "SolverMonitor",
    "SolverReport",
    "contraction",
    "equilibrium",
    "equilibrium_variance",
    "newton",
]
