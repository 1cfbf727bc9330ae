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
from itertools import accumulate, chain, pairwise
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
    """Gradients with respect to the groups of tensors that a pair map works on.

    Args:
        one: Gradients with respect to the tensors of the rows.
        two: Gradients with respect to the tensors of the columns.
        shared: Gradients with respect to the tensors that all pairs share.
        pairs: Gradients with respect to the tensors with an entry for each pair.
    """

    one: Tensors
    two: Tensors
    shared: Tensors
    pairs: Tensors = ()


class Needs(NamedTuple):
    """Which of the :class:`Gradients` are wanted."""

    one: Sequence[bool]
    two: Sequence[bool]
    shared: Sequence[bool]
    pairs: Sequence[bool] = ()

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
    def forward(
        self, one: Tensors, two: Tensors, shared: Tensors, pairs: Tensors = ()
    ) -> tuple[Tensor, Tensors]:
        """The kernel of a block, and the tensors that :meth:`vjp` wants of it; without a graph.

        Args:
            one: The tensors of :meth:`inputs` for the rows of the block.
            two: The tensors of :meth:`inputs` for its columns.
            shared: The tensors :attr:`shared` for its batches.
            pairs: What :func:`pair_matrix` was given of each pair, for the block.
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
        pairs: Tensors = (),
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
            pairs: As for :meth:`forward`.
        """
        groups = one, two, shared, pairs
        tensors, wanted = list(chain(*groups)), list(chain(*needs))
        edges = list(accumulate((len(group) for group in groups), initial=0))

        def split(x: Sequence[Any]) -> list[Tensors]:
            return [x[first:last] for first, last in pairwise(edges)]

        def block(*x: Tensor) -> tuple[Tensor, Tensor]:
            return self.forward(*split(x))[0], upstream

        # a kernel of one layer, for one, does not depend on its weight variance
        return Gradients(*split(in_their_places(pull_back(block, tensors, wanted), wanted)))


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

    def forward(
        self, one: Tensors, two: Tensors, shared: Tensors, pairs: Tensors = ()
    ) -> tuple[Tensor, Tensors]:
        """See :meth:`PairMap.forward`."""
        return self.function(*one, *two, *shared, *pairs), ()


