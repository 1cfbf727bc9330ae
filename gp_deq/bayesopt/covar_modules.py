"""Deep-equilibrium kernels with priors and initial values for inputs in the unit cube."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import ScaleKernel
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from ..activations import Activation, get_activation
from ..activations.link import get_link
from ..kernels import DEKerKernel, DEQNNGPKernel, DEQNTKKernel
from ..kernels.base import NeuralKernel
from ..kernels.weighted import EquilibriumKernel
from ..kernels.constraints import AboveCritical, BelowCritical
from ..kernels.deker import check_step_size
from .strength_prior import StrengthPrior


class Priors(NamedTuple):
    r"""What :func:`get_covar_module` sets, for a kernel.

    Args:
        activation: Activation, or link of DEKer.
        lengthscale: Location and scale of the log-normal prior on each lengthscale, which starts at
            its mode. Squared distances are divided by d in the kernel, so the location does not
            depend on the dimension, while that of a stationary kernel has to grow like
            :math:`\frac12 \log d`. It is narrow: few observations say little about each input.
        bias_variance: Location and scale of that on the bias variance, which starts at its median.
            It is wide: for homogeneous activations the lengthscales matter only relative to the
            bias, so that it is their common scale. For others the narrow prior fixes that scale.
        share: Initial weight variance in units of its critical value; of DEKer, the same share of
            ``regularization**-2``.
        strength: Concentration of the :class:`StrengthPrior` on that share.
        outputscale_scale: Scale of the log-normal prior on the output scale, whose median is the
            initial value.
    """

    activation: str
    lengthscale: tuple[float, float] = (-1.4, 0.2)
    bias_variance: tuple[float, float] = (1.0, 1.0)
    share: float = 0.5
    strength: float = 2.0
    outputscale_scale: float = 1.0


#: The kernels by name, with the priors that ``python -m gp_deq.benchmarks.bo_priors`` compares.
KERNELS: dict[str, tuple[type[NeuralKernel], Priors]] = {
    "deq-nngp": (DEQNNGPKernel, Priors("relu")),
    "deq-ntk": (DEQNTKKernel, Priors("relu")),
    "deker": (DEKerKernel, Priors("relu")),
}

#: Lengthscales stay above it, as those of BoTorch's default kernels.
MIN_LENGTHSCALE = 2.5e-2
#: Bias variance and output scale stay above it, where the density of their priors is positive.
MIN_VARIANCE = 1e-6
#: Coordinates of a point whose distance from the centre is that of a uniform point on average.
_TYPICAL = 0.5 + 12**-0.5


def get_covar_module(
    kernel: str = "deq-nngp",
    ard_num_dims: int | None = None,
    batch_shape: torch.Size | None = None,
    active_dims: Sequence[int] | None = None,
    activation: str | Activation | Callable[[Tensor], Tensor] | None = None,
) -> ScaleKernel:
    """A deep-equilibrium kernel for inputs in the unit cube and standardised outcomes.

    It is centred in the cube, has an output scale and starts with a prior variance of one at a
    typical point. Lengthscales, bias variance and output scale have log-normal priors, so that few
    observations of many inputs do not over-fit, and ``weight_variance`` (``regularization`` of
    "deker") has a Beta prior between zero and its critical value. The prior of single lengthscales
    is narrow: an input becomes irrelevant only if many observations say so. How these were chosen
    is on the page "When should I use a DEQ surrogate?" of the documentation.

    Args:
        kernel: "deq-nngp" (default), "deq-ntk" or "deker".
        ard_num_dims: Number of lengthscales, one for each input. Default: one for all.
        batch_shape: One kernel for each output of a batched model, ``torch.Size([m])``.
        active_dims: Inputs to use. Default: all.
        activation: Default "relu"; for "deker" the link.

    Returns:
        The kernel in a :class:`~gpytorch.kernels.ScaleKernel`, in torch's default dtype, as those
        of BoTorch; a model moves it to the dtype of its data.

    Raises:
        ValueError: The kernel is unknown, or the activation cannot be used with it.

    Example:
        >>> import torch
        >>> from botorch.models import SingleTaskGP
        >>> from gp_deq.bayesopt import get_covar_module
        >>> X = torch.rand(8, 3, dtype=torch.float64)
        >>> model = SingleTaskGP(X, X.sum(-1, keepdim=True), covar_module=get_covar_module(
        ...     ard_num_dims=3))
        >>> model.posterior(X).mean.shape
        torch.Size([8, 1])
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be {', '.join(map(repr, KERNELS))}, got {kernel!r}.")
    return build(
        *KERNELS[kernel],
        activation=activation,
        ard_num_dims=ard_num_dims,
        batch_shape=batch_shape,
        active_dims=active_dims,
    )


