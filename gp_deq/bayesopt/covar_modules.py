"""Deep-equilibrium kernels with priors and initial values for inputs in the unit cube."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from ..activations import Activation, get_activation, get_link
from ..kernels import (
    AboveCritical,
    BelowCritical,
    DEKerKernel,
    DEQNNGPKernel,
    DEQNTKKernel,
    EquilibriumKernel,
    NeuralKernel,
    check_step_size,
)
from .strength_prior import StrengthPrior


class Priors(NamedTuple):
    r"""Priors and initial values that :func:`get_covar_module` gives a kernel.

    The numbers were chosen by experiments on ten training problems that are in no benchmark, see
    "How the priors were chosen" on the page "When should I use a DEQ surrogate?" of the
    documentation; ``python -m gp_deq.benchmarks.bo_priors`` repeats them.

    Args:
        activation: Activation, for DEKer the link.
        lengthscale: Location and scale of the log-normal prior on each lengthscale, which starts at
            its mode. The kernel divides squared distances by d, so the location does not depend on
            the dimension, while that of a stationary kernel has to grow like
            :math:`\frac12 \log d`. It is narrow, as few observations say little about each input.
        bias_variance: Location and scale of the log-normal prior on the bias variance, which starts
            at its median. It is wide: for homogeneous activations the lengthscales matter only
            relative to the bias, which is thus their common scale. For other activations the narrow
            prior of the lengthscales fixes that scale.
        share: Initial weight variance relative to its critical value; for DEKer, the same for
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


class BasePriors(NamedTuple):
    r"""Priors and initial values over a stationary base kernel.

    The base has the priors of BoTorch's default kernels on its lengthscales, whose location grows
    with the number of inputs [Hvarfner2024]_, and is bounded, as is the kernel over it.

    Args:
        bias_variance: Location and scale of the log-normal prior on the bias variance, which starts
            at its median. It is relative to the variance of the base kernel.
        base_variance: Location and scale of the log-normal prior on the variance of the base, which
            tells how far into its bend an activation works. For homogeneous activations it is one,
            as it would be a second output scale.
        share: See :class:`Priors`.
        strength: See :class:`Priors`.
        outputscale_scale: See :class:`Priors`.
    """

    activation: str
    bias_variance: tuple[float, float] = (-1.0, 1.0)
    base_variance: tuple[float, float] = (0.0, 1.0)
    share: float = 0.5
    strength: float = 2.0
    outputscale_scale: float = 1.0


#: What the infinitely deep network sits on, by name: a base kernel, or None for an affine map.
BASES: dict[str, Callable[..., Kernel] | None] = {
    "matern": MaternKernel,
    "rbf": RBFKernel,
    "affine": None,
}
#: The base where none is named. DEKer has only the affine one.
DEFAULT_BASE = "matern"
#: Location and scale of the log-normal prior on a lengthscale of one input over a base kernel.
_LENGTHSCALE = math.sqrt(2), math.sqrt(3)

#: The kernels by name, with the priors that ``docs/experiments/bo_priors.py`` compares.
KERNELS: dict[str, tuple[type[NeuralKernel], Priors]] = {
    "deq-nngp": (DEQNNGPKernel, Priors("relu")),
    "deq-ntk": (DEQNTKKernel, Priors("relu")),
    "deker": (DEKerKernel, Priors("relu")),
}

#: Lower bound of the lengthscales, that of BoTorch's default kernels.
MIN_LENGTHSCALE = 2.5e-2
#: Lower bound of bias variance and output scale: at zero the logarithm of a log-normal density is
#: not finite. It is more than ten standard deviations below the medians of the priors.
MIN_VARIANCE = 1e-6
#: Coordinate of a typical point, one standard deviation of the uniform distribution, 12**-0.5, from
#: the centre of the cube: its squared distance is the mean of that of uniform points.
_TYPICAL = 0.5 + 12**-0.5


