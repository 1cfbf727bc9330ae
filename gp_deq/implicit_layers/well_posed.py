r"""Weights of an equilibrium layer that keep it solvable while it trains.

For :math:`z = \varphi(Wz + c)` with a Lipschitz constant :math:`L` of :math:`\varphi` there is one
solution for every :math:`c` if :math:`L\|W\|_2 < 1`, as then the map contracts. If :math:`\varphi`
is nondecreasing any negative semi-definite matrix may be added: with the symmetric part
:math:`S = (W + W^\top)/2` and the skew part :math:`A`, :math:`L\,\lambda_{\max}(S) < 1` is enough
for one solution, as :math:`I - LW` is strongly monotone and :math:`\varphi/L` a proximal operator
[WinstonKolter2020]_; and with :math:`L(\max(\lambda_{\max}(S), 0) + \|A\|_2) < 1` the damped
iteration of `damping` contracts near it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Bounds on the Lipschitz constant times the spectrum, and times a skew part. The end of
#: solvability is 1; a map that contracts by 0.95 amplifies errors by 20 at most.
BOUND, SKEW_BOUND = 0.95, 0.475


class RecurrentWeight(NamedTuple):
    """A weight within the bounds.

    Args:
        value: ``c x c``, or filters ``c x c x k x k``.
        damping: Damping of the iteration that solves the layer, in (0, 1].
    """

    value: Tensor
    damping: Tensor


def well_posed(
    weight: Tensor, lipschitz: float, monotone: bool, grid: tuple[int, int] | None = None
) -> RecurrentWeight:
    r"""The nearest thing to a weight that is sure to have one equilibrium.

    A weight within the bounds is left as it is. For nondecreasing activations the skew part is
    scaled down to :math:`L\|A\|_2 \le 0.475`, and a multiple of the identity is taken off until
    :math:`L(\max(\lambda_{\max}(S), 0) + \|A\|_2) \le 0.95`. For others the weight is scaled down
    to :math:`L\|W\|_2 \le 0.95`. For a convolution the bounds hold for its symbols, one matrix for
    each frequency of a torus, and so for the convolution on the torus or, padded by zeros, on a
    part of it.

    The damping :math:`\tau = 2/(2 + LM)` with :math:`M = \max(-\lambda_{\min}(S), 0)` makes
    :math:`(1-\tau)I + \tau DW`, for :math:`D` diagonal between 0 and :math:`L`, similar to a matrix
    of norm :math:`(LM + 1.9)/(LM + 2)` at most.

    Args:
        weight: ``c x c``, or filters ``c x c x k x k`` with ``k`` odd.
        lipschitz: :math:`L`, finite.
        monotone: Whether the activation is nondecreasing.
        grid: Height and width of the torus, for filters.
    """
    symbol = weight if grid is None else _symbol(weight, grid)
    if not monotone:
        norm = lipschitz * torch.linalg.matrix_norm(symbol, 2).amax()
        scaled = weight * torch.where(norm > BOUND, BOUND / norm, 1.0)
        return RecurrentWeight(scaled, torch.ones_like(norm).detach())
    skewness = lipschitz * torch.linalg.matrix_norm((symbol - symbol.mH) / 2, 2).amax()
    if bool(skewness > SKEW_BOUND):
        mirrored = weight.mT if grid is None else weight.transpose(0, 1).flip(-1, -2)
        even, odd = (weight + mirrored) / 2, (weight - mirrored) / 2
        weight = even + (SKEW_BOUND / skewness) * odd
        skewness = skewness.clamp_max(SKEW_BOUND)
    eigenvalues = lipschitz * torch.linalg.eigvalsh((symbol + symbol.mH) / 2)
    excess = (eigenvalues.amax() - (BOUND - skewness)).clamp_min(0)
    strength = (excess - eigenvalues.amin()).clamp_min(0).detach()
    if bool(excess > 0):
        weight = weight - (excess / lipschitz) * _identity(weight)
    return RecurrentWeight(weight, 2 / (2 + strength))


def _symbol(weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """The symbols of a convolution at the frequencies of a torus, ``height x width x c x c``."""
    reach = weight.shape[-1] // 2
    transformed = torch.fft.fft2(_wrap(weight, grid))
    # the filter is centred: a phase, which matters for the symmetric part
    phases = [
        torch.polar(torch.ones_like(angle), angle)
        for angle in (
            2 * torch.pi * reach * torch.fft.fftfreq(n, dtype=weight.dtype, device=weight.device)
            for n in grid
        )
    ]
    return (transformed * phases[0][:, None] * phases[1]).permute(2, 3, 0, 1)


def _wrap(weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """Filters on a torus, ``c x c x height x width``; taps that meet on a small one add up."""
    for axis, size in zip((-2, -1), grid, strict=True):
        short = -weight.shape[axis] % size
        shape = [*weight.shape]
        shape[axis] = short
        weight = torch.cat([weight, weight.new_zeros(shape)], axis)
        weight = weight.unflatten(axis, (-1, size)).sum(axis - 1)
    return weight


def _identity(weight: Tensor) -> Tensor:
    """The filter, or the matrix, that leaves everything as it is."""
    eye = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
    if weight.dim() == 2:
        return eye
    middle = torch.zeros_like(weight[0, 0])
    middle[weight.shape[-1] // 2, weight.shape[-1] // 2] = 1.0
    return eye[:, :, None, None] * middle
