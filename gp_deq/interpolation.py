"""Functions of one variable as Chebyshev series: nodes, truncation, evaluation."""

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


def count_for_strip(half: float) -> int:
    r"""Number of nodes that reach rounding for a function that is analytic in a strip.

    The largest ellipse around an interval in the strip of half-width :math:`\pi/4` gives a
    Chebyshev series whose terms fall like exp(-k asinh(pi/4/half)), to exp(-40) = 4e-18 at this
    count; four terms are in reserve. Gaussian expectations are such functions of the logarithm of a
    deviation, since they are analytic in it for arguments up to :math:`\pi/4`.

    Args:
        half: Half the length of the interval, positive.
    """
    return math.ceil(40 / math.asinh(math.pi / 4 / half)) + 4


def chebyshev_polynomials(count: int, position: Tensor) -> Tensor:
    """The first Chebyshev polynomials, with derivatives of any order.

    Args:
        count: Number of polynomials, two at least.
        position: Between -1 and 1, of any shape.

    Returns:
        ``... x count``.
    """
    values = [torch.ones_like(position), position]
    for _ in range(count - 2):
        values.append(2 * position * values[-1] - values[-2])
    return torch.stack(values, -1)


def tails(series: Tensor, scale: Tensor) -> list[float]:
    """Largest coefficient of each degree or a higher one, over all batches.

    Args:
        series: Chebyshev coefficients, ``b x 1 x count``.
        scale: They are relative to it, ``b x 1 x 1``.
    """
    sizes = (series.abs() / scale).flatten(0, -2)
    if sizes.numel() == 0:
        return [0.0] * series.shape[-1]
    return sizes.amax(0).flip(0).cummax(0).values.flip(0).tolist()


def degree_of(tails: list[float], accuracy: float) -> int | None:
    """Least degree, one at least, beyond which all coefficients are within the accuracy.

    None where no degree but the last ones would do: then the series has not converged.

    Args:
        tails: See :func:`tails`.
        accuracy: Relative to the scale of the tails.
    """
    return next((k for k in range(1, len(tails) - 1) if tails[k + 1] <= accuracy), None)


def polynomial(coefficients: Tensor, variable: Tensor) -> Tensor:
    """A polynomial of degree one at least in powers of a variable, by Horner's rule.

    Args:
        coefficients: Lowest first, ``b x 1 x (degree + 1)``.
        variable: ``b x n x m``.
    """
    *terms, highest = coefficients.split(1, -1)
    total = torch.addcmul(terms.pop(), variable, highest)
    for term in reversed(terms):
        # one pass over memory, half the time of a product and a sum
        torch.addcmul(term, total, variable, out=total)
    return total


def chebyshev_series(coefficients: Tensor, variable: Tensor) -> Tensor:
    """A Chebyshev series of degree one at least, by Clenshaw's recurrence.

    It takes twice as long as :func:`polynomial`, and is accurate at any degree.

    Args:
        coefficients: Lowest first, ``b x 1 x (degree + 1)``.
        variable: Between -1 and 1, ``b x n x m``.
    """
    constant, *terms = coefficients.split(1, -1)
    double = variable * 2
    current = torch.zeros_like(variable).add_(terms[-1])
    after = torch.zeros_like(variable)
    for term in terms[-2::-1]:
        torch.sub(term, after, out=after).addcmul_(double, current)
        current, after = after, current
    return torch.sub(constant, after, out=after).addcmul_(variable, current)


def chebyshev_sums(weights: Tensor, variable: Tensor, count: int) -> Tensor:
    """Sums over pairs of weights times the first Chebyshev polynomials; overwrites the weights.

    These are the gradients with respect to the coefficients of a series.

    Args:
        weights: ``b x n x m``.
        variable: Between -1 and 1, ``b x n x m``.
        count: Number of polynomials, two at least.

    Returns:
        ``b x 1 x count``.
    """
    double = variable * 2
    before, current = weights, weights * variable
    sums = [before.sum((-2, -1)), current.sum((-2, -1))]
    for _ in range(count - 2):
        before.neg_().addcmul_(double, current)
        before, current = current, before
        sums.append(current.sum((-2, -1)))
    return torch.stack(sums, -1).unsqueeze(-2)


def power_sums(weights: Tensor, variable: Tensor, count: int) -> Tensor:
    """Sums over pairs of weights times the first powers; overwrites the weights.

    These are the gradients with respect to the coefficients of a polynomial.

    Args:
        weights: ``b x n x m``.
        variable: ``b x n x m``.
        count: Number of powers, the constant among them.

    Returns:
        ``b x 1 x count``.
    """
    sums = [weights.sum((-2, -1))]
    for _ in range(count - 1):
        sums.append(weights.mul_(variable).sum((-2, -1)))
    return torch.stack(sums, -1).unsqueeze(-2)
