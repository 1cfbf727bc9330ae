"""The Gaussian error linear unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .activation import Activation
from .erf import determinant


class GELU(Activation):
    r"""GELU, :math:`\varphi(u) = u \Phi(u)`; cf. [Tsuchida2021]_.

    With :math:`D = (1 + v_1)(1 + v_2) - c^2`, :math:`\rho^2 = c^2 / ((1 + v_1)(1 + v_2))` and
    :math:`F = \operatorname{E}\Phi(u)\Phi(v) = \frac14 + \frac1{2\pi}\arctan\frac{c}{\sqrt D}`,

    .. math::
        G &= cF + \frac1{2\pi}\left[\frac{v_1 v_2 \sqrt D}{(1 + v_1)(1 + v_2)}
             + \frac{\rho^2}{\sqrt D}\right], \\
        P &= F + \frac{c}{2\pi\sqrt D}\left[\frac1{1 + v_1} + \frac1{1 + v_2} + \frac1D\right].

    Critical weight variance 0.784668; not homogeneous; ``P`` is smooth. Squared distances are
    differences of ``G``: their error is a few units in the last place of the variances.
    """

    @property
    def lipschitz(self) -> float:
        r""":math:`\Phi(\sqrt2) + \sqrt2\,\Phi'(\sqrt2)`, at :math:`u = \sqrt 2`."""
        return (1 + math.erf(1.0)) / 2 + math.exp(-1.0) / math.sqrt(math.pi)

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
        det = determinant(var1, var2, total, sqdist, 1.0)
        root = det.sqrt()
        cov = (total - sqdist) / 2
        inverse1, inverse2 = 1 / (1 + var1), 1 / (1 + var2)
        both = torch.atan2(cov, root) / (2 * math.pi) + 0.25
        shrunk = (cov * inverse1) * (cov * inverse2)
        value = cov * both + ((var1 * inverse1) * (var2 * inverse2) * root + shrunk / root) / (
            2 * math.pi
        )
        slope = both + cov / (2 * math.pi * root) * (inverse1 + inverse2 + 1 / det)
        return value, slope

    def variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""See :meth:`Activation.variance_slopes`.

        :math:`\varphi'' = (2 - u^2)\Phi'` turns :math:`\operatorname E\varphi''(u)\varphi(v)` into
        an expectation over a Gaussian of covariance :math:`\tau = v_1/(1+v_1)`, :math:`c/(1+v_1)`
        and :math:`s^2 = D/(1+v_1) - 1`, which gives

        .. math:: \frac{\partial G}{\partial v_1} = \frac1{4\pi\sqrt D}\left[(2 - \tau) s^2
           - \left(\frac{c}{1+v_1}\right)^2 \left(1 + \frac{1 + v_1}{D}\right)\right].
        """
        var1, var2 = features1, features2.mT
        total = var1 + var2
        det = determinant(var1, var2, total, sqdist, 1.0)
        cov = (total - sqdist) / 2
        front = det.rsqrt() / (4 * math.pi)

        def slope(variance: Tensor, other: Tensor) -> Tensor:
            inverse = 1 / (1 + variance)
            remainder = other - cov * (cov * inverse)
            tilted = (cov * inverse).square()
            return front * ((1 + inverse) * remainder - tilted * (1 + (1 + variance) / det))

        return slope(var1, var2), slope(var2, var1)

    def diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal`."""
        root = (1 + 2 * variance).sqrt()
        return (
            variance * self._both(variance, root)
            + (variance / (1 + variance)) * (variance / root) / math.pi
        )

    def derivative_diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.derivative_diagonal`."""
        det = 1 + 2 * variance
        bracket = 2 / (1 + variance) + 1 / det
        return self._both(variance, det.sqrt()) + variance / (2 * math.pi * det.sqrt()) * bracket

    def diagonal_slope(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal_slope`."""
        det = 1 + 2 * variance
        inverse = 1 / (1 + variance)
        remainder = variance * inverse
        bracket = (1 + inverse) * remainder - remainder.square() * (1 + (1 + variance) / det)
        return self.derivative_diagonal(variance) + bracket * det.rsqrt() / (2 * math.pi)

    @staticmethod
    def _both(variance: Tensor, root: Tensor) -> Tensor:
        r""":math:`\operatorname E \Phi(\sqrt v z)^2`."""
        return torch.atan2(variance, root) / (2 * math.pi) + 0.25
