"""The error function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .activation import Activation
from .cancellation import LossEstimate, loss_of_smooth
from .pair_covariance import PairCovariance


class Erf(Activation):
    r"""The error function, :math:`\varphi(u) = \operatorname{erf}(u)` [Williams1997]_.

    With :math:`D = (1 + 2v_1)(1 + 2v_2) - 4c^2`,

    .. math::
        G = \frac2\pi \arctan\frac{2c}{\sqrt D}, \qquad P = \frac{4}{\pi\sqrt D}, \qquad
        \frac{\partial G}{\partial v_1} = -\frac{cP}{1 + 2v_1}.

    ``D`` is computed from the squared distance, without cancellation at coincident inputs of any
    size. Critical weight variance :math:`\pi/4`; odd, bounded, not homogeneous; ``P`` is smooth.
    """

    smooth = True

    def __call__(self, u: Tensor) -> Tensor:
        """See :meth:`Activation.__call__`."""
        return torch.erf(u)

    @property
    def lipschitz(self) -> float:
        r""":math:`2/\sqrt\pi`."""
        return 2 / math.sqrt(math.pi)

    @property
    def critical_weight_variance(self) -> float:
        r""":math:`\pi/4`."""
        return math.pi / 4

    def expectations(
        self,
        features1: Tensor,
        features2: Tensor,
        sqdist: Tensor,
        accuracy: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Activation.expectations`."""
        pair = PairCovariance.from_distance(features1, features2.mT, sqdist)
        root = determinant(pair, 0.5).sqrt()
        return torch.atan2(pair.cov, root) * (2 / math.pi), (2 / math.pi) / root

    def variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Activation.variance_slopes`."""
        pair = PairCovariance.from_distance(features1, features2.mT, sqdist)
        slope = pair.cov * (-1 / math.pi) / determinant(pair, 0.5).sqrt()
        return slope / (0.5 + pair.var1), slope / (0.5 + pair.var2)

    def curvature(self, features1: Tensor, features2: Tensor, sqdist: Tensor) -> Tensor:
        """See :meth:`Activation.curvature`; ``4 c P / D``."""
        pair = PairCovariance.from_distance(features1, features2.mT, sqdist)
        det = determinant(pair, 0.5)
        return pair.cov * (2 / math.pi) / (det * det.sqrt())

    def derivative_variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""See :meth:`Activation.derivative_variance_slopes`; :math:`-(1 + 2v_2)P/D`."""
        pair = PairCovariance.from_distance(features1, features2.mT, sqdist)
        det = determinant(pair, 0.5)
        slope = (-1 / math.pi) / (det * det.sqrt())
        return slope * (0.5 + pair.var2), slope * (0.5 + pair.var1)

    def dual(self, pair: PairCovariance) -> PairCovariance:
        r"""See :meth:`Activation.dual`.

        With :math:`\alpha, \beta` and :math:`\gamma` the arcs of the two variances and of the
        covariance, the squared distance is :math:`\frac2\pi(\alpha + \beta - 2\gamma)`. The sine of
        :math:`(\alpha + \beta)/2 - \gamma` is the quotient of :math:`\sin^2\frac{\alpha+\beta}2 -
        \sin^2\gamma`, which has a form in ``sqdist`` and ``vardiff`` alone, and
        :math:`\sin(\frac{\alpha+\beta}2 + \gamma)`, which is not small for a positive covariance.
        """
        var1, var2, sqdist, vardiff = pair
        arc1, arc2 = _arc(var1), _arc(var2)
        total = var1 + var2
        gram = pair.gram
        arc = torch.atan2(pair.cov, _raised(gram, total, 0.5).sqrt())
        roots = (1 + 4 * var1).sqrt() + (1 + 4 * var2).sqrt()
        gap = (gram + (vardiff / roots).square()) / ((0.5 + var1) * (0.5 + var2))
        close = 2 * sqdist < total  # elsewhere nothing cancels
        sine = torch.where(close, ((arc1 + arc2) / 2 + arc).sin(), 1.0)
        near = 2 * torch.where(close, gap / sine, 0.0).clamp(0.0, 1.0).asin()
        far = arc1 + arc2 - 2 * arc
        return pair.after_activation(
            arc1 * (2 / math.pi),
            arc2 * (2 / math.pi),
            torch.where(close, near, far) * (2 / math.pi),
            self.diagonal_difference(var1, var2, vardiff),
            lambda: arc * (2 / math.pi),
        )

    def derivative_dual(self, pair: PairCovariance) -> Tensor:
        """See :meth:`Activation.derivative_dual`."""
        return (2 / math.pi) / determinant(pair, 0.5).sqrt()

    def loss(self, tangent: bool) -> LossEstimate:
        """See :meth:`Activation.loss`."""
        return loss_of_smooth(tangent)

    def diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal`."""
        return _arc(variance) * (2 / math.pi)

    def diagonal_difference(self, var1: Tensor, var2: Tensor, vardiff: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal_difference`; by the tangent of a difference of arcs."""
        root1, root2 = (1 + 4 * var1).sqrt(), (1 + 4 * var2).sqrt()
        # 2 var1 root2 - 2 var2 root1, where root1 - root2 = 4 vardiff / (root1 + root2)
        numerator = 2 * vardiff * (root2 - 4 * var2 / (root1 + root2))
        return torch.atan2(numerator, root1 * root2 + 4 * var1 * var2) * (2 / math.pi)

    def derivative_diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.derivative_diagonal`."""
        return (4 / math.pi) / (1 + 4 * variance).sqrt()

    def diagonal_slope(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal_slope`."""
        return self.diagonal_and_slope(variance)[1]

    def diagonal_and_slope(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Activation.diagonal_and_slope`."""
        double = 2 * variance
        root = (1 + 2 * double).sqrt()
        slope = (4 / math.pi) / (root * (1 + double))
        return torch.atan2(double, root) * (2 / math.pi), slope


def determinant(pair: PairCovariance, shift: float) -> Tensor:
    r""":math:`(v_1 + a)(v_2 + a) - c^2` for a shift :math:`a > 0`, without cancellation."""
    return _raised(pair.gram, pair.var1 + pair.var2, shift)


def _raised(gram: Tensor, total: Tensor, shift: float) -> Tensor:
    return torch.add(gram, total, alpha=shift) + shift**2


def _arc(variance: Tensor) -> Tensor:
    """``asin(2v / (1 + 2v))``, to rounding for a variance of any size."""
    return torch.atan2(2 * variance, (1 + 4 * variance).sqrt())
