r"""Pairs that carry their Gram determinant: for variances that are large or far apart.

Their values are computed without a graph, by formulas that do not cancel; their derivatives are
those of the defining expressions, in which nothing is lost but digits of derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .angles import angle, bent_distance, sine_excess
from .injected import unit_vectors
from .pair_covariance import PairCovariance, exact_product, safe_sqrt


class GramPair(PairCovariance):
    r"""A pair with what squared distances lose where variances are large or far apart.

    A squared distance is known to rounding of the larger variance. So a covariance :math:`c` made
    of it lacks digits between inputs of very different variance, and the Gram determinant
    :math:`v_1 v_2 - c^2` lacks them between opposite inputs and between parallel inputs of
    different norm. Both are carried here through all layers. The angle of a pair and the squared
    distance from the mirrored input follow from them.

    Args:
        var1: See :class:`PairCovariance`, as for the next three.
        var2: Likewise.
        sqdist: Likewise.
        vardiff: Likewise.
        cov: Covariances :math:`c`, ``... x n x m``, to rounding of :math:`\sqrt{v_1 v_2}`.
        gram: Determinants :math:`v_1 v_2 - c^2 = v_1 v_2 \sin^2\theta`, as well as a rounding
            error of the angle :math:`\theta` allows.
    """

    _carried: tuple[Tensor, Tensor]

    def __new__(
        cls,
        var1: Tensor,
        var2: Tensor,
        sqdist: Tensor,
        vardiff: Tensor,
        cov: Tensor,
        gram: Tensor,
    ) -> GramPair:
        """A tuple of the four fields of a pair; the others are attributes."""
        self = super().__new__(cls, var1, var2, sqdist, vardiff)
        self._carried = cov, gram
        return self

    @classmethod
    def of_covariance(
        cls, var1: Tensor, var2: Tensor, cov: Tensor, values: PairCovariance
    ) -> GramPair:
        """A pair as a function of its variances and its covariance.

        Args:
            var1: Variances of the first inputs, ``... x n x 1``.
            var2: Variances of the second inputs, ``... x 1 x m``.
            cov: Covariances, ``... x n x m``.
            values: The numbers, of which only those that are functions of the arguments are used.
        """
        return cls(
            var1,
            var2,
            substitute(values.sqdist, var1 + var2 - 2 * cov),
            substitute(values.vardiff, (var1 - var2).expand(cov.shape)),
            cov,
            substitute(values.gram, var1 * var2 - cov.square()),
        )

    @classmethod
    def from_inputs(cls, x1: Tensor, x2: Tensor, bias_variance: Tensor | float) -> GramPair:
        r"""Covariance :math:`\langle x, x' \rangle + \beta` of an affine layer.

        Args:
            x1: First inputs in two parts, the second of which holds what rounding left of the first
                (:func:`scaled_in_parts`): ``... x n x 2d``.
            x2: Second inputs, ``... x m x 2d``.
            bias_variance: :math:`\beta \ge 0`, broadcasting with ``... x 1 x 1``.
        """
        bias = torch.as_tensor(bias_variance, dtype=x1.dtype, device=x1.device)
        (high1, low1), (high2, low2) = (x.tensor_split(2, -1) for x in (x1, x2))
        var1 = high1.square().sum(-1, keepdim=True) + bias
        var2 = high2.square().sum(-1).unsqueeze(-2) + bias
        cov = high1 @ high2.mT + bias
        with torch.no_grad():
            sqdist, vardiff, _ = _distances((high1, low1), (high2, low2))
            if high1.shape[-1] == 1:
                # without a bias all inputs are parallel
                gram = bias * sqdist
            else:
                chord, _, opposite = _distances(
                    unit_vectors(high1, bias, low1), unit_vectors(high2, bias, low2)
                )
                gram = (var1 * chord) * (var2 * opposite) / 4
        return cls.of_covariance(var1, var2, cov, cls(var1, var2, sqdist, vardiff, cov, gram))

    @property
    def cov(self) -> Tensor:
        """See :attr:`PairCovariance.cov`."""
        return self._carried[0]

    @property
    def gram(self) -> Tensor:
        """See :attr:`PairCovariance.gram`."""
        return self._carried[1]

    @property
    def correlation(self) -> Tensor:
        """See :attr:`PairCovariance.correlation`; zero where a variance is zero."""
        scale = safe_sqrt(self.var1) * safe_sqrt(self.var2)
        return (self.cov / scale.masked_fill(scale == 0, 1.0)).clamp(-1.0, 1.0)

    @property
    def versine(self) -> Tensor:
        r"""See :attr:`PairCovariance.versine`; from the determinant where that is more precise.

        For a positive covariance it is :math:`\sin^2\theta / (1 + \cos\theta)`.
        """
        root1, root2 = safe_sqrt(self.var1), safe_sqrt(self.var2)
        degenerate = root1 * root2 == 0
        scale = (root1 * root2).masked_fill(degenerate, 1.0)
        cosine = self.correlation
        positive = cosine > 0
        near = self.gram / scale / scale / torch.where(positive, 1 + cosine, 1.0)
        undefined = (root1 + root2 > 0).to(cosine.dtype)
        return torch.where(degenerate, undefined, torch.where(positive, near, 1 - cosine))

    @property
    def opposite(self) -> Tensor:
        r"""See :attr:`PairCovariance.opposite`.

        For a negative covariance it is :math:`(\sqrt{v_1} - \sqrt{v_2})^2 + 2 (v_1 v_2 - c^2) /
        (\sqrt{v_1 v_2} - c)`.
        """
        total = self.var1 + self.var2 + 2 * self.cov
        with torch.no_grad():
            root1, root2 = self.var1.sqrt(), self.var2.sqrt()
            negative = self.cov < 0
            gap = self.vardiff / (root1 + root2).masked_fill(~negative, 1.0)
            rest = 2 * self.gram / torch.where(negative, root1 * root2 - self.cov, 1.0)
            value = torch.where(negative, gap.square() + rest, total)
        return substitute(value, total)

    def scaled(self, factor: float) -> GramPair:
        """See :meth:`PairCovariance.scaled`."""
        cov, gram = self._carried
        return GramPair(*super().scaled(factor), factor * cov, factor**2 * gram)

    def after_activation(
        self,
        var1: Tensor,
        var2: Tensor,
        sqdist: Tensor,
        vardiff: Tensor,
        cov: Callable[[], Tensor],
        gram: Callable[[], Tensor] | None = None,
    ) -> GramPair:
        """See :meth:`PairCovariance.after_activation`."""
        value = cov()
        det = var1 * var2 - value.square() if gram is None else gram()
        values = GramPair(var1, var2, sqdist, vardiff, value, det.clamp_min(0.0))
        return GramPair.of_covariance(var1, var2, value, values)

    def next_layer(self, weight_variance: Tensor, injected: PairCovariance) -> GramPair:
        r"""See :meth:`PairCovariance.next_layer`.

        All but the determinant are sums. The determinant is

        .. math:: w^2 \det G + \det b + w \left[(\sqrt{b_1 g_2} - \sqrt{b_2 g_1})^2 +
           2 \sqrt{b_1 b_2 g_1 g_2}\,(1 - r_b r_G)\right] ,

        where :math:`1 - r_b r_G` is made from both :math:`1 - r^2` if the correlations agree in
        sign.
        """
        pair = super().next_layer(weight_variance, injected)
        cov = weight_variance * self.cov + injected.cov
        with torch.no_grad():
            scale, square_sine = zip(*map(_scale_and_square_sine, (injected, self)), strict=True)
            product = injected.correlation * self.correlation
            rest = square_sine[0] + square_sine[1] - square_sine[0] * square_sine[1]
            rest = torch.where(product > 0, rest / (1 + product.clamp_min(0.0)), 1 - product)
            root1 = (injected.var1 * self.var2).sqrt()
            root2 = (injected.var2 * self.var1).sqrt()
            # of close inputs by the differences of their variances, which have all their digits
            change = injected.vardiff * self.var2 - injected.var2 * self.vardiff
            size = root1 + root2
            close = injected.vardiff.abs() < torch.minimum(injected.var1, injected.var2)
            change = torch.where(close, change / size.masked_fill(size == 0, 1.0), root1 - root2)
            mixed = change.square() + 2 * scale[0] * scale[1] * rest
            gram = weight_variance**2 * self.gram + injected.gram + weight_variance * mixed
        return GramPair.of_covariance(pair.var1, pair.var2, cov, GramPair(*pair, cov, gram))

    def next_layer_without_input(self, weight_variance: Tensor, bias_variance: Tensor) -> GramPair:
        """See :meth:`PairCovariance.next_layer_without_input`."""
        zero = torch.zeros_like(self.sqdist)
        var1, var2 = (bias_variance + torch.zeros_like(value) for value in self[:2])
        bias = GramPair(var1, var2, zero, zero, bias_variance + zero, zero)
        return self.next_layer(weight_variance, bias)


@bent_distance.register
def _bent_distance_of_gram(
    pair: GramPair, linear_part: float, angular_part: float
) -> tuple[Tensor, Tensor]:
    """:func:`bent_distance`, from an angle that is accurate near pi too."""
    versine = pair.versine
    theta = angle(versine)
    scale = safe_sqrt(pair.var1) * safe_sqrt(pair.var2)
    with torch.no_grad():
        exact = torch.where(scale > 0, torch.atan2(pair.gram.sqrt(), pair.cov), theta)
    bend = angular_part * scale * sine_excess(versine)
    return linear_part * pair.sqdist - 2 * bend, substitute(exact, theta)


def _scale_and_square_sine(pair: PairCovariance) -> tuple[Tensor, Tensor]:
    scale = pair.var1.sqrt() * pair.var2.sqrt()
    return scale, pair.gram / scale.masked_fill(scale == 0, 1.0).square()


def substitute(value: Tensor, expression: Tensor) -> Tensor:
    """``value``, with the derivatives of ``expression``, which equals it but for rounding."""
    return _Substitute.apply(value, expression)


class _Substitute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, expression: Tensor) -> Tensor:
        return value.expand(expression.shape).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def _distances(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances, differences of squared norms, and squared norms of sums.

    Args:
        first: High and low part of the first points, ``... x n x d``.
        second: High and low part of the second points, ``... x m x d``.
    """
    columns = zip(*(part.unbind(-1) for part in (*first, *second)), strict=True)
    sqdist = vardiff = opposite = first[0].new_zeros(())
    for high1, low1, high2, low2 in columns:
        high1, low1 = high1.unsqueeze(-1), low1.unsqueeze(-1)
        high2, low2 = high2.unsqueeze(-2), low2.unsqueeze(-2)
        difference = (high1 - high2) + (low1 - low2)
        total = (high1 + high2) + (low1 + low2)
        sqdist = sqdist + difference.square()
        vardiff = vardiff + difference * total
        opposite = opposite + total.square_()
    return sqdist, vardiff, opposite


def scaled_in_parts(z: Tensor, x: Tensor, center: Tensor, scale: Tensor) -> Tensor:
    r"""Scaled inputs in float64, and what rounding leaves of them, ``... x n x 2d``.

    Where inputs are large multiples of their distance, that of the rounded quotients has lost
    digits.

    Args:
        z: The scaled inputs ``(x - center) / scale`` of any precision, whose derivatives the result
            has; ``... x n x d``.
        x: The inputs, ``... x n x d``.
        center: ``... x 1 x d`` or ``... x 1 x 1``.
        scale: ``... x 1 x d`` or ``... x 1 x 1``.
    """
    with torch.no_grad():
        x, center, scale = x.double(), center.double(), scale.double()
        shifted = x - center
        back = shifted - x
        shift_error = (x - (shifted - back)) - (center + back)
        high = shifted / scale
        product, error = exact_product(high, scale.expand_as(high))
        low = (((shifted - product) - error) + shift_error) / scale
    return torch.cat((substitute(high, z.double()), low), -1)
