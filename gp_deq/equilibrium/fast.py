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
:class:`~gp_deq.equilibrium.distance.DistanceSolver`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .pairwise import PairFunction, differentiate, flatten_batches, visits, write
from .report import SolverMonitor
from .solution import BlockSolver, Side, Slopes


def fast_equilibrium_matrix(
    make_solver: Callable[..., BlockSolver],
    reference: PairFunction,
    x1: Tensor,
    x2: Tensor | None,
    weight_variance: Tensor,
    bias_variance: Tensor,
    monitor: SolverMonitor,
) -> Tensor:
    """Kernel matrix of all pairs, ``... x n x m``, batch dimensions broadcast.

    Args:
        make_solver: A solver's class, its first arguments bound.
        reference: The same kernel as a differentiable function, for higher derivatives.
        x1: Scaled inputs, ``... x n x d``.
        x2: Scaled inputs, ``... x m x d``; None for ``x1`` again, which makes the matrix symmetric.
        weight_variance: ``... x 1 x 1``.
        bias_variance: ``... x 1 x 1``.
        monitor: Collects the record of the solves.
    """
    batch, points, hyperparameters = flatten_batches((x1, x2), (weight_variance, bias_variance))
    result = _FastMatrix.apply(make_solver, reference, monitor, *points, *hyperparameters)
    return result.reshape(*batch, *result.shape[-2:])


class _FastMatrix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        make_solver: Callable[..., BlockSolver],
        reference: PairFunction,
        monitor: SolverMonitor,
        x1: Tensor,
        x2: Tensor | None,
        weight_variance: Tensor,
        bias_variance: Tensor,
    ) -> Tensor:
        solver = make_solver(x1, x2, weight_variance, bias_variance, monitor)
        count, rows = x1.shape[:2]
        columns = rows if x2 is None else x2.shape[1]
        matrix = x1.new_empty(count, rows, columns)
        saved: list[Tensor | None] = []
        for block in visits(x1, x2):
            value, slopes = solver.solve(block)
            write(matrix, block, value, symmetric=x2 is None)
            saved.extend(slopes)
        ctx.reference, ctx.solver = reference, solver
        ctx.save_for_backward(x1, x2, weight_variance, bias_variance, matrix, *saved)
        return matrix

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, (matrix, *saved) = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            return (None,) * 3 + differentiate(ctx.reference, inputs, needed, grad)
        slopes = [Slopes(*pair) for pair in zip(saved[::2], saved[1::2], strict=True)]
        found = _pull_back(ctx.solver, inputs, grad, matrix, slopes, needed)
        return (None,) * 3 + found


def _pull_back(
    solver: BlockSolver,
    inputs: tuple[Tensor, Tensor | None, Tensor, Tensor],
    grad: Tensor,
    matrix: Tensor,
    slopes: list[Slopes],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients by both inputs, the weight variance and the bias variance."""
    x1, x2, weight_variance, bias_variance = inputs
    rows = _Sums(solver.side1)
    columns = rows if x2 is None else _Sums(solver.side2)
    # an acquisition function asks for the gradient by its test points alone
    only_first = x2 is not None and not any(needed[1:])
    weight = x1.new_zeros(x1.shape[0], 1, 1)
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
        weight[along] += found.weight
    grads = []
    # a pair's injected covariance contains the bias variance once
    bias = rows.weights.sum(-2, keepdim=True) / (2 if x2 is None else 1)
    for sums in (rows, columns)[: 1 if only_first or x2 is None else 2]:
        by_variance = solver.finish(sums.side, sums.variance, sums.products, sums.weights)
        by_injected, by_weight = solver.injected_gradient(sums.side, by_variance)
        grads.append(sums.products.add_(2 * by_injected * sums.side.x))
        bias, weight = bias + by_injected.sum(-2, keepdim=True), weight + by_weight
    return (
        grads[0],
        grads[1] if len(grads) > 1 else None,
        weight.sum_to_size(weight_variance.shape),
        bias.sum_to_size(bias_variance.shape),
    )


class _Sums:
    """Sums over the pairs of each input of a side, from which its gradients are made."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.products = torch.zeros_like(side.x)
        self.weights = torch.zeros_like(side.variance)
        self.variance = torch.zeros_like(side.variance)

    def add(self, along: slice, rows: slice, weights: Tensor, others: Tensor) -> None:
        """Adds the products of weights, ``b x m x n``, with the other side's inputs."""
        # with a wide left factor: the thin products are several times slower
        self.products[along, rows] += (others.mT @ weights).mT
        self.weights[along, rows] += weights.sum(-2).unsqueeze(-1)
