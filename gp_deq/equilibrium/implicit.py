"""Derivatives of roots and fixed points by the implicit function theorem, of any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def implicit_root(
    root: Tensor, function: Callable[..., tuple[Tensor, Tensor]], *parameters: Tensor
) -> Tensor:
    r"""Attaches :math:`dx = -\partial_p f\, dp / \partial_x f` to roots of :math:`f(x; p) = 0`.

    Args:
        root: The roots, solved without a graph; each entry has its own equation.
        function: Maps the roots and the parameters to values and slopes (by the root), both of the
            shape of ``root`` and differentiable.
        *parameters: Tensors that broadcast with ``root``.

    Returns:
        The same roots, differentiable any number of times.
    """
    return _ImplicitRoot.apply(root, function, *parameters)


class _ImplicitRoot(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        root: Tensor,
        function: Callable[..., tuple[Tensor, Tensor]],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.function = function
        result = root.clone()
        ctx.save_for_backward(result, *parameters)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        root, *parameters = ctx.saved_tensors
        if not torch.is_grad_enabled():
            root = root.detach()

        def equation(*leaves: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = ctx.function(root, *leaves)
            return value, -grad / slope

        return None, None, *_pull_back(equation, parameters, ctx.needs_input_grad[2:])


def implicit_fixed_point(
    point: Tensor,
    layer: Callable[..., Tensor],
    solve_adjoint: Callable[..., Tensor],
    *parameters: Tensor,
) -> Tensor:
    r"""Attaches :math:`dz = (I - J)^{-1} \partial_p F\, dp` to a fixed point :math:`z = F(z; p)`.

    Args:
        point: The fixed point, solved without a graph.
        layer: :math:`F`, maps the point and the parameters to a tensor of the point's shape.
        solve_adjoint: Maps a gradient ``g``, the point and the parameters to :math:`(I -
            J^\top)^{-1} g`, where :math:`J = \partial_z F`. For second derivatives it must be
            differentiable.
        *parameters: Tensors.

    Returns:
        The same point, with derivatives.
    """
    return _ImplicitFixedPoint.apply(point, layer, solve_adjoint, *parameters)


class _ImplicitFixedPoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        point: Tensor,
        layer: Callable[..., Tensor],
        solve_adjoint: Callable[..., Tensor],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.layer, ctx.solve_adjoint = layer, solve_adjoint
        result = point.clone()
        ctx.save_for_backward(result, *parameters)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        point, *parameters = ctx.saved_tensors
        adjoint = ctx.solve_adjoint(grad, point, *parameters)
        if not torch.is_grad_enabled():
            point = point.detach()

        def equation(*leaves: Tensor) -> tuple[Tensor, Tensor]:
            return ctx.layer(point, *leaves), adjoint

        return None, None, None, *_pull_back(equation, parameters, ctx.needs_input_grad[3:])


def _pull_back(
    equation: Callable[..., tuple[Tensor, Tensor]],
    parameters: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients with respect to the parameters, themselves differentiable where grad is enabled.

    Args:
        equation: Maps parameters to a value and to the gradient that enters it.
        parameters: Where to evaluate it.
        needed: Which of them want a gradient; None is returned for the others.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        # aliases stop the differentiation at the function's own arguments
        if differentiable:
            leaves = [tensor.view_as(tensor) for tensor in parameters]
        else:
            leaves = [
                tensor.detach().requires_grad_(need)
                for tensor, need in zip(parameters, needed, strict=True)
            ]
        value, gradient = equation(*leaves)
        wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                value,
                wanted,
                gradient,
                create_graph=differentiable,
                allow_unused=True,
                materialize_grads=True,
            )
        )
    return [next(found) if need else None for need in needed]
