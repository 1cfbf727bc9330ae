"""Angles of the injected inputs, to full relative precision near zero and near pi."""

from __future__ import annotations

import torch
from torch import Tensor

from .angles import angle
from .pair_covariance import PairCovariance, exact_product


def injected_angle(
    x1: Tensor, x2: Tensor, bias_variance: Tensor, pair: PairCovariance
) -> tuple[Tensor, Tensor]:
    r"""Angle of affine functions of two inputs, and one minus its cosine.

    Where a kernel takes square roots of angles again and again, digits of small ones matter that
    the distances of ``pair`` have lost if the inputs are nearly parallel but of different norms,
    and errors that differ from pair to pair would make its matrix indefinite. So this is
    :math:`2\arctan(|p - q| / |p + q|)` of unit vectors :math:`p, q`, each known to twice the
    digits; and in one dimension, where without a bias all inputs are parallel, the angle of the
    wedge product :math:`\sqrt\beta |x - x'|` and the scalar product. Derivatives are those of
    ``pair``.

    Args:
        x1: First inputs, ``... x n x d``.
        x2: Second inputs, ``... x m x d``.
        bias_variance: :math:`\beta`, ``... x 1 x 1``.
        pair: ``PairCovariance.from_inputs`` of these.
    """
    versine = pair.versine
    with torch.no_grad():
        theta = exact_angle(x1, x2, bias_variance)
        known = (pair.var1 > 0) & (pair.var2 > 0)
        theta = torch.where(known, theta, angle(versine))
        exact = 2 * (theta / 2).sin().square()
    versine = versine + (exact - versine).detach()
    result = angle(versine)
    return result + (theta - result).detach(), versine


def exact_angle(x1: Tensor, x2: Tensor, bias_variance: Tensor) -> Tensor:
    """The angle of :func:`injected_angle`, without a graph; of any size where an input is zero.

    Args:
        x1: First inputs, ``... x n x d``.
        x2: Second inputs, ``... x m x d``.
        bias_variance: ``... x 1 x 1``.
    """
    if x1.shape[-1] > 1:
        return _between_unit_vectors(x1, x2, bias_variance)
    wedge = bias_variance.sqrt() * (x1 - x2.mT).abs()
    return torch.atan2(wedge, x1 * x2.mT + bias_variance)


def _between_unit_vectors(x1: Tensor, x2: Tensor, bias_variance: Tensor) -> Tensor:
    first, second = (unit_vectors(x, bias_variance) for x in (x1, x2))
    columns = zip(*(part.unbind(-1) for part in (*first, *second)), strict=True)
    difference = total = torch.zeros((), dtype=x1.dtype, device=x1.device)
    for high1, low1, high2, low2 in columns:
        high1, low1 = high1.unsqueeze(-1), low1.unsqueeze(-1)
        high2, low2 = high2.unsqueeze(-2), low2.unsqueeze(-2)
        difference = difference + ((high1 - high2) + (low1 - low2)).square_()
        total = total + ((high1 + high2) + (low1 + low2)).square_()
    return 2 * torch.atan2(difference.sqrt_(), total.sqrt_())


def unit_vectors(
    x: Tensor, bias_variance: Tensor, rest: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Directions of the inputs with the bias as a coordinate, as sums of a high and a low part.

    Args:
        x: ``... x n x d``.
        bias_variance: ``... x 1 x 1``.
        rest: The rounding errors of the inputs, if they are known.

    Returns:
        Both ``... x n x (d + 1)``; zero for a zero vector.
    """
    bias = bias_variance.sqrt().expand(
        *torch.broadcast_shapes(bias_variance.shape[:-2], x.shape[:-2]), x.shape[-2], 1
    )
    vector = torch.cat((x.expand(*bias.shape[:-1], x.shape[-1]), bias), -1)
    norm = vector.square().sum(-1, keepdim=True).sqrt()
    inverse = 1 / norm.masked_fill(norm == 0, 1.0)
    high, low = exact_product(vector, inverse)
    if rest is not None:
        low = low + inverse * torch.cat((rest.expand_as(vector[..., :-1]), 0 * bias), -1)
    # what the square of the norm exceeds one by, its leading part summed without error
    excess, rest = torch.full_like(norm[..., 0], -1.0), torch.zeros_like(norm[..., 0])
    for big, small in zip(high.unbind(-1), low.unbind(-1), strict=True):
        square, error = exact_product(big, big)
        added = excess + square
        part = added - excess
        rest = rest + ((excess - (added - part)) + (square - part)) + (error + 2 * big * small)
        excess = added
    return high, low - high * ((excess + rest) / 2).unsqueeze(-1)
