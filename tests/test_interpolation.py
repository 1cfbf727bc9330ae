"""Chebyshev series of functions of one variable, against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev as reference

from gp_deq.interpolation import (
    chebyshev,
    chebyshev_series,
    chebyshev_sums,
    degree_of,
    polynomial,
    tails,
)


@pytest.mark.parametrize("count", [2, 3, 10, 40, 97])
def test_interpolates_a_polynomial(count: int) -> None:
    """From as many nodes as it has coefficients, to a rounding of each."""
    nodes, transform, _ = chebyshev(count)
    coefficients = np.random.default_rng(0).normal(size=count)
    values = torch.from_numpy(reference.chebval(nodes.numpy(), coefficients))
    found = values @ transform
    assert np.abs(found.numpy() - coefficients).max() <= 1e-14 * count


@pytest.mark.parametrize("degree", [1, 5, 20])
def test_evaluations(degree: int) -> None:
    """By powers and by Chebyshev polynomials; powers of degree k lose up to a factor of 2.5^k."""
    rng = np.random.default_rng(0)
    series = rng.normal(size=degree + 1) * 4.0 ** -np.arange(degree + 1)
    x = torch.from_numpy(rng.uniform(-1, 1, size=(1, 3, 4)))
    expected = torch.from_numpy(reference.chebval(x.numpy(), series))
    coefficients = torch.from_numpy(series).reshape(1, 1, -1)
    torch.testing.assert_close(chebyshev_series(coefficients, x), expected, rtol=0, atol=4e-15)
    _, _, monomials = chebyshev(degree + 1)
    torch.testing.assert_close(
        polynomial(coefficients @ monomials, x), expected, rtol=0, atol=4e-15
    )


@pytest.mark.parametrize("count", [2, 3, 12])
def test_sums_are_the_gradient_of_a_series(count: int) -> None:
    torch.manual_seed(0)
    x = 2 * torch.rand(2, 3, 4, dtype=torch.float64) - 1
    weights = torch.randn(2, 3, 4, dtype=torch.float64)
    columns = torch.from_numpy(reference.chebvander(x.numpy(), count - 1))
    expected = (weights.unsqueeze(-1) * columns).sum((1, 2)).unsqueeze(1)
    torch.testing.assert_close(chebyshev_sums(weights.clone(), x, count), expected)


def test_truncation() -> None:
    """The worst batch decides; a series that has not converged has no degree."""
    rows = [[1.0, 0.1, 1e-3, 1e-6, 1e-9], [1.0, 1e-2, 1e-2, 0.0, 1e-9]]
    series = torch.tensor(rows, dtype=torch.float64)
    sizes = tails(series.unsqueeze(1), torch.ones(2, 1, 1, dtype=torch.float64))
    assert sizes == pytest.approx([1.0, 0.1, 1e-2, 1e-6, 1e-9], rel=1e-12)
    assert degree_of(sizes, 1e-5) == 2 and degree_of(sizes, 2e-9) == 3
    assert degree_of(sizes, 1.0) == 1 and degree_of(sizes, 1e-10) is None
