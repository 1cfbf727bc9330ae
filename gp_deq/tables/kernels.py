"""The kernels of ``gp-deq fit`` by name."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from gp_deq.kernels import DEKerKernel, DEQNNGPKernel, DEQNTKKernel

MIN_LENGTHSCALE = 2.5e-2
"""That of BoTorch's default kernels. Lengthscales of categories may tend to zero, where GPyTorch's
distances lose all digits and no matrix is positive definite."""

MIN_VARIANCE = 1e-6
"""Bias variances stay above it."""

_FARTHEST = 1e100
"""Distances beyond it count as it, so that their squares are finite; kernels are 0 long before."""


class _RBF(RBFKernel):
    """GPyTorch's, but a row of a prediction does not depend on the others.

    GPyTorch centres inputs by the mean of the batch and expands the squares of distances: a row far
    away takes all digits from the distances of the others. For learning, whose rows are
    standardised, its way is as good, and faster.
    """

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if self.training:
            return super().forward(x1, x2, diag=diag, **params)
        return torch.exp(-0.5 * _distance(self, x1, x2, diag).square())


class _Matern(MaternKernel):
    """GPyTorch's Matérn-5/2, but a row of a prediction does not depend on the others."""

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if self.training:
            return super().forward(x1, x2, diag=diag, **params)
        scaled = math.sqrt(5) * _distance(self, x1, x2, diag)
        return (1 + scaled + scaled.square() / 3) * torch.exp(-scaled)


def _distance(kernel: Kernel, x1: Tensor, x2: Tensor, diag: bool) -> Tensor:
    """In units of the lengthscales, by differences of the inputs."""
    x1, x2 = x1 / kernel.lengthscale, x2 / kernel.lengthscale
    if diag:
        distance = torch.linalg.vector_norm(x1 - x2, dim=-1)
    else:
        distance = torch.cdist(x1, x2, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.clamp(max=_FARTHEST)


def weak_prior(mode: float = 1.0) -> LogNormalPrior:
    """A prior that holds a figure of standardised data within a factor of about 50 of its mode.

    It keeps an optimiser from running along a ridge, such as growing lengthscales and a growing
    output scale, and gives BoTorch what to draw another start from.
    """
    return LogNormalPrior(4.0 + math.log(mode), 2.0)


def _neural(num_dims: int) -> dict[str, Any]:
    return {
        "ard_num_dims": num_dims,
        "lengthscale_prior": weak_prior(),
        "bias_variance_prior": weak_prior(),
        "bias_variance_constraint": GreaterThan(MIN_VARIANCE, initial_value=0.7),
    }


def _stationary(num_dims: int) -> dict[str, Any]:
    # distances grow with the square root of the dimension; the other kernels divide by it
    typical = math.sqrt(num_dims)
    return {
        "ard_num_dims": num_dims,
        "lengthscale_prior": weak_prior(typical),
        "lengthscale_constraint": GreaterThan(MIN_LENGTHSCALE, initial_value=typical),
    }


def _deker(link: str, num_dims: int) -> Kernel:
    kernel = DEKerKernel(link, **_neural(num_dims))
    if kernel.link.homogeneous:
        # the kernel is a multiple of it, as of the output scale
        kernel.raw_feature_scale.requires_grad_(False)
    return kernel


KERNELS: Mapping[str, Callable[[str, int], Kernel]] = {
    "deq-nngp": lambda activation, d: DEQNNGPKernel(activation, **_neural(d)),
    "deq-ntk": lambda activation, d: DEQNTKKernel(activation, **_neural(d)),
    "deker": _deker,
    "rbf": lambda _, d: _RBF(**_stationary(d)),
    "matern": lambda _, d: _Matern(2.5, **_stationary(d)),
}
"""Each kernel, with one lengthscale for each input, from an activation and a number of inputs."""

_WITHOUT_ACTIVATION = ("rbf", "matern")


def resolve_activation(kernel: str, activation: str | None) -> str | None:
    """The activation that a kernel takes.

    Args:
        kernel: A key of `KERNELS`.
        activation: Asked for; None for the default.

    Returns:
        Its name, "relu" by default; None for "rbf" and "matern".

    Raises:
        ValueError: The kernel is unknown, or has no activation and one is asked for.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be {', '.join(map(repr, KERNELS))}, got {kernel!r}")
    if kernel in _WITHOUT_ACTIVATION:
        if activation is not None:
            raise ValueError(f"the kernel {kernel!r} has no activation, but got {activation!r}")
        return None
    return "relu" if activation is None else activation


def make_kernel(kernel: str, num_dims: int, activation: str | None = None) -> Kernel:
    """A kernel at its initial values, without an output scale.

    Args:
        kernel: "deq-nngp", "deq-ntk", "deker", "rbf" or "matern", which is Matérn-5/2.
        num_dims: Number of inputs, each with a lengthscale.
        activation: Name of the activation, for "deker" of the link; "relu" by default.

    Returns:
        The kernel.

    Raises:
        ValueError: The kernel or the activation is unknown, or the kernel has no activation.

    Example:
        >>> make_kernel("deq-nngp", num_dims=3, activation="erf").lengthscale.shape
        torch.Size([1, 3])
    """
    resolved = resolve_activation(kernel, activation)
    return KERNELS[kernel](resolved or "", num_dims)


def kernel_label(kernel: str, activation: str | None) -> str:
    """How tables and figures call a kernel: its name and its activation, if it has one."""
    return f"{kernel} {activation}" if activation else kernel
