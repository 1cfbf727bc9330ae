"""Fixed points of a layer, solved in-graph: solvers, implicit differentiation, diagnostics."""

from .blockwise import (
    Gradients,
    Needs,
    PairFunction,
    PairMap,
    Recomputed,
    Tensors,
    block_edge,
    blocks,
    flatten_batches,
    pair_matrix,
)
from .fixed_point import contraction, equilibrium, equilibrium_variance
from .implicit import implicit_fixed_point, implicit_root
from .interpolation import chebyshev
from .monitor import ConvergenceWarning, SolverMonitor, SolverReport
from .newton import newton
from .pair_angle import PairAngle
from .pair_distance import PairDistance
from .pair_profile import PairProfile, Shape
from .read_out import TRAINED, Layer, ReadOut, check_trained, tangent

__all__ = [
    "TRAINED",
    "ConvergenceWarning",
    "Gradients",
    "Layer",
    "Needs",
    "PairAngle",
    "PairDistance",
    "PairFunction",
    "PairMap",
    "PairProfile",
    "ReadOut",
    "Recomputed",
    "Shape",
    "SolverMonitor",
    "SolverReport",
    "Tensors",
    "block_edge",
    "blocks",
    "chebyshev",
    "check_trained",
    "contraction",
    "equilibrium",
    "equilibrium_variance",
    "flatten_batches",
    "implicit_fixed_point",
    "implicit_root",
    "newton",
    "pair_matrix",
    "tangent",
]
