"""The coefficients of Hermite series, found for many variances at once or for one."""

from __future__ import annotations

import pytest
import torch

from gp_deq.activations import Hermite, get_activation

EPSILON = torch.finfo(torch.float64).eps


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "silu", "elu"])
@pytest.mark.parametrize("spread", [1.0, 1.0 + 1e-9, 10.0, 1e4, 1e8])
def test_many_variances_and_one(name: str, spread: float) -> None:
    """Those of many variances are interpolated: equal to within a few roundings of their norm."""
    activation = get_activation(name)
    assert isinstance(activation, Hermite)
    variance = 0.3 * spread ** torch.linspace(0, 1, 200, dtype=torch.float64).unsqueeze(-1)
    together = activation.features(variance)
    for index in range(0, 200, 23):
        alone = activation.features(variance[index : index + 1])[0]
        for part in (slice(2, activation.degree + 3), slice(activation.degree + 3, None)):
            error = (together[index, part] - alone[part]).norm() / alone[part].norm()
            assert error <= 64 * EPSILON


def test_gradients_of_many_variances() -> None:
    """Where a gradient is asked for, the coefficients have one."""
    activation = get_activation("tanh")
    variance = torch.linspace(0.5, 4, 100, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    (slope,) = torch.autograd.grad(activation.diagonal(variance).sum(), variance)
    torch.testing.assert_close(
        slope, activation.diagonal_slope(variance).detach(), rtol=1e-10, atol=0
    )


def test_diagonal_and_slope() -> None:
    for name in ("relu", "erf", "tanh"):
        activation = get_activation(name)
        variance = torch.tensor([[0.0], [0.4], [3.0]], dtype=torch.float64)
        value, slope = activation.diagonal_and_slope(variance)
        torch.testing.assert_close(value, activation.diagonal(variance), rtol=0, atol=0)
        torch.testing.assert_close(slope, activation.diagonal_slope(variance), rtol=0, atol=0)
