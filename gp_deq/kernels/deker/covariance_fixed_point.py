r"""The fixed point of the updates for any other link: an equation for each pair, by Hermite series.

With :math:`\Lambda = \lambda^2 (2 - h)/h`, the covariance :math:`c` of the observed features
:math:`a\gamma` and their mean :math:`\mu`, a pair solves

.. math::
    \Lambda\psi = c R + S, \qquad R = \operatorname E\rho(u)\rho(v), \quad
    S = \operatorname E(\mu\rho(u) - \sigma(u))(\mu'\rho(v) - \sigma(v)),

where R and S are power series in the correlation :math:`r = \psi/\sqrt{\psi_{11}\psi_{22}}` whose
coefficients are products of two, each a function of one input. So first come the variances, at
:math:`r = 1`, and then, the variances being given, one scalar equation for each pair.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ... import settings
from ...activations import (
    ExponentialFamilyLink,
    Hermite,
    PairCovariance,
    coefficient_gradients,
    power_series,
    safe_sqrt,
)
from ...equilibrium import Gradients, Needs, PairMap, SolverMonitor, Tensors, implicit_root, newton
from .observed import InjectedPair, observe, observe_each
from .regime import Evaluation, Regime
from .updates import observed_features

#: Share of the correlation by which the first point of Newton's method lies below one where the
#: observed features coincide: there one is a root of the equation too, which may repel.
_BELOW_ONE = 2.0**-10


class CovarianceFixedPoint(Regime):
    """The fixed point for a link that is not homogeneous.

    Args:
        link: The link.
        features: "relu" or "linear"; None where the observed features are a GPyTorch kernel.
        step_size: :math:`h`.
    """

    def __init__(self, link: ExponentialFamilyLink, features: str | None, step_size: float) -> None:
        self.link, self.features, self.step_size = link, features, step_size
        rho, _ = link.rho.coefficients(torch.ones(1, 1, dtype=torch.float64))
        self.constant_rho = not bool(rho[..., 1:].any())

    def inertia(self, regularization: Tensor) -> Tensor:
        r""":math:`\Lambda`, ``... x 1 x 1``.

        Args:
            regularization: :math:`\lambda`, ``... x 1 x 1``.
        """
        return regularization.square() * ((2 - self.step_size) / self.step_size)

    def covariance(
        self, injected: InjectedPair, features: PairCovariance | None, at: Evaluation
    ) -> Tensor:
        """See :meth:`Regime.covariance`."""
        link, inertia, monitor = self.link, self.inertia(at.regularization), at.monitor
        observed = observed_features(self.features, injected, features)
        centred, mean1, mean2 = observed.scaled(at.feature_scale)
        mean1 = torch.zeros_like(centred.var1) if mean1 is None else mean1
        mean2 = torch.zeros_like(centred.var2) if mean2 is None else mean2
        variance1 = fixed_variance(link, inertia, centred.var1, mean1, monitor)
        variance2 = fixed_variance(link, inertia, centred.var2.mT, mean2.mT, monitor).mT

        def equation(
            inertia: Tensor,
            features: Tensor,
            variance1: Tensor,
            variance2: Tensor,
            mean1: Tensor,
            mean2: Tensor,
        ) -> PairEquation:
            first = Series.at(link, variance1, mean1)
            second = Series.at(link, variance2.mT, mean2.mT)
            return PairEquation(inertia, features, first, second)

        parameters = inertia, centred.cov, variance1, variance2, mean1, mean2
        middle = (variance1 + variance2) / 2
        with torch.no_grad():
            solved = equation(*parameters).solve(
                middle, centred.versine, injected.coincident, rounding(link, inertia), monitor
            )
        psi = implicit_root(solved.psi, lambda psi, *given: equation(*given)(psi), *parameters)
        return torch.where(solved.repelled, middle, psi) if at.identical else psi

    def pair_map(self, bias_variance: Tensor, at: Evaluation) -> PairMap | None:
        """See :meth:`Regime.pair_map`."""
        return PairSeries(self, bias_variance, at)


def fixed_variance(
    link: ExponentialFamilyLink,
    inertia: Tensor,
    features: Tensor,
    mean: Tensor,
    monitor: SolverMonitor,
) -> Tensor:
    r"""Variances at the fixed point, ``... x n x 1``.

    Args:
        link: The link.
        inertia: :math:`\Lambda`, ``... x 1 x 1``.
        features: Variances of :math:`a\gamma`, ``... x n x 1``.
        mean: Their means, ``... x n x 1``.
        monitor: Collects the record of the solve.
    """
    given = inertia, features, mean
    with torch.no_grad():
        variance = _solve_variance(link, *given, monitor)
    return implicit_root(variance, partial(_variance_equation, link), *given)


def _solve_variance(
    link: ExponentialFamilyLink,
    inertia: Tensor,
    features: Tensor,
    mean: Tensor,
    monitor: SolverMonitor,
) -> Tensor:
    def equation(variance: Tensor, _: float | None = None) -> tuple[Tensor, Tensor]:
        return _variance_equation(link, variance, inertia, features, mean)

    shape = torch.broadcast_shapes(inertia.shape, features.shape, mean.shape)
    zero = features.new_zeros(shape)
    # a rho that jumps may vanish at zero and nowhere near it
    start = torch.maximum(-equation(zero)[0], (features + mean.square()) / inertia)
    upper = start
    for _ in range(100):
        below = equation(upper)[0] < 0
        if not bool(below.any()):
            break
        upper = torch.where(below, 4 * upper, upper)
    noise = rounding(link, inertia)
    variance = newton(equation, start, zero, upper, upper, noise, monitor).point
    # a rho that is not bounded may leave nothing that attracts
    value, slope = equation(variance)
    step = (value / slope).abs() / upper.masked_fill(upper == 0, 1.0)
    attracts = (slope > 0) & step.isfinite()
    tolerance = max(settings.solver_tolerance.value(variance.dtype), noise)
    monitor.record(0, torch.where(attracts, step, math.inf), tolerance)
    return variance


def _variance_equation(
    link: ExponentialFamilyLink, variance: Tensor, inertia: Tensor, features: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """``psi - F(psi)`` of an input with itself, and its slope."""
    root = safe_sqrt(variance)
    rho = link.rho.coefficients(root)
    sigma = link.sigma.coefficients(root)
    residual = (mean * rho[0] - sigma[0], mean * rho[1] - sigma[1])
    square, slope = _square(link.rho, root, *rho)
    rest, rest_slope = _square(link.sigma, root, *residual)
    value = variance - (features * square + rest) / inertia
    return value, 1 - (features * slope + rest_slope) / inertia


def _square(series: Hermite, root: Tensor, value: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Second moment of a function, and its derivative with respect to its argument's variance."""
    bend = 2 * (series.half_curvature(root, slope) * value).sum(-1, keepdim=True)
    total = slope[..., : series.degree].square().sum(-1, keepdim=True) + bend
    return value.square().sum(-1, keepdim=True), total


