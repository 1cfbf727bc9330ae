"""Equilibria of any activation, by squared distances."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import settings
from ..activations import Activation
from ..activations.pair_covariance import squared_distance
from .fixed_point import contraction, equilibrium_variance, rounding
from .newton import newton
from .pairwise import Block, take
from .report import SolverMonitor
from .solution import Gradients, Side, Slopes
from .tangent import tangent

#: Newton steps without a bracket before the safeguarded iteration takes over.
_PLAIN_STEPS = 8
#: Accuracy to which the first of them need the expectations.
_ACCURACIES = {1: 1e-4, 2: 1e-9}
#: Nodes of the polynomials from which they start, and steps to fit these.
_START_NODES = 6
_START_STEPS = 3
#: Variance above which ``P`` may show that squared distances are rounded.
_LARGE_VARIANCE = 2.0**16


def tangent_solver(activation: Activation, trained: str, *arguments: Any) -> DistanceSolver | None:
    r"""A :class:`DistanceSolver` for a tangent kernel; None where it would lose digits.

    It knows squared distances to rounding of the variances v. Between close inputs ``P`` of an
    activation without bounds shows that as an error that grows like :math:`\sqrt v`.

    Args:
        activation: Smooth.
        trained: What is trained.
        *arguments: The other arguments of :class:`DistanceSolver`.
    """
    solver = DistanceSolver(activation, trained, *arguments)
    variances = torch.cat([side.variance.flatten() for side in (solver.side1, solver.side2)])
    return solver if bool((variances <= _LARGE_VARIANCE).all()) else None


class _Diagonal(NamedTuple):
    """:math:`g(v)` and its slope for the inputs of a side, ``b x n x 1``."""

    value: Tensor
    slope: Tensor


class DistanceSolver:
    r"""DEQ kernels of any activation, the tangent kernels of a smooth one, in squared distances.

    Newton's method solves :math:`m - m_b - w(g(v_1) + g(v_2) - 2 G(m)) = 0`, bracketed by
    :math:`m_b` and :math:`m_b/(1 - w/w_{\text{critical}})`.

    Args:
        activation: Gives the expectations.
        read_out: ``"nngp"``, or what is trained in the NTK.
        x1: Scaled inputs, ``b x n x d``.
        x2: Scaled inputs, ``b x m x d``; None for ``x1``.
        weight_variance: ``b x 1 x 1``.
        bias_variance: ``b x 1 x 1``.
        monitor: Collects the record of the solves.
    """

    num_slopes = 1

    def __init__(
        self,
        activation: Activation,
        read_out: str,
        x1: Tensor,
        x2: Tensor | None,
        weight_variance: Tensor,
        bias_variance: Tensor,
        monitor: SolverMonitor,
    ) -> None:
        self.activation, self.read_out, self.monitor = activation, read_out, monitor
        self.weight_variance, self.bias_variance = weight_variance, bias_variance
        self.widening = 1 / contraction(activation, weight_variance)
        points = (x1,) if x2 is None else (x1, x2)
        injected = torch.cat([x.square().sum(-1, keepdim=True) for x in points], -2) + bias_variance
        shared = weight_variance.shape[0] == 1 < x1.shape[0]
        if shared and not activation.closed_form:
            # batches of a model repeat its training inputs: solve for each variance once
            distinct, index = injected.unique(return_inverse=True)
            columns = self._solve_variances(distinct.reshape(1, -1, 1))
            columns = [value[0, index.squeeze(-1)] for value in columns]
        else:
            columns = self._solve_variances(injected)
        count = x1.shape[-2]
        first = [value[..., :count, :] for value in columns]
        self.side1, self.diagonal1 = Side(x1, *first[:4]), _Diagonal(*first[4:])
        self.side2, self.diagonal2 = self.side1, self.diagonal1
        if x2 is not None:
            second = [value[..., count:, :] for value in columns]
            self.side2, self.diagonal2 = Side(x2, *second[:4]), _Diagonal(*second[4:])
        inputs, pairs = injected.shape[-2], count * self.side2.x.shape[-2]
        # a fit for each input pays where each has many partners, and expectations are not cheap
        fitted = not activation.closed_form and pairs > _START_NODES**2 * inputs
        self.start1 = self._fit_start(self.side1, self.diagonal1) if fitted else None
        self.start2 = self.start1
        if fitted and x2 is not None:
            self.start2 = self._fit_start(self.side2, self.diagonal2)

    def _solve_variances(self, injected: Tensor) -> list[Tensor]:
        """The fields of a :class:`Side` after the first, then those of a :class:`_Diagonal`."""
        activation = self.activation
        variance = equilibrium_variance(activation, self.weight_variance, injected, self.monitor)
        return [
            injected,
            variance,
            variance.sqrt(),
            activation.features(variance),
            *activation.diagonal_and_slope(variance),
        ]

    def _fit_start(self, side: Side, diagonal: _Diagonal) -> Tensor:
        """Correlation at equilibrium of two inputs of equal variance, as a polynomial in theirs.

        Returns:
            Coefficients for each input, ``b x n x 1 x p``.
        """
        nodes = torch.arange(0.5, _START_NODES, dtype=side.x.dtype, device=side.x.device)
        nodes = (nodes * (math.pi / _START_NODES)).cos()
        features, weight = side.features.unsqueeze(-2), self.weight_variance.unsqueeze(-1)
        variance = side.variance.unsqueeze(-1).clamp_min(torch.finfo(side.x.dtype).tiny)
        square = diagonal.value.unsqueeze(-1)
        same = features.expand(*features.shape[:-2], _START_NODES, -1)
        lower = 2 * side.injected.unsqueeze(-1) * (1 - nodes)
        sqdist = 2 * variance * (1 - nodes)
        for _ in range(_START_STEPS):
            value, slope = self.activation.expectations(features, same, sqdist, 1e-4)
            change = sqdist - lower - 2 * weight * (square - value)
            sqdist = (sqdist - change / (1 - weight * slope)).clamp_min(0.0)
        powers = nodes ** torch.arange(_START_NODES, device=nodes.device).unsqueeze(-1)
        return (1 - sqdist / (2 * variance)) @ torch.linalg.inv(powers)

    def _start(self, block: Block, lower: Tensor, total: Tensor) -> Tensor:
        """Squared distances from which Newton's method starts."""
        along, down, across = block
        side1, side2 = self.side1.take(along, down), self.side2.take(along, across)
        tiny = torch.finfo(total.dtype).tiny
        injected = (side1.injected + side2.injected.mT).clamp_min_(tiny)
        if self.start1 is None or self.start2 is None:
            # the injected squared distance, scaled as the variances are
            return lower * (total / injected)
        scale = (side1.injected.sqrt() * side2.injected.sqrt().mT).clamp_min_(tiny)
        correlation = (injected - lower).div_(scale).mul_(0.5)
        rows = self.start1[along, down].unbind(-1)
        columns = self.start2[along, across].transpose(-2, -3).unbind(-1)
        result = torch.zeros_like(lower)
        for row, column in zip(reversed(rows), reversed(columns), strict=True):
            result.mul_(correlation).add_(row).add_(column)
        # the mean of both polynomials, times twice the product of the roots
        return total - result * (side1.root * side2.root.mT)

    def solve(self, block: Block) -> tuple[Tensor, Slopes]:
        """See :meth:`BlockSolver.solve`."""
        along, down, across = block
        weight = take(self.weight_variance, along)
        side1, side2 = self.side1.take(along, down), self.side2.take(along, across)
        lower = squared_distance(side1.x, side2.x)
        widest = (side1.root + side2.root.mT).square_()
        upper = torch.minimum(lower * take(self.widening, along), widest)
        total = side1.variance + side2.variance.mT
        diagonals = self.diagonal1.value[along, down] + self.diagonal2.value[along, across].mT
        constant = weight * diagonals + lower

        def newton_step(
            sqdist: Tensor, accuracy: float | None = None
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            value, slope = self.activation.expectations(
                side1.features, side2.features, sqdist, accuracy
            )
            inverse = (slope * -weight).add_(1).reciprocal_()
            change = (sqdist - constant).addcmul_(value, 2 * weight)
            return value, slope, inverse, change

        sqdist = torch.minimum(torch.maximum(self._start(block, lower, total), lower), upper)
        tiny = torch.finfo(total.dtype).tiny
        tolerance = settings.solver_tolerance.value(lower.dtype)
        # relative to the terms of the equation: variances may be much larger than distances
        scale = constant.clamp_min(tiny)
        limit = scale * tolerance
        for count in range(1, _PLAIN_STEPS + 1):
            value, slope, inverse, change = newton_step(sqdist, _ACCURACIES.get(count))
            updated = torch.minimum(torch.maximum(sqdist - change.mul_(inverse), lower), upper)
            change, sqdist = sqdist - updated, updated
            if count > 2 and bool((change.abs() <= limit).all()):
                self.monitor.record(count, change.abs() / scale, tolerance)
                # the last step moved the covariance by half of its change
                value.addcmul_(slope, change, value=0.5)
                if self.read_out != "nngp":
                    return self._tangent(block, sqdist, value, slope, change)
                return value, Slopes(slope.mul_(inverse))

        def excess(point: Tensor) -> tuple[Tensor, Tensor]:
            _, _, inverse, change = newton_step(point)
            return change, 1 / inverse

        noise = rounding(self.activation, weight)
        sqdist = newton(excess, sqdist, lower, upper, total, noise, self.monitor)
        value, slope, inverse, change = newton_step(sqdist)
        if self.read_out != "nngp":
            return self._tangent(block, sqdist, value, slope, change.zero_())
        return value, Slopes(slope.mul_(inverse))

    def pull_back(
        self,
        block: Block,
        upstream: Tensor,
        weighted: Tensor,
        value: Tensor,
        slopes: Slopes,
        only_first: bool,
    ) -> Gradients:
        r"""Gradients by the variances, :math:`K_{v_1} = G_{v_1}/(1 - wP)`, and the weight variance.

        The latter is :math:`\kappa K` at fixed variances.
        """
        if slopes.other is not None:
            return self._pull_back_tangent(block, upstream, weighted, slopes.other, only_first)
        along, down, across = block
        weight = take(self.weight_variance, along)
        side1, side2 = self.side1.take(along, down), self.side2.take(along, across)
        # a sum of the layer's equation: the difference of variances and covariance may be negative
        lower = squared_distance(side1.x, side2.x)
        diagonals = self.diagonal1.value[along, down] + self.diagonal2.value[along, across].mT
        sqdist = diagonals.sub_(value, alpha=2).clamp_min_(0.0).mul_(weight).add_(lower)
        sqdist = torch.minimum(sqdist, lower.mul_(take(self.widening, along)))
        by_variance = self.activation.variance_slopes(side1.features, side2.features, sqdist)
        adjoint = upstream + weight * weighted
        by_row = (adjoint * by_variance[0]).sum(-1, keepdim=True)
        if only_first:
            return Gradients(by_row, by_row, by_row)
        by_column = (adjoint * by_variance[1]).sum(-2).unsqueeze(-1)
        return Gradients(by_row, by_column, (weighted * value).sum((-2, -1), True))

    def _tangent(
        self,
        block: Block,
        sqdist: Tensor,
        dual: Tensor,
        slope: Tensor,
        change: Tensor,
    ) -> tuple[Tensor, Slopes]:
        """Tangent kernel and slopes; ``slope`` is that before the last change of ``sqdist``."""
        along, down, across = block
        weight = take(self.weight_variance, along)
        side1, side2 = self.side1.take(along, down), self.side2.take(along, across)
        curvature = self.activation.curvature(side1.features, side2.features, sqdist)
        slope.addcmul_(curvature, change, value=0.5)
        inverse = (slope * -weight).add_(1).reciprocal_()
        cov = (side1.variance + side2.variance.mT).sub_(sqdist).mul_(0.5)
        kernel = tangent(self.read_out, dual, slope, cov, weight, inverse)
        return kernel.value, Slopes(kernel.by_cov(slope, curvature).mul_(inverse), sqdist)

    def _pull_back_tangent(
        self,
        block: Block,
        upstream: Tensor,
        weighted: Tensor,
        sqdist: Tensor,
        only_first: bool,
    ) -> Gradients:
        """:meth:`pull_back` of a tangent kernel, which depends on G, P and the weight variance."""
        along, down, across = block
        weight = take(self.weight_variance, along)
        side1, side2 = self.side1.take(along, down), self.side2.take(along, across)
        given = side1.features, side2.features, sqdist
        dual, slope = self.activation.expectations(*given)
        inverse = (slope * -weight).add_(1).reciprocal_()
        cov = (side1.variance + side2.variance.mT).sub_(sqdist).mul_(0.5)
        kernel = tangent(self.read_out, dual, slope, cov, weight, inverse)
        by_dual = weight * weighted
        if kernel.dual is not None:
            by_dual.addcmul_(upstream, kernel.dual)
        by_slope = upstream * kernel.slope
        pairs = zip(
            self.activation.variance_slopes(*given),
            self.activation.derivative_variance_slopes(*given),
            strict=True,
        )
        first, second = (by_dual * one + by_slope * other for one, other in pairs)
        by_row = first.sum(-1, keepdim=True)
        if only_first:
            return Gradients(by_row, by_row, by_row)
        by_weight = (upstream * kernel.weight).addcmul_(weighted, dual)
        return Gradients(by_row, second.sum(-2).unsqueeze(-1), by_weight.sum((-2, -1), True))

    def finish(self, side: Side, total: Tensor, to: Tensor, weighted: Tensor) -> Tensor:
        """Gradients by the variances: the sums as they are."""
        return total

    def injected_gradient(self, side: Side, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the gradient by ``v = w g(v) + b`` those by ``b`` and by the weight variance."""
        diagonal = self.diagonal1 if side is self.side1 else self.diagonal2
        to_injected = grad / (1 - self.weight_variance * diagonal.slope)
        return to_injected, (to_injected * diagonal.value).sum(-2, keepdim=True)

    def hyperparameter_gradients(self, moments: Tensor) -> tuple[Tensor, ...]:
        """The moment is the gradient by the weight variance."""
        return (moments,)
