"""Evaluates a function of pairs of inputs block by block, in cache and in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

#: A function of blocks of inputs ``b x n x d`` and ``b x m x d`` and of hyperparameters
#: ``b x 1 x 1``, whose value ``b x n x m`` has one entry for each pair.
PairFunction = Callable[..., Tensor]

Block = tuple[slice, slice, slice]


def pairwise(
    function: PairFunction, x1: Tensor, x2: Tensor, *hyperparameters: Tensor, symmetric: bool
) -> Tensor:
    """``function`` of all pairs, without keeping what it computes on the way.

    The forward pass visits blocks of pairs that stay in cache; the backward pass computes each
    block once more, with a graph. So memory does not depend on how many intermediate values
    ``function`` has. Where the backward pass is itself differentiated, ``function`` is applied to
    all pairs at once.

    Args:
        function: A differentiable function; see :data:`PairFunction`.
        x1: First inputs, ``... x n x d``.
        x2: Second inputs, ``... x m x d``.
        *hyperparameters: ``... x 1 x 1``.
        symmetric: Whether ``x1`` equals ``x2``; then only half of the blocks are computed.

    Returns:
        ``... x n x m``, the batch dimensions broadcast.
    """
    batch, arguments = flatten_batches(x1, x2, *hyperparameters)
    result = _Pairwise.apply(function, symmetric, *arguments)
    return result.reshape(*batch, *result.shape[-2:])


def flatten_batches(
    x1: Tensor, x2: Tensor, *hyperparameters: Tensor
) -> tuple[torch.Size, list[Tensor]]:
    """Batch shape to which all broadcast, and the tensors with one batch dimension.

    Hyperparameters that all batches share keep a batch dimension of one.
    """
    shapes = [tensor.shape[:-2] for tensor in (x1, x2, *hyperparameters)]
    batch = torch.broadcast_shapes(*shapes)
    count = batch.numel()

    def flatten(tensor: Tensor) -> Tensor:
        return tensor.expand(*batch, *tensor.shape[-2:]).reshape(count, *tensor.shape[-2:])

    shared = all(shape.numel() == 1 for shape in shapes[2:])
    values = [value.reshape(1, 1, 1) if shared else flatten(value) for value in hyperparameters]
    return batch, [flatten(x1), flatten(x2), *values]


def take(tensor: Tensor, along: slice) -> Tensor:
    """Part of the batches of a hyperparameter, which all of them may share."""
    return tensor if tensor.shape[0] == 1 else tensor[along]


def blocks(batch: int, rows: int, columns: int, device: torch.device) -> Iterator[Block]:
    """Slices over batches, rows and columns, of about 256 x 256 pairs each on a CPU."""
    edge = 256 if device.type == "cpu" else 4096
    height = min(rows, edge)
    width = min(columns, max(edge, edge * edge // max(height, 1)))
    if rows > edge:
        width = min(columns, edge)
    depth = max(1, edge * edge // max(height * width, 1))
    for first in range(0, batch, depth):
        for top in range(0, rows, max(height, 1)):
            for left in range(0, columns, max(width, 1)):
                yield (
                    slice(first, min(first + depth, batch)),
                    slice(top, min(top + height, rows)),
                    slice(left, min(left + width, columns)),
                )


def upper_blocks(batch: int, rows: int, device: torch.device) -> Iterator[Block]:
    """The blocks of square matrices on and above the diagonal."""
    for block in blocks(batch, rows, rows, device):
        if block[2].start >= block[1].start:
            yield block


def write(matrix: Tensor, block: Block, piece: Tensor, symmetric: bool) -> None:
    """Puts a block in its place; of symmetric matrices, which are so to the bit, its mirror too."""
    along, down, across = block
    if symmetric and down == across:
        # elementwise functions may round the two triangles differently
        upper = torch.ones(piece.shape[-2:], dtype=torch.bool, device=piece.device).triu_()
        piece = torch.where(upper, piece, piece.mT)
    elif symmetric:
        matrix[along, across, down] = piece.mT
    matrix[block] = piece


class _Pairwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: PairFunction, symmetric: bool, x1: Tensor, x2: Tensor, *shared: Tensor
    ) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(x1, x2, *shared)
        batch, rows, columns = x1.shape[0], x1.shape[1], x2.shape[1]
        result = x1.new_empty(batch, rows, columns)
        if symmetric:
            visits = upper_blocks(batch, rows, x1.device)
        else:
            visits = blocks(batch, rows, columns, x1.device)
        for block in visits:
            write(result, block, _evaluate(function, block, x1, x2, shared), symmetric)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        shared = inputs[2:]
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            return None, None, *differentiate(ctx.function, inputs, needed, grad)
        grads = [torch.zeros_like(tensor) for tensor in inputs]
        for block in blocks(grad.shape[0], grad.shape[1], grad.shape[2], grad.device):
            along, down, across = block
            whole = slice(None)
            places: list[tuple[slice, ...]] = [(along, down), (along, across)]
            places += [(whole if value.shape[0] == 1 else along,) for value in shared]
            pieces = [
                tensor[place].detach().requires_grad_(need)
                for tensor, place, need in zip(inputs, places, needed, strict=True)
            ]
            wanted = [piece for piece, need in zip(pieces, needed, strict=True) if need]
            with torch.enable_grad():
                value = ctx.function(*pieces)
            # a kernel of one layer, for one, does not depend on its weight variance
            found = iter(
                torch.autograd.grad(
                    value, wanted, grad[block], allow_unused=True, materialize_grads=True
                )
            )
            for total, place, need in zip(grads, places, needed, strict=True):
                if need:
                    total[place] += next(found)
        return None, None, *(x if need else None for x, need in zip(grads, needed, strict=True))


def differentiate(
    function: PairFunction, inputs: tuple[Tensor, ...], needed: tuple[bool, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Differentiable gradients by those inputs that need one, None for the others."""
    # aliases: the gradients are by these arguments, and not by what they depend on
    aliases = [tensor.view_as(tensor) for tensor in inputs]
    wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
    value = function(*aliases)
    found = iter(
        torch.autograd.grad(
            value, wanted, grad, create_graph=True, allow_unused=True, materialize_grads=True
        )
    )
    return tuple(next(found) if need else None for need in needed)


def _evaluate(
    function: PairFunction, block: Block, x1: Tensor, x2: Tensor, shared: tuple[Tensor, ...]
) -> Tensor:
    along, down, across = block
    return function(x1[along, down], x2[along, across], *(take(tensor, along) for tensor in shared))
