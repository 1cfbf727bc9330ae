"""Deep-equilibrium kernels in Ax: importing this module registers them.

Ax calls the ``covar_module_class`` of a ``ModelConfig`` with the arguments that its parser returns.
For ``DEQNNGPKernel``, ``DEQNTKKernel`` and ``DEKerKernel`` these are the base, priors and initial
values of :func:`~gp_deq.bayesopt.get_covar_module` and the shapes of the data set, each overridden
by ``covar_module_options``. Ax can also save and load these classes by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any

import torch
from gpytorch.kernels import ScaleKernel
from torch import Tensor

try:
    from ax.exceptions.core import UserInputError
    from ax.generators.torch.botorch_modular.input_constructors.covar_modules import (
        covar_module_argparse,
    )
    from ax.generators.torch.botorch_modular.kernels import DefaultMaternKernel
    from ax.storage.botorch_modular_registry import register_kernel
except ImportError as error:
    raise ImportError('gp_deq.bayesopt.ax needs Ax: pip install "gp_deq[ax]"') from error

from ..activations import Activation
from ..kernels import DEKerKernel, DEQNNGPKernel, DEQNTKKernel, NeuralKernel
from .covar_modules import base_arguments, base_name, default_priors, get_covar_module

__all__ = ["ScaleDEQKernel"]

#: Options of Ax's own kernels that say which inputs and outputs of the data set a kernel has.
_SHAPES = ("ard_num_dims", "batch_shape", "active_dims", "inactive_features")
#: Arguments that a kernel has over an affine map only.
_AFFINE = ("center", "lengthscale_prior", "lengthscale_constraint")


class ScaleDEQKernel(ScaleKernel):
    """:func:`~gp_deq.bayesopt.get_covar_module` as a class, for Ax's ``covar_module_class``.

    Ax makes a kernel by calling its class. The other kernels of this package have no output scale;
    this one does. Ax gives it ``ard_num_dims``, ``batch_shape`` and ``active_dims``.

    Args:
        kernel: Name of the kernel, "deq-nngp" (default), "deq-ntk" or "deker".
        ard_num_dims: Number of lengthscales, one for each input. Default: one for all inputs.
        batch_shape: Batch shape of the kernel, one kernel for each output of a batched model.
        active_dims: Indices of the inputs to use. Default: all inputs.
        activation: Activation, for "deker" the link. Default: that of
            :func:`~gp_deq.bayesopt.get_covar_module`. Ax can save only a name.
        base: What the network sits on, "matern", "rbf" or "affine"; for "deker" only the last.
            Default: that of :func:`~gp_deq.bayesopt.get_covar_module`.

    Raises:
        ValueError: The kernel or the base is unknown, or the activation or the base cannot be used
            with the kernel.

    Example:
        >>> from ax.generators.torch.botorch_modular.surrogate import ModelConfig, SurrogateSpec
        >>> from gp_deq.bayesopt.ax import ScaleDEQKernel
        >>> config = ModelConfig(
        ...     covar_module_class=ScaleDEQKernel, covar_module_options={"kernel": "deq-ntk"})
        >>> SurrogateSpec(model_configs=[config]).model_configs[0].covar_module_class.__name__
        'ScaleDEQKernel'
    """

    def __init__(
        self,
        kernel: str = "deq-nngp",
        ard_num_dims: int | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: Sequence[int] | None = None,
        activation: str | Activation | Callable[[Tensor], Tensor] | None = None,
        base: str | None = None,
    ) -> None:
        scaled = get_covar_module(kernel, ard_num_dims, batch_shape, active_dims, activation, base)
        super().__init__(
            scaled.base_kernel,
            outputscale_prior=scaled.outputscale_prior,
            outputscale_constraint=scaled.raw_outputscale_constraint,
            batch_shape=batch_shape,
        )


@covar_module_argparse.register(ScaleDEQKernel)
def _scaled_arguments(covar_module_class: type[ScaleDEQKernel], **options: Any) -> dict[str, Any]:
    shapes, options = _split(options)
    _check(covar_module_class, options, signature(covar_module_class).parameters)
    return {**shapes, **options}


@covar_module_argparse.register((DEQNNGPKernel, DEQNTKKernel, DEKerKernel))
def _bare_arguments(covar_module_class: type[NeuralKernel], **options: Any) -> dict[str, Any]:
    shapes, options = _split(options)
    classes = [known for known in covar_module_class.__mro__ if issubclass(known, NeuralKernel)]
    _check(covar_module_class, options, ["base"], *(signature(c).parameters for c in classes))
    base = base_name(covar_module_class, _base(options))
    defaults = base_arguments(
        covar_module_class,
        default_priors(covar_module_class, base),
        options.get("activation", options.get("link")),
        base,
        options.get("step_size", 1.0),
        **shapes,
    )
    return {**defaults, **options}


def _base(options: dict[str, Any]) -> str | None:
    """Take "base" out of the options; where it is not among them, the base that they call for."""
    base = options.pop("base", None)
    if options.get("base_kernel") is not None:
        if base is not None:
            raise UserInputError(
                f"Only one of `base` and `base_kernel` can be given, got {base!r} and a "
                f"{type(options['base_kernel']).__name__}."
            )
        # the priors of any stationary base; the kernel given takes the place of this one
        return "matern"
    return "affine" if base is None and not options.keys().isdisjoint(_AFFINE) else base


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shapes that Ax would give its own default kernel, and the remaining options."""
    ours = {"botorch_model_class", "dataset", "remove_task_features", *_SHAPES}
    chosen = covar_module_argparse(
        DefaultMaternKernel, **{name: options[name] for name in ours & options.keys()}
    )
    shapes = {name: chosen[name] for name in ("ard_num_dims", "batch_shape", "active_dims")}
    return shapes, {name: value for name, value in options.items() if name not in ours}


def _check(
    covar_module_class: type[Any], options: dict[str, Any], *parameters: Iterable[str]
) -> None:
    """Raise an error for options that no constructor of the class takes."""
    known = {*_SHAPES}.union(*parameters) - {"args", "kwargs"}
    for name in options.keys() - known:
        raise UserInputError(
            f"{covar_module_class.__name__} has no option {name!r}; it has "
            f"{', '.join(sorted(known))}."
        )


for _kernel_class in (ScaleDEQKernel, DEQNNGPKernel, DEQNTKKernel, DEKerKernel):
    register_kernel(_kernel_class)
