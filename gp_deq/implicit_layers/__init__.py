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
from .autocast import without_autocast
from .deq_layer import ConvDEQLayer, DEQLayer
from .kernel_glm import GLMWeights, KernelGLM
from .map_solver import Curvature, check_covariance, check_data, check_new_inputs, most_probable

__all__ = [
    "Bernoulli",
    "Binomial",
    "ContinuousBernoulli",
    "ConvDEQLayer",
    "Curvature",
    "DEQLayer",
    "ExponentialFamily",
    "GLMWeights",
    "Gaussian",
    "KernelGLM",
    "Poisson",
    "SignedBernoulli",
    "check_covariance",
    "check_data",
    "check_new_inputs",
    "get_family",
    "most_probable",
    "without_autocast",
]
