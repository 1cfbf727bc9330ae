r"""Pairs whose variances are large or far apart: made from inputs, and taken through a layer.

See :class:`~gp_deq.activations.pair_covariance.DetailedPair` for what they carry. Their values are
computed without a graph, by formulas that do not cancel; their derivatives are those of the
defining expressions, in which nothing is lost but digits of derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .injected import unit_vectors
from .pair_covariance import DetailedPair, PairCovariance, exact_product


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


def from_covariance(var1: Tensor, var2: Tensor, cov: Tensor, values: DetailedPair) -> DetailedPair:
    """A pair as a function of its variances and its covariance.

    Args:
        var1: Variances of the first inputs, ``... x n x 1``.
        var2: Variances of the second inputs, ``... x 1 x m``.
        cov: Covariances, ``... x n x m``.
        values: The numbers, of which only those that are functions of the arguments are used.
    """
    total = var1 + var2
    pair = PairCovariance(
        var1,
        var2,
        substitute(values.sqdist, total - 2 * cov),
        substitute(values.vardiff, (var1 - var2).expand(cov.shape)),
    )
    return DetailedPair(
        pair,
        cov,
        substitute(values.opposite, total + 2 * cov),
        substitute(values.gram, var1 * var2 - cov.square()),
    )


def detailed_pair(x1: Tensor, x2: Tensor, bias_variance: Tensor) -> DetailedPair:
    r"""Covariance :math:`\langle x, x' \rangle + \beta` of an affine layer, in detail.

    Args:
        x1: First inputs in two parts, the second of which holds what rounding left of the first
            (:func:`scaled_in_parts`): ``... x n x 2d``.
        x2: Second inputs, ``... x m x 2d``.
        bias_variance: :math:`\beta \ge 0`, broadcasting with ``... x 1 x 1``.
    """
    (high1, low1), (high2, low2) = (x.tensor_split(2, -1) for x in (x1, x2))
    var1 = high1.square().sum(-1, keepdim=True) + bias_variance
    var2 = high2.square().sum(-1).unsqueeze(-2) + bias_variance
    cov = high1 @ high2.mT + bias_variance
    with torch.no_grad():
        sqdist, vardiff, opposite = _distances((high1, low1), (high2, low2))
        if high1.shape[-1] == 1:
            # without a bias all inputs are parallel
            gram = bias_variance * sqdist
        else:
            parts = (
                unit_vectors(high1, bias_variance, low1),
                unit_vectors(high2, bias_variance, low2),
            )
            chord, _, other = _distances(*parts)
            gram = (var1 * chord) * (var2 * other) / 4
        opposite = opposite + 4 * bias_variance
    values = DetailedPair(PairCovariance(var1, var2, sqdist, vardiff), cov, opposite, gram)
    return from_covariance(var1, var2, cov, values)


def _distances(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances, differences of squared norms, and squared norms of sums.

    Args:
        first: High and low part of the first points, ``... x n x d``.
        second: Those of the second, ``... x m x d``.
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


def scaled_in_parts(x: Tensor, center: Tensor, scale: Tensor) -> Tensor:
    r"""``(x - center) / scale`` and what rounding leaves of it, ``... x n x 2d``.

    Where inputs are large multiples of their distance, that of the rounded quotients has lost
    digits.

    Args:
        x: ``... x n x d``.
        center: ``... x 1 x d`` or ``... x 1 x 1``.
        scale: ``... x 1 x d`` or ``... x 1 x 1``.
    """
    shifted = x - center
    high = shifted / scale
    with torch.no_grad():
        back = shifted - x
        shift_error = (x - (shifted - back)) - (center + back)
        product, error = exact_product(high, scale.expand_as(high))
        low = (((shifted - product) - error) + shift_error) / scale
    return torch.cat((high, low), -1)


def layer_of(weight_variance: Tensor, dual: DetailedPair, injected: DetailedPair) -> DetailedPair:
    r"""Pre-activations :math:`\Sigma' = w G + b` of the next layer, in detail.

    All but the determinant are sums. The determinant is

    .. math:: w^2 \det G + \det b + w \left[(\sqrt{b_1 g_2} - \sqrt{b_2 g_1})^2 +
       2 \sqrt{b_1 b_2 g_1 g_2}\,(1 - r_b r_G)\right] ,

    where :math:`1 - r_b r_G` is made from both :math:`1 - r^2` if the correlations agree in sign.

    Args:
        weight_variance: :math:`w`.
        dual: Covariance :math:`G` of the activations.
        injected: Covariance :math:`b` of the injected input.
    """
    terms = zip(dual, injected, strict=True)
    var1, var2, sqdist, vardiff = (weight_variance * term + other for term, other in terms)
    cov = weight_variance * dual.cov + injected.cov
    with torch.no_grad():
        opposite = weight_variance * dual.opposite + injected.opposite
        scales = [pair.var1.sqrt() * pair.var2.sqrt() for pair in (injected, dual)]
        square_sines = [
            pair.gram / scale.masked_fill(scale == 0, 1.0).square()
            for pair, scale in zip((injected, dual), scales, strict=True)
        ]
        product = injected.correlation * dual.correlation
        rest = square_sines[0] + square_sines[1] - square_sines[0] * square_sines[1]
        rest = torch.where(product > 0, rest / (1 + product.clamp_min(0.0)), 1 - product)
        root1 = (injected.var1 * dual.var2).sqrt()
        root2 = (injected.var2 * dual.var1).sqrt()
        # of close inputs by the differences of their variances, which have all their digits
        change = injected.vardiff * dual.var2 - injected.var2 * dual.vardiff
        size = root1 + root2
        close = injected.vardiff.abs() < torch.minimum(injected.var1, injected.var2)
        change = torch.where(close, change / size.masked_fill(size == 0, 1.0), root1 - root2)
        mixed = change.square() + 2 * scales[0] * scales[1] * rest
        gram = weight_variance**2 * dual.gram + injected.gram + weight_variance * mixed
    pair = PairCovariance(var1, var2, sqdist, vardiff)
    return from_covariance(var1, var2, cov, DetailedPair(pair, cov, opposite, gram))


def constant_pair(variance: Tensor, like: PairCovariance) -> DetailedPair:
    """Pair of one variable with itself, a bias.

    Args:
        variance: ``... x 1 x 1``.
        like: Gives the shapes.
    """
    zero = torch.zeros_like(like.sqdist)
    var1, var2 = (variance + torch.zeros_like(value) for value in like[:2])
    pair = PairCovariance(var1, var2, zero, zero)
    return DetailedPair(pair, variance + zero, 4 * variance + zero, zero)


def dual_in_detail(dual: PairCovariance, value: Tensor, gram: Tensor | None = None) -> DetailedPair:
    """Covariance of the activations of a pair, in detail.

    Args:
        dual: Variances, squared distance and difference of variances.
        value: The covariance, computed from that of the pair.
        gram: The determinant, without a graph; None where a difference has the digits that the
            next layer needs. It has for bounded activations.
    """
    total = dual.var1 + dual.var2
    if gram is None:
        gram = (dual.var1 * dual.var2 - value.square()).clamp_min(0.0)
    values = DetailedPair(dual, value, total + 2 * value, gram)
    return from_covariance(dual.var1, dual.var2, value, values)
