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
"""Lower bound of the lengthscales, that of BoTorch's default kernels. Lengthscales of categories
may tend to zero, where GPyTorch's distances lose all digits and no matrix is positive definite."""

MIN_VARIANCE = 1e-6
"""Lower bound of the bias variance, at which the logarithm of its prior's density is finite."""

_FARTHEST = 1e100
"""Upper bound of distances, so that their squares are finite. The kernels are zero long before."""


class _RBF(RBFKernel):
    """GPyTorch's RBF kernel, but a row of a prediction does not depend on the other rows.

    GPyTorch centres inputs by the mean of the batch and expands the squares of distances, so that a
    row far away takes all digits from the distances of the others. In training mode, where rows are
    standardised, its way is as accurate, and faster.
    """

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if self.training:
            return super().forward(x1, x2, diag=diag, **params)
        return torch.exp(-0.5 * _distance(self, x1, x2, diag).square())


class _Matern(MaternKernel):
    """GPyTorch's Matérn-5/2 kernel, but a row of a prediction does not depend on the others."""

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if self.training:
            return super().forward(x1, x2, diag=diag, **params)
        scaled = math.sqrt(5) * _distance(self, x1, x2, diag)
        return (1 + scaled + scaled.square() / 3) * torch.exp(-scaled)


def _distance(kernel: Kernel, x1: Tensor, x2: Tensor, diag: bool) -> Tensor:
    """Distances in units of the lengthscales, from differences of the inputs."""
    x1, x2 = x1 / kernel.lengthscale, x2 / kernel.lengthscale
    if diag:
        distance = torch.linalg.vector_norm(x1 - x2, dim=-1)
    else:
        distance = torch.cdist(x1, x2, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.clamp(max=_FARTHEST)


def weak_prior(mode: float = 1.0) -> LogNormalPrior:
    """A log-normal prior on a positive hyperparameter of standardised data.

    The location is such that the mode, ``exp(location - scale**2)``, is the given one. The log
    density then falls by ``log(x / mode)**2 / 8``: by 2, as at two standard deviations of a
    Gaussian, at a factor of 55. The prior keeps an optimiser from running along a ridge, such as
    growing lengthscales with a growing output scale, and BoTorch draws the next start from it where
    a fit fails.

    Args:
        mode: Mode of the density.

    Returns:
        The prior.
    """
    scale = 2.0
    return LogNormalPrior(scale**2 + math.log(mode), scale)


def _neural(num_dims: int) -> dict[str, Any]:
    return {
        "ard_num_dims": num_dims,
        "lengthscale_prior": weak_prior(),
        "bias_variance_prior": weak_prior(),
        # GPyTorch's initial value of positive hyperparameters, log 2, rounded
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
        # the kernel is proportional to its square, as it is to the output scale
        kernel.raw_feature_scale.requires_grad_(False)
    return kernel


KERNELS: Mapping[str, Callable[[str, int], Kernel]] = {
    "deq-nngp": lambda activation, d: DEQNNGPKernel(activation, **_neural(d)),
    "deq-ntk": lambda activation, d: DEQNTKKernel(activation, **_neural(d)),
    "deker": _deker,
    "rbf": lambda _, d: _RBF(**_stationary(d)),
    "matern": lambda _, d: _Matern(2.5, **_stationary(d)),
}
"""Functions by name that make a kernel from an activation and a number of inputs."""

_WITHOUT_ACTIVATION = ("rbf", "matern")


def resolve_activation(kernel: str, activation: str | None) -> str | None:
    """The activation that a kernel takes.

    Args:
        kernel: Name of the kernel, a key of `KERNELS`.
        activation: Name of the activation that was asked for; None for the default.

    Returns:
        The name of the activation, "relu" by default; None for "rbf" and "matern".

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
        kernel: Name of the kernel, "deq-nngp", "deq-ntk", "deker", "rbf" or "matern" (Matérn-5/2).
        num_dims: Number of inputs, each with a lengthscale.
        activation: Name of the activation, for "deker" of the link; "relu" by default.

    Returns:
        The kernel, with one lengthscale for each input.

    Raises:
        ValueError: The kernel or the activation is unknown, or the kernel has no activation.

    Example:
        >>> make_kernel("deq-nngp", num_dims=3, activation="erf").lengthscale.shape
        torch.Size([1, 3])
    """
    resolved = resolve_activation(kernel, activation)
    return KERNELS[kernel](resolved or "", num_dims)


def kernel_label(kernel: str, activation: str | None) -> str:
    """The name of a kernel in tables and figures, with its activation if it has one."""
    return f"{kernel} {activation}" if activation else kernel
