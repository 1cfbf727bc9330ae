"""The Gaussian error linear unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .activation import Activation
from .cancellation import LossEstimate, errors_of_erf
from .erf import Erf, determinant
from .pair_covariance import PairCovariance, bounded


class GELU(Activation):
    r"""GELU, :math:`\varphi(u) = u \Phi(u)`; cf. [Tsuchida2021]_.

    With :math:`D = (1 + v_1)(1 + v_2) - c^2`, :math:`\rho^2 = c^2 / ((1 + v_1)(1 + v_2))` and
    :math:`F = \operatorname{E}\Phi(u)\Phi(v) = \frac14 + \frac1{2\pi}\arctan\frac{c}{\sqrt D}`,

    .. math::
        G &= cF + \frac1{2\pi}\left[\frac{v_1 v_2 \sqrt D}{(1 + v_1)(1 + v_2)}
             + \frac{\rho^2}{\sqrt D}\right], \\
        P &= F + \frac{c}{2\pi\sqrt D}\left[\frac1{1 + v_1} + \frac1{1 + v_2} + \frac1D\right].

    Critical weight variance 0.784668; not homogeneous; ``P`` is smooth.
    """

    smooth = True

    def __call__(self, u: Tensor) -> Tensor:
        """See :meth:`Activation.__call__`."""
        return torch.nn.functional.gelu(u)

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
        return self._expectations_of(PairCovariance.from_distance(features1, features2.mT, sqdist))

    @staticmethod
    def _expectations_of(pair: PairCovariance) -> tuple[Tensor, Tensor]:
        """``G`` and ``P``."""
        var1, var2 = pair.var1, pair.var2
        cov, det = pair.cov, determinant(pair, 1.0)
        root = det.sqrt()
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
        pair = PairCovariance.from_distance(features1, features2.mT, sqdist)
        var1, var2, cov, det = pair.var1, pair.var2, pair.cov, determinant(pair, 1.0)
        front = det.rsqrt() / (4 * math.pi)

        def slope(variance: Tensor, other: Tensor) -> Tensor:
            inverse = 1 / (1 + variance)
            remainder = other - cov * (cov * inverse)
            tilted = (cov * inverse).square()
            return front * ((1 + inverse) * remainder - tilted * (1 + (1 + variance) / det))

        return slope(var1, var2), slope(var2, var1)

    def curvature(self, features1: Tensor, features2: Tensor, sqdist: Tensor) -> Tensor:
        r"""See :meth:`Activation.curvature`.

        With :math:`B = \frac1{1 + v_1} + \frac1{1 + v_2} + \frac1D` it is
        :math:`\frac1{2\pi\sqrt D}\left[1 + B + \frac{c^2}D\left(B + \frac2D\right)\right]`.
        """
        pair = PairCovariance.from_distance(features1, features2.mT, sqdist)
        var1, var2, cov, det = pair.var1, pair.var2, pair.cov, determinant(pair, 1.0)
        bracket = 1 / (1 + var1) + 1 / (1 + var2) + 1 / det
        square = cov * (cov / det)
        return (1 + bracket + square * (bracket + 2 / det)) * det.rsqrt() / (2 * math.pi)

    def derivative_variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""See :meth:`Activation.derivative_variance_slopes`.

        With B as in :meth:`curvature`,

        .. math:: \frac{\partial P}{\partial v_1} = -\frac{c}{4\pi\sqrt D}\left[\frac1{1 + v_1}
           + \frac2{(1 + v_1)^2} + \frac{1 + v_2}D \left(B + \frac2D\right)\right].
        """
        pair = PairCovariance.from_distance(features1, features2.mT, sqdist)
        var1, var2, det = pair.var1, pair.var2, determinant(pair, 1.0)
        inverse1, inverse2 = 1 / (1 + var1), 1 / (1 + var2)
        front = pair.cov * det.rsqrt() / (-4 * math.pi)
        both = (inverse1 + inverse2 + 3 / det) / det
        return (
            front * (inverse1 * (1 + 2 * inverse1) + (1 + var2) * both),
            front * (inverse2 * (1 + 2 * inverse2) + (1 + var1) * both),
        )

    def dual(self, pair: PairCovariance) -> PairCovariance:
        r"""See :meth:`Activation.dual`.

        With :math:`\alpha = \arctan(c / \sqrt D)`, :math:`d = \sqrt D`, :math:`e_i = 1/(1 + v_i)`
        and the same with an index on the diagonal, :math:`2\pi G = \frac\pi2 c + c\alpha + R` with
        :math:`R = (1 - e_1 - e_2) d + 1/d`. The squared distance is the second difference of
        this; those of :math:`\alpha` are squared distances of :class:`Erf` at half the variances,
        those of :math:`d` and :math:`1/d` follow from :math:`D - d_1 d_2 = \sigma + h` with
        :math:`\sigma = v_1 v_2 - c^2` and :math:`h = (v_1 - v_2)^2 / (d_1 d_2 + 1 + v_1 + v_2)`.
        """
        var1, var2, sqdist, vardiff = pair
        total = var1 + var2
        value, _ = self._expectations_of(pair)
        diagonal1, diagonal2 = self.diagonal(var1), self.diagonal(var2)
        halved = pair.scaled(0.5)
        arc_bend = (math.pi / 2) * Erf().dual(halved).sqdist
        arc_gap = (math.pi / 2) * Erf().diagonal_difference(*halved[:2], halved.vardiff)
        spread = pair.gram
        root1, root2, root = (
            (1 + 2 * var1).sqrt(),
            (1 + 2 * var2).sqrt(),
            (1 + total + spread).sqrt(),
        )
        shift = vardiff.square() / (root1 * root2 + 1 + total)
        both, size = root1 + root2, root1 + root2 + 2 * root
        root_bend = (2 * shift + 4 * spread) / size  # 2 d - d1 - d2
        # quotients first: the products of roots would overflow in float32
        inverse_bend = (spread / root) * (both / size) + (shift / root) * ((both + root) / size)
        inverse_bend = 2 * inverse_bend / (root1 * root2)
        inverse1, inverse2 = 1 / (1 + var1), 1 / (1 + var2)
        arc = torch.atan2(pair.cov, root)
        near = (
            sqdist * (math.pi / 2 + arc)
            + total / 2 * arc_bend
            + vardiff / 2 * arc_gap
            - (1 - inverse1 - inverse2) * root_bend
            + 2 * vardiff.square() * inverse1 * inverse2 / both
            + inverse_bend
        ) / (2 * math.pi)
        far = diagonal1 + diagonal2 - 2 * value
        return pair.after_activation(
            diagonal1,
            diagonal2,
            bounded(torch.where(2 * sqdist < total, near, far), 0.0),
            self.diagonal_difference(var1, var2, vardiff),
            lambda: value,
            lambda: self._gram_after(pair),
        )

    def derivative_dual(self, pair: PairCovariance) -> Tensor:
        """See :meth:`Activation.derivative_dual`."""
        return self._expectations_of(pair)[1]

    @staticmethod
    @torch.no_grad()
    def _gram_after(pair: PairCovariance) -> Tensor:
        r"""The determinant :math:`g_1 g_2 - G^2`, between parallel inputs of large variance too.

        With :math:`2\pi G = \pi c + \rho`, :math:`\rho = R - c \arctan(\sqrt D / c)`, and
        :math:`\rho_i` on the diagonal, :math:`4\pi^2` times it is :math:`\pi^2 (v_1 v_2 - c^2) +
        \pi (v_1 \rho_2 + v_2 \rho_1 - 2 c \rho) + \rho_1 \rho_2 - \rho^2`. Where the inputs
        are parallel, :math:`\rho` is of the order of the root of the variances.
        """

        def remainder(var1: Tensor, var2: Tensor, cov: Tensor, det: Tensor) -> Tensor:
            root, shrink1, shrink2 = det.sqrt(), 1 / (1 + var1), 1 / (1 + var2)
            ends = (var1 * shrink1) * (var2 * shrink2) * root
            return ends + (cov * shrink1) * (cov * shrink2) / root - cov * torch.atan2(root, cov)

        var1, var2 = pair[:2]
        one = remainder(var1, var1, var1, 1 + 2 * var1)
        two = remainder(var2, var2, var2, 1 + 2 * var2)
        both = remainder(var1, var2, pair.cov, determinant(pair, 1.0))
        linear = var1 * two + var2 * one - 2 * pair.cov * both
        rest = one * two - both.square()
        gram = pair.gram / 4 + linear / (4 * math.pi) + rest / (4 * math.pi**2)
        return gram.clamp_min(0.0)

    def loss(self, tangent: bool) -> LossEstimate | None:
        """See :meth:`Activation.loss`; only ``P`` shows it, multiplied by the covariance."""

        def estimate(var1: Tensor, var2: Tensor, cov: Tensor) -> Tensor:
            by_angle, by_slope = errors_of_erf(var1, var2, cov)
            density = by_slope / (1 + torch.minimum(var1, var2)).sqrt()
            return (by_angle + density) * cov.abs() / (1 + var1 + var2)

        return estimate if tangent else None

    def diagonal_difference(self, var1: Tensor, var2: Tensor, vardiff: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal_difference`; by the terms of :meth:`dual`."""
        root1, root2 = (1 + 2 * var1).sqrt(), (1 + 2 * var2).sqrt()
        arc1, arc2 = torch.atan2(var1, root1), torch.atan2(var2, root2)
        arc_gap = (math.pi / 2) * Erf().diagonal_difference(var1 / 2, var2 / 2, vardiff / 2)
        inverse1, inverse2 = 1 / (1 + var1), 1 / (1 + var2)
        root_gap = 2 * vardiff / (root1 + root2)
        return (
            vardiff * (math.pi + arc1 + arc2) / 2
            + (var1 + var2) / 2 * arc_gap
            + root_gap * (1 - inverse1 - inverse2 - 1 / (root1 * root2))
            + vardiff * inverse1 * inverse2 * (root1 + root2)
        ) / (2 * math.pi)

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
