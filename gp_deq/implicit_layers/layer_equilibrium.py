"""The equilibrium of any differentiable layer, with derivatives of first and second order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..equilibrium.implicit import implicit_fixed_point

#: Finds the fixed point of a map from a first point; the flag says whether it is an adjoint's.
Solver = Callable[[Callable[[Tensor], Tensor], Tensor, bool], Tensor]


def layer_equilibrium(
    layer: Callable[..., Tensor], start: Tensor, solve: Solver, *parameters: Tensor
) -> Tensor:
    r"""Solves :math:`z = F(z; p)` and attaches its derivatives.

    The backward pass solves the adjoint :math:`u = g + J^\top u`, :math:`J = \partial_z F`, in the
    same way, and second derivatives its own adjoint :math:`v = h + Jv`.

    Args:
        layer: :math:`F`; maps the point and the parameters to a tensor of the point's shape, and
            must be differentiable twice for second derivatives.
        start: First point.
        solve: The method.
        *parameters: :math:`p`.

    Returns:
        The equilibrium.
    """

    def adjoint_layer(u: Tensor, grad: Tensor, point: Tensor, *parameters: Tensor) -> Tensor:
        return grad + _products(layer, point, parameters)(u)

    def solve_adjoint(grad: Tensor, point: Tensor, *parameters: Tensor) -> Tensor:
        with torch.no_grad():
            products = _products(layer, point.detach(), parameters, differentiable=False)
            adjoint = solve(lambda u: grad + products(u), grad, True)
        if not torch.is_grad_enabled():
            return adjoint
        return implicit_fixed_point(adjoint, adjoint_layer, solve_tangent, grad, point, *parameters)

    def solve_tangent(
        rate: Tensor, u: Tensor, grad: Tensor, point: Tensor, *parameters: Tensor
    ) -> Tensor:
        with torch.no_grad():
            products = _tangent_products(layer, point.detach(), parameters)
            return solve(lambda v: rate + products(v), rate, True)

    with torch.no_grad():
        point = solve(lambda z: layer(z, *parameters), start, False)
    return implicit_fixed_point(point, layer, solve_adjoint, *parameters)


def _products(
    layer: Callable[..., Tensor],
    point: Tensor,
    parameters: tuple[Tensor, ...],
    differentiable: bool = True,
) -> Callable[[Tensor], Tensor]:
    """Multiplies by the transposed Jacobian."""
    with torch.enable_grad():
        if not point.requires_grad:
            point = point.detach().requires_grad_()
        if not differentiable:
            parameters = tuple(parameter.detach() for parameter in parameters)
        value = layer(point, *parameters)

    def product(u: Tensor) -> Tensor:
        return torch.autograd.grad(value, point, u, retain_graph=True, create_graph=differentiable)[
            0
        ]

    return product


def _tangent_products(
    layer: Callable[..., Tensor], point: Tensor, parameters: tuple[Tensor, ...]
) -> Callable[[Tensor], Tensor]:
    """Multiplies by the Jacobian: the transpose of a map that is linear in ``u``."""
    with torch.enable_grad():
        u = torch.zeros_like(point).requires_grad_()
        transposed = _products(layer, point, tuple(p.detach() for p in parameters))(u)

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(transposed, u, v, retain_graph=True)[0]

    return product