def pair_matrix(
    make_map: Callable[..., PairMap],
    reference: PairFunction,
    x1: Tensor,
    x2: Tensor | None,
    hyperparameters: Sequence[Tensor],
    edge: int | None = None,
    pairs: Sequence[Tensor] = (),
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
        pairs: Further quantities of each pair, ``... x n x m``, which the reference takes after the
            hyperparameters; symmetric if the matrix is.
    """
    batch, (z1, z2, *each), values = flatten_batches((x1, x2, *pairs), hyperparameters)
    assert z1 is not None
    edge = block_edge(z1) if edge is None else edge
    pair_map = make_map(*values)
    known = pair_map.inputs(z1, z2)
    if known is None:
        pair_map = Recomputed(reference, values)
        known = pair_map.inputs(z1, z2)
    one, two = known
    task = _Task(pair_map, reference, edge, len(values), len(each), len(one), z2 is None)
    sides = tuple(one) if z2 is None else (*one, *two)
    result = _Matrix.apply(task, z1, z2, *values, *each, *sides, *pair_map.shared)
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

    pair_map: PairMap
    reference: PairFunction
    edge: int
    num_hyperparameters: int
    num_pairs: int
    num_known: int
    symmetric: bool

    @property
    def num_given(self) -> int:
        return self.num_hyperparameters + self.num_pairs

    def blocks(self, x1: Tensor, x2: Tensor | None) -> Iterator[Block]:
        """The blocks of the matrix, of a symmetric one those on and above the diagonal."""
        batch, rows = x1.shape[:2]
        columns = rows if x2 is None else x2.shape[1]
        return blocks(batch, rows, columns, self.edge, x2 is None)

    def split(self, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors, Tensors]:
        """What is known of rows and of columns, what all pairs share, and what each has."""
        first = self.num_hyperparameters
        second = first + self.num_pairs
        third = second + self.num_known
        fourth = third if self.symmetric else third + self.num_known
        one = tensors[second:third]
        two = one if self.symmetric else tensors[third:fourth]
        return one, two, tensors[fourth:], tensors[first:second]


def distance_gradients(
    weights: Tensor, x1: Tensor, x2: Tensor, needs: Needs
) -> tuple[Tensor, Tensor | None]:
    """Gradients with respect to inputs, from those with respect to half their squared distances.

    Args:
        weights: ``b x n x m``.
        x1: ``b x n x d``.
        x2: ``b x m x d``.
        needs: The second is None where it is not wanted.
    """
    # with a wide left factor: the thin products are several times slower
    to_one = x1 * weights.sum(-1, keepdim=True) - (x2.mT @ weights.mT).mT
    if needs.only_one:
        return to_one, None
    return to_one, x2 * weights.sum(-2).unsqueeze(-1) - (x1.mT @ weights).mT


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


def _part(tensors: Tensors, along: slice, *places: slice) -> Tensors:
    """A part of the batches and of the inputs; one batch may stand for all of them."""
    return [
        tensor if tensor is None else tensor[along if tensor.shape[0] > 1 else slice(None), *places]
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
        one, two, shared, pairs = task.split(tensors)
        columns = (x1 if x2 is None else x2).shape[1]
        matrix = x1.new_empty(*x1.shape[:2], columns)
        saved: list[Tensor | None] = []
        visits = list(task.blocks(x1, x2))
        for block in visits:
            along, down, across = block
            groups = one, two, shared, pairs
            if len(visits) > 1:
                groups = (
                    _part(one, along, down),
                    _part(two, along, across),
                    _part(shared, along),
                    _part(pairs, along, down, across),
                )
            value, others = task.pair_map.forward(*groups)
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
        # the first order goes through what is known of each input, higher ones do not
        first_inner, num_outer = 2 + task.num_hyperparameters, 2 + task.num_given
        inside = [need and index >= first_inner for index, need in enumerate(needed)]
        if torch.is_grad_enabled():
            inside = [need and index < num_outer for index, need in enumerate(needed)]

            def whole(x1: Tensor, x2: Tensor | None, *values: Tensor) -> tuple[Tensor, Tensor]:
                return task.reference(x1, x1 if x2 is None else x2, *values), grad

            inputs = (x1, x2, *tensors[: task.num_given])
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
    one, two, shared, pairs = arguments = task.split(tensors)
    needs = Needs(*task.split(needed))
    visits = list(task.blocks(x1, x2))
    if len(visits) == 1:
        found = task.pair_map.vjp(grad, matrix, saved, one, two, shared, needs, pairs)
        first, second, third, fourth = found
        if task.symmetric:
            first, second = [_add(x, y) for x, y in zip(first, second, strict=True)], ()
        pieces = (*fourth, *first, *second, *third)
        given, wanted = tensors[task.num_hyperparameters :], needed[task.num_hyperparameters :]
        return tuple(
            piece.sum_to_size(tensor.shape)
            for piece, tensor, need in zip(pieces, given, wanted, strict=True)
            if need
        )
    totals = [
        [torch.zeros_like(tensor) if need else None for tensor, need in zip(*group, strict=True)]
        for group in zip(arguments, needs, strict=True)
    ]
    if task.symmetric:
        totals[1] = totals[0]
    step = len(saved) // max(len(visits), 1)
    for index, (along, down, across) in enumerate(visits):
        upstream = grad[along, down, across]
        if task.symmetric and down != across:
            # the mirrored block, which is not visited
            upstream = upstream + grad[along, across, down].mT
        found = task.pair_map.vjp(
            upstream,
            matrix[along, down, across],
            saved[index * step : (index + 1) * step],
            _part(one, along, down),
            _part(two, along, across),
            _part(shared, along),
            needs,
            _part(pairs, along, down, across),
        )
        places = (down,), (across,), (), (down, across)
        for sums, parts, place in zip(totals, found, places, strict=True):
            for total, piece in zip(sums, parts, strict=True):
                if total is not None:
                    (part,) = _part([total], along, *place)
                    part += piece.sum_to_size(part.shape)
    by_one, by_two, by_shared, by_pairs = totals
    kept = (*by_pairs, *by_one, *(() if task.symmetric else by_two), *by_shared)
    return tuple(total for total in kept if total is not None)


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first if first is None or second is None else first + second
