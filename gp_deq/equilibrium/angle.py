"""Equilibria of homogeneous activations, by angles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import settings
from ..activations.angles import sine_excess_of_angle
from ..activations.pair_covariance import squared_distance
from ..activations.piecewise_linear import LeakyReLU
from .angle_fit import STEPS_AT_NODES, fit_angle, newton_step
from .fixed_point import contraction
from .homogeneous import HomogeneousSolver
from .pairwise import Block, take
from .report import SolverMonitor
from .solution import Gradients, Side, Slopes
from .tangent import tangent


class AngleSolver(HomogeneousSolver):
    r"""DEQ kernels of a homogeneous activation, by the angle of each pair.

    With :math:`t = \sin(\theta/2)`, ``t0`` that of the injected input, and the constants of
    :func:`equilibrium <gp_deq.equilibrium.equilibrium>`, one equation gives the angle:

    .. math:: (1 - A)(t^2 - t_0^2) + \tfrac B2 S(\theta) = 0 .

    Its derivative is :math:`2tD`, :math:`D = 1 - wP = 1 - A + B\theta`. Its solution is fitted once
    for all pairs (:class:`~gp_deq.equilibrium.angle_fit.AngleFit`); close to the critical weight
    variance, Newton steps refine it. Injected inputs scaled to length ``c/2`` have :math:`T = c
    t_0` as their distance.

    Args:
        activation: Gives the constants.
        read_out: ``"nngp"``, or what is trained in the NTK.
        x1: Scaled inputs, ``b x n x d``.
        x2: Scaled inputs, ``b x m x d``; None for ``x1``.
        weight_variance: ``b x 1 x 1``.
        bias_variance: ``b x 1 x 1``.
        monitor: Collects the record of the solves.
    """

    def __init__(
        self,
        activation: LeakyReLU,
        read_out: str,
        x1: Tensor,
        x2: Tensor | None,
        weight_variance: Tensor,
        bias_variance: Tensor,
        monitor: SolverMonitor,
    ) -> None:
        super().__init__(bias_variance)
        self.read_out, self.monitor = read_out, monitor
        self.linear, self.angular = activation.linear_part, activation.angular_part
        self.weight_variance = weight_variance
        self.gap = contraction(activation, weight_variance)
        self.bend = weight_variance * self.angular
        gaps, bends = self.gap.flatten().tolist(), self.bend.flatten().tolist()
        self.tolerance = settings.solver_tolerance.value(x1.dtype)
        epsilon = torch.finfo(x1.dtype).eps
        self.fit = fit_angle(tuple(gaps), tuple(bends), epsilon, self.tolerance).to(x1)
        # near the critical weight variance all Newton steps need S without cancellation
        self.critical = min(gaps, default=1.0) < 1e-3
        self.side1 = self._side(x1)
        self.side2 = self.side1 if x2 is None else self._side(x2)

    def _side(self, x: Tensor) -> Side:
        injected, features = self.directions(x, self.fit.reach / 2)
        variance = injected / self.gap
        return Side(x, injected, variance, variance.sqrt(), features)

    def solve(self, block: Block) -> tuple[Tensor, Slopes]:
        """See :meth:`BlockSolver.solve`."""
        along, down, across = block
        gap, bend = take(self.gap, along), take(self.bend, along)
        scaled = torch.cdist(
            self.side1.features[along, down],
            self.side2.features[along, across],
            compute_mode="donot_use_mm_for_euclid_dist",
        ).clamp_(max=1.0)
        sine = self.fit.evaluate(scaled, along)
        # what enters the cusp of a tangent kernel must be accurate relative to the angle
        has_cusp = self.read_out != "nngp"
        change = scaled.new_tensor(self.fit.error)
        for step in range(1, self.fit.steps + 1):
            sine0 = scaled / take(self.fit.reach, along)
            precise = self.critical or (has_cusp and step == self.fit.steps)
            sine, change = newton_step(sine, sine0, gap, bend, precise)
        self.monitor.record(STEPS_AT_NODES + self.fit.steps, change.abs_(), self.tolerance)
        cosine = (1 - sine).mul_(sine + 1).sqrt_()
        theta = sine.asin().mul_(2)
        if has_cusp and sine.numel() and float(sine.amax()) > 0.97:
            sine, cosine, theta = self._near_antipodal(block, sine, cosine, theta)
        root1, root2 = self.side1.root[along, down], self.side2.root[along, across].mT
        weight = take(self.weight_variance, along)
        return self._read(sine, cosine, theta, root1, root2, gap, bend, weight)

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
        mirrored.mul_(take(self.fit.reach, along) ** -2)
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
        root1: Tensor,
        root2: Tensor,
        gap: Tensor,
        bend: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, Slopes]:
        """Kernel and slopes as functions of ``t``."""
        one = sine.new_ones(())
        correlation = torch.addcmul(one, sine, sine, value=-2)
        sine_full = cosine.mul_(sine).mul_(2)
        slope = (theta * -self.angular).add_(self.linear)  # P
        dual = (correlation * slope).add_(sine_full, alpha=self.angular)  # G / scale
        inverse = theta.mul_(bend).add_(gap).reciprocal_()  # 1 / (1 - wP)
        if self.read_out == "nngp":
            return dual.mul_(root1).mul_(root2), Slopes(slope.mul_(inverse))
        scale = root1 * root2
        # the cusp: d(theta) / d(cos(theta)) = -1 / sin(theta), taken as zero where directions
        # coincide or are opposite, to their rounding
        distinct = sine_full > torch.finfo(sine_full.dtype).eps
        cusp = torch.where(distinct, self.angular / sine_full, 0.0)
        kernel = tangent(self.read_out, dual, slope, correlation, weight, inverse)
        kappa = kernel.by_cov(slope, cusp).mul_(inverse)
        weight_slope = kernel.weight.addcmul_(kappa, dual).mul_(scale)
        return kernel.value.mul_(scale), Slopes(kappa, weight_slope)

    def pull_back(
        self,
        block: Block,
        upstream: Tensor,
        weighted: Tensor,
        value: Tensor,
        slopes: Slopes,
        only_first: bool,
    ) -> Gradients:
        """Sums of ``upstream * K``, from which :meth:`finish` makes the gradients by variances."""
        product = upstream * value
        by_row = product.sum(-1, keepdim=True)
        if only_first:
            return Gradients(by_row, by_row, by_row)
        by_column = product.sum(-2).unsqueeze(-1)
        if slopes.other is None:
            product.mul_(slopes.injected)
        else:
            torch.mul(upstream, slopes.other, out=product)
        return Gradients(by_row, by_column, product.sum((-2, -1), keepdim=True))

    def injected_gradient(self, side: Side, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the gradient by ``v = b / (1 - A)`` those by ``b`` and by the weight variance."""
        to_injected = grad / self.gap
        return to_injected, self.linear * (to_injected * side.variance).sum(-2, keepdim=True)

    def hyperparameter_gradients(self, moments: Tensor) -> tuple[Tensor, ...]:
        """The moment is the gradient by the weight variance."""
        return (moments,)
