"""Kernel matrices, block by block: in cache, and in memory that no iteration makes grow.

Quantities of one input (variances, roots, coefficients of series) are ordinary PyTorch tensors with
a graph. Pairs are made by hand: a :class:`PairMap` gives the kernel of a block of pairs and pulls a
gradient back through it, and one autograd Function puts the blocks together. Where its backward
pass is itself differentiated, a reference is differentiated instead: the same kernel as a function
that PyTorch can differentiate any number of times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..differentiation import in_their_places, one_gradient_at_a_time, pull_back

#: A function of blocks of inputs ``b x n x d`` and ``b x m x d`` and of hyperparameters
#: ``b x 1 x 1``, whose value ``b x n x m`` has one entry for each pair.
PairFunction = Callable[..., Tensor]

#: Tensors that belong together; a place that is not in use holds None.
Tensors = Sequence[Any]

#: Slices over batches, rows and columns.
Block = tuple[slice, slice, slice]

#: Edge of a block, in pairs. On a CPU the dozen buffers of 256 x 256 numbers that a block needs
#: stay in the second-level cache; a GPU is busy only with blocks that are larger.
CPU_EDGE, GPU_EDGE = 256, 4096


class Gradients(NamedTuple):
    """Gradients with respect to the three groups of tensors that a pair map works on.

    Args:
        one: Gradients with respect to the tensors of the rows.
        two: Gradients with respect to the tensors of the columns.
        shared: Gradients with respect to the tensors that all pairs share.
    """

    one: Tensors
    two: Tensors
    shared: Tensors


class Needs(NamedTuple):
    """Which of the :class:`Gradients` are wanted."""

    one: Sequence[bool]
    two: Sequence[bool]
    shared: Sequence[bool]

    @property
    def only_one(self) -> bool:
        """An acquisition function asks for the gradient with respect to its test points alone."""
        return not (any(self.two) or any(self.shared))


class PairMap(ABC):
    """A kernel as a function of two inputs, for blocks of pairs."""

    #: Tensors ``b x 1 x k`` that all pairs of a batch share, or ``1 x 1 x k`` if all batches do.
    shared: Tensors

    @abstractmethod
    def inputs(self, x1: Tensor, x2: Tensor | None) -> tuple[Tensors, Tensors] | None:
        """Quantities of each input that the map needs, with a graph where derivatives pass through.

        Args:
            x1: Scaled inputs, ``b x n x d``.
            x2: Scaled inputs, ``b x m x d``; None for ``x1`` again.

        Returns:
            Tensors ``b x n x ...`` and ``b x m x ...``; of each input, only those with a graph
            have gradients, and these are of first order. None where this map would lose digits.
        """

    @abstractmethod
    def forward(self, one: Tensors, two: Tensors, shared: Tensors) -> tuple[Tensor, Tensors]:
        """The kernel of a block, and the tensors that :meth:`vjp` wants of it; without a graph.

        Args:
            one: The tensors of :meth:`inputs` for the rows of the block.
            two: The tensors of :meth:`inputs` for its columns.
            shared: The tensors :attr:`shared` for its batches.
        """

    def vjp(
        self,
        upstream: Tensor,
        value: Tensor,
        saved: Tensors,
        one: Tensors,
        two: Tensors,
        shared: Tensors,
        needs: Needs,
    ) -> Gradients:
        """Gradients of a block; by default by computing it once more, with a graph.

        Args:
            upstream: Gradient with respect to the kernel.
            value: The kernel.
            saved: The other results of :meth:`forward`.
            one: As for :meth:`forward`.
            two: As for :meth:`forward`.
            shared: As for :meth:`forward`.
            needs: Which gradients are wanted; others may be None.
        """
        tensors, wanted = [*one, *two, *shared], [*needs.one, *needs.two, *needs.shared]
        edges = (len(one), len(one) + len(two))

        def block(*x: Tensor) -> tuple[Tensor, Tensor]:
            value, _ = self.forward(x[: edges[0]], x[edges[0] : edges[1]], x[edges[1] :])
            return value, upstream

        # a kernel of one layer, for one, does not depend on its weight variance
        gradients = in_their_places(pull_back(block, tensors, wanted), wanted)
        return Gradients(
            gradients[: edges[0]], gradients[edges[0] : edges[1]], gradients[edges[1] :]
        )


class Recomputed(PairMap):
    """The map of any differentiable function of pairs of inputs.

    Args:
        function: See :data:`PairFunction`.
        hyperparameters: ``b x 1 x 1``.
    """

    def __init__(self, function: PairFunction, hyperparameters: Tensors) -> None:
        self.function, self.shared = function, hyperparameters

    def inputs(self, x1: Tensor, x2: Tensor | None) -> tuple[Tensors, Tensors]:
        """See :meth:`PairMap.inputs`; the inputs themselves."""
        return (x1,), (x1 if x2 is None else x2,)

    def forward(self, one: Tensors, two: Tensors, shared: Tensors) -> tuple[Tensor, Tensors]:
        """See :meth:`PairMap.forward`."""
        return self.function(*one, *two, *shared), ()


def pair_matrix(
    make_map: Callable[..., PairMap],
    reference: PairFunction,
    x1: Tensor,
    x2: Tensor | None,
    hyperparameters: Sequence[Tensor],
    edge: int | None = None,
) -> Tensor:
    """Kernel matrix of all pairs, ``... x n x m``, batch dimensions broadcast.

    Args:
        make_map: Makes the pair map from the hyperparameters.
        reference: The same kernel as a function that can be differentiated any number of times.
        x1: Scaled inputs, ``... x n x d``.
        x2: Scaled inputs, ``... x m x d``; None for ``x1`` again: then the matrix is symmetric to
            the bit, and only half of its blocks are computed.
        hyperparameters: ``... x 1 x 1``.
        edge: Number of rows and columns of a block; default :data:`CPU_EDGE`, on other devices
            :data:`GPU_EDGE`.
    """
    batch, (z1, z2), values = flatten_batches((x1, x2), hyperparameters)
    assert z1 is not None
    edge = block_edge(z1) if edge is None else edge
    pairs = make_map(*values)
    known = pairs.inputs(z1, z2)
    if known is None:
        pairs = Recomputed(reference, values)
        known = pairs.inputs(z1, z2)
    one, two = known
    task = _Task(pairs, reference, edge, len(values), len(one), z2 is None)
    sides = tuple(one) if z2 is None else (*one, *two)
    result = _Matrix.apply(task, z1, z2, *values, *sides, *pairs.shared)
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

    common = all(value.shape[:-2].numel() == 1 for value in hyperparameters)
    return (
        batch,
        [tensor if tensor is None else flatten(tensor) for tensor in points],
        [value.reshape(1, 1, 1) if common else flatten(value) for value in hyperparameters],
    )


class _Task(NamedTuple):
    """The arguments of the autograd Function that are not tensors."""

    pairs: PairMap
    reference: PairFunction
    edge: int
    num_hyperparameters: int
    num_known: int
    symmetric: bool

    def blocks(self, x1: Tensor, x2: Tensor | None) -> Iterator[Block]:
        """The blocks of the matrix, of a symmetric one those on and above the diagonal."""
        batch, rows = x1.shape[:2]
        columns = rows if x2 is None else x2.shape[1]
        return blocks(batch, rows, columns, self.edge, x2 is None)

    def split(self, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors, Tensors]:
        """Hyperparameters, what is known of rows and of columns, and what all pairs share."""
        first = self.num_hyperparameters
        second = first + self.num_known
        third = second if self.symmetric else second + self.num_known
        one = tensors[first:second]
        return (
            tensors[:first],
            one,
            one if self.symmetric else tensors[second:third],
            tensors[third:],
        )


def block_edge(x: Tensor) -> int:
    """Number of rows and columns of a block on the device of a tensor."""
    return CPU_EDGE if x.device.type == "cpu" else GPU_EDGE


def blocks(
    batch: int, rows: int, columns: int, edge: int, symmetric: bool = False
) -> Iterator[Block]:
    """Slices over batches, rows and columns, of about ``edge * edge`` pairs each.

    For a symmetric matrix they are the blocks on and above the diagonal.
    """
    height = min(rows, edge)
    width = min(columns, edge if rows > edge else max(edge, edge * edge // max(height, 1)))
    depth = max(1, edge * edge // max(height * width, 1))
    for first in range(0, batch, depth):
        for top in range(0, rows, max(height, 1)):
            for left in range(top if symmetric else 0, columns, max(width, 1)):
                yield (
                    slice(first, min(first + depth, batch)),
                    slice(top, min(top + height, rows)),
                    slice(left, min(left + width, columns)),
                )


def _part(tensors: Tensors, along: slice, rows: slice = slice(None)) -> Tensors:
    """A part of the batches and of the inputs; one batch may stand for all of them."""
    return [
        tensor if tensor is None else tensor[along if tensor.shape[0] > 1 else slice(None), rows]
        for tensor in tensors
    ]


def _write(matrix: Tensor, block: Block, piece: Tensor, symmetric: bool) -> None:
    """Puts a block in its place, and of a symmetric matrix its mirror too."""
    along, down, across = block
    if symmetric and down == across:
        # elementwise functions may round the two triangles differently
        upper = torch.ones(piece.shape[-2:], dtype=torch.bool, device=piece.device).triu_()
        piece = torch.where(upper, piece, piece.mT)
    elif symmetric:
        matrix[along, across, down] = piece.mT
    matrix[block] = piece


class _Matrix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: _Task, x1: Tensor, x2: Tensor | None, *tensors: Tensor) -> Tensor:
        _, one, two, shared = task.split(tensors)
        columns = (x1 if x2 is None else x2).shape[1]
        matrix = x1.new_empty(*x1.shape[:2], columns)
        saved: list[Tensor | None] = []
        visits = list(task.blocks(x1, x2))
        for block in visits:
            along, down, across = block
            groups = one, two, shared
            if len(visits) > 1:
                groups = _part(one, along, down), _part(two, along, across), _part(shared, along)
            value, others = task.pairs.forward(*groups)
            _write(matrix, block, value, task.symmetric)
            if any(ctx.needs_input_grad):
                saved.extend(others)
        ctx.task, ctx.num_tensors = task, len(tensors)
        ctx.save_for_backward(x1, x2, *tensors, matrix, *saved)
        return matrix

    @staticmethod
    @one_gradient_at_a_time
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        task, needed = ctx.task, ctx.needs_input_grad[1:]
        x1, x2, *others = ctx.saved_tensors
        tensors, matrix, saved = (
            others[: ctx.num_tensors],
            others[ctx.num_tensors],
            others[ctx.num_tensors + 1 :],
        )
        num_outer = 2 + task.num_hyperparameters
        inside = [need and index >= num_outer for index, need in enumerate(needed)]
        if torch.is_grad_enabled():
            # the first order goes through what is known of each input, higher ones do not
            inside = [need and index < num_outer for index, need in enumerate(needed)]

            def whole(x1: Tensor, x2: Tensor | None, *values: Tensor) -> tuple[Tensor, Tensor]:
                return task.reference(x1, x1 if x2 is None else x2, *values), grad

            inputs = (x1, x2, *tensors[: task.num_hyperparameters])
            found = pull_back(whole, inputs, needed[:num_outer])
        else:
            found = _pull_back(task, grad, x1, x2, tensors, matrix, saved, needed[2:])
        return None, *in_their_places(found, inside)


def _pull_back(
    task: _Task,
    grad: Tensor,
    x1: Tensor,
    x2: Tensor | None,
    tensors: Tensors,
    matrix: Tensor,
    saved: Tensors,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients with respect to those tensors after the hyperparameters that need one."""
    _, one, two, shared = task.split(tensors)
    _, *groups = task.split(needed)
    needs = Needs(*groups)
    visits, arguments = list(task.blocks(x1, x2)), (one, two, shared)
    wanted = [*needs.one, *(() if task.symmetric else needs.two), *needs.shared]
    if len(visits) == 1:
        first, second, third = task.pairs.vjp(grad, matrix, saved, *arguments, needs)
        if task.symmetric:
            first, second = [_add(x, y) for x, y in zip(first, second, strict=True)], ()
        given = tensors[task.num_hyperparameters :]
        return tuple(
            piece.sum_to_size(tensor.shape)
            for piece, tensor, need in zip((*first, *second, *third), given, wanted, strict=True)
            if need
        )
    totals = [
        [torch.zeros_like(tensor) if need else None for tensor, need in pairs]
        for pairs in map(zip, arguments, needs)
    ]
    if task.symmetric:
        totals[1] = totals[0]
    step = len(saved) // max(len(visits), 1)
    for index, (along, down, across) in enumerate(visits):
        upstream = grad[along, down, across]
        if task.symmetric and down != across:
            # the mirrored block, which is not visited
            upstream = upstream + grad[along, across, down].mT
        found = task.pairs.vjp(
            upstream,
            matrix[along, down, across],
            saved[index * step : (index + 1) * step],
            _part(one, along, down),
            _part(two, along, across),
            _part(shared, along),
            needs,
        )
        for sums, pieces, place in zip(totals, found, (down, across, slice(None)), strict=True):
            for total, piece in zip(sums, pieces, strict=True):
                if total is not None:
                    part = total[along if total.shape[0] > 1 else slice(None), place]
                    part += piece.sum_to_size(part.shape)
    kept = (*totals[0], *(() if task.symmetric else totals[1]), *totals[2])
    return tuple(total for total in kept if total is not None)


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first if first is None or second is None else first + second
