"""Estimates of the digits that a kernel made of squared distances loses to cancellation.

A squared distance m made of coordinates is exact, but the covariance :math:`2c = v_1 + v_2 - m`
errs by a rounding error of the sum. So does the determinant :math:`v_1 v_2 - c^2`, by that sum
times the smaller of m and 2c, or times the difference of the variances.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Maps the variances of the injected input, ``... x n x 1`` and ``... x 1 x m``, and the
#: covariances ``... x n x m`` to errors of the kernel in units in the last place, of the right
#: order.
LossEstimate = Callable[[Tensor, Tensor, Tensor], Tensor]


def errors_of_erf(var1: Tensor, var2: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of ``G`` of the error function and of its ``P``, the latter in relative terms.

    Args:
        var1: See :data:`LossEstimate`, as for the others.
        var2: Likewise.
        cov: Likewise.
    """
    total, size = var1 + var2, cov.abs()
    spread = torch.minimum((total - 2 * cov).clamp_min(0.0) + (var1 - var2).abs(), 2 * size)
    det = 1 + 2 * total + 4 * (var1 * var2 - size.square()).clamp_min(0.0)
    by_slope = total * spread / det
    by_value = 2 * det.sqrt() * (total + size * by_slope) / (det + 4 * size.square())
    return by_value, by_slope


def loss_of_smooth(tangent: bool) -> LossEstimate:
    """The estimate for a smooth activation, as for the error function.

    There ``G`` is of the order of one and ``P`` of the inverse root of the determinant.

    Args:
        tangent: Whether the kernel depends on ``P``.
    """

    def estimate(var1: Tensor, var2: Tensor, cov: Tensor) -> Tensor:
        by_value, by_slope = errors_of_erf(var1, var2, cov)
        return torch.maximum(by_value, by_slope) if tangent else by_value

    return estimate
