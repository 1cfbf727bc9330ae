r"""Equilibrium kernel matrices at about the cost of a stationary kernel's.

The reference is :func:`gp_deq.equilibrium.equilibrium` followed by a read-out; this file computes
the same numbers with fewer passes over memory. What it relies on:

* In terms of the covariance :math:`b_{12} = \langle z_1, z_2\rangle + \beta` of the injected input
  and of the variances :math:`v` at equilibrium, the derivatives of the kernel are elementwise. The
  forward pass saves the kernel ``K`` and the slope :math:`\kappa = \partial K/\partial b_{12}`;
  for DEQ-NNGP :math:`\kappa = P/(1 - wP)`, and :math:`\partial K/\partial w = \kappa K`. The
  backward pass is then products of ``grad * kappa`` with the inputs, and row sums.
* A homogeneous activation leaves one equation in one variable, the angle (:class:`AngleSolver`).
  Its solution as a function of the injected angle is fitted once a call, by a polynomial good to
  1e-4, and refined for each pair by Newton steps whose number the fit's error tells.
* For other activations (:class:`DistanceSolver`) the equation is solved in squared distances.

Where the backward pass is itself differentiated, the reference is differentiated instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import settings
from ..activations import Activation
from ..activations.pair_covariance import squared_distance
from ..activations.piecewise_linear import LeakyReLU, sine_excess_of_angle
from .fixed_point import contraction, equilibrium_variance, rounding
from .newton import newton
from .pairwise import (
    Block,
    PairFunction,
    blocks,
    differentiate,
    flatten_batches,
    take,
    upper_blocks,
    write,
)
from .report import SolverMonitor

#: Newton steps without a bracket before the safeguarded iteration takes over.
_PLAIN_STEPS = 8
#: Accuracy to which the first of them need the expectations.
_ACCURACIES = {1: 1e-3, 2: 1e-6}


class Solution(NamedTuple):
    """The kernel of a block of pairs and what its derivatives need.

    Args:
        value: ``K``.
        slope: Derivative of ``K`` by the injected covariance at fixed variances.
        weight_slope: Derivative by the weight variance at fixed variances, unless it is
            ``slope * value``.
    """

    value: Tensor
    slope: Tensor
    weight_slope: Tensor | None = None


class Side(NamedTuple):
    """What a solver knows of the inputs of one side of the matrix, each ``b x n x ...``."""

    x: Tensor
    injected: Tensor
    variance: Tensor
    root: Tensor
    features: Tensor
    diagonal: Tensor
    diagonal_slope: Tensor

    def take(self, along: slice, rows: slice) -> Side:
        """A part of the batches and of the inputs."""
        return Side._make(value[along, rows] for value in self)


class Gradients(NamedTuple):
    """Contributions of a block to the gradients by the variances and by the weight variance."""

    variance1: Tensor
    variance2: Tensor
    weight: Tensor


def fast_equilibrium_matrix(
    make_solver: Callable[..., AngleSolver | DistanceSolver],
    reference: PairFunction,
    x1: Tensor,
    x2: Tensor,
    weight_variance: Tensor,
    bias_variance: Tensor,
    symmetric: bool,
    monitor: SolverMonitor,
) -> Tensor:
    """Kernel matrix of all pairs, ``... x n x m``, batch dimensions broadcast.

    Args:
        make_solver: :class:`AngleSolver` or :class:`DistanceSolver`, its first arguments bound.
        reference: The same kernel as a differentiable function, for higher derivatives.
        x1: Scaled inputs, ``... x n x d``.
        x2: Scaled inputs, ``... x m x d``.
        weight_variance: ``... x 1 x 1``.
        bias_variance: ``... x 1 x 1``.
        symmetric: Whether ``x1`` equals ``x2``.
        monitor: Collects the record of the solves.
    """
    batch, arguments = flatten_batches(x1, x2, weight_variance, bias_variance)
    result = _FastMatrix.apply(make_solver, reference, symmetric, monitor, *arguments)
    return result.reshape(*batch, *result.shape[-2:])


class _FastMatrix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        make_solver: Callable[..., AngleSolver | DistanceSolver],
        reference: PairFunction,
        symmetric: bool,
        monitor: SolverMonitor,
        x1: Tensor,
        x2: Tensor,
        weight_variance: Tensor,
        bias_variance: Tensor,
    ) -> Tensor:
        solver = make_solver(x1, x2, weight_variance, bias_variance, symmetric, monitor)
        count, rows, columns = x1.shape[0], x1.shape[1], x2.shape[1]
        matrices = [x1.new_empty(count, rows, columns) for _ in range(solver.matrices)]
        if symmetric:
            visits = upper_blocks(count, rows, x1.device)
        else:
            visits = blocks(count, rows, columns, x1.device)
        for block in visits:
            pieces = [piece for piece in solver.solve(block) if piece is not None]
            for matrix, piece in zip(matrices, pieces, strict=True):
                write(matrix, block, piece, symmetric)
        ctx.reference, ctx.solver = reference, solver
        ctx.save_for_backward(x1, x2, weight_variance, bias_variance, *matrices)
        return matrices[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, matrices = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        needed = ctx.needs_input_grad[4:]
        if not torch.is_grad_enabled():
            return (None,) * 4 + _pull_back(ctx.solver, inputs, matrices, grad, needed)
        return (None,) * 4 + differentiate(ctx.reference, inputs, needed, grad)


def _pull_back(
    solver: AngleSolver | DistanceSolver,
    inputs: tuple[Tensor, ...],
    matrices: tuple[Tensor, ...],
    grad: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients by both inputs, the weight variance and the bias variance."""
    x1, x2, weight_variance, bias_variance = inputs
    side1, side2 = solver.side1, solver.side2
    only_first = not any(needed[1:])
    to1, sum1, variance1 = _zeros(side1)
    to2, sum2, variance2 = (to1, sum1, variance1) if only_first else _zeros(side2)
    weight = x1.new_zeros(x1.shape[0], 1, 1)
    for block in blocks(grad.shape[0], grad.shape[1], grad.shape[2], grad.device):
        along, down, across = block
        upstream = grad[block]
        solution = Solution(*(matrix[block] for matrix in matrices))
        weighted = upstream * solution.slope
        # products with a wide left factor: the thin ones are several times slower
        to1[along, down] += (x2[along, across].mT @ weighted.mT).mT
        sum1[along, down] += weighted.sum(-1, keepdim=True)
        found = solver.pull_back(block, upstream, weighted, solution, only_first)
        variance1[along, down] += found.variance1
        if not only_first:
            to2[along, across] += (x1[along, down].mT @ weighted).mT
            sum2[along, across] += weighted.sum(-2).unsqueeze(-1)
            variance2[along, across] += found.variance2
            weight[along] += found.weight
    variance1 = solver.finish(side1, variance1, to1, sum1)
    injected1, weight1 = solver.injected_gradient(side1, variance1)
    grad1 = to1.add_(2 * injected1 * x1)
    if only_first:
        return grad1, None, None, None
    variance2 = solver.finish(side2, variance2, to2, sum2)
    injected2, weight2 = solver.injected_gradient(side2, variance2)
    bias = (injected1 + sum1).sum(-2, keepdim=True) + injected2.sum(-2, keepdim=True)
    return (
        grad1,
        to2.add_(2 * injected2 * x2),
        (weight + weight1 + weight2).sum_to_size(weight_variance.shape),
        bias.sum_to_size(bias_variance.shape),
    )