def get_covar_module(
    kernel: str = "deq-nngp",
    ard_num_dims: int | None = None,
    batch_shape: torch.Size | None = None,
    active_dims: Sequence[int] | None = None,
    activation: str | Activation | Callable[[Tensor], Tensor] | None = None,
    base: str | None = None,
) -> ScaleKernel:
    """A deep-equilibrium kernel for inputs in the unit cube and standardised outcomes.

    By default the network sits on a Matern-5/2 kernel with BoTorch's prior on lengthscales, so that
    the prior variance is the same everywhere. Over an affine map, ``base="affine"``, mean and
    deviation grow towards the corners of the cube, and with many inputs an acquisition function
    proposes little else; that suits functions with a trend or a valley across the cube.

    The kernel has an output scale and starts with a prior variance of one, over an affine map at a
    typical point of the cube, which it is centred in. Lengthscales, variances and output scale have
    log-normal priors, so that few observations of many inputs do not over-fit, and
    ``weight_variance`` (``regularization`` of "deker") has a Beta prior between zero and its
    critical value. The page "When should I use a DEQ surrogate?" of the documentation says how
    these were chosen.

    Args:
        kernel: Name of the kernel, "deq-nngp" (default), "deq-ntk" or "deker".
        ard_num_dims: Number of lengthscales, one for each input. Default: one for all inputs.
        batch_shape: Batch shape, ``torch.Size([m])`` for a batched model of ``m`` outputs.
        active_dims: Indices of the inputs to use. Default: all inputs.
        activation: Activation, for "deker" the link; "relu" by default.
        base: "matern" (default), "rbf" or "affine"; for "deker" only the last.

    Returns:
        The kernel in a :class:`~gpytorch.kernels.ScaleKernel`, in torch's default dtype, as
        BoTorch's kernels are; a model moves it to the dtype of its data.

    Raises:
        ValueError: The kernel or the base is unknown, or the activation or the base cannot be used
            with the kernel.

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
    kernel_class, _ = KERNELS[kernel]
    name = base_name(kernel_class, base)
    return build(
        kernel_class,
        default_priors(kernel_class, name),
        activation=activation,
        ard_num_dims=ard_num_dims,
        batch_shape=batch_shape,
        active_dims=active_dims,
        base=name,
    )


def base_name(kernel_class: type[NeuralKernel], base: str | None) -> str:
    """The base of a kernel, where none is named the default.

    Raises:
        ValueError: It is unknown, or the kernel cannot have it.
    """
    over_kernels = issubclass(kernel_class, EquilibriumKernel)
    name = base or (DEFAULT_BASE if over_kernels else "affine")
    known = list(BASES) if over_kernels else ["affine"]
    if name not in known:
        raise ValueError(
            f"base of {kernel_class.__name__} must be {', '.join(map(repr, known))}, got {base!r}."
        )
    return name


def default_priors(kernel_class: type[NeuralKernel], base: str) -> Priors | BasePriors:
    """The priors that :func:`get_covar_module` gives a kernel, or a subclass of it, over a base."""
    priors = next(given for known, given in KERNELS.values() if issubclass(kernel_class, known))
    return priors if BASES[base] is None else BasePriors(priors.activation)


def build(
    kernel_class: type[NeuralKernel],
    priors: Priors | BasePriors,
    activation: str | Activation | Callable[[Tensor], Tensor] | None = None,
    ard_num_dims: int | None = None,
    batch_shape: torch.Size | None = None,
    active_dims: Sequence[int] | None = None,
    base: str = "affine",
) -> ScaleKernel:
    """:func:`get_covar_module` for any priors.

    Args:
        kernel_class: Class of the kernel.
        priors: Priors and initial values, :class:`BasePriors` over a base kernel.
        activation: Activation, or link, in place of that of ``priors``.
        ard_num_dims: See :func:`get_covar_module`.
        batch_shape: See :func:`get_covar_module`.
        active_dims: See :func:`get_covar_module`.
        base: See :func:`get_covar_module`.

    Returns:
        The kernel in a :class:`~gpytorch.kernels.ScaleKernel`.

    Raises:
        ValueError: The activation cannot be used with the kernel.
    """
    inner = kernel_class(
        **base_arguments(
            kernel_class,
            priors,
            activation,
            base,
            ard_num_dims=ard_num_dims,
            batch_shape=batch_shape,
            active_dims=active_dims,
        )
    )
    if isinstance(inner, DEKerKernel) and inner.link.homogeneous:
        # the kernel is proportional to its square, as it is to the output scale
        inner.raw_feature_scale.requires_grad_(False)
    scale = 1 / _typical_variance(inner, 1 if ard_num_dims is None else ard_num_dims)
    return ScaleKernel(
        inner,
        batch_shape=batch_shape,
        outputscale_prior=LogNormalPrior(math.log(scale), priors.outputscale_scale),
        outputscale_constraint=GreaterThan(MIN_VARIANCE, initial_value=scale),
    )


def base_arguments(
    kernel_class: type[NeuralKernel],
    priors: Priors | BasePriors,
    activation: str | Activation | Callable[[Tensor], Tensor] | None = None,
    base: str = "affine",
    step_size: float = 1.0,
    *,
    ard_num_dims: int | None = None,
    batch_shape: torch.Size | None = None,
    active_dims: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Arguments of a kernel without its output scale: base, priors and initial values.

    Args:
        kernel_class: Class of the kernel.
        priors: Priors and initial values, :class:`BasePriors` over a base kernel.
        activation: Activation, or link, in place of that of ``priors``.
        base: See :func:`get_covar_module`.
        step_size: Step size of DEKer, on which its critical regularization depends.
        ard_num_dims: See :func:`get_covar_module`.
        batch_shape: See :func:`get_covar_module`.
        active_dims: See :func:`get_covar_module`.

    Returns:
        Keyword arguments of the class.

    Raises:
        ValueError: The activation cannot be used with the kernel.
    """
    nonlinearity: Any = priors.activation if activation is None else activation
    arguments: dict[str, Any] = {
        "bias_variance_prior": LogNormalPrior(*priors.bias_variance),
        "bias_variance_constraint": GreaterThan(
            MIN_VARIANCE, initial_value=math.exp(priors.bias_variance[0])
        ),
        "batch_shape": batch_shape,
        "active_dims": active_dims,
    }
    if isinstance(priors, Priors):
        prior = LogNormalPrior(*priors.lengthscale)
        arguments |= {"center": 0.5, "ard_num_dims": ard_num_dims, **_lengthscale(prior)}
    if not issubclass(kernel_class, EquilibriumKernel):
        link, step_size = get_link(nonlinearity), check_step_size(step_size)
        critical = link.critical_regularization * math.sqrt(step_size / (2 - step_size))
        if critical == 0:
            raise ValueError(f"sigma of {link!r} is constant, so that no input matters.")
        if critical < math.inf:  # else the constructor of the kernel raises the error
            arguments["regularization_prior"] = StrengthPrior(priors.strength, critical, power=-2)
            arguments["regularization_constraint"] = AboveCritical(
                critical, initial_value=critical * priors.share**-0.5
            )
        return {"link": link, **arguments}
    activation = get_activation(nonlinearity)
    if activation.lipschitz == 0:
        raise ValueError(f"{activation!r} is constant, so that no input matters.")
    critical = activation.critical_weight_variance
    if critical > 0:  # else the constructor of the kernel raises the error
        arguments["weight_variance_prior"] = StrengthPrior(priors.strength, critical)
        arguments["weight_variance_constraint"] = BelowCritical(
            critical, initial_value=priors.share * critical
        )
    if isinstance(priors, BasePriors):
        variance = None if activation.homogeneous else priors.base_variance
        arguments["base_kernel"] = _base_kernel(base, variance, ard_num_dims, batch_shape)
    return {"activation": activation, **arguments}


