"""Derivatives of roots and fixed points by the implicit function theorem, of any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..differentiation import in_their_places, one_gradient_at_a_time, pull_back


def implicit_root(
    root: Tensor, function: Callable[..., tuple[Tensor, Tensor]], *parameters: Tensor
) -> Tensor:
    r"""Attaches :math:`dx = -\partial_p f\, dp / \partial_x f` to roots of :math:`f(x; p) = 0`.

    Args:
        root: The roots, solved without a graph; each entry has its own equation.
        function: Maps the roots and the parameters to values and slopes (derivatives with respect
            to the root), both of the shape of ``root`` and differentiable.
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
    @one_gradient_at_a_time
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        solved, *parameters = ctx.saved_tensors
        root, needed = _constant_unless_differentiated(solved), ctx.needs_input_grad[2:]

        def equation(*leaves: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = ctx.function(root, *leaves)
            return value, -grad / slope

        return None, None, *in_their_places(pull_back(equation, parameters, needed), needed)


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
    @one_gradient_at_a_time
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        solved, *parameters = ctx.saved_tensors
        point, needed = _constant_unless_differentiated(solved), ctx.needs_input_grad[3:]

        adjoint = ctx.solve_adjoint(grad, solved, *parameters)

        def equation(*leaves: Tensor) -> tuple[Tensor, Tensor]:
            return ctx.layer(point, *leaves), adjoint

        return None, None, None, *in_their_places(pull_back(equation, parameters, needed), needed)


def _constant_unless_differentiated(point: Tensor) -> Tensor:
    return point if torch.is_grad_enabled() else point.detach()
