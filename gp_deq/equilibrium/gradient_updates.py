r"""Stochastic gradient updates in the limit of many features, for any link.

One update with step size one maps the covariance of a pair to

.. math::
    \lambda^{-2} \operatorname E (a\gamma\rho(u) - \sigma(u))(a\gamma'\rho(v) - \sigma(v))
    = \lambda^{-2} \left[a^2 (c - \mu\mu') \operatorname E\rho(u)\rho(v)
    + \operatorname E (a\mu\rho(u) - \sigma(u))(a\mu'\rho(v) - \sigma(v))\right],

:math:`c` and :math:`\mu` the second moment and the mean of the features :math:`\gamma`: a sum of
two kernels, each with a squared distance that does not cancel.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .. import settings
from ..activations import PairCovariance
from ..activations.hermite import Hermite
from ..activations.link import ExponentialFamilyLink, product_dual
from ..activations.pair_covariance import safe_sqrt
from ..activations.piecewise_linear import ReLU
from ..activations.power_series import power_series
from .implicit import implicit_root
from .newton import newton
from .monitor import SolverMonitor


class FeatureMoments(NamedTuple):
    """Second moments and means of the features of a pair.

    Args:
        centred: Covariance of the features.
        mean1: Means of the first, ``... x n x 1``; None for zero.
        mean2: Means of the second, ``... x 1 x m``; None for zero.
    """

    centred: PairCovariance
    mean1: Tensor | None = None
    mean2: Tensor | None = None

    def scaled(self, scale: Tensor) -> FeatureMoments:
        """Moments of a multiple of the features."""
        square = scale.square()
        centred = PairCovariance(*(square * term for term in self.centred))
        if self.mean1 is None or self.mean2 is None:
            return FeatureMoments(centred)
        return FeatureMoments(centred, scale * self.mean1, scale * self.mean2)


def feature_moments(features: str, injected: PairCovariance) -> tuple[FeatureMoments, Tensor]:
    r"""Moments of :math:`\gamma`, and the slope of their covariance by that of the injected input.

    Args:
        features: "relu", with :math:`c - \mu\mu' = \operatorname E s_+ s'_+ - \sqrt{bb'}/2\pi` and
            :math:`\mu = \sqrt{b/2\pi}`, or "linear", with :math:`c = b` and :math:`\mu = 0`.
        injected: Covariance of the injected input.
    """
    if features == "linear":
        return FeatureMoments(injected), torch.ones_like(injected.sqdist)
    rectified, slope = ReLU().dual_and_derivative(injected)
    root1, root2 = safe_sqrt(injected.var1), safe_sqrt(injected.var2)
    total = root1 + root2
    rootdiff = injected.vardiff / total.masked_fill(total == 0, 1.0)
    share = 1 / (2 * math.pi)
    centred = PairCovariance(
        (0.5 - share) * injected.var1,
        (0.5 - share) * injected.var2,
        rectified.sqdist - share * rootdiff.square(),
        (0.5 - share) * injected.vardiff,
    )
    mean = math.sqrt(share)
    return FeatureMoments(centred, mean * root1, mean * root2), slope


def update_pairs(
    link: ExponentialFamilyLink,
    features: FeatureMoments,
    num_steps: int,
    step_size: float,
    regularization: Tensor,
    injected: PairCovariance,
) -> PairCovariance:
    r"""Covariance after some updates from the injected input.

    Args:
        link: The link.
        features: Moments of :math:`a\gamma`.
        num_steps: Number of updates.
        step_size: :math:`h`; :math:`\psi \leftarrow (1-h)^2\psi + h^2 F(\psi)`.
        regularization: :math:`\lambda`, ``... x 1 x 1``.
        injected: Covariance to start from.
    """
    keep, push = (1 - step_size) ** 2, (step_size / regularization).square()
    pair = injected
    for _ in range(num_steps):
        source = product_dual(features.centred, link.rho_dual(pair))
        residual = link.residual_dual(pair, features.mean1, features.mean2)
        terms = zip(pair, source, residual, strict=True)
        pair = PairCovariance(*(keep * old + push * (p + q) for old, p, q in terms))
    return pair


def settle_pairs(
    link: ExponentialFamilyLink,
    features: FeatureMoments,
    step_size: float,
    regularization: Tensor,
    variances: tuple[Tensor, Tensor],
    coincident: Tensor,
    identical: bool,
    monitor: SolverMonitor,
) -> Tensor:
    r"""Covariances at the fixed point, ``... x n x m``.

    The variances being given, one equation a pair, :math:`\psi = F(\psi; \psi_{11}, \psi_{22})`,
    with a root between :math:`\pm\sqrt{\psi_{11}\psi_{22}}` by the inequality of Cauchy and
    Schwarz. Where inputs coincide the upper end is a root; it repels if the slope of :math:`F`
    exceeds one there, and then the root returned is the one below, the limit of close inputs.

    Args:
        link: The link, not homogeneous.
        features: Moments of :math:`a\gamma`.
        step_size: :math:`h`.
        regularization: :math:`\lambda`, ``... x 1 x 1``.
        variances: Those of :func:`settle_variances`, ``... x n x 1`` and ``... x 1 x m``.
        coincident: Which inputs coincide, ``... x n x m``.
        identical: Whether coincident inputs have identical features, so that their covariance is
            their variance wherever the root returned is another.
        monitor: Collects the record of the solves.
    """
    inertia = settled_inertia(regularization, step_size)
    centred, mean1, mean2 = features
    mean1 = torch.zeros_like(centred.var1) if mean1 is None else mean1
    mean2 = torch.zeros_like(centred.var2) if mean2 is None else mean2
    parameters = (inertia, centred.cov, *variances, mean1, mean2)

    def equation(
        inertia: Tensor,
        features: Tensor,
        var1: Tensor,
        var2: Tensor,
        mean1: Tensor,
        mean2: Tensor,
    ) -> PairEquation:
        first, second = Series.of(link, var1, mean1), Series.of(link, var2.mT, mean2.mT)
        return PairEquation(inertia, features, first, second)

    def function(cov: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return equation(*values)(cov)

    middle = (parameters[2] + parameters[3]) / 2
    with torch.no_grad():
        noise = rounding(link, inertia)
        solved = equation(*parameters).solve(middle, centred.versine, coincident, noise, monitor)
    cov = implicit_root(solved.cov, function, *parameters)
    return torch.where(solved.repelled, middle, cov) if identical else cov


class SolvedPairs(NamedTuple):
    """Covariances at the fixed point.

    Args:
        cov: The covariances, ``... x n x m``.
        repelled: Where inputs coincide, but their covariance is below their variance.
    """

    cov: Tensor
    repelled: Tensor


class PairEquation:
    """``psi - F(psi)`` and its slope as a function of the covariance, the rest being given.

    Args:
        inertia: What the expectations are divided by, ``... x 1 x 1``.
        features: Covariance of the features, ``... x n x m``.
        first: Series of the first inputs.
        second: Those of the second.
    """

    def __init__(self, inertia: Tensor, features: Tensor, first: Series, second: Series) -> None:
        self.inertia, self.features = inertia, features
        self.scale = first.root * second.root.mT
        self.pairs = tuple(zip(first[1:], second[1:], strict=True))

    def _correlation(self, cov: Tensor) -> Tensor:
        # not clamped: it exceeds one by rounding alone, where a derivative must not be lost
        return cov / self.scale.masked_fill(self.scale == 0, 1.0)

    def __call__(self, cov: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope."""
        correlation = self._correlation(cov)
        rho, rho_slope, residual, residual_slope = (
            power_series(one, other, correlation) for one, other in self.pairs
        )
        value = cov - (self.features * rho + residual) / self.inertia
        slope = 1 - (self.features * rho_slope + residual_slope) / self.inertia
        return value, slope

    def rho_and_slope(self, cov: Tensor) -> tuple[Tensor, Tensor]:
        """Covariance of ``rho``, and the slope of the equation."""
        correlation = self._correlation(cov)
        rho, rho_slope, residual_slope = (
            power_series(*self.pairs[index], correlation) for index in (0, 1, 3)
        )
        return rho, 1 - (self.features * rho_slope + residual_slope) / self.inertia

    def solve(
        self,
        middle: Tensor,
        versine: Tensor,
        coincident: Tensor,
        noise: float,
        monitor: SolverMonitor,
    ) -> SolvedPairs:
        """The root, where inputs coincide the one that attracts; without a graph.

        Args:
            middle: Means of both variances, ``... x n x m``.
            versine: One minus the correlation of the features, ``... x n x m``.
            coincident: Which inputs coincide, ``... x n x m``.
            noise: Size of a step that is rounding, relative to ``middle``.
            monitor: Collects the record of the solve.
        """
        end = self.scale.expand(torch.broadcast_shapes(self.scale.shape, coincident.shape))
        attracted = coincident
        if bool(coincident.any()):
            attracted = coincident & (self(end)[1] > 0)
        start = end * (1 - 2.0**-10) * (1 - versine / 2)
        # by rounding, a root may lie beyond the end
        scale = middle.expand(end.shape)
        wide = end + noise * scale
        cov = newton(self, start, -wide, wide, scale, noise, monitor)
        cov = torch.minimum(torch.maximum(cov, -end), end)
        return SolvedPairs(torch.where(attracted, middle, cov), coincident & ~attracted)