def build(
    kernel_class: type[NeuralKernel],
    priors: Priors,
    activation: str | Activation | Callable[[Tensor], Tensor] | None = None,
    ard_num_dims: int | None = None,
    batch_shape: torch.Size | None = None,
    active_dims: Sequence[int] | None = None,
) -> ScaleKernel:
    """:func:`get_covar_module` for any priors.

    Args:
        kernel_class: The kernel.
        priors: What to set.
        activation: In place of that of the priors.
        ard_num_dims: As for :func:`get_covar_module`.
        batch_shape: As for :func:`get_covar_module`.
        active_dims: As for :func:`get_covar_module`.
    """
    base = kernel_class(
        **base_arguments(kernel_class, priors, activation),
        ard_num_dims=ard_num_dims,
        batch_shape=batch_shape,
        active_dims=active_dims,
    )
    if isinstance(base, DEKerKernel) and base.link.homogeneous:
        # the kernel is a multiple of it
        base.raw_feature_scale.requires_grad_(False)
    scale = 1 / _typical_variance(base, 1 if ard_num_dims is None else ard_num_dims)
    return ScaleKernel(
        base,
        batch_shape=batch_shape,
        outputscale_prior=LogNormalPrior(math.log(scale), priors.outputscale_scale),
        outputscale_constraint=GreaterThan(MIN_VARIANCE, initial_value=scale),
    )


def base_arguments(
    kernel_class: type[NeuralKernel],
    priors: Priors,
    activation: str | Activation | Callable[[Tensor], Tensor] | None = None,
    step_size: float = 1.0,
) -> dict[str, Any]:
    """Arguments of a kernel without its output scale: centre, priors and initial values.

    Args:
        kernel_class: The kernel.
        priors: What to set.
        activation: In place of that of the priors.
        step_size: Of DEKer.
    """
    nonlinearity: Any = priors.activation if activation is None else activation
    lengthscale_prior = LogNormalPrior(*priors.lengthscale)
    arguments: dict[str, Any] = {
        "center": 0.5,
        "bias_variance_prior": LogNormalPrior(*priors.bias_variance),
        "bias_variance_constraint": GreaterThan(
            MIN_VARIANCE, initial_value=math.exp(priors.bias_variance[0])
        ),
        "lengthscale_prior": lengthscale_prior,
        "lengthscale_constraint": GreaterThan(
            MIN_LENGTHSCALE, initial_value=lengthscale_prior.mode
        ),
    }
    if not issubclass(kernel_class, EquilibriumKernel):
        link, step_size = get_link(nonlinearity), check_step_size(step_size)
        critical = link.critical_regularization * math.sqrt(step_size / (2 - step_size))
        if critical == 0:
            raise ValueError(f"sigma of {link!r} is constant, so that no input matters.")
        if critical < math.inf:  # the kernel refuses the others
            arguments["regularization_prior"] = StrengthPrior(priors.strength, critical, power=-2)
            arguments["regularization_constraint"] = AboveCritical(
                critical, initial_value=critical * priors.share**-0.5
            )
        return {"link": link, **arguments}
    activation = get_activation(nonlinearity)
    if activation.lipschitz == 0:
        raise ValueError(f"{activation!r} is constant, so that no input matters.")
    critical = activation.critical_weight_variance
    if critical > 0:  # the kernel refuses the others
        arguments["weight_variance_prior"] = StrengthPrior(priors.strength, critical)
        arguments["weight_variance_constraint"] = BelowCritical(
            critical, initial_value=priors.share * critical
        )
    return {"activation": activation, **arguments}


def _typical_variance(kernel: NeuralKernel, num_dims: int) -> float:
    batch_shape = kernel.batch_shape
    point = torch.full((*batch_shape, 1, num_dims), _TYPICAL)
    with torch.no_grad():
        return float(kernel.forward(point, point, diag=True).flatten()[0]) if point.numel() else 1.0
