r"""Stochastic gradient updates of rectified features: a pair is an angle.

With the link "relu" and features that are homogeneous in the injected input too, all variances are
one gain times those of the injected input, and the angle of a pair depends on its angle there
alone. Throughout, :math:`e = 1 - \cos\theta`, :math:`S = \sin\theta - \theta\cos\theta`, and
:math:`m` is the :math:`e` of the features: :math:`e_0 - S_0/\pi` for rectified features, whose
correlation is that of the arc-cosine kernel, and :math:`e_0` for linear ones.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ..activations.angles import angle, sine_excess, sine_excess_of_angle
from .implicit import implicit_root
from .newton import newton
from .monitor import SolverMonitor


class Features(NamedTuple):
    """Expectations of the sufficient statistic at a unit injected variance.

    Args:
        size: Half of its second moment: ``E[gamma**2 rho**2]``.
        mean: Its mean over ``sqrt(2 pi)``.
    """

    size: float
    mean: float


RECTIFIED = Features(0.25, 1 / (2 * math.pi))
LINEAR = Features(0.5, 0.0)


def feature_versine(features: Features, versine0: Tensor) -> Tensor:
    """One minus the correlation of the features, of that of the injected input."""
    if features is LINEAR:
        return versine0
    return versine0 - sine_excess(versine0) / math.pi


def update_angles(
    features: Features,
    num_steps: int,
    step_size: float,
    regularization: Tensor,
    feature_scale: Tensor,
    angle0: Tensor,
    versine0: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Gain and angles after some updates from the injected input.

    With gain :math:`\kappa^2` and :math:`p, \mu` those of ``features``, the update without a step
    size is

    .. math::
        \lambda^2 \kappa^2 &\leftarrow p a^2 - 2\mu a\kappa + \kappa^2 / 2, \\
        \lambda^2 \kappa^2 e &\leftarrow p a^2 \left[m + (1 - m)\theta/\pi\right]
            - \mu a \kappa e + \kappa^2 (e - S/\pi) / 2 ,

    in which nothing cancels. The angle grows to about its square root in each step.

    Args:
        features: :data:`RECTIFIED` or :data:`LINEAR`.
        num_steps: Number of updates.
        step_size: :math:`h`.
        regularization: :math:`\lambda`, ``... x 1 x 1``.
        feature_scale: :math:`a`, ``... x 1 x 1``.
        angle0: Angles of the injected input, ``... x n x m``.
        versine0: One minus their cosines.

    Returns:
        The gain, ``... x 1 x 1``, and one minus the cosines of the angles.
    """
    keep, push = (1 - step_size) ** 2, (step_size / regularization).square()
    size = features.size * feature_scale.square()
    start = feature_versine(features, versine0)
    gain, theta, versine = torch.ones_like(size * push), angle0, versine0
    for _ in range(num_steps):
        mean = features.mean * feature_scale * gain.sqrt()
        source = size * (start + (1 - start) * theta / math.pi) - mean * versine
        source = source + gain * (versine - sine_excess(versine) / math.pi) / 2
        versine = keep * gain * versine + push * source
        gain = keep * gain + push * (size - 2 * mean + gain / 2)
        # a gain of zero, by underflow, has no angle
        versine = (versine / torch.where(gain > 0, gain, 1.0)).clamp(0.0, 2.0)
        theta = angle(versine)
    return gain, versine


def settle_angles(
    features: Features,
    step_size: float,
    regularization: Tensor,
    feature_scale: Tensor,
    start: Tensor,
    monitor: SolverMonitor,
) -> tuple[Tensor, Tensor]:
    r"""Gain and angles at the fixed point of the updates.

    Over :math:`a^2` the gain depends on :math:`\lambda` and the step size alone, and over it the
    equation for the angles is

    .. math:: f(\theta) = A (1 - \cos\theta) + B S(\theta) - m - (1 - m)\,\theta/\pi = 0 .

    Its slope :math:`(A + B\theta)\sin\theta - (1 - m)/\pi` changes sign twice at most, from minus
    to plus to minus, and :math:`f(0) \le 0 < f(\pi)`: there is exactly one root in :math:`(0,
    \pi]`, and it is the stable fixed point. At :math:`m = 0`, where inputs coincide or are
    parallel, zero is another root, which repels. The root returned is smooth in :math:`m`.

    Args:
        features: :data:`RECTIFIED` or :data:`LINEAR`.
        step_size: :math:`h`.
        regularization: :math:`\lambda`, ``... x 1 x 1``.
        feature_scale: :math:`a`, ``... x 1 x 1``.
        start: :math:`m`, ``... x n x m``.
        monitor: Collects the record of the solve.

    Returns:
        The gain, ``... x 1 x 1``, and the angles, ``... x n x m``.
    """
    unit_gain = settled_unit_gain(features, step_size, regularization)
    straight, bend = _coefficients(features, unit_gain)
    with torch.no_grad():
        theta = _solve(straight, bend, start, monitor)
    theta = implicit_root(theta, _excess, straight, bend, start)
    return unit_gain * feature_scale.square(), theta


def settled_unit_gain(features: Features, step_size: float, regularization: Tensor) -> Tensor:
    r"""The gain :math:`k^2` at the fixed point for :math:`a = 1`.

    It solves :math:`(\Lambda - \frac12) k^2 + 2\mu k = p` with :math:`\Lambda = \lambda^2 (2-h)/h`.
    """
    gap = above_critical(regularization, step_size)
    if features is LINEAR:
        return features.size / gap
    root = features.size / (features.mean + (features.mean**2 + features.size * gap).sqrt())
    return root.square()


def above_critical(regularization: Tensor, step_size: float) -> Tensor:
    r""":math:`\lambda^2 (2-h)/h - \frac12`, to rounding however close to zero it is."""
    with localcontext() as context:
        context.prec = 50
        step = Decimal(step_size)
        critical = (step / (2 * (2 - step))).sqrt()
        high = torch.tensor(float(critical), dtype=regularization.dtype).item()
        low = float(critical - Decimal(high))
        ratio = float((2 - step) / step)
    return ratio * ((regularization - high) - low) * (regularization + high)


def _coefficients(features: Features, unit_gain: Tensor) -> tuple[Tensor, Tensor]:
    bend = unit_gain / (2 * math.pi * features.size)
    straight = 1 - features.mean / features.size * unit_gain.sqrt()
    return straight, bend


def _excess(theta: Tensor, straight: Tensor, bend: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
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

    def function(theta: Tensor) -> tuple[Tensor, Tensor]:
        return _excess(theta, straight, bend, start)

    return newton(function, torch.maximum(guess, lower), lower, upper, guess, noise, monitor)
