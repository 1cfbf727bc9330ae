"""Angles of the injected inputs, to full relative precision near zero and near pi."""

from __future__ import annotations

import torch
from torch import Tensor

from .pair_covariance import PairCovariance
from .piecewise_linear import angle


def injected_angle(
    x1: Tensor, x2: Tensor, bias_variance: Tensor, pair: PairCovariance
) -> tuple[Tensor, Tensor]:
    r"""Angle of affine functions of two inputs, and one minus its cosine.

    Where a kernel takes square roots of angles again and again, digits of small ones matter that
    the distances of ``pair`` have lost if the inputs are nearly parallel but of different norms.
    So this is :math:`2\arctan(|p - q| / |p + q|)` of the unit vectors :math:`p, q`, whose
    differences and sums come from those of the coordinates; and in one dimension, where without a
    bias all inputs are parallel, that of the wedge product :math:`\sqrt\beta |x - x'|` and the
    scalar product. Derivatives are those of ``pair``.

    Args:
        x1: First inputs, ``... x n x d``.
        x2: Second inputs, ``... x m x d``.
        bias_variance: :math:`\beta`, ``... x 1 x 1``.
        pair: ``PairCovariance.from_inputs`` of these.
    """
    versine = pair.versine
    with torch.no_grad():
        if x1.shape[-1] == 1:
            wedge = (bias_variance * pair.sqdist).sqrt()
            theta = torch.atan2(wedge, x1 * x2.mT + bias_variance)
        else:
            theta = _between_unit_vectors(x1, x2, bias_variance, pair)
        root1, root2 = pair.var1.sqrt(), pair.var2.sqrt()
        theta = torch.where((root1 > 0) & (root2 > 0), theta, angle(versine))
        exact = 2 * (theta / 2).sin().square()
    versine = versine + (exact - versine).detach()
    result = angle(versine)
    return result + (theta - result).detach(), versine


def _between_unit_vectors(
    x1: Tensor, x2: Tensor, bias_variance: Tensor, pair: PairCovariance
) -> Tensor:
    root1, root2 = pair.var1.sqrt(), pair.var2.sqrt()
    # mean and half the difference of the two inverse norms
    middle = (1 / root1 + 1 / root2) / 2
    change = -(pair.vardiff / (root1 + root2)) / (2 * root1 * root2)
    difference = bias_variance * (2 * change).square() + torch.zeros_like(pair.sqdist)
    total = bias_variance * (2 * middle).square() + torch.zeros_like(pair.sqdist)
    for column1, column2 in zip(x1.unbind(-1), x2.unbind(-1), strict=True):
        first, second = column1.unsqueeze(-1), column2.unsqueeze(-2)
        minus, plus = first - second, first + second
        difference.add_((minus * middle + plus * change).square_())
        total.add_((plus * middle + minus * change).square_())
    return 2 * torch.atan2(difference.sqrt_(), total.sqrt_())