def rounding(link: ExponentialFamilyLink, inertia: Tensor) -> float:
    r"""Size of a Newton step that rounding of the equation alone makes, relative to variances.

    Args:
        link: The link.
        inertia: :math:`\Lambda`, ``... x 1 x 1``.
    """
    if inertia.numel() == 0:
        return 0.0
    least = float((1 - link.critical_regularization**2 / inertia.detach()).min())
    return 16 * torch.finfo(inertia.dtype).eps / max(least, torch.finfo(inertia.dtype).eps)


class Series(NamedTuple):
    r"""Hermite coefficients of single inputs, each ``... x n x ...``.

    Args:
        root: Roots of the variances.
        rho: Coefficients of :math:`\rho`.
        rho_slope: Coefficients of the derivative of rho, below the degree.
        residual: Coefficients of :math:`\mu\rho - \sigma`.
        residual_slope: Coefficients of the residual's derivative, below the degree.
    """

    root: Tensor
    rho: Tensor
    rho_slope: Tensor
    residual: Tensor
    residual_slope: Tensor

    @classmethod
    def at(cls, link: ExponentialFamilyLink, variance: Tensor, mean: Tensor) -> Series:
        """Coefficients with derivatives of any order.

        Args:
            link: The link.
            variance: Variances at the fixed point, ``... x n x 1``.
            mean: Means of the observed features, ``... x n x 1``.
        """
        root = safe_sqrt(variance)
        return cls._of(link, root, mean, link.rho.coefficients(root), link.sigma.coefficients(root))

    @classmethod
    def once_differentiable(
        cls, link: ExponentialFamilyLink, variance: Tensor, mean: Tensor
    ) -> Series:
        r"""Coefficients with first derivatives, which cost nothing.

        As :math:`z h_k = \sqrt{k + 1}\, h_{k+1} + \sqrt k\, h_{k-1}`, the derivative of :math:`a_k
        = \operatorname E\varphi(sz) h_k(z)` with respect to :math:`s` is :math:`\sqrt{k + 1}\,
        b_{k+1} + \sqrt k\, b_{k-1}`, :math:`b_k` the coefficients of :math:`\varphi'`.

        Args:
            link: The link.
            variance: As for :meth:`at`.
            mean: As for :meth:`at`.
        """
        root = safe_sqrt(variance)
        known, step = root.detach(), root - root.detach()
        with torch.no_grad():
            rho, sigma = link.rho.coefficients(known), link.sigma.coefficients(known)
        pairs = ((value + _by_root(slope) * step, slope) for value, slope in (rho, sigma))
        return cls._of(link, root, mean, *pairs)

    @classmethod
    def _of(
        cls,
        link: ExponentialFamilyLink,
        root: Tensor,
        mean: Tensor,
        rho: tuple[Tensor, Tensor],
        sigma: tuple[Tensor, Tensor],
    ) -> Series:
        rho_slope = link.rho_slopes(root, *rho)
        sigma_slope = sigma[1][..., : link.sigma.degree]
        residual = mean * rho[0] - sigma[0]
        return cls(root, rho[0], rho_slope, residual, mean * rho_slope - sigma_slope)


