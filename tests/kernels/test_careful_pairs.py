"""Pairs that carry their Gram determinants, few or all of a matrix: shapes, batches, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gp_deq import DEQNTKKernel, NTKKernel

#: Second derivatives of ReLU's kernel have a cusp where inputs coincide.
CASES = [
    (DEQNTKKernel, {"activation": "erf"}),
    (DEQNTKKernel, {"activation": "sin"}),
    (DEQNTKKernel, {"activation": "gelu"}),
    (NTKKernel, {"activation": "relu"}),
    (NTKKernel, {"activation": "tanh", "input_injection": True}),
]


def make(case: tuple[type, dict[str, Any]], **options: Any) -> Any:
    cls, given = case
    kernel = cls(**given, **options).double()
    kernel.lengthscale, kernel.bias_variance = 0.05, 0.3
    return kernel


def inputs(dims: int) -> Tensor:
    """Antipodes and multiples: a few pairs need care in two dimensions, most in one."""
    rows = [[0.7, 0.2], [-0.7, -0.2003], [0.3, 0.31], [0.01, 0.02], [0.352, 0.1], [-0.9, 0.6]]
    return torch.tensor(rows, dtype=torch.float64)[:, :dims]


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def test_shapes_and_batches(case: tuple[type, dict[str, Any]], dims: int) -> None:
    """Rectangles, diagonals and batches have the entries of the square matrix."""
    x = inputs(dims)
    kernel = make(case)
    with torch.no_grad():
        whole = kernel(x).to_dense()
        rounding = 64 * torch.finfo(x.dtype).eps / 0.5 * float(whole.max())

        def agree(got: Tensor, expected: Tensor) -> None:
            torch.testing.assert_close(got, expected, rtol=0.0, atol=rounding)

        agree(kernel(x, x[:4]).to_dense(), whole[:, :4])
        agree(kernel(x, diag=True), whole.diagonal())
        agree(kernel(x, x.flip(0), diag=True), whole.flip(1).diagonal())
        batch = make(case, batch_shape=torch.Size([2]))
        batch.bias_variance = torch.tensor([0.3, 0.7], dtype=x.dtype).reshape(2, 1, 1)
        other = make(case)
        other.bias_variance = 0.7
        agree(batch(x).to_dense(), torch.stack((whole, other(x).to_dense())))
        agree(kernel(torch.stack((x, 0.9 * x))).to_dense()[1], kernel(0.9 * x).to_dense())
        single = make(case).float()(x.float()).to_dense()
        assert single.dtype == torch.float32
        assert bool(((single - whole).abs() <= 1e-5 * whole.max()).all())


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def test_derivatives(case: tuple[type, dict[str, Any]], dims: int) -> None:
    """First and second ones against differences."""
    kernel = make(case)
    x = inputs(dims).requires_grad_()
    weights = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(6, 6).fill_diagonal_(0.0)
    raw = [kernel.raw_lengthscale, kernel.raw_bias_variance, kernel.raw_weight_variance]

    def value(point: Tensor) -> Tensor:
        return (kernel(point).to_dense() * weights).sum()

    def slope(point: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(value(point), point, create_graph=True)
        return gradient

    gradients = torch.autograd.grad(value(x), [x, *raw], create_graph=True)
    (second,) = torch.autograd.grad(gradients[0][0, 0], x)
    step, first_by_steps = 1e-5, torch.zeros_like(x)
    second_by_steps = torch.zeros_like(x)
    for place in torch.ones_like(x).nonzero().tolist():
        shift = torch.zeros_like(x)
        shift[tuple(place)] = step
        up, down = (x.detach() + sign * shift for sign in (1, -1))
        change = (value(up) - value(down)).detach()
        first_by_steps[tuple(place)] = change / (2 * step)
        up, down = up.requires_grad_(), down.requires_grad_()
        change = (slope(up) - slope(down))[0, 0].detach()
        second_by_steps[tuple(place)] = change / (2 * step)
    # a step errs by its square over that of the scale on which the kernel varies
    for got, expected in ((gradients[0], first_by_steps), (second, second_by_steps)):
        torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))
    for parameter, gradient in zip(raw, gradients[1:], strict=True):
        with torch.no_grad():
            parameter += step
            high = value(x)
            parameter -= 2 * step
            low = value(x)
            parameter += step
        assert gradient.item() == pytest.approx(float(high - low) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: f"{case[0].__name__}-{case[1]}")
def test_transforms(case: tuple[type, dict[str, Any]]) -> None:
    """``vmap`` and ``grad`` of ``torch.func`` see the same pairs computed with care."""
    kernel = make(case)
    batch = torch.stack((inputs(2), 0.9 * inputs(2)))

    def total(x: Tensor) -> Tensor:
        return kernel.forward(x, x).triu(1).sum()

    for value, by_hand in (
        (torch.vmap(total)(batch), [total(x) for x in batch]),
        (
            torch.vmap(torch.func.grad(total))(batch),
            [torch.func.grad(total)(x) for x in batch],
        ),
    ):
        torch.testing.assert_close(value, torch.stack(by_hand), rtol=1e-12, atol=0.0)
    leaf = batch[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(batch[0]), expected, rtol=1e-12, atol=0.0)
