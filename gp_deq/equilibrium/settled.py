"""Stochastic gradient updates of any link at their fixed point, by covariances."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..activations import PairCovariance
from ..activations.link import ExponentialFamilyLink
from ..activations.power_series import coefficient_gradients, power_series
from .gradient_updates import (
    PairEquation,
    Series,
    attach_variances,
    feature_moments,
    rounding,
    settle_variances,
    settled_inertia,
)
from .pairwise import Block, take
from .monitor import SolverMonitor
from .solution import Gradients, Side, Slopes


class SettledSolver:
    r"""DEKer at the fixed point, for links that are not homogeneous.

    A pair solves :math:`\Lambda\psi = c R + S` with :math:`\Lambda = \lambda^2 (2 - h)/h`, the
    covariance c of the features, and the series :math:`R = \operatorname E\rho\rho` and :math:`S
    = \operatorname E(\mu\rho - \sigma)(\mu'\rho - \sigma)` in :math:`r =
    \psi/\sqrt{\psi_{11}\psi_{22}}`. The derivatives of :math:`\psi` by c and by the coefficients of
    the series are those of the right side, divided by :math:`\Lambda - cR_\psi - S_\psi`; the
    coefficients are functions of one input each.

    Args:
        link: The link.
        features: "relu" or "linear".
        step_size: :math:`h`.
        identical: Whether coincident inputs have identical features, so that their covariance is
            their variance wherever the root is another.
        x1: Scaled inputs, ``b x n x d``.
        x2: Scaled inputs, ``b x m x d``; None for ``x1``.
        regularization: :math:`\lambda`, ``b x 1 x 1``.
        feature_scale: :math:`a`, ``b x 1 x 1``.
        bias_variance: ``b x 1 x 1``.
        monitor: Collects the record of the solves.
    """

    def __init__(
        self,
        link: ExponentialFamilyLink,
        features: str,
        step_size: float,
        identical: bool,
        x1: Tensor,
        x2: Tensor | None,
        regularization: Tensor,
        feature_scale: Tensor,
        bias_variance: Tensor,
        monitor: SolverMonitor,
    ) -> None:
        self.link, self.features, self.step_size = link, features, step_size
        self.identical = identical
        self.regularization, self.feature_scale = regularization, feature_scale
        self.bias_variance, self.monitor = bias_variance, monitor
        self.inertia = settled_inertia(regularization, step_size)
        self.side1, self.series1 = self._side(x1)
        self.side2, self.series2 = (self.side1, self.series1) if x2 is None else self._side(x2)

    def _side(self, x: Tensor) -> tuple[Side, Series]:
        injected = x.square().sum(-1, keepdim=True) + self.bias_variance
        features, mean = self._moments(injected, self.feature_scale)
        variance = settle_variances(
            self.link, features, mean, self.step_size, self.regularization, self.monitor
        )
        series = Series.of(self.link, variance, mean)
        return Side(x, injected, variance, series.root, series.root), series

    def _moments(self, injected: Tensor, feature_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Variances and means of the features of single inputs, ``b x n x 1``."""
        zero = torch.zeros_like(injected)
        alone, _ = feature_moments(self.features, PairCovariance(injected, injected, zero, zero))
        centred, mean, _ = alone.scaled(feature_scale)
        return centred.var1, zero if mean is None else mean

    @property
    def num_slopes(self) -> int:
        """See :attr:`BlockSolver.num_slopes`: root, coefficients of both series, features."""
        return 2 + self.series1.rho.shape[-1] + self.series1.residual.shape[-1]

    def _series(self, block: Block) -> tuple[Series, Series]:
        along, down, across = block
        return self.series1.take(along, down), self.series2.take(along, across)

    def _injected(self, block: Block) -> PairCovariance:
        along, down, across = block
        x1, x2 = self.side1.x[along, down], self.side2.x[along, across]
        return PairCovariance.from_inputs(x1, x2, take(self.bias_variance, along))

    def solve(self, block: Block) -> tuple[Tensor, Slopes]:
        """See :meth:`BlockSolver.solve`."""
        along, down, across = block
        injected = self._injected(block)
        moments, slope = feature_moments(self.features, injected)
        inertia, square = take(self.inertia, along), take(self.feature_scale, along).square()
        first, second = self._series(block)
        equation = PairEquation(inertia, moments.centred.cov * square, first, second)
        variance1, variance2 = self.side1.variance[along, down], self.side2.variance[along, across]
        middle = (variance1 + variance2.mT) / 2
        cov, repelled = equation.solve(
            middle,
            moments.centred.versine,
            injected.sqdist == 0,
            rounding(self.link, inertia),
            self.monitor,
        )
        rho, inverse = equation.rho_and_slope(cov)
        inverse.mul_(inertia).reciprocal_()
        if self.identical:
            # there all of the gradient is by the roots, as if for a product of both
            cov = torch.where(repelled, middle, cov)
            inverse.masked_fill_(repelled, 0.0)
        return cov, Slopes(rho.mul_(slope).mul_(square).mul_(inverse), inverse)

    def pull_back(
        self,
        block: Block,
        upstream: Tensor,
        weighted: Tensor,
        value: Tensor,
        slopes: Slopes,
        only_first: bool,
    ) -> Gradients:
        """Sums by the coefficients of the series, their roots, and the features."""
        assert slopes.other is not None
        along, _, _ = block
        inertia, scale = take(self.inertia, along), take(self.feature_scale, along)
        first, second = self._series(block)
        features = feature_moments(self.features, self._injected(block))[0].centred.cov
        outer = first.root * second.root.mT
        ratio = value / outer.masked_fill(outer == 0, 1.0)
        adjoint = upstream * slopes.other
        by_rho = coefficient_gradients(
            first.rho, second.rho, ratio, adjoint * features * scale.square()
        )
        by_residual = coefficient_gradients(first.residual, second.residual, ratio, adjoint)
        by_ratio = (upstream - inertia * adjoint).mul_(value)
        by_features = power_series(first.rho, second.rho, ratio).mul_(features).mul_(adjoint)
        by_row = (by_ratio.sum(-1, True), by_rho[0], by_residual[0], by_features.sum(-1, True))
        one = torch.cat(by_row, -1)
        if only_first:
            return Gradients(one, one, one)
        sums = by_ratio.sum(-2).unsqueeze(-1), by_features.sum(-2).unsqueeze(-1)
        two = torch.cat((sums[0], by_rho[1], by_residual[1], sums[1]), -1)
        by_inertia = -(adjoint * value).sum((-2, -1), True)
        by_regularization = by_inertia * 2 * inertia / take(self.regularization, along)
        by_scale = by_features.sum((-2, -1), True) * 2 * scale
        return Gradients(one, two, torch.cat((by_regularization, by_scale), -1))

    def finish(self, side: Side, total: Tensor, to: Tensor, weighted: Tensor) -> Tensor:
        r"""Gradients by the root, the coefficients, and by the injected variance through ``c``.

        With :math:`2 b_1 c_{b_1} = c - c_{b_{12}} b_{12}`, as ``c`` is homogeneous of degree one.
        """
        by_root = total[..., :1] / side.root.masked_fill(side.root == 0, math.inf)
        along = (to * side.x).sum(-1, keepdim=True) + self.bias_variance * weighted
        direct = self.feature_scale.square() * total[..., -1:] - along
        direct = direct / (2 * side.injected).masked_fill(side.injected == 0, math.inf)
        return torch.cat((by_root, total[..., 1:-1], direct), -1)

    def injected_gradient(self, side: Side, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Through the series as functions of injected variance, regularization and scale."""
        scalars = (
            value.expand(side.x.shape[0], 1, 1)
            for value in (self.regularization, self.feature_scale)
        )
        with torch.enable_grad():
            injected, regularization, feature_scale = given = tuple(
                value.detach().requires_grad_() for value in (side.injected, *scalars)
            )
            features, mean = self._moments(injected, feature_scale)
            variance = attach_variances(
                self.link, side.variance, features, mean, self.step_size, regularization
            )
            series = Series.of(self.link, variance, mean)
        outputs = (series.root, series.rho, series.residual)
        *pieces, direct = grad.split([*(output.shape[-1] for output in outputs), 1], -1)
        depending = [pair for pair in zip(outputs, pieces, strict=True) if pair[0].requires_grad]
        by_injected, *by_scalars = torch.autograd.grad(
            [output for output, _ in depending],
            given,
            [piece for _, piece in depending],
            allow_unused=True,
            materialize_grads=True,
        )
        return by_injected + direct, torch.cat(by_scalars, -1)

    def hyperparameter_gradients(self, moments: Tensor) -> tuple[Tensor, ...]:
        """The moments are the gradients by the regularization and by the feature scale."""
        return moments.split(1, -1)
