"""The sine, whose kernel is that of random Fourier features with a variance per input."""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import Activation
from .cancellation import LossEstimate
from .pair_covariance import PairCovariance, bounded


class Sine(Activation):
    r"""The sine, :math:`\varphi(u) = \sin u`.

    From :math:`\operatorname{E}\cos(u \mp v) = \exp(-\frac12 \operatorname{E}(u \mp v)^2)`, with
    :math:`m = \operatorname{E}(u - v)^2` and :math:`\bar m = \operatorname{E}(u + v)^2`,

    .. math::
        G = \tfrac12 (e^{-m/2} - e^{-\bar m/2}), \qquad P = \tfrac12 (e^{-m/2} + e^{-\bar m/2}),
        \qquad \frac{\partial G}{\partial v_1} = -\tfrac12 G.

    Critical weight variance 1; odd, bounded, not homogeneous; ``P`` is smooth.
    """

    smooth = True

    def __call__(self, u: Tensor) -> Tensor:
        """See :meth:`Activation.__call__`."""
        return u.sin()

    @property
    def lipschitz(self) -> float:
        """1, at the origin."""
        return 1.0

    def expectations(
        self,
        features1: Tensor,
        features2: Tensor,
        sqdist: Tensor,
        accuracy: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Activation.expectations`."""
        var1, var2 = features1, features2.mT
        half = sqdist / 2
        total = var1 + var2
        far = bounded(half - total, high=0.0)
        return self._from_covariance(var1, var2, half, far, total / 2 - half)

    @staticmethod
    def _from_covariance(
        var1: Tensor, var2: Tensor, half: Tensor, far: Tensor, cov: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``G`` and ``P`` from half the squared distances, to the inputs and to the mirrored."""
        near, far = half.neg().exp(), far.exp()
        # where they nearly cancel, sinh(c) exp(-(var1 + var2) / 2)
        close = (-var1 / 2).exp() * (-var2 / 2).exp() * cov.clamp(-1.0, 1.0).sinh()
        return torch.where(cov.abs() < 1, close, (near - far) / 2), (near + far) / 2

    def variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Activation.variance_slopes`."""
        slope = self.expectations(features1, features2, sqdist)[0] / -2
        return slope, slope

    def curvature(self, features1: Tensor, features2: Tensor, sqdist: Tensor) -> Tensor:
        """See :meth:`Activation.curvature`; ``G``."""
        return self.expectations(features1, features2, sqdist)[0]

    def derivative_variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Activation.derivative_variance_slopes`; ``-P / 2``."""
        slope = self.expectations(features1, features2, sqdist)[1] / -2
        return slope, slope

    def dual(self, pair: PairCovariance) -> PairCovariance:
        r"""See :meth:`Activation.dual`.

        The squared distance is :math:`(1 - e^{-m/2}) (1 + e^{-\bar m/2}) - \frac12 (e^{-v_1} -
        e^{-v_2})^2`.
        """
        var1, var2, sqdist, vardiff = pair
        far = (pair.opposite / -2).exp()
        gap = self._decay_difference(var1, var2, vardiff)
        distance = (sqdist / -2).expm1().neg() * (1 + far) - gap.square() / 2
        return pair.after_activation(
            self.diagonal(var1),
            self.diagonal(var2),
            bounded(distance, 0.0),
            self.diagonal_difference(var1, var2, vardiff),
            lambda: self._from_covariance(var1, var2, sqdist / 2, pair.opposite / -2, pair.cov)[0],
        )

    def derivative_dual(self, pair: PairCovariance) -> Tensor:
        """See :meth:`Activation.derivative_dual`."""
        return ((pair.sqdist / -2).exp() + (pair.opposite / -2).exp()) / 2

    def diagonal_difference(self, var1: Tensor, var2: Tensor, vardiff: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal_difference`."""
        return self._decay_difference(2 * var1, 2 * var2, 2 * vardiff) / -2

    def loss(self, tangent: bool) -> LossEstimate:
        """See :meth:`Activation.loss`.

        Rounding of the sum of the variances is an error of the distance to the mirrored input, and
        rounding of the scaled inputs one of the distance itself.
        """

        def estimate(var1: Tensor, var2: Tensor, cov: Tensor) -> Tensor:
            total = var1 + var2
            # these distances are themselves uncertain by that much
            noise = 8 * torch.finfo(cov.dtype).eps * total
            near = (total - 2 * cov - noise).clamp_min(0.0)
            far = (total + 2 * cov - noise).clamp_min(0.0)
            return total * (far / -2).exp() + (total * (near + noise)).sqrt() * (near / -2).exp()

        return estimate

    @staticmethod
    def _decay_difference(var1: Tensor, var2: Tensor, vardiff: Tensor) -> Tensor:
        """``exp(-var1) - exp(-var2)``, relative to ``vardiff`` and without overflow."""
        below = (-var2).exp() * (-vardiff.clamp_min(0.0)).expm1()
        above = (-var1).exp() * vardiff.clamp_max(0.0).expm1()
        return torch.where(vardiff > 0, below, -above)

    def diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal`."""
        return (-2 * variance).expm1() / -2

    def derivative_diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.derivative_diagonal`."""
        return (1 + (-2 * variance).exp()) / 2

    def diagonal_slope(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal_slope`."""
        return (-2 * variance).exp()
