"""Layers that solve a kernel generalised linear model in their forward pass."""

from ..activations import (
    Bernoulli,
    Binomial,
    ContinuousBernoulli,
    ExponentialFamily,
    Gaussian,
    Poisson,
    SignedBernoulli,
    get_family,
)
from .autocast import without_autocast as without_autocast
from .deq_layer import ConvDEQLayer, DEQLayer
from .kernel_glm import GLMWeights, KernelGLM
from .map_solver import Curvature as Curvature
from .map_solver import check_covariance as check_covariance
from .map_solver import check_data as check_data
from .map_solver import check_new_inputs as check_new_inputs
from .map_solver import most_probable as most_probable

__all__ = [
    "Bernoulli",
    "Binomial",
    "ContinuousBernoulli",
    "ConvDEQLayer",
    "DEQLayer",
    "ExponentialFamily",
    "GLMWeights",
    "Gaussian",
    "KernelGLM",
    "Poisson",
    "SignedBernoulli",
    "get_family",
]
