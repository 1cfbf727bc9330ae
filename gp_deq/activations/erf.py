"""The error function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .activation import Activation
from .detailed_pair import dual_in_detail
from .pair_covariance import DetailedPair, PairCovariance, bounded


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
    detailed = True

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
        var1, var2 = features1, features2.mT
        total = var1 + var2
        root = determinant(var1, var2, total, sqdist, 2.0).sqrt()
        return torch.atan2(total - sqdist, root) * (2 / math.pi), (4 / math.pi) / root

    def variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Activation.variance_slopes`."""
        var1, var2 = features1, features2.mT
        total = var1 + var2
        root = determinant(var1, var2, total, sqdist, 2.0).sqrt()
        slope = (sqdist - total) * (2 / math.pi) / root
        return slope / (1 + 2 * var1), slope / (1 + 2 * var2)

    def curvature(self, features1: Tensor, features2: Tensor, sqdist: Tensor) -> Tensor:
        """See :meth:`Activation.curvature`; ``4 c P / D``."""
        total = features1 + features2.mT
        det = determinant(features1, features2.mT, total, sqdist, 2.0)
        return (total - sqdist) * (8 / math.pi) / (det * det.sqrt())

    def derivative_variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""See :meth:`Activation.derivative_variance_slopes`; :math:`-(1 + 2v_2)P/D`."""
        var1, var2 = features1, features2.mT
        det = determinant(var1, var2, var1 + var2, sqdist, 2.0)
        slope = (-4 / math.pi) / (det * det.sqrt())
        return slope * (1 + 2 * var2), slope * (1 + 2 * var1)

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
        size = (1 + 2 * var1) * (1 + 2 * var2)
        if isinstance(pair, DetailedPair):
            spread = 4 * pair.gram
        else:
            spread = bounded(sqdist * (2 * total - sqdist) - vardiff.square(), 0.0)
        arc = torch.atan2(2 * pair.cov, determinant_of(pair, 2.0).sqrt())
        roots = (1 + 4 * var1).sqrt() + (1 + 4 * var2).sqrt()
        gap = (spread + 4 * (vardiff / roots).square()) / size
        close = 2 * sqdist < total  # elsewhere nothing cancels
        sine = torch.where(close, ((arc1 + arc2) / 2 + arc).sin(), 1.0)
        near = 2 * torch.where(close, gap / sine, 0.0).clamp(0.0, 1.0).asin()
        far = arc1 + arc2 - 2 * arc
        dual = PairCovariance(
            arc1 * (2 / math.pi),
            arc2 * (2 / math.pi),
            torch.where(close, near, far) * (2 / math.pi),
            self.diagonal_difference(var1, var2, vardiff),
        )
        if isinstance(pair, DetailedPair):
            return dual_in_detail(dual, arc * (2 / math.pi))
        return dual

    def derivative_dual(self, pair: PairCovariance) -> Tensor:
        """See :meth:`Activation.derivative_dual`."""
        return (4 / math.pi) / determinant_of(pair, 2.0).sqrt()

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


def determinant(var1: Tensor, var2: Tensor, total: Tensor, sqdist: Tensor, scale: float) -> Tensor:
    r""":math:`(1 + a v_1)(1 + a v_2) - a^2 c^2`, without cancellation at coincident inputs.

    There :math:`4(v_1 v_2 - c^2) = m(2(v_1 + v_2) - m) - (v_1 - v_2)^2` is a difference of small
    terms; where the variances are far apart, it is computed as it stands.

    Args:
        var1: :math:`v_1`, ``... x n x 1``.
        var2: :math:`v_2`, ``... x 1 x m``.
        total: :math:`v_1 + v_2`, ``... x n x m``.
        sqdist: :math:`m`, ``... x n x m``.
        scale: :math:`a`.
    """
    radial = (var1 - var2).square()
    spread = (2 * total - sqdist).mul(sqdist) - radial
    if not _comparable(var1, var2):
        direct = 4 * (var1 * var2) - (total - sqdist).square()
        spread = torch.where(radial > 4 * (var1 * var2), direct, spread)
    return bounded(spread, 0.0) * (scale**2 / 4) + (1 + scale * total)


def determinant_of(pair: PairCovariance, scale: float) -> Tensor:
    """:func:`determinant` of a pair."""
    total = pair.var1 + pair.var2
    if isinstance(pair, DetailedPair):
        return pair.gram * scale**2 + (1 + scale * total)
    return determinant(pair.var1, pair.var2, total, pair.sqdist, scale)


def _comparable(var1: Tensor, var2: Tensor) -> bool:
    """Whether ``(v1 - v2)**2 <= 4 * v1 * v2`` for all pairs, from their ranges alone."""
    if var1.numel() == 0 or var2.numel() == 0:
        return True
    lows, highs = zip(*(variance.detach().aminmax() for variance in (var1, var2)), strict=True)
    return bool(max(highs) <= 5.8 * min(lows))


def _arc(variance: Tensor) -> Tensor:
    """``asin(2v / (1 + 2v))``, to rounding for a variance of any size."""
    return torch.atan2(2 * variance, (1 + 4 * variance).sqrt())
