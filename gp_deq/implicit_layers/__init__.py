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
from .deq_layer import ConvDEQLayer, DEQLayer
from .kernel_glm import GLMWeights, KernelGLM

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