class Series(NamedTuple):
    """Coefficients of ``rho`` and of ``mean * rho - sigma``, and those of their derivatives."""

    root: Tensor
    rho: Tensor
    rho_slope: Tensor
    residual: Tensor
    residual_slope: Tensor

    def take(self, along: slice, rows: slice) -> Series:
        """A part of the batches and of the inputs."""
        return Series._make(value[along, rows] for value in self)

    @classmethod
    def of(cls, link: ExponentialFamilyLink, variance: Tensor, mean: Tensor) -> Series:
        """Series at variances and means, both ``... x n x 1``."""
        root = safe_sqrt(variance)
        rho, rho_slope = link.rho.coefficients(root)
        sigma, sigma_slope = link.sigma.coefficients(root)
        rho_slope = link.rho_slopes(root, rho, rho_slope)
        sigma_slope = sigma_slope[..., : link.sigma.degree]
        return cls(root, rho, rho_slope, mean * rho - sigma, mean * rho_slope - sigma_slope)


def settled_inertia(regularization: Tensor, step_size: float) -> Tensor:
    """What the expectations are divided by at the fixed point."""
    return regularization.square() * ((2 - step_size) / step_size)


def settle_variances(
    link: ExponentialFamilyLink,
    features: Tensor,
    mean: Tensor | None,
    step_size: float,
    regularization: Tensor,
    monitor: SolverMonitor,
) -> Tensor:
    r"""Variances at the fixed point, ``... x n x 1``.

    Args:
        link: The link, not homogeneous.
        features: Variances of :math:`a\gamma`, ``... x n x 1``.
        mean: Their means, ``... x n x 1``; None for zero.
        step_size: :math:`h`.
        regularization: :math:`\lambda`, ``... x 1 x 1``.
        monitor: Collects the record of the solves.
    """
    inertia = settled_inertia(regularization, step_size)
    mean = torch.zeros_like(features) if mean is None else mean
    equation = partial(_variance_equation, link)
    with torch.no_grad():
        given = (inertia, features, mean)
        zero = torch.zeros(
            torch.broadcast_shapes(*(tensor.shape for tensor in given)),
            dtype=features.dtype,
            device=features.device,
        )
        # a jumping rho may vanish at zero and nowhere near it
        start = torch.maximum(-equation(zero, *given)[0], (features + mean.square()) / inertia)
        upper = start
        for _ in range(100):
            below = equation(upper, *given)[0] < 0
            if not bool(below.any()):
                break
            upper = torch.where(below, 4 * upper, upper)
        noise = rounding(link, inertia)

        def function(variance: Tensor) -> tuple[Tensor, Tensor]:
            return equation(variance, *given)

        variance = newton(function, start, zero, upper, upper, noise, monitor)
        # a rho that is not bounded may leave nothing that attracts
        value, slope = function(variance)
        step = (value / slope).abs() / upper.masked_fill(upper == 0, 1.0)
        attracts = (slope > 0) & step.isfinite()
        tolerance = max(settings.solver_tolerance.value(variance.dtype), noise)
        monitor.record(0, torch.where(attracts, step, math.inf), tolerance)
    return attach_variances(link, variance, features, mean, step_size, regularization)


