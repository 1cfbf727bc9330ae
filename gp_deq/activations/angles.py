"""Functions of the angle of a pair of pre-activations, those of the arc-cosine kernels."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from ..differentiation import in_their_places, one_gradient_at_a_time, pull_back
from .pair_covariance import PairCovariance, safe_sqrt


def angle(versine: Tensor) -> Tensor:
    r"""The angle :math:`\theta` of :math:`e = 1 - \cos\theta` in ``[0, 2]``.

    Its derivative :math:`1/\sin\theta` is taken as zero at the cusps :math:`\theta = 0, \pi`.
    """
    return _Angle.apply(versine)


def sine_excess(versine: Tensor) -> Tensor:
    r""":math:`S = \sin\theta - \theta\cos\theta` for :math:`e = 1 - \cos\theta`; ``dS/de = angle``.

    Nine terms of its Taylor series below :math:`\theta = 1`, where the difference cancels.
    """
    return _SineExcess.apply(versine)


class _Angle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, versine: Tensor) -> Tensor:
        ctx.save_for_backward(versine)
        return _polar(versine)[0]

    @staticmethod
    @one_gradient_at_a_time
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (versine,) = ctx.saved_tensors
        smooth = (versine > 0) & (versine < 2)
        sine = (torch.where(smooth, versine * (2 - versine), 1.0)).sqrt()
        return torch.where(smooth, grad / sine, 0.0)


def _polar(versine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Angle, sine and cosine to rounding; an arc cosine would lose the digits of small angles."""
    sine, cosine = (2 - versine).mul_(versine).sqrt_(), 1 - versine
    return torch.atan2(sine, cosine), sine, cosine


class _SineExcess(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, versine: Tensor) -> Tensor:
        ctx.save_for_backward(versine)
        return _excess(*_polar(versine))

    @staticmethod
    @one_gradient_at_a_time
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (versine,) = ctx.saved_tensors
        return grad * _Angle.apply(versine)


# S = sum_k (-1)^(k+1) 2k theta^(2k+1) / (2k+1)!, the first nine terms
_SINE_EXCESS_TERMS = [(-1) ** (k + 1) * 2 * k / math.factorial(2 * k + 1) for k in range(1, 10)]


def sine_excess_of_angle(theta: Tensor) -> Tensor:
    """``sin(theta) - theta * cos(theta)`` without cancellation."""
    return _SineExcessOfAngle.apply(theta)


class _SineExcessOfAngle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor) -> Tensor:
        ctx.save_for_backward(theta)
        return _excess(theta, theta.sin(), theta.cos())

    @staticmethod
    @one_gradient_at_a_time
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (theta,) = ctx.saved_tensors
        return grad * theta * theta.sin()