def _by_root(slope: Tensor) -> Tensor:
    """Derivatives of the coefficients of a function with respect to the root of the variance."""
    weights = torch.arange(1, slope.shape[-1], dtype=slope.dtype, device=slope.device).sqrt()
    result = weights * slope[..., 1:]
    result[..., 1:] += weights[:-1] * slope[..., :-2]
    return result


class SolvedPairs(NamedTuple):
    """Covariances at the fixed point.

    Args:
        psi: The covariances, ``... x n x m``.
        repelled: Where inputs coincide, but their covariance is below their variance.
    """

    psi: Tensor
    repelled: Tensor


class PairEquation:
    """``psi - F(psi)`` and its slope as a function of the covariance, the rest being given.

    Args:
        inertia: Divisor of the expectations, ``... x 1 x 1``.
        features: Covariance of the observed features, ``... x n x m``.
        first: Series of the first inputs.
        second: Series of the second.
    """

    def __init__(self, inertia: Tensor, features: Tensor, first: Series, second: Series) -> None:
        self.inertia, self.features = inertia, features
        self.scale = first.root * second.root.mT
        self.first, self.second = first, second

    def correlation(self, psi: Tensor) -> Tensor:
        """The correlation; by rounding it may exceed one, where no derivative must be lost."""
        return psi / self.scale.masked_fill(self.scale == 0, 1.0)

    def __call__(self, psi: Tensor, _: float | None = None) -> tuple[Tensor, Tensor]:
        """Value and slope."""
        correlation = self.correlation(psi)
        rho = power_series(self.first.rho, self.second.rho, correlation)
        residual = power_series(self.first.residual, self.second.residual, correlation)
        value = psi - (self.features * rho + residual) / self.inertia
        return value, self._slope(correlation)

    def _slope(self, correlation: Tensor) -> Tensor:
        first, second = self.first, self.second
        rho_slope = power_series(first.rho_slope, second.rho_slope, correlation)
        residual_slope = power_series(first.residual_slope, second.residual_slope, correlation)
        return 1 - (self.features * rho_slope + residual_slope) / self.inertia

    def rho_and_slope(self, psi: Tensor) -> tuple[Tensor, Tensor]:
        """Covariance of ``rho``, and the slope of the equation."""
        correlation = self.correlation(psi)
        rho = power_series(self.first.rho, self.second.rho, correlation)
        return rho, self._slope(correlation)

    def solve(
        self,
        middle: Tensor,
        versine: Tensor,
        coincident: Tensor,
        noise: float,
        monitor: SolverMonitor,
    ) -> SolvedPairs:
        """The root, where inputs coincide the one that attracts; without a graph.

        By the inequality of Cauchy and Schwarz there is one between plus and minus the product of
        the roots of the variances. Where inputs coincide the upper end is a root; it repels if the
        slope is negative there, and then the root returned is the one below, the limit of close
        inputs.

        Args:
            middle: Means of both variances, ``... x n x m``.
            versine: One minus the correlation of the observed features, ``... x n x m``.
            coincident: Which inputs coincide, ``... x n x m``.
            noise: Size of a step that is rounding, relative to ``middle``.
            monitor: Collects the record of the solve.
        """
        end = self.scale.expand(torch.broadcast_shapes(self.scale.shape, coincident.shape))
        attracted = coincident
        if bool(coincident.any()):
            attracted = coincident & (self(end)[1] > 0)
        start = end * (1 - _BELOW_ONE) * (1 - versine / 2)
        # by rounding, a root may lie beyond the end
        scale = middle.expand(end.shape)
        wide = end + noise * scale
        psi = newton(self, start, -wide, wide, scale, noise, monitor).point
        psi = torch.minimum(torch.maximum(psi, -end), end)
        return SolvedPairs(torch.where(attracted, middle, psi), coincident & ~attracted)


