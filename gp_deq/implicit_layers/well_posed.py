"""Weights of an equilibrium layer that keep it solvable while it trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WellPosed(nn.Module):
    r"""Maps any weight to one whose equilibrium exists and is unique; a parametrization.

    For :math:`z = \varphi(Wz + c)` with a Lipschitz constant :math:`L` of :math:`\varphi` there is
    one solution for every :math:`c` if :math:`L\|W\|_2 < 1`, as then the map contracts; and for
    nondecreasing :math:`\varphi` already if :math:`L\,\lambda_{\max}(\tfrac12(W + W^\top)) < 1`, as
    then :math:`z \mapsto z - W\varphi(z)` is strongly monotone [WinstonKolter2020]_. A weight
    beyond is scaled down by its spectral norm, or shifted by a multiple of the identity; one within
    is left as it is. Filters of convolutions are treated at each frequency of a grid, of their
    symbols in the place of matrices.

    Args:
        bound: Of the norm, or of the largest eigenvalue of the symmetric part.
        monotone: Whether the activation is nondecreasing.
    """

    def __init__(self, bound: float, monotone: bool) -> None:
        super().__init__()
        self.bound, self.monotone = bound, monotone

    def forward(self, weight: Tensor) -> Tensor:
        """The weight within the bound.

        Args:
            weight: ``c x c``, or filters ``c x c x k x k`` with ``k`` odd.
        """
        symbol = _symbol(weight)
        if self.monotone:
            top = torch.linalg.eigvalsh((symbol + symbol.mH) / 2).amax()
            return weight - (top - self.bound).clamp_min(0) * _identity(weight)
        norm = torch.linalg.matrix_norm(symbol, 2).amax()
        return weight * (self.bound / norm.clamp_min(self.bound))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A weight within the bound is its own image.

        Args:
            weight: As in :meth:`forward`.
        """
        return weight


def spectral_norm(weight: Tensor) -> Tensor:
    """Largest singular value of a matrix, or of a convolution by filters.

    Args:
        weight: ``c x c``, or filters ``c x c x k x k``.
    """
    return torch.linalg.matrix_norm(_symbol(weight), 2).amax()


def _symbol(weight: Tensor) -> Tensor:
    """The matrix, or those of the frequencies of a convolution, ``... x c x c``."""
    if weight.dim() == 2:
        return weight
    size = weight.shape[-1]
    # finer than the filters' own frequencies by a factor of eight
    grid = (8 * size, 8 * size)
    shifted = torch.fft.fft2(weight, s=grid)
    # the filter is centred: a phase, which matters for the symmetric part
    phase = torch.exp(2j * torch.pi * torch.fft.fftfreq(grid[0]) * (size // 2)).to(shifted)
    return (shifted * phase[:, None] * phase).permute(2, 3, 0, 1)


def _identity(weight: Tensor) -> Tensor:
    """What convolves, or multiplies, to the same."""
    eye = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
    if weight.dim() == 2:
        return eye
    middle = torch.zeros_like(weight[0, 0])
    middle[weight.shape[-1] // 2, weight.shape[-1] // 2] = 1.0
    return eye[:, :, None, None] * middle
