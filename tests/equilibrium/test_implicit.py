"""Derivatives of roots and fixed points by the implicit function theorem."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gp_deq.equilibrium import implicit_fixed_point, implicit_root


def square_root(value: Tensor) -> Tensor:
    """The root of ``x * x = value``."""
    with torch.no_grad():
        root = value.sqrt()
    return implicit_root(root, lambda x, p: (x * x - p, 2 * x), value)


def test_derivatives_of_any_order() -> None:
    """Those of a square root, up to the fourth: 1/2, -1/4, 3/8, -15/16 times powers."""
    value = torch.tensor([0.3, 1.0, 5.0], dtype=torch.float64, requires_grad=True)
    current, factor, power = square_root(value).sum(), 1.0, 0.5
    for _ in range(4):
        (gradient,) = torch.autograd.grad(current, value, create_graph=True)
        factor, power = factor * power, power - 1
        torch.testing.assert_close(gradient, factor * value**power, rtol=1e-12, atol=0)
        current = gradient.sum()


def test_parameters_broadcast() -> None:
    """The root of ``x exp(x) = a b`` for a row and a column."""
    a = torch.rand(3, 1, dtype=torch.float64, requires_grad=True)
    b = torch.rand(1, 4, dtype=torch.float64, requires_grad=True)

    def solve(a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            root = a * b / 2
            for _ in range(60):
                root = root - (root - a * b * (-root).exp()) / (1 + root)
        return implicit_root(root, lambda x, a, b: (x * x.exp() - a * b, (1 + x) * x.exp()), a, b)

    assert gradcheck(solve, (a, b)) and gradgradcheck(solve, (a, b))


def test_only_what_is_needed() -> None:
    value = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    constant = torch.tensor([3.0], dtype=torch.float64)
    root = implicit_root(
        (value * constant).detach().sqrt(),
        lambda x, p, q: (x * x - p * q, 2 * x),
        value,
        constant,
    )
    (gradient,) = torch.autograd.grad(root, value)
    torch.testing.assert_close(gradient, (constant / value).sqrt().detach() / 2)


def test_batched_gradients() -> None:
    value = torch.rand(4, dtype=torch.float64).requires_grad_()
    jacobian = torch.autograd.functional.jacobian(square_root, value, vectorize=True)
    torch.testing.assert_close(jacobian, (0.5 / value.detach().sqrt()).diag())
    hessian = torch.autograd.functional.hessian(
        lambda x: square_root(x).sum(), value, vectorize=True
    )
    torch.testing.assert_close(hessian, (-0.25 * value.detach() ** -1.5).diag())


def test_linear_fixed_point() -> None:
    """``z = A z + p`` is a linear solve."""
    torch.manual_seed(0)
    matrix = (0.2 * torch.randn(3, 3, dtype=torch.float64)).requires_grad_()
    source = torch.randn(3, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(3, dtype=torch.float64)

    def layer(point: Tensor, matrix: Tensor, source: Tensor) -> Tensor:
        return matrix @ point + source

    def solve_adjoint(grad: Tensor, _: Tensor, matrix: Tensor, __: Tensor) -> Tensor:
        return torch.linalg.solve(eye - matrix.mT, grad)

    def point(matrix: Tensor, source: Tensor) -> Tensor:
        solved = torch.linalg.solve(eye - matrix, source).detach()
        return implicit_fixed_point(solved, layer, solve_adjoint, matrix, source)

    assert gradcheck(point, (matrix, source)) and gradgradcheck(point, (matrix, source))
