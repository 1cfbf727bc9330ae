r"""A finite number of stochastic gradient updates, in the limit of many features.

One update with step size one maps the covariance of a pair to

.. math::
    F(\psi) = \lambda^{-2} \operatorname E (a\gamma\rho(u) - \sigma(u))(a\gamma'\rho(v) - \sigma(v))
    = \lambda^{-2} \left[a^2 (c - \mu\mu') \operatorname E\rho(u)\rho(v)
    + \operatorname E (a\mu\rho(u) - \sigma(u))(a\mu'\rho(v) - \sigma(v))\right],

:math:`c` and :math:`\mu` the second moment and the mean of the observed features :math:`\gamma`: a
sum of two kernels, each with a squared distance that does not cancel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...activations import ExponentialFamilyLink, PairCovariance, angle, product_dual, sine_excess
from ...equilibrium import Shape
from .observed import InjectedPair, ObservedFeatures, UnitFeatures, observe
from .regime import AngleRegime, Evaluation, Regime

#: Knees of the variable in which F is smooth, by the number T of updates. More updates have none:
#: roots of roots of an angle have no series of a reasonable degree. The knees are ``-1 - 2 / (T -
#: 1)**1.6``, which was found by trial: the degrees that float64 needs, 26, 44, 51, 55 and 62, are
#: the least ones for regularizations from 1.0001 to 50 times the critical one.
_KNEES = {1: -1e5, **{steps: -1 - 2 / (steps - 1) ** 1.6 for steps in range(2, 6)}}


def update(
    link: ExponentialFamilyLink,
    features: ObservedFeatures,
    step_size: float,
    regularization: Tensor,
    psi: PairCovariance,
) -> PairCovariance:
    r""":math:`(1-h)^2\psi + h^2 F(\psi)`: the covariance after one update.

    Args:
        link: The link.
        features: Moments of :math:`a\gamma`.
        step_size: :math:`h`.
        regularization: :math:`\lambda`, ``... x 1 x 1``.
        psi: Covariance before it.
    """
    keep, push = (1 - step_size) ** 2, (step_size / regularization).square()
    observed = product_dual(features.centred, link.rho_dual(psi))
    residual = link.residual_dual(psi, features.mean1, features.mean2)
    terms = zip(psi, observed, residual, strict=True)
    return PairCovariance(*(keep * old + push * (one + two) for old, one, two in terms))


class CovarianceUpdates(Regime):
    """Updates of covariances, for any link and any observed features.

    Args:
        link: The link.
        features: "relu" or "linear"; None where the observed features are a GPyTorch kernel.
        num_steps: Number of updates.
        step_size: :math:`h`.
    """

    def __init__(
        self, link: ExponentialFamilyLink, features: str | None, num_steps: int, step_size: float
    ) -> None:
        self.link, self.features = link, features
        self.num_steps, self.step_size = num_steps, step_size

    def covariance(
        self, injected: InjectedPair, features: PairCovariance | None, at: Evaluation
    ) -> Tensor:
        """See :meth:`Regime.covariance`; coincident inputs have identical features anyway."""
        observed = observed_features(self.features, injected, features).scaled(at.feature_scale)
        psi = injected.cov
        for _ in range(self.num_steps):
            psi = update(self.link, observed, self.step_size, at.regularization, psi)
        return psi.cov


def observed_features(
    name: str | None, injected: InjectedPair, kernel: PairCovariance | None
) -> ObservedFeatures:
    """The observed features of a given name, or those whose covariance is a kernel.

    Args:
        name: "relu" or "linear"; None for a kernel.
        injected: The pairs.
        kernel: Covariance of the features; None for those of a name.
    """
    if name is not None:
        return observe(name, injected.cov)[0]
    assert kernel is not None
    return ObservedFeatures(kernel)


class AngleUpdates(AngleRegime):
    r"""Updates of an angle, for the link "relu" and homogeneous observed features.

    With :math:`e = 1 - \cos\theta`, :math:`S = \sin\theta - \theta\cos\theta`, :math:`m` the
    :math:`e` of the observed features, :math:`p` and :math:`\mu` their constants and the gain
    :math:`\kappa^2`, one update of step size one is

    .. math::
        \lambda^2 \kappa^2 &\leftarrow p a^2 - 2\mu a\kappa + \kappa^2 / 2, \\
        \lambda^2 \kappa^2 e &\leftarrow p a^2 \left[m + (1 - m)\theta/\pi\right]
            - \mu a \kappa e + \kappa^2 (e - S/\pi) / 2 ,

    in which nothing cancels. The angle grows to about its square root in each update.

    Args:
        features: The observed features.
        step_size: :math:`h`.
        num_steps: Number of updates.
    """

    def __init__(self, features: UnitFeatures, step_size: float, num_steps: int) -> None:
        super().__init__(features, step_size)
        self.num_steps = num_steps

    def shape(self) -> Shape | None:
        """See :meth:`AngleRegime.shape`; each update but the first takes a root of small angles."""
        if self.num_steps not in _KNEES:
            return None
        return Shape(roots=self.num_steps - 1, cusp=True, knee=_KNEES[self.num_steps])

    def profile(self, angle0: Tensor, versine0: Tensor, at: Evaluation) -> Tensor:
        """See :meth:`AngleRegime.profile`."""
        keep, push = (1 - self.step_size) ** 2, (self.step_size / at.regularization).square()
        size = self.features.size * at.feature_scale.square()
        start = self.features.versine(versine0)
        gain, theta, versine = torch.ones_like(size * push), angle0, versine0
        for _ in range(self.num_steps):
            mean = self.features.mean * at.feature_scale * gain.sqrt()
            source = size * (start + (1 - start) * theta / math.pi) - mean * versine
            source = source + gain * (versine - sine_excess(versine) / math.pi) / 2
            versine = keep * gain * versine + push * source
            gain = keep * gain + push * (size - 2 * mean + gain / 2)
            # a gain of zero, by underflow, has no angle
            versine = (versine / torch.where(gain > 0, gain, 1.0)).clamp(0.0, 2.0)
            theta = angle(versine)
        return gain * (1 - versine)
