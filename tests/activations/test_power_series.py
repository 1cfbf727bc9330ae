"""Sums over Hermite coefficients of all pairs, and their gradients in closed form."""

import pytest
import torch
from torch import Tensor

from gp_deq.activations.power_series import power_series, series_dual

torch.manual_seed(0)
DEGREES = torch.arange(12, dtype=torch.float64)


def coefficients(inputs: int, parity: str, batch: tuple[int, ...] = ()) -> Tensor:
    value = torch.randn(*batch, inputs, 12, dtype=torch.float64) * 0.7**DEGREES
    if parity == "even":
        value[..., 1::2] = 0.0
    if parity == "odd":
        value[..., ::2] = 0.0
    return value.requires_grad_()


def direct(first: Tensor, second: Tensor, ratio: Tensor) -> Tensor:
    """The sum as it is written."""
    powers = ratio.unsqueeze(-1) ** DEGREES
    return (first.unsqueeze(-2) * second.unsqueeze(-3) * powers).sum(-1)


@pytest.mark.parametrize("parity", ["all", "even", "odd"])
@pytest.mark.parametrize("inputs", [1, 4])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_series_and_gradients(parity: str, batch: tuple[int, ...], inputs: int) -> None:
    """Both of the sum, by all arguments, also where a batch or a side shares coefficients."""
    first, second = coefficients(inputs, parity, batch), coefficients(3, parity)
    ratio = (torch.rand(*batch, 4, 3, dtype=torch.float64) * 1.8 - 0.9).requires_grad_()
    inputs = (first, second, ratio)
    value, expected = power_series(first, second, ratio), direct(first, second, ratio)
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=1e-14)
    weights = torch.randn_like(expected)
    grads = torch.autograd.grad((weights * value).sum(), inputs)
    expected_grads = torch.autograd.grad((weights * expected).sum(), inputs)
    for grad, wanted, tensor in zip(grads, expected_grads, inputs, strict=True):
        assert grad.shape == tensor.shape
        torch.testing.assert_close(grad, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("function", ["series", "distance"])
def test_derivatives_of_second_order(function: str) -> None:
    first, second = coefficients(3, "all"), coefficients(2, "all")
    ratio = (torch.rand(3, 2, dtype=torch.float64) - 0.4).requires_grad_()

    def evaluate(first: Tensor, second: Tensor, ratio: Tensor) -> Tensor:
        if function == "series":
            return power_series(first, second, ratio)
        return series_dual(first, second, 1 - ratio).sqdist

    assert torch.autograd.gradcheck(evaluate, (first, second, ratio))
    assert torch.autograd.gradgradcheck(evaluate, (first, second, ratio))


def test_distance_does_not_cancel() -> None:
    """Close pairs keep the relative precision of their distance."""
    first = coefficients(1, "all").detach()
    second = first * (1 + 1e-9 * torch.randn(1, 12, dtype=torch.float64))
    versine = torch.tensor([[1e-18]], dtype=torch.float64)
    dual = series_dual(first, second, versine)
    bend = 2e-18 * (DEGREES * first * second).sum()  # the next term is 1e-18 times this
    expected = (first - second).square().sum() + bend
    torch.testing.assert_close(dual.sqdist.squeeze(), expected, rtol=1e-13, atol=0.0)
    assert float(dual.var1 + dual.var2 - 2 * dual.cov) == pytest.approx(float(expected), abs=1e-15)


def test_distance_of_a_nearly_constant_function() -> None:
    """A large constant does not hide the small terms that make the distance."""
    first = torch.tensor([[1.0, 1e-5, 1e-10]], dtype=torch.float64)
    second = torch.tensor([[1.0, 1e-5, -1e-10]], dtype=torch.float64)
    dual = series_dual(first, second, torch.zeros(1, 1, dtype=torch.float64))
    assert float(dual.sqdist) == pytest.approx(4e-20, rel=1e-6)


def test_constants() -> None:
    first = torch.ones(2, 1, dtype=torch.float64).requires_grad_()
    ratio = torch.zeros(2, 2, dtype=torch.float64).requires_grad_()
    value = power_series(first, first, ratio)
    grads = torch.autograd.grad(value.sum(), (first, ratio))
    assert value.tolist() == [[1.0, 1.0]] * 2
    assert grads[0].tolist() == [[4.0]] * 2
    assert not grads[1].any()