def attach_variances(
    link: ExponentialFamilyLink,
    variance: Tensor,
    features: Tensor,
    mean: Tensor,
    step_size: float,
    regularization: Tensor,
) -> Tensor:
    """The same variances with derivatives.

    Args:
        link: As for :func:`settle_variances`, of which the other arguments are as well.
        variance: Its result.
        features: Variances of the features.
        mean: Their means.
        step_size: The step size.
        regularization: The regularization.
    """
    inertia = settled_inertia(regularization, step_size)
    return implicit_root(variance, partial(_variance_equation, link), inertia, features, mean)


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
    """Variance of a function of given coefficients, and its derivative by that of its argument."""
    bend = 2 * (series.half_curvature(root, slope) * value).sum(-1, keepdim=True)
    total = slope[..., : series.degree].square().sum(-1, keepdim=True) + bend
    return value.square().sum(-1, keepdim=True), total


def rounding(link: ExponentialFamilyLink, inertia: Tensor) -> float:
    """Size of a Newton step that rounding of the equation alone makes, relative to variances."""
    if inertia.numel() == 0:
        return 0.0
    least = float((1 - link.critical_regularization**2 / inertia.detach()).min())
    return 16 * torch.finfo(inertia.dtype).eps / max(least, torch.finfo(inertia.dtype).eps)
