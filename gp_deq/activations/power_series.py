r"""Sums :math:`\sum_k a_k(x)\, a'_k(x')\, r^k` over all pairs, as Mehler's formula has them.

They are evaluated by Horner's rule in place. Their gradients are evaluated without the graph that
the rule would leave behind: with respect to the coefficients of an input they are sums over its
partners, with respect to the ratio another series. Where gradients are themselves differentiated,
there is a graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..differentiation import in_their_places, one_gradient_at_a_time, pull_back
from .pair_covariance import PairCovariance, bounded

#: Root that stands for that of a variance of zero. So small that Taylor coefficients times its
#: powers fall off for functions that vary on a scale down to 1e-6, and a power of two.
UNIT_ROOT = 2.0**-20


def power_series(
    first: Tensor, second: Tensor, ratio: Tensor, accuracy: float | None = None
) -> Tensor:
    """Sum over k of ``first[..., i, k] * second[..., j, k] * ratio[..., i, j]**k``.

    Terms that all together fall below the accuracy are left out, and so are those of even or of odd
    degree where there are none.

    Args:
        first: Coefficients of the first inputs, ``... x n x k``.
        second: Coefficients of the second inputs, ``... x m x k``.
        ratio: ``... x n x m``.
        accuracy: Error allowed, relative to a bound of the sum of absolute terms of any pair whose
            coefficients have absolute values that sum to one; None for rounding.

    Returns:
        ``... x n x m``.
    """
    counts = _counts(first, second, ratio, accuracy)
    return _PowerSeries.apply(first, second, ratio, counts)


def series_dual(value1: Tensor, value2: Tensor, versine: Tensor) -> PairCovariance:
    r"""Covariance of two functions of a pair, given their coefficients.

    The squared distance is :math:`\sum_k (a_k - a_k')^2 + 2 e \sum_j r^j \sum_{k > j} a_k a_k'`
    with :math:`e = 1 - r`: no difference of large terms.

    Args:
        value1: Coefficients of the first function, ``... x n x (K + 1)``.
        value2: Coefficients of the second, ``... x m x (K + 1)``.
        versine: One minus the correlation of their arguments, ``... x n x m``.
    """
    var1 = value1.square().sum(-1, keepdim=True)
    var2 = value2.square().sum(-1).unsqueeze(-2)
    count = _count_distance_terms(value1, value2)
    sqdist = _SeriesDistance.apply(value1[..., :count], value2[..., :count], versine)
    return PairCovariance(var1, var2, sqdist, var1 - var2)


def expansion_dual(value1: Tensor, value2: Tensor, pair: PairCovariance) -> PairCovariance:
    """:func:`series_dual` where variances may be zero.

    There the coefficients are those of a Taylor series in the covariance, for the root
    :data:`UNIT_ROOT` (see ``Hermite.expansion``), and derivatives are those of that series.

    Args:
        value1: Coefficients of the first function, ``... x n x (K + 1)``.
        value2: Coefficients of the second, ``... x m x (K + 1)``.
        pair: Covariance of their arguments.
    """
    zero1, zero2 = pair.var1 == 0, pair.var2.mT == 0
    if not bool(zero1.any()) and not bool(zero2.any()):
        return series_dual(value1, value2, pair.versine)
    # the squared distance itself is that of a constant, in its form without cancellation
    exact1, exact2 = (
        torch.cat((value[..., :1], value[..., 1:].masked_fill(zero, 0.0)), -1)
        for value, zero in ((value1, zero1), (value2, zero2))
    )
    sqdist = series_dual(exact1, exact2, pair.versine).sqdist
    var1 = diagonal_series(value1, value1, pair.var1)
    var2 = diagonal_series(value2, value2, pair.var2.mT).mT
    expanded = var1 + var2 - 2 * power_series(value1, value2, expansion_ratio(pair))
    expanded = sqdist.detach() + (expanded - expanded.detach())
    sqdist = torch.where(zero1 | zero2.mT, expanded, sqdist)
    return PairCovariance(var1, var2, sqdist, var1 - var2)


def expansion_ratio(pair: PairCovariance) -> Tensor:
    """Correlations, :data:`UNIT_ROOT` being the root of a variance of zero, ``... x n x m``."""
    zero1, zero2 = pair.var1 == 0, pair.var2 == 0
    if not bool(zero1.any()) and not bool(zero2.any()):
        return pair.correlation
    root1, root2 = (
        torch.where(variance == 0, UNIT_ROOT**2, variance).sqrt() for variance in pair[:2]
    )
    ratio = bounded(pair.cov / (root1 * root2), -1.0, 1.0)
    return torch.where(zero1 | zero2, ratio, 1 - pair.versine)


def diagonal_series(first: Tensor, second: Tensor, variance: Tensor) -> Tensor:
    """Sum over k of the products of coefficients of the same input, ``... x n x 1``.

    At variance zero the ratio of the series is not one, but the variance over that of
    :data:`UNIT_ROOT`; there terms up to the second have a part in second derivatives.
    """
    zero = variance == 0
    products = first * second
    total = products.sum(-1, keepdim=True)
    if not bool(zero.any()):
        return total
    ratio = variance / UNIT_ROOT**2
    taylor = torch.zeros_like(variance)
    for term in reversed(products[..., :3].split(1, -1)):
        taylor = taylor * ratio + term
    return torch.where(zero, taylor, total)


class _PowerSeries(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, ratio: Tensor, counts: tuple[int, int]
    ) -> Tensor:
        ctx.counts = counts
        ctx.save_for_backward(first, second, ratio)
        return _sum_series(first, second, ratio, counts)

    @staticmethod
    @one_gradient_at_a_time
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, second, ratio = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        return *_gradients(first, second, ratio, ctx.counts, grad, needed), None


class _SeriesDistance(torch.autograd.Function):
    r"""The sum of both variances less twice the power series, without cancellation."""

    @staticmethod
    def forward(ctx: Any, value1: Tensor, value2: Tensor, versine: Tensor) -> Tensor:
        ctx.save_for_backward(value1, value2, versine)
        correlation = 1 - versine
        tail, bend = torch.zeros_like(versine), torch.zeros_like(versine)
        rows, columns = _columns(value1, value2)
        for row, column in zip(rows[:0:-1], columns[:0:-1], strict=True):
            bend.mul_(correlation).add_(tail.addcmul_(row, column))
        radial = torch.cdist(value1, value2, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.addcmul(radial.square_(), versine, bend, value=2)

    @staticmethod
    @one_gradient_at_a_time
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value1, value2, versine = ctx.saved_tensors
        counts, needed = _counts(value1, value2, versine), ctx.needs_input_grad
        by1, by2, by_ratio = _gradients(value1, value2, 1 - versine, counts, -2 * grad, needed)
        if by1 is not None:
            by1 = by1 + (2 * grad.sum(-1, keepdim=True) * value1).sum_to_size(value1.shape)
        if by2 is not None:
            by2 = by2 + (2 * grad.sum(-2).unsqueeze(-1) * value2).sum_to_size(value2.shape)
        return by1, by2, None if by_ratio is None else -by_ratio


def _gradients(
    first: Tensor,
    second: Tensor,
    ratio: Tensor,
    counts: tuple[int, int],
    grad: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients with respect to those arguments that need one, None for the others."""
    if torch.is_grad_enabled():

        def series(first: Tensor, second: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
            return _sum_series(first, second, ratio, counts), grad

        return in_their_places(pull_back(series, (first, second, ratio), needed), needed)
    by_first = by_second = by_ratio = None
    if needed[2] and first.shape[-1] == 1:
        by_ratio = torch.zeros_like(ratio)
    elif needed[2]:
        degrees = torch.arange(1, first.shape[-1], dtype=first.dtype, device=first.device)
        slope_counts = max(counts[1], 1), counts[0] - 1
        by_ratio = _sum_series(first[..., 1:] * degrees, second[..., 1:], ratio, slope_counts)
        by_ratio = by_ratio.mul_(grad).sum_to_size(ratio.shape)
    if needed[0] or needed[1]:
        by_first, by_second = _coefficient_gradients(first, second, ratio, counts, grad)
    return by_first, by_second, by_ratio


def coefficient_gradients(
    first: Tensor, second: Tensor, ratio: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`power_series` with respect to both coefficients, without a graph.

    Args:
        first: Coefficients of the first inputs, ``... x n x k``.
        second: Coefficients of the second inputs, ``... x m x k``.
        ratio: ``... x n x m``.
        grad: Gradient with respect to the series, ``... x n x m``.
    """
    return _coefficient_gradients(first, second, ratio, _counts(first, second, ratio), grad)


def _coefficient_gradients(
    first: Tensor, second: Tensor, ratio: Tensor, counts: tuple[int, int], grad: Tensor
) -> tuple[Tensor, Tensor]:
    by_first = grad.new_zeros(*grad.shape[:-1], first.shape[-1])
    by_second = grad.new_zeros(*grad.shape[:-2], grad.shape[-1], second.shape[-1])
    square = ratio.square()
    # one input may stand for all of a side
    rows, columns = _columns(
        first.expand(*first.shape[:-2], grad.shape[-2], -1),
        second.expand(*second.shape[:-2], grad.shape[-1], -1),
    )
    for odd, power in enumerate((grad.clone(), grad * ratio)):
        for k in range(odd, 2 * counts[odd], 2):
            by_first[..., k] = (power @ columns[k].mT).squeeze(-1)
            by_second[..., k] = (rows[k].mT @ power).squeeze(-2)
            power.mul_(square)
    return by_first.sum_to_size(first.shape), by_second.sum_to_size(second.shape)


def _sum_series(first: Tensor, second: Tensor, ratio: Tensor, counts: tuple[int, int]) -> Tensor:
    """The series, with a graph where gradients are enabled and needed."""
    square = ratio * ratio
    even = _horner(first[..., ::2], second[..., ::2], square, counts[0])
    if counts[1] == 0:
        return even
    odd = _horner(first[..., 1::2], second[..., 1::2], square, counts[1])
    return torch.addcmul(even, odd, ratio)


def _horner(first: Tensor, second: Tensor, ratio: Tensor, count: int) -> Tensor:
    """The first terms of a series."""
    rows, columns = _columns(first[..., :count], second[..., :count])
    total = torch.zeros_like(ratio).addcmul_(rows[-1], columns[-1])
    graph = torch.is_grad_enabled() and any(x.requires_grad for x in (first, second, ratio))
    for row, column in zip(rows[-2::-1], columns[-2::-1], strict=True):
        total = total * ratio if graph else total.mul_(ratio)
        total = total.addcmul_(row, column)
    return total


def _columns(first: Tensor, second: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Coefficients of each degree, ``... x n x 1`` and ``... x 1 x m``, each in one piece."""
    first, second = first.mT.contiguous(), second.mT.contiguous()
    return first.unsqueeze(-1).unbind(-3), second.unsqueeze(-2).unbind(-3)


def _counts(
    first: Tensor, second: Tensor, ratio: Tensor, accuracy: float | None = None
) -> tuple[int, int]:
    """Numbers of even and of odd terms whose rest is not negligible; one even term at least.

    Where many inputs have few partners it costs more to look for these than to evaluate all terms;
    below some thousand pairs a term costs its call alone.
    """
    inputs = first.shape[:-1].numel() + second.shape[:-1].numel()
    if 2**12 < ratio.numel() <= 2 * inputs:
        return (first.shape[-1] + 1) // 2, first.shape[-1] // 2
    bounds = _term_bounds(first, second)
    negligible = (accuracy or torch.finfo(first.dtype).eps / 8) * sum(bounds)
    return max(1, _count(bounds[::2], negligible)), _count(bounds[1::2], negligible)


def _count_distance_terms(first: Tensor, second: Tensor) -> int:
    """Number of leading terms that determine squared distances, of the closest pairs too.

    There a term counts by the square of its slope, at most its degree times its size; the constant
    does not count.
    """
    pairs = zip(_term_bounds(first, first), _term_bounds(second, second), strict=True)
    bounds = [degree**2 * max(pair) for degree, pair in enumerate(pairs)]
    return max(1, _count(bounds, torch.finfo(first.dtype).eps / 8 * sum(bounds)))


def _count(bounds: list[float], negligible: float) -> int:
    """Number of terms whose rest is not negligible."""
    rest = 0.0
    for index in range(len(bounds), 0, -1):
        rest += bounds[index - 1]
        if rest > negligible:
            return index
    return 0


def _term_bounds(first: Tensor, second: Tensor) -> list[float]:
    """Largest absolute term of each degree, relative to the sizes of the functions of its pair.

    Relative to the largest pair, terms would be left out that are all of a small one.
    """
    if first.numel() == 0 or second.numel() == 0:
        return [0.0] * first.shape[-1]
    largest = []
    for coefficients in (first.detach(), second.detach()):
        # along the columns, each of which is in one piece
        share = coefficients.mT.abs()
        share.div_(share.sum(-2, keepdim=True).clamp_min_(torch.finfo(share.dtype).tiny))
        share = share.amax(-1)
        largest.append(share if share.dim() == 1 else share.flatten(0, -2).amax(0))
    return (largest[0] * largest[1]).tolist()
