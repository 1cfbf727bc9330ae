"""Interpolation at Chebyshev nodes."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=4)
def chebyshev(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes on ``[-1, 1]`` and the matrices that interpolate from them, in double precision.

    Args:
        count: Number of nodes.

    Returns:
        The nodes; the matrix from values (as a row) to Chebyshev coefficients; and the one from
        these to coefficients of powers, lowest first, of which a leading square part does for a
        lower degree.
    """
    index = torch.arange(count)
    # cos(k (j + 1/2) pi / count), the argument reduced exactly
    turns = (torch.outer(2 * index + 1, index) % (4 * count)).double()
    table = (turns * (math.pi / (2 * count))).cos()
    transform = table * (2 / count)
    transform[:, 0] /= 2
    monomials = torch.zeros(count, count, dtype=torch.float64)
    monomials[0, 0] = monomials[1, 1] = 1
    for k in range(2, count):
        monomials[k, 1:] = 2 * monomials[k - 1, :-1]
        monomials[k] -= monomials[k - 2]
    return table[:, 1].clone(), transform, monomials
