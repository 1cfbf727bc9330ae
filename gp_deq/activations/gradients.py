"""Gradients of a function that are themselves differentiable."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiable_gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Gradients of a function with respect to those of its inputs that need one, with a graph.

    This is the backward pass of a custom Function where that pass is itself differentiated.

    Args:
        function: It returns a tensor, or a tuple of tensors.
        inputs: Its arguments.
        needed: Whether a gradient with respect to each of them is needed.
        grads: Gradients with respect to each tensor that the function returns; None for zero.

    Returns:
        A gradient for each input that needs one, None for the others.
    """
    # aliases: the gradients are with respect to these arguments, not to what they depend on
    aliases = [tensor.view_as(tensor) for tensor in inputs]
    wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
    with torch.enable_grad():
        value = function(*aliases)
    outputs = value if isinstance(value, tuple) else (value,)
    given = [
        (output, grad)
        for output, grad in zip(outputs, grads, strict=True)
        if grad is not None and output.requires_grad
    ]
    if not given:  # constants alone
        return tuple(
            torch.zeros_like(tensor) if need else None
            for tensor, need in zip(inputs, needed, strict=True)
        )
    found = iter(
        torch.autograd.grad(
            [output for output, _ in given],
            wanted,
            [grad for _, grad in given],
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    )
    return tuple(next(found) if need else None for need in needed)
