"""Derivatives of code that autograd cannot look into, or should not.

For the backward passes of autograd Functions there are :func:`pull_back`, gradients with respect
to a function's own arguments, which can be differentiated where that is asked for, and
:func:`one_gradient_at_a_time`. For the transforms of ``torch.func`` there is :func:`opaque`: a
solver asks the values of tensors whether it has converged, which transforms do not allow, so they
are given the whole of a function at once, with rules in terms of the function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from itertools import repeat
from typing import Any, TypeVar

import torch
from torch import Tensor

#: Maps tensors to a tensor or to a tuple of tensors; differentiable as often as is asked for.
Function = Callable[..., Any]

Backward = TypeVar("Backward", bound=Callable[..., Any])


def pull_back(
    function: Callable[..., tuple[Any, Any]],
    tensors: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients with respect to arguments, themselves differentiable where grad is enabled.

    Args:
        function: Maps the arguments to its outputs and to the gradients that enter these, each a
            tensor or a tuple of tensors; None for a gradient of zero.
        tensors: The arguments; None is handed on.
        needed: Which of them want a gradient; the others have no place in the result.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        # aliases stop the differentiation at the function's own arguments
        leaves = [
            None
            if tensor is None
            else tensor.view_as(tensor)
            if differentiable and tensor.requires_grad
            else tensor.detach().requires_grad_(need)
            for tensor, need in zip(tensors, needed, strict=True)
        ]
        wanted = [x for x, need in zip(leaves, needed, strict=True) if need and x is not None]
        outputs, gradients = (_as_tuple(value) for value in function(*leaves))
        depending = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if output.requires_grad and gradient is not None
        ]
        if not depending or not wanted:
            return tuple(torch.zeros_like(x) for x in wanted)
        return torch.autograd.grad(
            [output for output, _ in depending],
            wanted,
            [gradient for _, gradient in depending],
            create_graph=differentiable,
            allow_unused=True,
            materialize_grads=True,
        )


def in_their_places(
    gradients: Iterable[Tensor], needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of :func:`pull_back`, with None for arguments that need none."""
    found = iter(gradients)
    return tuple(next(found) if need else None for need in needed)


def opaque(function: Function, *tensors: Tensor) -> Any:
    """``function(*tensors)``, of which transforms see inputs and outputs alone.

    Reverse mode is the function's own vector-Jacobian product, forward mode the derivative of that
    product, and ``vmap`` is a loop. Without a transform under way this is the plain call.

    Args:
        function: See :data:`Function`. Tensors that it does not get as arguments are constants.
        *tensors: Arguments, which transforms differentiate with respect to and map over.
    """
    if transforming():
        return _Opaque.apply(function, *tensors)
    if torch.compiler.is_compiling():
        return torch.compiler.disable(function)(*tensors)
    return function(*tensors)


def one_gradient_at_a_time(backward: Backward) -> Backward:
    """A backward pass that ``torch.autograd.grad(..., is_grads_batched=True)`` may call.

    That has a batching mechanism of its own, which knows no rules of autograd Functions, and whose
    names are private: PyTorch has no other way to take such a gradient apart.

    Args:
        backward: The static method of a Function, written for ordinary gradients.
    """

    @wraps(backward)
    def looped(ctx: Any, *grads: Tensor | None) -> Any:
        is_batched = torch._C._functorch.is_legacy_batchedtensor
        if not any(grad is not None and is_batched(grad) for grad in grads):
            return backward(ctx, *grads)
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        columns = [
            repeat(grad)
            if grad is None or not is_batched(grad)
            else torch._remove_batch_dim(grad, level, 1, 0).unbind(0)
            for grad in grads
        ]
        results = [_as_tuple(backward(ctx, *row)) for row in zip(*columns, strict=False)]
        return tuple(
            None if parts[0] is None else torch._add_batch_dim(torch.stack(parts), 0, level)
            for parts in zip(*results, strict=True)
        )

    return looped  # type: ignore[return-value]


def transforming() -> bool:
    """Whether a transform of ``torch.func`` is under way."""
    # torch.autograd.Function asks the same; there is no public name for it
    return torch._C._are_functorch_transforms_active()


def _vector_jacobian(function: Function, count: int) -> Function:
    """Maps the arguments of a function and gradients of its outputs to gradients of the former."""

    def gradients(*arguments: Tensor) -> tuple[Tensor, ...]:
        tensors, upstream = arguments[:count], arguments[count:]
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and any(x.requires_grad for x in arguments)
        ):
            return pull_back(lambda *x: (function(*x), upstream), tensors, [True] * count)

    return gradients


def _jacobian_vector(function: Function, count: int) -> Function:
    """Maps the arguments of a function and their tangents to the tangents of its outputs.

    A vector-Jacobian product is linear in the vector; its derivative with respect to it, applied to
    the tangents, is the product wanted.
    """

    def tangents(*arguments: Tensor) -> tuple[Tensor, ...]:
        tensors, directions = arguments[:count], arguments[count:]
        with torch.no_grad():
            shapes = _as_tuple(function(*tensors))
        vectors = [torch.zeros_like(output) for output in shapes]
        transposed = _vector_jacobian(function, count)
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and any(x.requires_grad for x in arguments)
        ):
            return pull_back(
                lambda *x: (transposed(*x), directions),
                (*tensors, *vectors),
                [False] * count + [True] * len(vectors),
            )

    return tangents


def _as_tuple(value: Any) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


class _Opaque(torch.autograd.Function):
    @staticmethod
    def forward(function: Function, *tensors: Tensor) -> Any:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function, *tensors = inputs
        ctx.single = not isinstance(output, tuple)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        return None, *opaque(_vector_jacobian(ctx.function, len(tensors)), *tensors, *grads)

    @staticmethod
    def jvp(ctx: Any, _: None, *directions: Tensor | None) -> Any:
        tensors = ctx.saved_tensors
        given = [
            torch.zeros_like(x) if direction is None else direction
            for x, direction in zip(tensors, directions, strict=True)
        ]
        found = opaque(_jacobian_vector(ctx.function, len(tensors)), *tensors, *given)
        return found[0] if ctx.single else found

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], function: Function, *tensors: Tensor
    ) -> tuple[Any, Any]:
        slices = [
            [
                x if dim is None else x.select(dim, index)
                for x, dim in zip(tensors, in_dims[1:], strict=True)
            ]
            for index in range(info.batch_size)
        ]
        results = [opaque(function, *slice_) for slice_ in slices]
        if isinstance(results[0], tuple):
            stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
            return stacked, (0,) * len(stacked)
        return torch.stack(results), 0
