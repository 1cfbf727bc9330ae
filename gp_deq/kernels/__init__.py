"""Kernels of infinitely wide networks, as GPyTorch kernels."""

from .base import NeuralKernel
from .base import same_inputs as same_inputs
from .constraints import AboveCritical, AboveRounding, BelowCritical
from .deker import DEKerKernel
from .deker import check_step_size as check_step_size
from .deq_nngp_kernel import DEQNNGPKernel
from .deq_ntk_kernel import DEQNTKKernel
from .nngp_kernel import NNGPKernel
from .ntk_kernel import NTKKernel
from .weighted import EquilibriumKernel, WeightedKernel

__all__ = [
    "AboveCritical",
    "AboveRounding",
    "BelowCritical",
    "DEKerKernel",
    "DEQNNGPKernel",
    "DEQNTKKernel",
    "EquilibriumKernel",
    "NNGPKernel",
    "NTKKernel",
    "NeuralKernel",
    "WeightedKernel",
]
