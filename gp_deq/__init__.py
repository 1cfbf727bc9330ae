"""Deep-equilibrium kernels for GPyTorch and BoTorch."""

from . import activations, equilibrium, kernels, settings
from .botorch_hook import register_when_imported
from .kernels import DEKerKernel, DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel

__version__ = "0.1.0"

__all__ = [
    "DEKerKernel",
    "DEQNNGPKernel",
    "DEQNTKKernel",
    "NNGPKernel",
    "NTKKernel",
    "activations",
    "equilibrium",
    "kernels",
    "settings",
]

register_when_imported()