class _Known(NamedTuple):
    """What the map knows of the inputs of one side, each ``b x n x ...``.

    Args:
        x: Scaled inputs.
        injected: Injected variances, with a graph.
        variance: Variances at the fixed point, with a graph.
        rho: See :class:`Series`; with a graph.
        rho_slope: Without a graph.
        residual: With a graph.
        residual_slope: Without a graph.
    """

    x: Tensor
    injected: Tensor
    variance: Tensor
    rho: Tensor
    rho_slope: Tensor
    residual: Tensor
    residual_slope: Tensor

    @property
    def series(self) -> Series:
        """The coefficients."""
        return Series(safe_sqrt(self.variance), *self[3:])


class PairSeries(PairMap):
    r"""DEKer at the fixed point of a link that is not homogeneous.

    The derivatives of :math:`\psi` with respect to c and to the coefficients of the series are
    those of the right side, divided by :math:`\Lambda - cR_\psi - S_\psi`; the coefficients are
    functions of one input each. As c is homogeneous of degree one in each injected input, by
    Euler's theorem :math:`2 b_{11} c_{b_{11}} = c - c_{b_{12}} b_{12}`.

    Args:
        regime: The link and the observed features, which have a name.
        bias_variance: ``b x 1 x 1``.
        at: See :meth:`Regime.pair_map`. If coincident inputs have identical features, their
            covariance is their variance wherever the root is another.
    """

    def __init__(self, regime: CovarianceFixedPoint, bias_variance: Tensor, at: Evaluation) -> None:
        assert regime.features is not None
        self.link, self.features = regime.link, regime.features
        self.constant_rho, self.at = regime.constant_rho, at
        inertia = regime.inertia(at.regularization)
        self.shared = inertia, at.feature_scale.square(), bias_variance

    def inputs(self, x1: Tensor, x2: Tensor | None) -> tuple[_Known, _Known]:
        """See :meth:`PairMap.inputs`."""
        inertia, _, bias = self.shared
        sides = []
        for x in (x1,) if x2 is None else (x1, x2):
            injected = x.square().sum(-1, keepdim=True) + bias
            features, mean = observe_each(self.features, injected, self.at.feature_scale)
            variance = fixed_variance(self.link, inertia, features, mean, self.at.monitor)
            series = Series.once_differentiable(self.link, variance, mean)
            _, rho, rho_slope, residual, residual_slope = series
            if self.constant_rho:  # then R has one term
                rho, rho_slope = rho[..., :1], rho_slope[..., :1]
            slopes = rho_slope.detach(), residual_slope.detach()
            known = injected, variance, rho, slopes[0], residual, slopes[1]
            sides.append(_Known(x, *known))
        return sides[0], sides[-1]

    def forward(
        self, one: Tensors, two: Tensors, shared: Tensors, pairs: Tensors = ()
    ) -> tuple[Tensor, Tensors]:
        """See :meth:`PairMap.forward`; kappa and the inverse slope are saved."""
        first, second = _Known(*one), _Known(*two)
        inertia, square, bias = shared
        injected = PairCovariance.from_inputs(first.x, second.x, bias)
        observed, slope = observe(self.features, injected)
        centred = observed.centred
        equation = PairEquation(inertia, centred.cov * square, first.series, second.series)
        middle = (first.variance + second.variance.mT) / 2
        psi, repelled = equation.solve(
            middle,
            centred.versine,
            injected.sqdist == 0,
            rounding(self.link, inertia),
            self.at.monitor,
        )
        rho, inverse = equation.rho_and_slope(psi)
        inverse.mul_(inertia).reciprocal_()
        if self.at.identical:
            # the gradient is that of the product of both roots
            psi = torch.where(repelled, middle, psi)
            inverse.masked_fill_(repelled, 0.0)
        return psi, (rho.mul_(slope).mul_(square).mul_(inverse), inverse)

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
        """See :meth:`PairMap.vjp`."""
        first, second = _Known(*one), _Known(*two)
        inertia, square, bias = shared
        kappa, inverse = saved
        injected = PairCovariance.from_inputs(first.x, second.x, bias)
        features = observe(self.features, injected)[0].centred.cov
        outer = safe_sqrt(first.variance) * safe_sqrt(second.variance).mT
        ratio = value / outer.masked_fill(outer == 0, 1.0)
        adjoint, weighted = upstream * inverse, upstream * kappa
        by_rho = coefficient_gradients(first.rho, second.rho, ratio, adjoint * features * square)
        by_residual = coefficient_gradients(first.residual, second.residual, ratio, adjoint)
        by_ratio = (upstream - inertia * adjoint).mul_(value)
        by_square = power_series(first.rho, second.rho, ratio).mul_(features).mul_(adjoint)

        def side(known: _Known, to: Tensor, weights: Tensor, sums: tuple[Tensor, ...]) -> Tensors:
            ratios, features, by_rho, by_residual = sums
            # through the correlation alone
            by_variance = ratios / (2 * known.variance).masked_fill(known.variance == 0, math.inf)
            along = (to * known.x).sum(-1, keepdim=True) + bias * weights
            twice = (2 * known.injected).masked_fill(known.injected == 0, math.inf)
            by_injected = (square * features - along) / twice
            return to, by_injected, by_variance, by_rho, None, by_residual, None

        # with a wide left factor: the thin products are several times slower
        to = (second.x.mT @ weighted.mT).mT
        sums = by_ratio.sum(-1, True), by_square.sum(-1, True), by_rho[0], by_residual[0]
        by_one = side(first, to, weighted.sum(-1, True), sums)
        if needs.only_one:
            return Gradients(by_one, [None] * 7, [None] * 3)
        to, weights = (first.x.mT @ weighted).mT, weighted.sum(-2).unsqueeze(-1)
        columns = (x.sum(-2).unsqueeze(-1) for x in (by_ratio, by_square))
        by_two = side(second, to, weights, (*columns, by_rho[1], by_residual[1]))
        by_inertia = -(adjoint * value).sum((-2, -1), True)
        by_shared = by_inertia, by_square.sum((-2, -1), True), weights.sum(-2, True)
        return Gradients(by_one, by_two, by_shared)
