"""Fixed points of a layer, solved in-graph: solvers, implicit differentiation, diagnostics."""

from ..interpolation import chebyshev
from .blockwise import Gradients, Needs, PairMap, Recomputed, pair_matrix
from .blockwise import PairFunction as PairFunction
from .blockwise import Tensors as Tensors
from .blockwise import block_edge as block_edge
from .blockwise import blocks as blocks
from .blockwise import flatten_batches as flatten_batches
from .fixed_point import contraction, equilibrium, equilibrium_variance
from .implicit import implicit_fixed_point, implicit_root
from .monitor import ConvergenceWarning, SolverMonitor, SolverReport
from .newton import newton
from .pair_angle import PairAngle, PairStationaryAngle
from .pair_distance import PairDistance
from .pair_polynomial import PairKernel as PairKernel
from .pair_polynomial import PairPolynomial, PairStationary, PairVersine
from .pair_polynomial import SeriesFit as SeriesFit
from .pair_polynomial import series_of as series_of
from .pair_profile import PairProfile, Shape
from .read_out import TRAINED as TRAINED
from .read_out import Layer, ReadOut, tangent
from .read_out import check_trained as check_trained
from .versines import Versines as Versines

__all__ = [
    "ConvergenceWarning",
    "Gradients",
    "Layer",
    "Needs",
    "PairAngle",
    "PairDistance",
    "PairMap",
    "PairPolynomial",
    "PairProfile",
    "PairStationary",
    "PairStationaryAngle",
    "PairVersine",
    "ReadOut",
    "Recomputed",
    "Shape",
    "SolverMonitor",
    "SolverReport",
    "chebyshev",
    "contraction",
    "equilibrium",
    "equilibrium_variance",
    "implicit_fixed_point",
    "implicit_root",
    "newton",
    "pair_matrix",
    "tangent",
]
