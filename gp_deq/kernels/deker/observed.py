r"""The observed features :math:`\gamma`, to which the learned ones are fitted."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...activations import PairCovariance, ReLU, injected_angle, safe_sqrt, sine_excess

#: Squared mean of a rectified Gaussian variable of variance one.
_SQUARED_MEAN = 1 / (2 * math.pi)


class InjectedPair(NamedTuple):
    """All pairs of two sets of inputs, by the covariance of the injected input.

    Args:
        x1: Scaled inputs, ``... x n x d``.
        x2: Scaled inputs, ``... x m x d``.
        bias_variance: ``... x 1 x 1``.
        cov: The covariance.
    """

    x1: Tensor
    x2: Tensor
    bias_variance: Tensor
    cov: PairCovariance

    @classmethod
    def of(cls, x1: Tensor, x2: Tensor, bias_variance: Tensor) -> InjectedPair:
        """The pairs of two sets of scaled inputs."""
        return cls(x1, x2, bias_variance, PairCovariance.from_inputs(x1, x2, bias_variance))

    @property
    def coincident(self) -> Tensor:
        """Which inputs coincide, ``... x n x m``."""
        return self.cov.sqdist == 0

    def angle(self) -> tuple[Tensor, Tensor]:
        """See :func:`~gp_deq.activations.injected.injected_angle`."""
        return injected_angle(self.x1, self.x2, self.bias_variance, self.cov)


class ObservedFeatures(NamedTuple):
    r"""Moments of the observed features of all pairs.

    Args:
        centred: Their covariance :math:`c - \mu\mu'`.
        mean1: Means :math:`\mu` of the first, ``... x n x 1``; None for zero.
        mean2: Means of the second, ``... x 1 x m``; None for zero.
    """

    centred: PairCovariance
    mean1: Tensor | None = None
    mean2: Tensor | None = None

    def scaled(self, scale: Tensor) -> ObservedFeatures:
        """Moments of a multiple of the features."""
        square = scale.square()
        centred = PairCovariance(*(square * term for term in self.centred))
        if self.mean1 is None or self.mean2 is None:
            return ObservedFeatures(centred)
        return ObservedFeatures(centred, scale * self.mean1, scale * self.mean2)


def observe(features: str, injected: PairCovariance) -> tuple[ObservedFeatures, Tensor]:
    r"""Moments of the features of a given name.

    Args:
        features: "relu", with :math:`c - \mu\mu' = \operatorname E s_+ s'_+ - \sqrt{bb'}/2\pi` and
            :math:`\mu = \sqrt{b/2\pi}`, or "linear", with :math:`c = b` and :math:`\mu = 0`.
        injected: Covariance :math:`b` of the injected input.

    Returns:
        The moments, and the derivative of the covariance of the features with respect to that of
        the injected input, ``... x n x m``.
    """
    if features == "linear":
        return ObservedFeatures(injected), torch.ones_like(injected.sqdist)
    rectified, slope = ReLU().dual_and_derivative(injected)
    root1, root2 = safe_sqrt(injected.var1), safe_sqrt(injected.var2)
    total = root1 + root2
    rootdiff = injected.vardiff / total.masked_fill(total == 0, 1.0)
    centred = PairCovariance(
        (0.5 - _SQUARED_MEAN) * injected.var1,
        (0.5 - _SQUARED_MEAN) * injected.var2,
        rectified.sqdist - _SQUARED_MEAN * rootdiff.square(),
        (0.5 - _SQUARED_MEAN) * injected.vardiff,
    )
    mean = math.sqrt(_SQUARED_MEAN)
    return ObservedFeatures(centred, mean * root1, mean * root2), slope


def observe_each(features: str, injected: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Variances and means of a multiple of the features of single inputs, ``... x n x 1``.

    Args:
        features: As for :func:`observe`.
        injected: Injected variances, ``... x n x 1``.
        scale: The factor, ``... x 1 x 1``.
    """
    zero = torch.zeros_like(injected)
    alone, _ = observe(features, PairCovariance(injected, injected, zero, zero))
    centred, mean, _ = alone.scaled(scale)
    return centred.var1, zero if mean is None else mean


class UnitFeatures(NamedTuple):
    r"""Observed features that are homogeneous in the injected input, and the link "relu".

    Args:
        size: :math:`\operatorname E\gamma^2\rho^2` at an injected variance of one, half of the
            second moment of :math:`\gamma`.
        mean: :math:`\mu` there, over :math:`\sqrt{2\pi}`.
        rectified: Whether the features are rectified.
    """

    size: float
    mean: float
    rectified: bool

    def versine(self, versine0: Tensor) -> Tensor:
        r"""One minus the correlation of the features, from that of the injected input.

        :math:`e_0 - S_0/\pi` for rectified features, whose correlation is that of the arc-cosine
        kernel, and :math:`e_0` for linear ones.
        """
        return versine0 - sine_excess(versine0) / math.pi if self.rectified else versine0


RECTIFIED = UnitFeatures(0.25, 1 / (2 * math.pi), True)
LINEAR = UnitFeatures(0.5, 0.0, False)
UNIT_FEATURES = {"relu": RECTIFIED, "linear": LINEAR}
