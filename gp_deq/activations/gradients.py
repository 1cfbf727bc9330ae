"""Derivatives of elementwise functions by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def slopes(value: Tensor, *points: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of an elementwise function, without a graph; zero where it is constant.

    Args:
        value: Values of the function at the points, with a graph unless it is constant.
        *points: Its arguments, of the same shape.
    """
    if not value.requires_grad:
        return tuple(torch.zeros_like(point) for point in points)
    ones = torch.ones_like(value)
    return torch.autograd.grad(value, points, ones, allow_unused=True, materialize_grads=True)


def value_and_slope(fn: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
    """An elementwise function and its derivative, differentiable where ``points`` is."""
    keep = torch.is_grad_enabled() and points.requires_grad
    with torch.enable_grad():
        points = points if keep else points.detach().requires_grad_()
        value = fn(points)
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value.sum(), points, create_graph=keep)
        else:
            slope = torch.zeros_like(points)
    return (value, slope) if keep else (value.detach(), slope)
