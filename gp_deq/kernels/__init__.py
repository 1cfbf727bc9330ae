"""Kernels of infinitely wide networks, as GPyTorch kernels."""

from .base import NeuralKernel, same_inputs
from .constraints import AboveCritical, AboveRounding, BelowCritical
from .deker import DEKerKernel, check_step_size
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
    "check_step_size",
    "same_inputs",
]
