"""The kernels of ``gp-deq fit`` by name."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel
from gpytorch.priors import LogNormalPrior

from gp_deq.kernels import DEKerKernel, DEQNNGPKernel, DEQNTKKernel

MIN_LENGTHSCALE = 2.5e-2
"""That of BoTorch's default kernels. Lengthscales of categories may tend to zero, where GPyTorch's
distances lose all digits and no matrix is positive definite."""

MIN_VARIANCE = 1e-6
"""Bias variances stay above it."""


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
    "rbf": lambda _, d: RBFKernel(**_stationary(d)),
    "matern": lambda _, d: MaternKernel(2.5, **_stationary(d)),
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
