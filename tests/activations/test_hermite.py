"""The coefficients of Hermite series, found for many variances at once or for one."""

from __future__ import annotations

import pytest
import torch

from gp_deq.activations import Hermite, PairCovariance, get_activation

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


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "silu", "softplus"])
def test_variance_zero_is_a_limit(name: str) -> None:
    """All expectations and their slopes, those at a variance of 1e-8 differing by about as much.

    There the third derivative, b_2 over the variance, has eps/1e-8 of rounding.
    """
    activation = get_activation(name)
    other = torch.tensor([[0.7], [0.0]], dtype=torch.float64)

    def everything(variance: float) -> list[torch.Tensor]:
        value = torch.tensor([[variance]], dtype=torch.float64)
        given = activation.features(value), activation.features(other), value + other.mT
        return [
            *activation.expectations(*given),
            *activation.variance_slopes(*given),
            *activation.derivative_variance_slopes(*given),
            activation.curvature(*given),
            *activation.diagonal_and_slope(value),
            activation.derivative_diagonal(value),
        ]

    for at_zero, nearby in zip(everything(0.0), everything(1e-8), strict=True):
        torch.testing.assert_close(at_zero, nearby, rtol=0, atol=2e-7)
    variance = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    for slope, wanted in (
        (activation.diagonal(variance), activation.diagonal_slope(variance)),
        (activation.diagonal_and_slope(variance)[0], activation.diagonal_slope(variance)),
    ):
        (found,) = torch.autograd.grad(slope, variance)
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("degree", [1, 2, 128])
def test_functions_of_few_derivatives_at_variance_zero(degree: int) -> None:
    """The identity, whose series is exact, and a constant."""
    zero = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    other = torch.tensor([[0.7]], dtype=torch.float64)
    for fn, value, slope in ((lambda u: 2 * u, 0.0, 4.0), (torch.ones_like, 1.0, 0.0)):
        series = Hermite(fn, degree)
        pair = PairCovariance(zero, other, zero + other, zero - other)
        dual, derivative = series.dual_and_derivative(pair)
        assert dual.cov.item() == pytest.approx(value, abs=1e-14)
        assert derivative.item() == pytest.approx(slope, abs=1e-14)
        (by_variance,) = torch.autograd.grad(series.diagonal(zero), zero)
        assert by_variance.item() == pytest.approx(slope, abs=1e-14)
