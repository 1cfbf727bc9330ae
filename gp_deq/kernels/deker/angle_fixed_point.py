r"""The fixed point of the updates for the link "relu": an angle for each pair."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import torch
from torch import Tensor

from ...activations import PairCovariance, safe_sqrt, sine_excess_of_angle
from ...equilibrium import Shape, SolverMonitor, implicit_root, newton
from .observed import LINEAR, InjectedPair, UnitFeatures
from .regime import AngleRegime, Evaluation, Regime


def gain_of_unit_scale(features: UnitFeatures, step_size: float, regularization: Tensor) -> Tensor:
    r"""The gain :math:`k^2` at the fixed point for :math:`a = 1`.

    It solves :math:`(\Lambda - \frac12) k^2 + 2\mu k = p` with :math:`\Lambda = \lambda^2 (2-h)/h`.

    Args:
        features: The observed features, with constants :math:`p` and :math:`\mu`.
        step_size: :math:`h`.
        regularization: :math:`\lambda`, ``... x 1 x 1``.
    """
    gap = above_critical(regularization, step_size)
    if features.mean == 0:
        return features.size / gap
    root = features.size / (features.mean + (features.mean**2 + features.size * gap).sqrt())
    return root.square()


def above_critical(regularization: Tensor, step_size: float) -> Tensor:
    r""":math:`\lambda^2 (2-h)/h - \frac12`, to rounding however close to zero it is.

    Args:
        regularization: :math:`\lambda`.
        step_size: :math:`h`.
    """
    with localcontext() as context:
        context.prec = 50
        step = Decimal(step_size)
        critical = (step / (2 * (2 - step))).sqrt()
        high = torch.tensor(float(critical), dtype=regularization.dtype).item()
        low = float(critical - Decimal(high))
        ratio = float((2 - step) / step)
    return ratio * ((regularization - high) - low) * (regularization + high)


def fixed_angles(
    features: UnitFeatures,
    unit_gain: Tensor,
    start: Tensor,
    monitor: SolverMonitor,
) -> Tensor:
    r"""Angles at the fixed point of the updates, ``... x n x m``.

    With :math:`e = 1 - \cos\theta` and :math:`S = \sin\theta - \theta\cos\theta` the equation is

    .. math:: f(\theta) = A e + B S - m - (1 - m)\,\theta/\pi = 0 .

    Its slope :math:`(A + B\theta)\sin\theta - (1 - m)/\pi` changes sign twice at most, from minus
    to plus to minus, and :math:`f(0) \le 0 < f(\pi)`: there is exactly one root in :math:`(0,
    \pi]`, and it is the stable fixed point. At :math:`m = 0`, where inputs coincide or are
    parallel, zero is another root, which repels. The root returned is smooth in :math:`m`.

    Args:
        features: The observed features.
        unit_gain: See :func:`gain_of_unit_scale`, ``... x 1 x 1``.
        start: One minus the correlation of the observed features, :math:`m`, ``... x n x m``.
        monitor: Collects the record of the solve.
    """
    bend = unit_gain / (2 * math.pi * features.size)
    straight = 1 - features.mean / features.size * unit_gain.sqrt()
    with torch.no_grad():
        theta = _solve(straight, bend, start, monitor)
    return implicit_root(theta, _excess, straight, bend, start)


def _excess(theta: Tensor, straight: Tensor, bend: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The function f and its slope."""
    versine = 2 * (theta / 2).sin().square()
    value = straight * versine + bend * sine_excess_of_angle(theta)
    value = value - start - (1 - start) * theta / math.pi
    return value, (straight + bend * theta) * theta.sin() - (1 - start) / math.pi


def _solve(straight: Tensor, bend: Tensor, start: Tensor, monitor: SolverMonitor) -> Tensor:
    # below where (A + B theta) theta exceeds (1 - m)/pi the function only falls
    source = (1 - start).clamp_min(0.0) / math.pi
    lower = 2 * source / (straight + (straight.square() + 4 * bend * source).sqrt())
    # the root of the leading terms for small angles is near the root for m = 0
    half = straight / 2
    first = 2 * source / (half + (half.square() + 4 / 3 * bend * source).sqrt())
    guess = (first + 1.2 * (start / (straight + bend)).sqrt()).clamp_max(math.pi / 2)
    upper = torch.full_like(guess, math.pi)
    noise = 16 * torch.finfo(guess.dtype).eps

    def equation(theta: Tensor, _: float | None) -> tuple[Tensor, Tensor]:
        return _excess(theta, straight, bend, start)

    return newton(equation, torch.maximum(guess, lower), lower, upper, guess, noise, monitor).point


class AngleFixedPoint(AngleRegime):
    """The fixed point for the link "relu" and features that are homogeneous too."""

    def shape(self) -> Shape:
        """See :meth:`AngleRegime.shape`; a smooth function, which varies most at small angles."""
        # with this knee float64 needs a degree of 35 to 37, the least, for rectified features
        return Shape(roots=0, cusp=False, knee=0.4)

    def profile(self, angle0: Tensor, versine0: Tensor, at: Evaluation) -> Tensor:
        """See :meth:`AngleRegime.profile`."""
        unit_gain = gain_of_unit_scale(self.features, self.step_size, at.regularization)
        start = self.features.versine(versine0)
        theta = fixed_angles(self.features, unit_gain, start, at.monitor)
        return unit_gain * at.feature_scale.square() * theta.cos()

    def identical(self, at: Evaluation) -> Tensor:
        """See :meth:`AngleRegime.identical`: the gain, the correlation being one."""
        unit_gain = gain_of_unit_scale(self.features, self.step_size, at.regularization)
        return unit_gain * at.feature_scale.square()


class KernelAngleFixedPoint(Regime):
    """The fixed point for the link "relu" and a GPyTorch kernel as observed features.

    It has forgotten the injected input: only the angle of the observed features is left.

    Args:
        step_size: :math:`h`.
    """

    def __init__(self, step_size: float) -> None:
        self.step_size = step_size

    def covariance(
        self, injected: InjectedPair, features: PairCovariance | None, at: Evaluation
    ) -> Tensor:
        """See :meth:`Regime.covariance`."""
        assert features is not None
        unit_gain = gain_of_unit_scale(LINEAR, self.step_size, at.regularization)
        cosine = fixed_angles(LINEAR, unit_gain, features.versine, at.monitor).cos()
        if at.identical:
            cosine = torch.where(injected.coincident, 1.0, cosine)
        scale = safe_sqrt(features.var1) * safe_sqrt(features.var2)
        return scale * unit_gain * at.feature_scale.square() * cosine
