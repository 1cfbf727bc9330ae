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
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import settings
from ..activations import Activation
from ..activations.pair_covariance import squared_distance
from ..activations.piecewise_linear import LeakyReLU, sine_excess_of_angle
from .fixed_point import contraction, equilibrium_variance
from .newton import newton
from .pairwise import Block, PairFunction, blocks, flatten_batches, upper_blocks
from .report import SolverMonitor


#: Newton steps without a bracket before the safeguarded iteration takes over.
_PLAIN_STEPS = 8


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


class Solver(Protocol):
    """Solves blocks of pairs, and knows how ``K`` depends on the variances."""

    variance1: Tensor
    variance2: Tensor

    def solve(self, block: Block) -> Solution:
        """Kernel and slopes of a block."""
        ...


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
        matrices: list[Tensor] = []
        if symmetric:
            visits = upper_blocks(count, rows, x1.device)
        else:
            visits = ((block, False) for block in blocks(count, rows, columns, x1.device))
        for block, mirror in visits:
            pieces = [piece for piece in solver.solve(block) if piece is not None]
            if not matrices:
                matrices = [x1.new_empty(count, rows, columns) for _ in pieces]
            along, down, across = block
            for matrix, piece in zip(matrices, pieces, strict=True):
                matrix[block] = piece
                if mirror:
                    matrix[along, across, down] = piece.mT
        if not matrices:
            matrices = [x1.new_empty(count, rows, columns) for _ in range(2)]
        ctx.make_solver, ctx.reference, ctx.solver = make_solver, reference, solver
        ctx.save_for_backward(x1, x2, weight_variance, bias_variance, *matrices)
        return matrices[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, matrices = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        needed = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():
            aliases = [tensor.view_as(tensor) for tensor in inputs]
            wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
            value = ctx.reference(*aliases)
            found = iter(torch.autograd.grad(value, wanted, grad, create_graph=True))
            return (None,) * 4 + tuple(next(found) if need else None for need in needed)
        return (None,) * 4 + _pull_back(ctx.solver, inputs, matrices, grad)


def _pull_back(
    solver: AngleSolver | DistanceSolver,
    inputs: tuple[Tensor, ...],
    matrices: tuple[Tensor, ...],
    grad: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients by both inputs, the weight variance and the bias variance."""
    x1, x2, weight_variance, bias_variance = inputs
    # a column of ones: the products with it are the row sums
    ones1, ones2 = (torch.cat((x, torch.ones_like(x[..., :1])), -1) for x in (x1, x2))
    to1, to2 = torch.zeros_like(ones1), torch.zeros_like(ones2)
    to_variance1 = torch.zeros_like(solver.variance1)
    to_variance2 = torch.zeros_like(solver.variance2)
    to_weight = torch.zeros_like(weight_variance)
    for block in blocks(*grad.shape, grad.device):
        along, down, across = block
        upstream = grad[block]
        solution = Solution(*(matrix[block] for matrix in matrices))
        weighted = upstream * solution.slope
        to1[along, down] += weighted @ ones2[along, across]
        to2[along, across] += weighted.mT @ ones1[along, down]
        by_row, by_column, by_weight = solver.pull_back(block, upstream, weighted, solution)
        to_variance1[along, down] += by_row
        to_variance2[along, across] += by_column
        to_weight[along] += by_weight
    total = to1[..., -1:].sum(-2, keepdim=True)
    to_variance1, to_variance2 = solver.finish(to_variance1, to_variance2, to1, to2, inputs)
    to_injected1, of_weight1 = solver.injected_gradient(solver.variance1, to_variance1)
    to_injected2, of_weight2 = solver.injected_gradient(solver.variance2, to_variance2)
    return (
        to1[..., :-1] + 2 * to_injected1 * x1,
        to2[..., :-1] + 2 * to_injected2 * x2,
        to_weight + of_weight1 + of_weight2,
        total + to_injected1.sum(-2, keepdim=True) + to_injected2.sum(-2, keepdim=True),
    )


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
        self.linear, self.angular = activation.linear_part, activation.angular_part
        self.gap = contraction(activation, weight_variance)
        self.bend = weight_variance * self.angular
        injected1 = x1.square().sum(-1, keepdim=True) + bias_variance
        injected2 = injected1 if symmetric else x2.square().sum(-1, keepdim=True) + bias_variance
        self.variance1, self.variance2 = injected1 / self.gap, injected2 / self.gap
        self.root1, self.root2 = self.variance1.sqrt(), self.variance2.sqrt()
        self.unit1 = _half_unit(x1, injected1, bias_variance)
        self.unit2 = self.unit1 if symmetric else _half_unit(x2, injected2, bias_variance)
        self._fit_start()

    def _fit_start(self) -> None:
        r"""Fits ``t / t0`` as a polynomial of degree 6 in :math:`(1 + t_0/k)^{-1/4}`.

        The quotient falls from 1 like :math:`t_0^{-1/3}` beyond :math:`\theta \approx 1 - A`, hence
        the variable and :math:`k = \frac32(1 - A)`.
        """
        gap, bend = self.gap.double(), self.bend.double()
        self.crossover = 1.5 * gap
        least = (1 + 1 / self.crossover) ** -0.25
        nodes, matrix, checks, powers = _chebyshev(gap.device)
        middle, half = (1 + least) / 2, (1 - least) / 2

        def sines(points: Tensor) -> tuple[Tensor, Tensor]:
            variable = middle + half * points
            start = (self.crossover * (variable**-4 - 1)).clamp(1e-12, 1.0)
            cubic = torch.where(bend > 0, 3 * gap * 2 * start.square() / bend, math.inf)
            first = torch.minimum(start, (cubic.pow(1 / 3).clamp_max(math.pi) / 2).sin())
            for _ in range(7):
                first, _ = self._newton_step(first, start, gap, bend, precise=True)
            return first, start

        solved, start = sines(nodes)
        coefficients = ((solved / start) @ matrix).unsqueeze(-2).unbind(-1)
        solved, start = sines(checks)
        fitted = torch.stack(coefficients, -1).squeeze(-2) @ powers
        error = float((fitted * start / solved - 1).abs().amax()) if solved.numel() else 0.0
        self.steps = 1
        # Newton's method on t squares the relative error and halves it at least
        while error > 1e-8 and self.steps < 8:
            error, self.steps = error**2, self.steps + 1
        dtype = self.gap.dtype
        self.coefficients = [value.unsqueeze(-1).to(dtype) for value in coefficients]
        self.shift = (-middle / half).to(dtype)
        self.stretch = (1 / half).to(dtype)
        self.inverse_crossover = (1 / self.crossover).to(dtype)

    @staticmethod
    def _newton_step(
        sine: Tensor, sine0: Tensor, gap: Tensor, bend: Tensor, precise: bool
    ) -> tuple[Tensor, Tensor]:
        """One Newton step: the new ``t`` and the step."""
        cosine = torch.addcmul(sine.new_ones(()), sine, sine, value=-1).sqrt_()
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

    def solve(self, block: Block) -> Solution:
        """See :class:`Solver`."""
        along, down, across = block
        gap, bend = self.gap[along], self.bend[along]
        sine0 = torch.cdist(
            self.unit1[along, down],
            self.unit2[along, across],
            compute_mode="donot_use_mm_for_euclid_dist",
        ).clamp_(max=1.0)
        variable = (sine0 * self.inverse_crossover[along]).add_(1).sqrt_().rsqrt_()
        variable.mul_(self.stretch[along]).add_(self.shift[along])
        sine = variable * self.coefficients[-1][along]
        for coefficient in self.coefficients[-2:0:-1]:
            sine.add_(coefficient[along]).mul_(variable)
        sine.add_(self.coefficients[0][along]).mul_(sine0).clamp_(0.0, 1.0)
        precise = self.read_out != "nngp"
        for step in range(self.steps):
            last = step == self.steps - 1
            sine, change = self._newton_step(sine, sine0, gap, bend, precise and last)
        tolerance = settings.solver_tolerance.value(sine.dtype)
        self.monitor.record(self.steps, change.abs_(), tolerance)
        return self._read(sine, self.root1[along, down] * self.root2[along, across].mT, gap, bend)

    def _read(self, sine: Tensor, scale: Tensor, gap: Tensor, bend: Tensor) -> Solution:
        """Kernel and slopes as functions of ``t``."""
        square = sine * sine
        cosine = (1 - square).sqrt_()
        theta = sine.asin().mul_(2)
        correlation = square.mul_(-2).add_(1)
        # S = 2 sin(theta/2) cos(theta/2) - theta cos(theta)
        sine_full = cosine.mul_(sine).mul_(2)
        excess = torch.addcmul(sine_full, theta, correlation, value=-1)
        dual = (correlation * self.linear).add_(excess, alpha=self.angular)  # G / scale
        slope = (theta * -self.angular).add_(self.linear)  # P
        inverse = theta.mul_(bend).add_(gap).reciprocal_()  # 1 / (1 - wP)
        if self.read_out == "nngp":
            return Solution(dual.mul_(scale), slope.mul_(inverse))
        # the cusp: d(theta) / d(cos(theta)) = -1 / sin(theta), taken as zero where it is infinite
        cusp = torch.where(sine_full > 0, self.angular / sine_full, 0.0)
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
            change = slope * inverse + cusp * dual * self._weight(bend) * inverse.square()
            direct = dual * slope * inverse.square()
        else:
            value = correlation * inverse
            change = inverse + cusp * correlation * self._weight(bend) * inverse.square()
            direct = correlation * slope * inverse.square()
        kappa = change.mul_(inverse)
        weight_slope = direct.add_(kappa * dual).mul_(scale)
        return Solution(value * scale, kappa, weight_slope)

    def _weight(self, bend: Tensor) -> Tensor | float:
        """Weight variance, from ``bend``."""
        return bend / self.angular if self.angular else 0.0

    def pull_back(
        self, block: Block, upstream: Tensor, weighted: Tensor, solution: Solution
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of ``grad * K`` over columns and rows, and of ``grad * dK/dw``."""
        product = upstream * solution.value
        by_row, by_column = product.sum(-1, keepdim=True), product.sum(-2).unsqueeze(-1)
        if solution.weight_slope is None:
            product.mul_(solution.slope)
        else:
            torch.mul(upstream, solution.weight_slope, out=product)
        return by_row, by_column, product.sum((-2, -1), keepdim=True)

    def finish(
        self, sum1: Tensor, sum2: Tensor, to1: Tensor, to2: Tensor, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        r"""Gradients by the variances: :math:`2 v_1 K_{v_1} = K - \kappa b_{12}`, by Euler's theorem
        for a function homogeneous of degree one in the inputs."""
        x1, x2, _, bias_variance = inputs
        gradients = []
        for total, to, x, variance in (
            (sum1, to1, x1, self.variance1),
            (sum2, to2, x2, self.variance2),
        ):
            along = (to[..., :-1] * x).sum(-1, keepdim=True) + bias_variance * to[..., -1:]
            positive = variance > 0
            safe = torch.where(positive, 2 * variance, 1.0)
            gradients.append(torch.where(positive, (total - along) / safe, 0.0))
        return gradients[0], gradients[1]

    def injected_gradient(self, variance: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient by ``v = b / (1 - A)`` those by ``b`` and by the weight variance."""
        to_injected = grad / self.gap
        return to_injected, self.linear * (to_injected * variance).sum(-2, keepdim=True)


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
        self.x1, self.x2 = x1, x2
        self.weight_variance, self.bias_variance = weight_variance, bias_variance
        points = (x1,) if symmetric else (x1, x2)
        injected = torch.cat([x.square().sum(-1, keepdim=True) for x in points], -2) + bias_variance
        variance = equilibrium_variance(activation, weight_variance, injected, monitor)
        values = (
            injected,
            variance,
            variance.sqrt(),
            activation.diagonal(variance),
            activation.features(variance),
        )
        count = x1.shape[-2]
        self.injected1, self.variance1, self.root1, self.diagonal1, self.features1 = (
            value[..., :count, :] for value in values
        )
        self.injected2, self.variance2, self.root2, self.diagonal2, self.features2 = (
            value if symmetric else value[..., count:, :] for value in values
        )
        self.widening = 1 / (1 - weight_variance * activation.lipschitz**2)

    def solve(self, block: Block) -> Solution:
        """See :class:`Solver`."""
        along, down, across = block
        weight = self.weight_variance[along]
        features1, features2 = self.features1[along, down], self.features2[along, across]
        lower = squared_distance(self.x1[along, down], self.x2[along, across])
        widest = (self.root1[along, down] + self.root2[along, across].mT).square_()
        upper = torch.minimum(lower * self.widening[along], widest)
        total = self.variance1[along, down] + self.variance2[along, across].mT
        constant = weight * (self.diagonal1[along, down] + self.diagonal2[along, across].mT) + lower

        def newton_step(sqdist: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            value, slope = self.activation.expectations(features1, features2, sqdist)
            inverse = (slope * -weight).add_(1).reciprocal_()
            change = (sqdist - constant).addcmul_(value, 2 * weight)
            return value, slope, inverse, change

        # the injected squared distance, scaled as the variances are
        injected = self.injected1[along, down] + self.injected2[along, across].mT
        sqdist = lower * (total / injected.clamp_min_(_tiny(total)))
        tolerance = settings.solver_tolerance.value(lower.dtype)
        limit = total * tolerance
        for count in range(1, _PLAIN_STEPS + 1):
            value, slope, inverse, change = newton_step(sqdist)
            updated = torch.minimum(torch.maximum(sqdist - change.mul_(inverse), lower), upper)
            change, sqdist = sqdist - updated, updated
            if count > 2 and bool((change.abs() <= limit).all()):
                break
        else:
            sqdist = newton(
                lambda point: ((step := newton_step(point))[3], 1 / step[2]),
                sqdist, lower, upper, total, self.monitor,
            )  # fmt: skip
            value, slope, inverse, _ = newton_step(sqdist)
            return Solution(value, slope.mul_(inverse))
        self.monitor.record(count, change.abs() / total.clamp_min(_tiny(total)), tolerance)
        # the last step moved the covariance by half of its change
        return Solution(value.addcmul_(slope, change, value=0.5), slope.mul_(inverse))

    def pull_back(
        self, block: Block, upstream: Tensor, weighted: Tensor, solution: Solution
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Gradients by the variances, :math:`K_{v_1} = G_{v_1}/(1 - wP)`, and by the weight
        variance."""
        along, down, across = block
        weight = self.weight_variance[along]
        cov = self.x1[along, down] @ self.x2[along, across].mT + self.bias_variance[along]
        cov.addcmul_(solution.value, weight)
        total = self.variance1[along, down] + self.variance2[along, across].mT
        sqdist = cov.mul_(-2).add_(total)
        slopes = self.activation.variance_slopes(
            self.features1[along, down], self.features2[along, across], sqdist
        )
        adjoint = upstream + weight * weighted
        return (
            (adjoint * slopes[0]).sum(-1, keepdim=True),
            (adjoint * slopes[1]).sum(-2).unsqueeze(-1),
            (weighted * solution.value).sum((-2, -1), keepdim=True),
        )

    def finish(
        self, sum1: Tensor, sum2: Tensor, to1: Tensor, to2: Tensor, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Gradients by the variances: the sums as they are."""
        return sum1, sum2

    def injected_gradient(self, variance: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient by ``v = w g(v) + b`` those by ``b`` and by the weight variance."""
        slope = 1 - self.weight_variance * self.activation.diagonal_slope(variance)
        to_injected = grad / slope
        of_weight = to_injected * self.activation.diagonal(variance)
        return to_injected, of_weight.sum(-2, keepdim=True)


def _half_unit(x: Tensor, injected: Tensor, bias_variance: Tensor) -> Tensor:
    """Injected inputs, the bias as one coordinate, scaled to length 1/2.

    A zero input without bias points along a coordinate of its own, at right angles to all others.
    """
    zero = injected == 0
    bias = bias_variance.sqrt().expand(*x.shape[:-1], 1)
    scaled = torch.cat((x, bias), -1) / (2 * injected.sqrt()).masked_fill(zero, 1.0)
    return torch.cat((scaled, zero.to(x) / 2), -1) 


def _tiny(value: Tensor) -> float:
    """Smallest normal number: turns 0/0 into 0 and changes nothing else."""
    return torch.finfo(value.dtype).tiny


def _chebyshev(device: torch.device, degree: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nodes on [-1, 1], the matrix from values there to coefficients, points between the nodes and
    their powers."""
    count = degree + 1
    angles = (torch.arange(count, dtype=torch.float64) + 0.5) * (math.pi / count)
    nodes = angles.cos()
    matrix = torch.linalg.inv(torch.stack([nodes**k for k in range(count)]))
    checks = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64)
    powers = torch.stack([checks**k for k in range(count)])
    return nodes.to(device), matrix.to(device), checks.to(device), powers.to(device)
