"""ReLU, leaky ReLU and identity: arc-cosine kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .activation import Activation
from .angles import angle, bent_distance, sine_excess
from .detailed_pair import dual_in_detail, substitute
from .pair_covariance import DetailedPair, PairCovariance, safe_sqrt


class LeakyReLU(Activation):
    r"""Leaky ReLU, :math:`\varphi(u) = u` for :math:`u > 0` and :math:`n u` for :math:`u < 0`.

    With :math:`\theta` the angle of a pair, :math:`\cos\theta = c / \sqrt{v_1 v_2}`, and
    :math:`S(\theta) = \sin\theta - \theta\cos\theta`,

    .. math::
        G = \tfrac{1 + n^2}{2} c + \tfrac{(1-n)^2}{2\pi} \sqrt{v_1 v_2}\, S(\theta), \qquad
        P = \tfrac{1 + n^2}{2} - \tfrac{(1-n)^2}{2\pi} \theta .

    Critical weight variance :math:`2/(1 + n^2)`, homogeneous of degree one; ``P`` has a cusp
    :math:`|\theta|` at coincident inputs, whose derivative is taken as zero there. ReLU is
    [ChoSaul2009]_, the leaky form follows from :math:`\varphi(u) = \frac{1+n}2 u + \frac{1-n}2|u|`.

    Args:
        negative_slope: :math:`n`, the slope for negative arguments. Default 0.01, as in
            :class:`torch.nn.LeakyReLU`.

    Example:
        >>> LeakyReLU(0.5).critical_weight_variance
        1.6
    """

    homogeneous = True
    detailed = True

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = float(negative_slope)
        if not math.isfinite(self.negative_slope):
            raise ValueError(f"negative_slope must be finite, got {negative_slope!r}.")
        self.linear_part = (1 + self.negative_slope**2) / 2
        self.angular_part = (1 - self.negative_slope) ** 2 / (2 * math.pi)

    def __call__(self, u: Tensor) -> Tensor:
        """See :meth:`Activation.__call__`."""
        return torch.nn.functional.leaky_relu(u, self.negative_slope)

    @property
    def lipschitz(self) -> float:
        """Larger of the two slopes."""
        return max(1.0, abs(self.negative_slope))

    @property
    def critical_weight_variance(self) -> float:
        """Exactly ``2 / (1 + negative_slope**2)``: ``g(v) = v (1 + negative_slope**2) / 2``."""
        return 1 / self.linear_part

    def expectations(
        self,
        features1: Tensor,
        features2: Tensor,
        sqdist: Tensor,
        accuracy: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Activation.expectations`."""
        dual, slope = self.dual_and_derivative(_pair(features1, features2, sqdist))
        return dual.cov, slope

    def variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        r""":math:`\frac{(1-n)^2}{4\pi} \sqrt{v_2/v_1} \sin\theta`, zero at a zero variance."""
        pair = _pair(features1, features2, sqdist)
        sine = self.angular_part / 2 * angle(pair.versine).sin()
        root1, root2 = safe_sqrt(pair.var1), safe_sqrt(pair.var2)
        slope1 = sine * root2 / root1.masked_fill(root1 == 0, math.inf)
        slope2 = sine * root1 / root2.masked_fill(root2 == 0, math.inf)
        return slope1, slope2

    def dual(self, pair: PairCovariance) -> PairCovariance:
        """See :meth:`Activation.dual`."""
        return self.dual_and_derivative(pair)[0]

    def dual_and_derivative(self, pair: PairCovariance) -> tuple[PairCovariance, Tensor]:
        r"""See :meth:`Activation.dual_and_derivative`.

        The squared distance is :math:`\frac{1+n^2}2 m - \frac{(1-n)^2}{\pi}\sqrt{v_1 v_2}\,S`, to
        rounding in relative terms.
        """
        if isinstance(pair, DetailedPair):
            return self._dual_in_detail(pair)
        sqdist, theta = bent_distance(pair, self.linear_part, self.angular_part)
        dual = PairCovariance(
            self.linear_part * pair.var1,
            self.linear_part * pair.var2,
            sqdist,
            self.diagonal_difference(*pair[:2], pair.vardiff),
        )
        return dual, (theta * -self.angular_part).add_(self.linear_part)

    def derivative_dual(self, pair: PairCovariance) -> Tensor:
        """See :meth:`Activation.derivative_dual`."""
        if isinstance(pair, DetailedPair):
            return self._dual_in_detail(pair)[1]
        return self.linear_part - self.angular_part * angle(pair.versine)

    def _dual_in_detail(self, pair: DetailedPair) -> tuple[PairCovariance, Tensor]:
        r"""The same from the covariance, and from an angle that is accurate near :math:`\pi` too.

        The correlation :math:`r_G` of the activations has :math:`1 - r_G = 1 - \cos\theta -
        \frac BA S(\theta)`, A and B being the constants of the linear and of the angular part.
        """
        versine = pair.versine
        theta = angle(versine)
        scale = safe_sqrt(pair.var1) * safe_sqrt(pair.var2)
        with torch.no_grad():
            exact = torch.where(scale > 0, torch.atan2(pair.gram.sqrt(), pair.cov), theta)
        theta = substitute(exact, theta)
        bend = self.angular_part * sine_excess(versine)
        dual = PairCovariance(
            self.linear_part * pair.var1,
            self.linear_part * pair.var2,
            self.linear_part * pair.sqdist - 2 * scale * bend,
            self.diagonal_difference(*pair[:2], pair.vardiff),
        )
        with torch.no_grad():
            rest = versine - bend / self.linear_part
            gram = (self.linear_part * scale).square() * rest * (2 - rest)
        value = self.linear_part * pair.cov + scale * bend
        return dual_in_detail(dual, value, gram), self.linear_part - self.angular_part * theta

    def loss(self, var1: Tensor, var2: Tensor, cov: Tensor, tangent: bool) -> Tensor:
        r"""See :meth:`Activation.loss`.

        Some roundings of the squared distance m, four here, make an error of :math:`m /
        \sin\theta` each in the angle times :math:`\sqrt{v_1 v_2}`.
        """
        total = var1 + var2
        if not tangent or self.angular_part == 0:
            return torch.zeros_like(cov)
        epsilon = torch.finfo(cov.dtype).eps
        distance = ((total - 2 * cov) / total).clamp_min(0.0)
        cosine = cov / safe_sqrt(var1) / safe_sqrt(var2)
        # the cosine does not know smaller angles, and from zero the error is a root
        square_sine = (1 - cosine) * (1 + cosine) - 4 * epsilon
        square_sine = torch.maximum(square_sine, epsilon * distance)
        return (4 * distance / square_sine.sqrt()).nan_to_num(0.0)

    def diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal`."""
        return self.linear_part * variance

    def diagonal_difference(self, var1: Tensor, var2: Tensor, vardiff: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal_difference`."""
        return self.linear_part * vardiff

    def derivative_diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.derivative_diagonal`."""
        return torch.full_like(variance, self.linear_part)

    def diagonal_slope(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal_slope`."""
        return torch.full_like(variance, self.linear_part)

    def __repr__(self) -> str:
        return f"LeakyReLU(negative_slope={self.negative_slope:g})"


class ReLU(LeakyReLU):
    r"""ReLU, :math:`\varphi(u) = \max(u, 0)`: :class:`LeakyReLU` with negative slope zero.

    .. math::
        G = \frac{\sqrt{v_1 v_2}}{2\pi} (\sin\theta + (\pi - \theta)\cos\theta), \qquad
        P = \frac{\pi - \theta}{2\pi}

    [ChoSaul2009]_. Critical weight variance 2.
    """

    def __init__(self) -> None:
        super().__init__(negative_slope=0.0)

    def __repr__(self) -> str:
        return "ReLU()"


class Identity(LeakyReLU):
    """The linear network: ``G = c``, ``P = 1``, critical weight variance 1."""

    def __init__(self) -> None:
        super().__init__(negative_slope=1.0)

    def __repr__(self) -> str:
        return "Identity()"


def _pair(var1: Tensor, var2: Tensor, sqdist: Tensor) -> PairCovariance:
    var2 = var2.mT
    return PairCovariance(var1, var2, sqdist, var1 - var2)