def _excess(theta: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """``sine - theta * cosine``, or its series; overwrites the cosine."""
    far = cosine.mul_(theta).neg_().add_(sine)
    square = theta.square()
    highest, *terms = (theta.new_tensor(term) for term in reversed(_SINE_EXCESS_TERMS))
    series = highest.expand(theta.shape).clone()
    for term in terms:
        torch.addcmul(term, series, square, out=series)
    series.mul_(square).mul_(theta)
    return torch.where(theta < 1, series, far, out=square)


@singledispatch
def bent_distance(
    pair: PairCovariance, linear_part: float, angular_part: float
) -> tuple[Tensor, Tensor]:
    r"""Squared distance :math:`Am - 2B\sqrt{v_1 v_2}\,S(\theta)`, and :math:`\theta` itself.

    Args:
        pair: Its derivatives with respect to ``vardiff`` are given to the variances of which it is
            the difference.
        linear_part: A.
        angular_part: B.

    Returns:
        Both ``... x n x m``.
    """
    return _BentDistance.apply(*pair, linear_part, angular_part)


class _BentDistance(torch.autograd.Function):
    r"""First derivatives in closed form.

    With :math:`s = \sqrt{v_1 v_2}` and :math:`e = 1 - \cos\theta`, whose derivatives are
    :math:`1/2s` with respect to m and :math:`(1 - e)/2v_1 - 1/2s` with respect to :math:`v_1`, the
    gradients of a function of the squared distance :math:`d` returned and of the angle are

    .. math::
        \partial_m = A \partial_d - M, \qquad
        \partial_{v_1} = M + \frac1{v_1} \Bigl(\frac{1 - e}{2\sin\theta} \partial_\theta -
        B s \sin\theta\, \partial_d\Bigr), \qquad
        M = B\theta\, \partial_d - \frac{\partial_\theta}{2 s \sin\theta} .
    """

    @staticmethod
    def forward(
        ctx: Any,
        var1: Tensor,
        var2: Tensor,
        sqdist: Tensor,
        vardiff: Tensor,
        linear_part: float,
        angular_part: float,
    ) -> tuple[Tensor, Tensor]:
        versine = _versine(PairCovariance(var1, var2, sqdist, vardiff))
        theta, sine, cosine = _polar(versine)
        result = _excess(theta, sine, cosine).mul_(-2 * angular_part)
        result.mul_(safe_sqrt(var1)).mul_(safe_sqrt(var2)).add_(sqdist, alpha=linear_part)
        ctx.parts = linear_part, angular_part
        ctx.save_for_backward(var1, var2, sqdist, vardiff, versine, theta, sine)
        ctx.set_materialize_grads(False)
        return result, theta

    @staticmethod
    @one_gradient_at_a_time
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        var1, var2, sqdist, vardiff, versine, theta, sine = ctx.saved_tensors
        inputs = (var1, var2, sqdist, vardiff)
        linear_part, angular_part = ctx.parts
        if torch.is_grad_enabled():

            def outputs(*pair: Tensor) -> tuple[Tensor, Tensor]:
                return _bent_distance(PairCovariance(*pair), linear_part, angular_part)

            needed = ctx.needs_input_grad[:4]
            found = pull_back(lambda *pair: (outputs(*pair), grads), inputs, needed)
            return *in_their_places(found, needed), None, None
        by_sqdist, by_theta = grads
        root1, root2 = safe_sqrt(var1), safe_sqrt(var2)
        both, each = torch.zeros_like(theta), torch.zeros_like(theta)
        if by_sqdist is not None:
            torch.mul(by_sqdist, theta, out=both).mul_(angular_part)
            torch.mul(by_sqdist, sine, out=each).mul_(root1).mul_(root2).mul_(-angular_part)
        if by_theta is not None:
            # the derivative of the angle is taken as zero at its cusps
            by_versine = sine.masked_fill(sine == 0, math.inf).reciprocal_().mul_(by_theta).div_(2)
            each.add_(by_versine).addcmul_(by_versine, versine, value=-1)
            both.sub_(by_versine.div_(root1).div_(root2))
        for root in (root1, root2):
            if bool((root == 0).any()):
                both.masked_fill_(root == 0, 0.0)
                each.masked_fill_(root == 0, 0.0)
        by_var1, by_var2 = (
            both.sum_to_size(var.shape)
            + each.sum_to_size(var.shape) / var.masked_fill(var == 0, 1.0)
            for var in (var1, var2)
        )
        both.neg_()
        if by_sqdist is not None:
            both.add_(by_sqdist, alpha=linear_part)
        return by_var1, by_var2, both, None, None, None


def _versine(pair: PairCovariance) -> Tensor:
    """:attr:`PairCovariance.versine` without a graph, in fewer passes unless a variance is zero."""
    root1, root2 = pair.var1.sqrt(), pair.var2.sqrt()
    if bool((root1 == 0).any()) or bool((root2 == 0).any()):
        return pair.versine
    gap = torch.div(pair.vardiff, root1 + root2).square_()
    return (pair.sqdist - gap).div_(2 * root1).div_(root2).clamp_(0.0, 2.0)


def _bent_distance(
    pair: PairCovariance, linear_part: float, angular_part: float
) -> tuple[Tensor, Tensor]:
    """:func:`bent_distance` with a graph; ``vardiff`` hands its derivatives to the variances."""
    difference = pair.var1 - pair.var2
    vardiff = pair.vardiff.detach() + (difference - difference.detach())
    pair = pair._replace(vardiff=vardiff)
    scale = safe_sqrt(pair.var1) * safe_sqrt(pair.var2)
    bend = 2 * angular_part * scale * sine_excess(pair.versine)
    return linear_part * pair.sqdist - bend, angle(pair.versine)
