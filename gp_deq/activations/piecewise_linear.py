"""ReLU, leaky ReLU and identity: arc-cosine kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .activation import Activation
from .cancellation import LossEstimate
from .pair_covariance import PairCovariance, safe_sqrt


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

    def expectations(
        self,
        features1: Tensor,
        features2: Tensor,
        sqdist: Tensor,
        accuracy: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Activation.expectations`."""
        var1, var2 = features1, features2.mT
        dual, slope = self.dual_and_derivative(PairCovariance.from_distance(var1, var2, sqdist))
        return dual.cov, slope

    def loss(self, tangent: bool) -> LossEstimate | None:
        r"""See :meth:`Activation.loss`.

        Some roundings of the squared distance m, four here, make an error of :math:`m /
        \sin\theta` each in the angle times :math:`\sqrt{v_1 v_2}`.
        """

        def estimate(var1: Tensor, var2: Tensor, cov: Tensor) -> Tensor:
            total = var1 + var2
            epsilon = torch.finfo(cov.dtype).eps
            distance = ((total - 2 * cov) / total).clamp_min(0.0)
            cosine = cov / safe_sqrt(var1) / safe_sqrt(var2)
            # the cosine does not know smaller angles, and from zero the error is a root
            square_sine = (1 - cosine) * (1 + cosine) - 4 * epsilon
            square_sine = torch.maximum(square_sine, epsilon * distance)
            return (4 * distance / square_sine.sqrt()).nan_to_num(0.0)

        return estimate if tangent and self.angular_part != 0 else None

    def diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal`."""
        return self.linear_part * variance

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
