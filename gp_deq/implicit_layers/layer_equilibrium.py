"""The equilibrium of any differentiable layer, with derivatives of first and second order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from ..equilibrium import implicit_fixed_point
from .autocast import without_autocast

#: Finds the fixed point of a map from a first point; the flag says whether it is an adjoint's.
Solver = Callable[[Callable[[Tensor], Tensor], Tensor, bool], Tensor]


def layer_equilibrium(
    layer: Callable[..., Tensor], start: Tensor, solve: Solver, *parameters: Tensor
) -> Tensor:
    r"""Solves :math:`z = F(z; p)` and attaches its derivatives.

    The backward pass solves the adjoint equation :math:`u = g + J^\top u`, :math:`J = \partial_z
    F`, by the same method, and the backward pass of that solves :math:`v = h + Jv`.

    Args:
        layer: :math:`F`; maps the point and the parameters to a tensor of the point's shape, and
            must be differentiable twice for second derivatives.
        start: First point.
        solve: The method.
        *parameters: :math:`p`.

    Returns:
        The equilibrium.
    """
    layer = without_autocast(layer)

    def adjoint_layer(u: Tensor, grad: Tensor, point: Tensor, *parameters: Tensor) -> Tensor:
        return grad + _transposed_jacobian(layer, point, parameters)(u)

    @without_autocast
    def solve_adjoint(grad: Tensor, point: Tensor, *parameters: Tensor) -> Tensor:
        def solved(grad: Tensor) -> Tensor:
            with torch.no_grad():
                multiply = _transposed_jacobian(
                    layer, point.detach(), parameters, differentiable=False
                )
                adjoint = solve(lambda u: grad + multiply(u), grad, True)
            if not torch.is_grad_enabled():
                return adjoint
            return implicit_fixed_point(
                adjoint, adjoint_layer, solve_second_adjoint, grad, point, *parameters
            )

        return _as_one_operation(solved, grad)

    @without_autocast
    def solve_second_adjoint(
        grad: Tensor, u: Tensor, first_grad: Tensor, point: Tensor, *parameters: Tensor
    ) -> Tensor:
        def solved(grad: Tensor) -> Tensor:
            with torch.no_grad():
                multiply = _jacobian(layer, point.detach(), parameters)
                return solve(lambda v: grad + multiply(v), grad, True)

        return _as_one_operation(solved, grad)

    with torch.no_grad():
        point = solve(lambda z: layer(z, *parameters), start, False)
    return implicit_fixed_point(point, layer, solve_adjoint, *parameters)


def _transposed_jacobian(
    layer: Callable[..., Tensor],
    point: Tensor,
    parameters: tuple[Tensor, ...],
    differentiable: bool = True,
) -> Callable[[Tensor], Tensor]:
    """Multiplies by the transposed Jacobian of a layer with respect to its point."""
    with torch.enable_grad():
        if not point.requires_grad:
            point = point.detach().requires_grad_()
        if not differentiable:
            parameters = tuple(parameter.detach() for parameter in parameters)
        value = layer(point, *parameters)

    def multiply(u: Tensor) -> Tensor:
        return torch.autograd.grad(value, point, u, retain_graph=True, create_graph=differentiable)[
            0
        ]

    return multiply


def _jacobian(
    layer: Callable[..., Tensor], point: Tensor, parameters: tuple[Tensor, ...]
) -> Callable[[Tensor], Tensor]:
    """Multiplies by the Jacobian: the transpose of a map that is linear in ``u``."""
    with torch.enable_grad():
        u = torch.zeros_like(point).requires_grad_()
        transposed = _transposed_jacobian(layer, point, tuple(p.detach() for p in parameters))(u)

    def multiply(v: Tensor) -> Tensor:
        return torch.autograd.grad(transposed, u, v, retain_graph=True)[0]

    return multiply


_RUNNING: dict[int, Callable[[Tensor], Tensor]] = {}
_KEYS = count()
_LIBRARY = torch.library.Library("gp_deq", "FRAGMENT")
_LIBRARY.define("call(Tensor argument, int key) -> Tensor")


@torch.library.impl(_LIBRARY, "call", "CompositeImplicitAutograd")
def _call(argument: Tensor, key: int) -> Tensor:
    return _RUNNING[key](argument)


def _as_one_operation(fn: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
    """Calls a function as one operation of torch.

    Batched gradients (``is_grads_batched``, ``vectorize=True``) can neither trace a loop whose
    length depends on the data nor differentiate through an ``autograd.Function``. An operation
    without a batching rule they call once for each gradient.

    Args:
        fn: Any function of a tensor.
        argument: Its argument, which may be a batch of gradients in disguise; no other tensor that
            ``fn`` depends on may be one.
    """
    key = next(_KEYS)
    _RUNNING[key] = fn
    try:
        found: Tensor = torch.ops.gp_deq.call(argument, key)
        return found
    finally:
        del _RUNNING[key]