def _zeros(side: Side) -> tuple[Tensor, Tensor, Tensor]:
    """Sums for the gradients by a side: products, their weights, and those by the variances."""
    variance = torch.zeros_like(side.variance)
    return torch.zeros_like(side.x), variance, variance.clone()


class AngleSolver:
    r"""DEQ kernels of a homogeneous activation, by the angle of each pair.

    With :math:`t = \sin(\theta/2)`, ``t0`` that of the injected input, and the constants of
    :func:`equilibrium <gp_deq.equilibrium.equilibrium>`, Newton's method solves

    .. math:: (1 - A)(t^2 - t_0^2) + \tfrac B2 S(\theta) = 0,

    whose derivative is :math:`2tD`, :math:`D = 1 - wP = 1 - A + B\theta`. Injected inputs scaled to
    length one half have ``t0`` as their distance.

    Args:
        activation: Gives the constants.
        read_out: ``"nngp"``, or what is trained in the NTK.
        x1: Scaled inputs, ``b x n x d``.
        x2: Scaled inputs, ``b x m x d``.
        weight_variance: ``b x 1 x 1``.
        bias_variance: ``b x 1 x 1``.
        symmetric: Whether ``x1`` equals ``x2``.
        monitor: Collects the record of the solves.
    """

    def __init__(
        self,
        activation: LeakyReLU,
        read_out: str,
        x1: Tensor,
        x2: Tensor,
        weight_variance: Tensor,
        bias_variance: Tensor,
        symmetric: bool,
        monitor: SolverMonitor,
    ) -> None:
        self.read_out, self.monitor = read_out, monitor
        self.matrices = 2 if read_out == "nngp" else 3
        self.linear, self.angular = activation.linear_part, activation.angular_part
        self.weight_variance, self.bias_variance = weight_variance, bias_variance
        self.gap = contraction(activation, weight_variance)
        self.bend = weight_variance * self.angular
        self.side1 = self._side(x1)
        self.side2 = self.side1 if symmetric else self._side(x2)
        self.tolerance = settings.solver_tolerance.value(x1.dtype)
        gaps, bends = self.gap.flatten().tolist(), self.bend.flatten().tolist()
        # near the critical weight variance all Newton steps need S without cancellation
        self.critical = min(gaps, default=1.0) < 1e-3
        fit = _fit_start(tuple(gaps), tuple(bends))
        self.start = fit.to(self.gap)
        # the error between the points of the fit may be larger than at them; after that, Newton's
        # method squares and halves it at least
        self.steps, error, limit = 1, fit.error, self.tolerance / 2
        while error > limit and self.steps < 8:
            self.steps, error, limit = self.steps + 1, error**2 / 2, self.tolerance

    def _side(self, x: Tensor) -> Side:
        """The features are the injected inputs, the bias as a coordinate, scaled to length 1/2."""
        dims = x.shape[-1]
        injected = x.square().sum(-1, keepdim=True) + self.bias_variance
        variance = injected / self.gap
        zero = injected == 0
        # a zero input without bias points along a coordinate of its own
        own = bool(zero.any())
        inverse = 0.5 / injected.sqrt().masked_fill_(zero, 1.0)
        unit = x.new_empty(*x.shape[:-1], dims + 1 + own)
        torch.mul(x, inverse, out=unit[..., :dims])
        torch.mul(self.bias_variance.sqrt(), inverse, out=unit[..., dims : dims + 1])
        if own:
            unit[..., dims + 1 :] = zero.to(x) / 2
        slope = torch.full_like(variance, self.linear)
        return Side(x, injected, variance, variance.sqrt(), unit, slope * variance, slope)

    def solve(self, block: Block) -> Solution:
        """Kernel and slopes of a block of pairs."""
        along, down, across = block
        gap, bend = take(self.gap, along), take(self.bend, along)
        sine0 = torch.cdist(
            self.side1.features[along, down],
            self.side2.features[along, across],
            compute_mode="donot_use_mm_for_euclid_dist",
        ).clamp_(max=1.0)
        sine = self.start.evaluate(sine0, along)
        # what enters the cusp of a tangent kernel must be accurate relative to the angle
        tangent = self.read_out != "nngp"
        for step in range(1, self.steps + 1):
            precise = self.critical or (tangent and step == self.steps)
            sine, change = _newton_step(sine, sine0, gap, bend, precise)
        self.monitor.record(self.steps, change.abs_(), self.tolerance)
        cosine = (1 - sine).mul_(sine + 1).sqrt_()
        theta = sine.asin().mul_(2)
        if tangent and sine.numel() and float(sine.amax()) > 0.97:
            sine, cosine, theta = self._near_antipodal(block, sine, cosine, theta)
        scale = self.side1.root[along, down] * self.side2.root[along, across].mT
        return self._read(sine, cosine, theta, scale, gap, bend, take(self.weight_variance, along))

    def _near_antipodal(
        self, block: Block, sine: Tensor, cosine: Tensor, theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Half-angle sine, cosine and angle near :math:`\pi`, where the sine hardly varies.

        From :math:`\cos^2\frac\theta2 = \cos^2\frac{\theta_0}2 + B S(\theta)/(2(1 - A))`, where
        the first term is the squared distance from the mirrored input.
        """
        along, down, across = block
        bend, gap = take(self.bend, along), take(self.gap, along)
        mirrored = squared_distance(
            self.side1.features[along, down], -self.side2.features[along, across]
        )
        square = mirrored.addcmul_(sine_excess_of_angle(theta), bend / (2 * gap)).clamp_(0.0, 1.0)
        near, root = sine > 0.97, square.sqrt()
        return (
            torch.where(near, (1 - square).sqrt_(), sine),
            torch.where(near, root, cosine),
            torch.where(near, math.pi - 2 * root.asin(), theta),
        )

    def _read(
        self,
        sine: Tensor,
        cosine: Tensor,
        theta: Tensor,
        scale: Tensor,
        gap: Tensor,
        bend: Tensor,
        weight: Tensor,
    ) -> Solution:
        """Kernel and slopes as functions of ``t``."""
        correlation = (sine * sine).mul_(-2).add_(1)
        # S = 2 sin(theta/2) cos(theta/2) - theta cos(theta)
        sine_full = cosine.mul_(sine).mul_(2)
        excess = torch.addcmul(sine_full, theta, correlation, value=-1)
        dual = (correlation * self.linear).add_(excess, alpha=self.angular)  # G / scale
        slope = (theta * -self.angular).add_(self.linear)  # P
        inverse = theta.mul_(bend).add_(gap).reciprocal_()  # 1 / (1 - wP)
        if self.read_out == "nngp":
            return Solution(dual.mul_(scale), slope.mul_(inverse))
        # the cusp: d(theta) / d(cos(theta)) = -1 / sin(theta), taken as zero where directions
        # coincide or are opposite, to their rounding
        distinct = sine_full > torch.finfo(sine_full.dtype).eps
        cusp = torch.where(distinct, self.angular / sine_full, 0.0)
        if self.read_out == "all":
            value = dual + slope * correlation * inverse
            change = slope * (1 + inverse) + cusp * correlation * inverse.square()
            direct = correlation * (slope * inverse).square()
        elif self.read_out == "hidden":
            value = slope * correlation * inverse
            change = slope * inverse + cusp * correlation * inverse.square()
            direct = correlation * (slope * inverse).square()
        elif self.read_out == "recurrent":
            value = dual * inverse
            change = slope * inverse + cusp * dual * weight * inverse.square()
            direct = dual * slope * inverse.square()
        else:
            value = correlation * inverse
            change = inverse + cusp * correlation * weight * inverse.square()
            direct = correlation * slope * inverse.square()
        kappa = change.mul_(inverse)
        weight_slope = direct.add_(kappa * dual).mul_(scale)
        return Solution(value * scale, kappa, weight_slope)

    def pull_back(
        self,
        block: Block,
        upstream: Tensor,
        weighted: Tensor,
        solution: Solution,
        only_first: bool,
    ) -> Gradients:
        """Sums of ``upstream * K``, from which :meth:`finish` makes the gradients by variances."""
        product = upstream * solution.value
        by_row = product.sum(-1, keepdim=True)
        if only_first:
            return Gradients(by_row, by_row, by_row)
        by_column = product.sum(-2).unsqueeze(-1)
        if solution.weight_slope is None:
            product.mul_(solution.slope)
        else:
            torch.mul(upstream, solution.weight_slope, out=product)
        return Gradients(by_row, by_column, product.sum((-2, -1), keepdim=True))

    def finish(self, side: Side, total: Tensor, to: Tensor, weighted: Tensor) -> Tensor:
        r"""Gradients by the variances: :math:`2 v_1 K_{v_1} = K - \kappa b_{12}`.

        This is Euler's theorem: ``K`` is homogeneous of degree one in each injected input.
        """
        injected = (to * side.x).sum(-1, keepdim=True) + self.bias_variance * weighted
        zero = side.variance == 0
        slope = (total - injected) / (2 * side.variance).masked_fill_(zero, 1.0)
        return slope.masked_fill_(zero, 0.0)

    def injected_gradient(self, side: Side, grad: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient by ``v = b / (1 - A)`` those by ``b`` and by the weight variance."""
        to_injected = grad / self.gap
        return to_injected, self.linear * (to_injected * side.variance).sum(-2, keepdim=True)


class DistanceSolver:
    r"""DEQ-NNGP of any activation, in squared distances.

    Newton's method solves :math:`m - m_b - w(g(v_1) + g(v_2) - 2 G(m)) = 0`, bracketed by
    :math:`m_b` and :math:`m_b/(1 - w \operatorname{Lip}^2)`.

    Args:
        activation: Gives the expectations.
        x1: Scaled inputs, ``b x n x d``.
        x2: Scaled inputs, ``b x m x d``.
        weight_variance: ``b x 1 x 1``.
        bias_variance: ``b x 1 x 1``.
        symmetric: Whether ``x1`` equals ``x2``.
        monitor: Collects the record of the solves.
    """

    #: Matrices that :meth:`solve` returns.
    matrices = 2

    def __init__(
        self,
        activation: Activation,
        x1: Tensor,
        x2: Tensor,
        weight_variance: Tensor,
        bias_variance: Tensor,
        symmetric: bool,
        monitor: SolverMonitor,
    ) -> None:
        self.activation, self.monitor = activation, monitor
        self.weight_variance, self.bias_variance = weight_variance, bias_variance
        self.widening = 1 / (1 - weight_variance * activation.lipschitz**2)
        points = (x1,) if symmetric else (x1, x2)
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
        self.side1 = Side(x1, *(value[..., :count, :] for value in columns))
        rest = (value[..., count:, :] for value in columns)
        self.side2 = self.side1 if symmetric else Side(x2, *rest)

    def _solve_variances(self, injected: Tensor) -> list[Tensor]:
        """The fields of a :class:`Side` after the first."""
        activation = self.activation
        variance = equilibrium_variance(activation, self.weight_variance, injected, self.monitor)
        return [
            injected,
            variance,
            variance.sqrt(),
            activation.features(variance),
            activation.diagonal(variance),
            activation.diagonal_slope(variance),
        ]

    def solve(self, block: Block) -> Solution:
        """Kernel and slopes of a block of pairs."""
        along, down, across = block
        weight = take(self.weight_variance, along)
        side1, side2 = self.side1.take(along, down), self.side2.take(along, across)
        lower = squared_distance(side1.x, side2.x)
        widest = (side1.root + side2.root.mT).square_()
        upper = torch.minimum(lower * take(self.widening, along), widest)
        total = side1.variance + side2.variance.mT
        constant = weight * (side1.diagonal + side2.diagonal.mT) + lower

        def newton_step(
            sqdist: Tensor, accuracy: float | None = None
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            value, slope = self.activation.expectations(
                side1.features, side2.features, sqdist, accuracy
            )
            inverse = (slope * -weight).add_(1).reciprocal_()
            change = (sqdist - constant).addcmul_(value, 2 * weight)
            return value, slope, inverse, change

        # the injected squared distance, scaled as the variances are
        injected = side1.injected + side2.injected.mT
        sqdist = lower * (total / injected.clamp_min_(_tiny(total)))
        tolerance = settings.solver_tolerance.value(lower.dtype)
        limit = total * tolerance
        for count in range(1, _PLAIN_STEPS + 1):
            value, slope, inverse, change = newton_step(sqdist, _ACCURACIES.get(count))
            updated = torch.minimum(torch.maximum(sqdist - change.mul_(inverse), lower), upper)
            change, sqdist = sqdist - updated, updated
            if count > 2 and bool((change.abs() <= limit).all()):
                self.monitor.record(count, change.abs() / total.clamp_min(_tiny(total)), tolerance)
                # the last step moved the covariance by half of its change
                return Solution(value.addcmul_(slope, change, value=0.5), slope.mul_(inverse))

        def excess(point: Tensor) -> tuple[Tensor, Tensor]:
            _, _, inverse, change = newton_step(point)
            return change, 1 / inverse

        noise = rounding(self.activation, weight)
        sqdist = newton(excess, sqdist, lower, upper, total, noise, self.monitor)
        value, slope, inverse, _ = newton_step(sqdist)
        return Solution(value, slope.mul_(inverse))

    def pull_back(
        self,
        block: Block,
        upstream: Tensor,
        weighted: Tensor,
        solution: Solution,
        only_first: bool,
    ) -> Gradients:
        r"""Gradients by the variances, :math:`K_{v_1} = G_{v_1}/(1 - wP)`, and the weight variance.

        The latter is :math:`\kappa K` at fixed variances.
        """
        along, down, across = block
        weight = take(self.weight_variance, along)
        side1, side2 = self.side1.take(along, down), self.side2.take(along, across)
        cov = side1.x @ side2.x.mT + take(self.bias_variance, along)
        cov.addcmul_(solution.value, weight)
        sqdist = cov.mul_(-2).add_(side1.variance + side2.variance.mT)
        slopes = self.activation.variance_slopes(side1.features, side2.features, sqdist)
        adjoint = upstream + weight * weighted
        by_row = (adjoint * slopes[0]).sum(-1, keepdim=True)
        if only_first:
            return Gradients(by_row, by_row, by_row)
        by_column = (adjoint * slopes[1]).sum(-2).unsqueeze(-1)
        return Gradients(by_row, by_column, (weighted * solution.value).sum((-2, -1), True))

    def finish(self, side: Side, total: Tensor, to: Tensor, weighted: Tensor) -> Tensor:
        """Gradients by the variances: the sums as they are."""
        return total

    def injected_gradient(self, side: Side, grad: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient by ``v = w g(v) + b`` those by ``b`` and by the weight variance."""
        to_injected = grad / (1 - self.weight_variance * side.diagonal_slope)
        return to_injected, (to_injected * side.diagonal).sum(-2, keepdim=True)


def _newton_step(
    sine: Tensor, sine0: Tensor, gap: Tensor, bend: Tensor, precise: bool
) -> tuple[Tensor, Tensor]:
    """One Newton step: the new ``t`` and the step."""
    cosine = (1 - sine).mul_(sine + 1).sqrt_()
    theta = sine.asin().mul_(2)
    if precise:
        excess = sine_excess_of_angle(theta)
    else:
        excess = cosine.mul_(sine).mul_(2).sub_(theta)
        excess.addcmul_(theta * sine, sine, value=2)
    change = (sine - sine0).mul_(sine + sine0).mul_(gap).addcmul_(excess, bend, value=0.5)
    slope = theta.mul_(bend).add_(gap).mul_(sine).mul_(2)
    change.div_(slope.add_(_tiny(sine)))
    updated = (sine - change).clamp_(0.0, 1.0)
    return updated, change


class StartFit(NamedTuple):
    """The polynomial from which Newton's method starts, and its largest relative error."""

    coefficients: Tensor
    inverse_crossover: Tensor
    shift: Tensor
    stretch: Tensor
    error: float

    def to(self, like: Tensor) -> StartFit:
        """In the dtype and on the device of a tensor."""
        coefficients, inverse_crossover, shift, stretch = (value.to(like) for value in self[:4])
        return StartFit(coefficients, inverse_crossover, shift, stretch, self.error)

    def evaluate(self, sine0: Tensor, along: slice) -> Tensor:
        """``t`` of injected ``t0``, for some of the batches."""
        coefficients = take(self.coefficients, along).split(1, -1)
        variable = (sine0 * take(self.inverse_crossover, along)).add_(1).sqrt_().rsqrt_()
        variable.mul_(take(self.stretch, along)).add_(take(self.shift, along))
        sine = variable * coefficients[-1]
        for coefficient in coefficients[-2:0:-1]:
            sine.add_(coefficient).mul_(variable)
        return sine.add_(coefficients[0]).mul_(sine0).clamp_(0.0, 1.0)


@lru_cache(maxsize=256)
def _fit_start(gaps: tuple[float, ...], bends: tuple[float, ...]) -> StartFit:
    r"""Fits ``t / t0`` as a polynomial of degree 6 in :math:`(1 + t_0/k)^{-1/4}`.

    The quotient falls from 1 like :math:`t_0^{-1/3}` beyond :math:`\theta \approx 1 - A`, hence
    the variable and :math:`k = \frac32(1 - A)`. The variable is mapped to [-1, 1].

    Args:
        gaps: :math:`1 - A` of each batch.
        bends: :math:`B` of each batch.
    """
    count = 7
    angles = (torch.arange(count, dtype=torch.float64) + 0.5) * (math.pi / count)
    # nodes of the interpolation, then points between them to tell its error
    points = torch.cat((angles.cos(), torch.linspace(-1.0, 1.0, 41, dtype=torch.float64)))
    powers = torch.stack([points**k for k in range(count)])
    gap = torch.tensor(gaps, dtype=torch.float64).reshape(-1, 1, 1)
    bend = torch.tensor(bends, dtype=torch.float64).reshape(-1, 1, 1)
    crossover = 1.5 * gap
    least = (1 + 1 / crossover) ** -0.25
    middle, half = (1 + least) / 2, (1 - least) / 2
    start = (crossover * ((middle + half * points) ** -4 - 1)).clamp(1e-12, 1.0)
    cubic = torch.where(bend > 0, 6 * gap * start.square() / bend, math.inf)
    solved = torch.minimum(start, (cubic.pow(1 / 3).clamp_max(math.pi) / 2).sin())
    for _ in range(7):
        solved, _ = _newton_step(solved, start, gap, bend, precise=True)
    polynomial = (solved / start)[..., :count] @ torch.linalg.inv(powers[:, :count])
    errors = (polynomial @ powers) * start / solved - 1
    error = float(errors.abs().amax()) if errors.numel() else 0.0
    return StartFit(polynomial, 1 / crossover, -middle / half, 1 / half, error)


def _tiny(value: Tensor) -> float:
    """Smallest normal number: turns 0/0 into 0 and changes nothing else."""
    return torch.finfo(value.dtype).tiny
