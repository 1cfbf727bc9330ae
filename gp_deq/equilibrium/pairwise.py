"""Evaluates a function of pairs of inputs block by block, in cache and in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

#: A function of blocks of inputs ``b x n x d`` and ``b x m x d`` and of hyperparameters
#: ``b x 1 x 1``, whose value ``b x n x m`` has one entry for each pair.
PairFunction = Callable[..., Tensor]

Block = tuple[slice, slice, slice]


def pairwise(
    function: PairFunction, x1: Tensor, x2: Tensor | None, *hyperparameters: Tensor
) -> Tensor:
    """``function`` of all pairs, without keeping what it computes on the way.

    The forward pass visits blocks of pairs that stay in cache; the backward pass computes each
    block once more, with a graph. So memory does not depend on how many intermediate values
    ``function`` has. Where the backward pass is itself differentiated, ``function`` is applied to
    all pairs at once.

    Args:
        function: A differentiable function; see :data:`PairFunction`.
        x1: First inputs, ``... x n x d``.
        x2: Second inputs, ``... x m x d``; None for ``x1`` again, which makes the matrix symmetric:
            then only half of the blocks are computed.
        *hyperparameters: ``... x 1 x 1``.

    Returns:
        ``... x n x m``, the batch dimensions broadcast.
    """
    batch, points, shared = flatten_batches((x1, x2), hyperparameters)
    result = _Pairwise.apply(function, *points, *shared)
    return result.reshape(*batch, *result.shape[-2:])


def flatten_batches(
    points: Sequence[Tensor | None], hyperparameters: Sequence[Tensor]
) -> tuple[torch.Size, list[Tensor | None], list[Tensor]]:
    """Batch shape to which all broadcast, and the tensors with one batch dimension.

    Hyperparameters that all batches share keep a batch dimension of one.
    """
    present = [tensor for tensor in points if tensor is not None]
    batch = torch.broadcast_shapes(*(tensor.shape[:-2] for tensor in (*present, *hyperparameters)))
    count = batch.numel()

    def flatten(tensor: Tensor) -> Tensor:
        return tensor.expand(*batch, *tensor.shape[-2:]).reshape(count, *tensor.shape[-2:])

    shared = all(value.shape[:-2].numel() == 1 for value in hyperparameters)
    return (
        batch,
        [tensor if tensor is None else flatten(tensor) for tensor in points],
        [value.reshape(1, 1, 1) if shared else flatten(value) for value in hyperparameters],
    )


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
        ctx: Any, function: PairFunction, x1: Tensor, x2: Tensor | None, *shared: Tensor
    ) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(x1, x2, *shared)
        batch, rows = x1.shape[:2]
        columns = rows if x2 is None else x2.shape[1]
        result = x1.new_empty(batch, rows, columns)
        for block in visits(x1, x2):
            along, down, across = block
            others = (x1 if x2 is None else x2)[along, across]
            piece = function(x1[along, down], others, *(take(tensor, along) for tensor in shared))
            write(result, block, piece, symmetric=x2 is None)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x1, x2, *shared = inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *differentiate(ctx.function, inputs, needed, grad)
        # of the same inputs, each block gives gradients by its rows and by its columns
        sources = (x1, x1 if x2 is None else x2, *shared)
        wants = (needed[0], needed[0] if x2 is None else needed[1], *needed[2:])
        totals = [torch.zeros_like(tensor) for tensor in sources]
        if x2 is None:
            totals[1] = totals[0]
        for block in visits(x1, x2):
            along, down, across = block
            whole = slice(None)
            places: list[tuple[slice, ...]] = [(along, down), (along, across)]
            places += [(whole if value.shape[0] == 1 else along,) for value in shared]
            pieces = [
                tensor[place].detach().requires_grad_(want)
                for tensor, place, want in zip(sources, places, wants, strict=True)
            ]
            wanted = [piece for piece, want in zip(pieces, wants, strict=True) if want]
            with torch.enable_grad():
                value = ctx.function(*pieces)
            upstream = grad[block]
            if x2 is None and down != across:
                # the mirrored block, which is not visited
                upstream = upstream + grad[along, across, down].mT
            # a kernel of one layer, for one, does not depend on its weight variance
            found = iter(
                torch.autograd.grad(
                    value, wanted, upstream, allow_unused=True, materialize_grads=True
                )
            )
            for total, place, want in zip(totals, places, wants, strict=True):
                if want:
                    total[place] += next(found)
        if x2 is None:
            needed = (needed[0], False, *needed[2:])
        return None, *(x if need else None for x, need in zip(totals, needed, strict=True))


def visits(x1: Tensor, x2: Tensor | None) -> Iterator[Block]:
    """The blocks of pairs, of symmetric matrices only those on and above the diagonal."""
    batch, rows = x1.shape[:2]
    if x2 is None:
        return upper_blocks(batch, rows, x1.device)
    return blocks(batch, rows, x2.shape[1], x1.device)


def differentiate(
    function: PairFunction,
    inputs: tuple[Tensor | None, ...],
    needed: tuple[bool, ...],
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """Differentiable gradients by those inputs that need one, None for the others.

    The second of the inputs may be None, for the first one again.
    """
    # aliases: the gradients are by these arguments, and not by what they depend on
    aliases = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    wanted = [
        alias for alias, need in zip(aliases, needed, strict=True) if alias is not None and need
    ]
    value = function(aliases[0], *(aliases[0] if x is None else x for x in aliases[1:]))
    found = iter(
        torch.autograd.grad(
            value, wanted, grad, create_graph=True, allow_unused=True, materialize_grads=True
        )
    )
    return tuple(next(found) if need else None for need in needed)