def _base_kernel(
    base: str,
    variance: tuple[float, float] | None,
    ard_num_dims: int | None,
    batch_shape: torch.Size | None,
) -> Kernel:
    """A stationary kernel with BoTorch's prior on lengthscales, and one on its variance if given.

    BoTorch's own function wants to know the number of inputs.
    """
    make = BASES[base]
    assert make is not None
    location, scale = _LENGTHSCALE
    prior = LogNormalPrior(location + math.log(ard_num_dims or 1) / 2, scale)
    kernel = make(ard_num_dims=ard_num_dims, batch_shape=batch_shape, **_lengthscale(prior))
    if variance is None:
        return kernel
    return ScaleKernel(
        kernel,
        batch_shape=batch_shape,
        outputscale_prior=LogNormalPrior(*variance),
        outputscale_constraint=GreaterThan(MIN_VARIANCE, initial_value=math.exp(variance[0])),
    )


def _lengthscale(prior: LogNormalPrior) -> dict[str, Any]:
    constraint = GreaterThan(MIN_LENGTHSCALE, initial_value=prior.mode)
    return {"lengthscale_prior": prior, "lengthscale_constraint": constraint}


def _typical_variance(kernel: NeuralKernel, num_dims: int) -> float:
    batch_shape = kernel.batch_shape
    point = torch.full((*batch_shape, 1, num_dims), _TYPICAL)
    with torch.no_grad():
        return float(kernel.forward(point, point, diag=True).flatten()[0]) if point.numel() else 1.0
