r"""Equilibrium kernel matrices at about the cost of a stationary kernel's.

The reference is :func:`gp_deq.equilibrium.equilibrium` followed by a read-out; this computes the
same numbers with fewer passes over memory. In terms of the covariance :math:`b_{12} = \langle z_1,
z_2\rangle + \beta` of the injected input and of the variances :math:`v` at equilibrium, the
derivatives of the kernel are elementwise. The forward pass saves the kernel ``K`` and the slope
:math:`\kappa = \partial K/\partial b_{12}`, of a symmetric matrix only its upper blocks; for
DEQ-NNGP :math:`\kappa = P/(1 - wP)`, and :math:`\partial K/\partial w = \kappa K`. The backward
pass is then products of ``grad * kappa`` with the inputs, and row sums. Where it is itself
differentiated, the reference is differentiated instead.

Blocks are solved by an :class:`~gp_deq.equilibrium.angle.AngleSolver` or a
:class:`~gp_deq.equilibrium.distance.DistanceSolver`, those of DEKer by a
:class:`~gp_deq.equilibrium.profile.ProfileSolver` or a
:class:`~gp_deq.equilibrium.settled.SettledSolver`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .pairwise import (
    PairFunction,
    differentiate,
    flatten_batches,
    pairwise,
    visits,
    write,
)
from .report import SolverMonitor
from .solution import BlockSolver, Side, Slopes


def fast_matrix(
    make_solver: Callable[..., BlockSolver | None],
    reference: PairFunction,
    x1: Tensor,
    x2: Tensor | None,
    hyperparameters: Sequence[Tensor],
    monitor: SolverMonitor,
) -> Tensor:
    """Kernel matrix of all pairs, ``... x n x m``, batch dimensions broadcast.

    Args:
        make_solver: A solver's class, its first arguments bound. It takes inputs, hyperparameters
            and monitor; None from it leaves the work to ``reference``.
        reference: The same kernel as a differentiable function, for higher derivatives.
        x1: Scaled inputs, ``... x n x d``.
        x2: Scaled inputs, ``... x m x d``; None for ``x1`` again, which makes the matrix symmetric.
        hyperparameters: ``... x 1 x 1``, the bias variance last.
        monitor: Collects the record of the solves.
    """
    batch, points, values = flatten_batches((x1, x2), hyperparameters)
    with torch.no_grad():
        solver = make_solver(*points, *values, monitor)
    if solver is None:
        return pairwise(reference, x1, x2, *hyperparameters)
    result = _FastMatrix.apply(solver, reference, *points, *values)
    return result.reshape(*batch, *result.shape[-2:])


class _FastMatrix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        solver: BlockSolver,
        reference: PairFunction,
        x1: Tensor,
        x2: Tensor | None,
        *hyperparameters: Tensor,
    ) -> Tensor:
        count, rows = x1.shape[:2]
        columns = rows if x2 is None else x2.shape[1]
        matrix = x1.new_empty(count, rows, columns)
        saved: list[Tensor | None] = []
        for block in visits(x1, x2):
            value, slopes = solver.solve(block)
            write(matrix, block, value, symmetric=x2 is None)
            saved.extend(slopes)
        ctx.reference, ctx.solver, ctx.num_inputs = reference, solver, 2 + len(hyperparameters)
        ctx.save_for_backward(x1, x2, *hyperparameters, matrix, *saved)
        return matrix

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors[: ctx.num_inputs]
        matrix, *saved = ctx.saved_tensors[ctx.num_inputs :]
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            return (None,) * 2 + differentiate(ctx.reference, inputs, needed, grad)
        slopes = [Slopes(*pair) for pair in zip(saved[::2], saved[1::2], strict=True)]
        found = _pull_back(ctx.solver, inputs, grad, matrix, slopes, needed)
        return (None,) * 2 + found


def _pull_back(
    solver: BlockSolver,
    inputs: tuple[Tensor | None, ...],
    grad: Tensor,
    matrix: Tensor,
    slopes: list[Slopes],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients by both inputs and the hyperparameters."""
    x1, x2 = inputs[:2]
    assert x1 is not None
    rows = _Sums(solver.side1, solver.num_slopes)
    columns = rows if x2 is None else _Sums(solver.side2, solver.num_slopes)
    # an acquisition function asks for the gradient by its test points alone
    only_first = x2 is not None and not any(needed[1:])
    parts = []
    for block, slope in zip(visits(x1, x2), slopes, strict=True):
        along, down, across = block
        upstream = grad[block]
        if x2 is None and down != across:
            # the mirrored block, which is not visited
            upstream = upstream + grad[along, across, down].mT
        weighted = upstream * slope.injected
        rows.add(along, down, weighted.mT, columns.side.x[along, across])
        found = solver.pull_back(block, upstream, weighted, matrix[block], slope, only_first)
        rows.variance[along, down] += found.variance1
        if only_first:
            continue
        columns.add(along, across, weighted, rows.side.x[along, down])
        columns.variance[along, across] += found.variance2
        parts.append((along, found.moments))
    grads: list[Tensor | None] = []
    # a pair's injected covariance contains the bias variance once
    bias = rows.weights.sum(-2, keepdim=True) / (2 if x2 is None else 1)
    everywhere = slice(None)
    for sums in (rows, columns)[: 1 if only_first or x2 is None else 2]:
        by_variance = solver.finish(sums.side, sums.variance, sums.products, sums.weights)
        by_injected, by_side = solver.injected_gradient(sums.side, by_variance)
        grads.append(sums.products.add_(2 * by_injected * sums.side.x))
        bias = bias + by_injected.sum(-2, keepdim=True)
        if by_side is not None:
            parts.append((everywhere, by_side))
    if only_first or not parts:
        return (*grads, *[None] * (len(inputs) - len(grads)))
    grads += [None] * (2 - len(grads))
    moments = x1.new_zeros(x1.shape[0], *parts[0][1].shape[1:])
    for along, part in parts:
        moments[along] += part
    grads += [*solver.hyperparameter_gradients(moments), bias]
    return tuple(
        grad if grad is None or given is None else grad.sum_to_size(given.shape)
        for grad, given in zip(grads, inputs, strict=True)
    )


class _Sums:
    """Sums over the pairs of each input of a side, from which its gradients are made."""

    def __init__(self, side: Side, num_slopes: int) -> None:
        self.side = side
        self.products = torch.zeros_like(side.x)
        self.weights = torch.zeros_like(side.variance)
        self.variance = self.weights.repeat(1, 1, num_slopes)

    def add(self, along: slice, rows: slice, weights: Tensor, others: Tensor) -> None:
        """Adds the products of weights, ``b x m x n``, with the other side's inputs."""
        # with a wide left factor: the thin products are several times slower
        self.products[along, rows] += (others.mT @ weights).mT
        self.weights[along, rows] += weights.sum(-2).unsqueeze(-1)
