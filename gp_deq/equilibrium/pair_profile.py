r"""The pair map of a kernel that is a function of one angle, interpolated.

A kernel that is homogeneous of degree one in each injected input is

.. math:: K = \sqrt{b_{11} b_{22}}\, F(\theta_0), \qquad
    \cos\theta_0 = b_{12} / \sqrt{b_{11} b_{22}} ,

with one function F, its *profile*, for all pairs: as a dot-product kernel on the sphere is a
function of one correlation. F depends on hyperparameters alone. However much work it is, it is done
at a few angles only: a Chebyshev series through them gives F for all pairs, and another one its
derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..activations import exact_angle
from ..interpolation import chebyshev, chebyshev_series, chebyshev_sums, degree_of, tails
from .blockwise import Gradients, Needs, PairMap, Tensors
from .pair_angle import direction_distance, directions

#: Maps angles ``b x 1 x m`` and hyperparameters ``b x 1 x 1`` to values of F, ``b x 1 x m``, with a
#: graph.
Profile = Callable[..., Tensor]

#: Nodes of the interpolation, and the largest degree that is used: the coefficients of the last
#: quarter of the degrees show whether the series has converged.
_NODES = 96
_LARGEST_DEGREE = 72
#: Accuracy of slopes, relative to the sum of their coefficients, where the dtype has it. They are
#: interpolated from derivatives at the nodes, which lose some digits where F has a cusp.
_SLOPE_ACCURACY = 1e-11
#: Bounds of the sine of half the angle between which distances of unit vectors give the angle to
#: some roundings: the relative error of the sine is twenty units in the last place at the lower
#: one, and at the upper one the angle has four times the error of the sine.
_NEAR, _FAR = 0.05, 0.97


class Shape(NamedTuple):
    r"""In which variable a profile is smooth.

    With :math:`s = \tan(\theta_0/4)` in ``[0, 1]``, a profile that behaves like :math:`\theta_0^p`
    near zero, :math:`p = 2^{-k}`, is smooth in :math:`u = s^p`, and so is its derivative with
    respect to :math:`\cos\theta_0` times :math:`s^{1-p}\sin\theta_0`. The derivative of a profile
    without a cusp is smooth as it is. The variable of both series is :math:`2(1 + \kappa)u/(u +
    \kappa) - 1`: a knee :math:`\kappa` spreads out the part of the interval where they vary most,
    the lower one if it is positive, the upper one if it is less than minus one.

    Args:
        roots: ``k``, the number of square roots.
        cusp: Whether F has a cusp at zero.
        knee: :math:`\kappa`.
    """

    roots: int
    cusp: bool
    knee: float

    def tangent(self, variable: Tensor) -> Tensor:
        """:math:`s` of the variable of the series."""
        middle = (1 + variable) / 2
        return (self.knee * middle / (1 + self.knee - middle)) ** (2**self.roots)

    def power(self, tangent: Tensor) -> Tensor:
        """:math:`u` of :math:`s`."""
        for _ in range(self.roots):
            tangent = tangent.sqrt()
        return tangent

    def variable(self, power: Tensor) -> Tensor:
        """The variable of the series of :math:`u`."""
        return (power / (power + self.knee)).mul_(2 * (1 + self.knee)).sub_(1)


class _Known(NamedTuple):
    """Quantities of the inputs of one side, each ``b x n x ...``.

    Args:
        x: Scaled inputs.
        injected: Injected variances, with a graph.
        directions: Injected inputs, the bias being a coordinate of theirs, at half the unit length.
    """

    x: Tensor
    injected: Tensor
    directions: Tensor


class _Shared(NamedTuple):
    """The tensors that all pairs share.

    Args:
        bias: Bias variance, ``b x 1 x 1``.
        value: Coefficients of F, lowest first, ``b x 1 x (degree + 1)``, with a graph.
        slope: Coefficients of its derivative.
        identical: F of identical inputs, ``b x 1 x 1`` with a graph; None for the limit.
    """

    bias: Tensor
    value: Tensor
    slope: Tensor
    identical: Tensor | None


class PairProfile(PairMap):
    r"""Kernels that are a function of the angle of the injected inputs.

    The derivative with respect to :math:`b_{12}` is that of F with respect to the cosine,
    :math:`\kappa`, and :math:`2 b_{11} K_{b_{11}} = K - \kappa b_{12}` by Euler's theorem. Those
    with respect to the coefficients of the series are Chebyshev polynomials.

    Where no series of a reasonable degree has the accuracy of the dtype, :meth:`inputs` is None.

    Args:
        profile: F.
        shape: In which variable it is smooth.
        hyperparameters: The hyperparameters of F, ``b x 1 x 1``.
        bias_variance: ``b x 1 x 1``.
        identical: F of identical inputs, ``b x 1 x 1``, where it is not the limit of close ones;
            None where it is.
    """

    def __init__(
        self,
        profile: Profile,
        shape: Shape,
        hyperparameters: tuple[Tensor, ...],
        bias_variance: Tensor,
        identical: Tensor | None = None,
    ) -> None:
        self.shape = shape
        series = _interpolate(profile, shape, hyperparameters)
        self.converged = series is not None
        if series is not None:
            self.shared = _Shared(bias_variance, *series, identical)

    def inputs(self, x1: Tensor, x2: Tensor | None) -> tuple[_Known, _Known] | None:
        """See :meth:`PairMap.inputs`."""
        if not self.converged:
            return None
        bias = _Shared(*self.shared).bias
        sides = []
        for x in (x1,) if x2 is None else (x1, x2):
            injected = x.square().sum(-1, keepdim=True) + bias
            with torch.no_grad():
                unit = directions(x, injected, bias, 0.5)
            sides.append(_Known(x, injected, unit))
        return sides[0], sides[-1]

    def forward(
        self, one: Tensors, two: Tensors, shared: Tensors, pairs: Tensors = ()
    ) -> tuple[Tensor, Tensors]:
        """See :meth:`PairMap.forward`; kappa and the variable of the series are saved."""
        first, second, series = _Known(*one), _Known(*two), _Shared(*shared)
        tangent = self._tangent(first, second, series.bias)
        power = self.shape.power(tangent)
        variable = self.shape.variable(power)
        value = chebyshev_series(series.value, variable)
        slope = chebyshev_series(series.slope, variable)
        if self.shape.cusp:
            square = tangent.square()
            # s^(1 - p) sin(theta) = 4 s^(2 - p) (1 - s^2) / (1 + s^2)^2
            singular = 4 * square * (1 - square) / (power * (1 + square).square_())
            # the cusp's part of the derivative is taken as zero
            distinct = (1 - square) * tangent > torch.finfo(tangent.dtype).eps
            slope = torch.where(distinct, slope / singular, 0.0)
        if series.identical is not None:
            same = _coincide(first, second)
            value = torch.where(same, series.identical, value)
            slope.masked_fill_(same, 0.0)
        return value.mul_(first.injected.sqrt()).mul_(second.injected.sqrt().mT), (slope, variable)

    def vjp(
        self,
        upstream: Tensor,
        value: Tensor,
        saved: Tensors,
        one: Tensors,
        two: Tensors,
        shared: Tensors,
        needs: Needs,
        pairs: Tensors = (),
    ) -> Gradients:
        """See :meth:`PairMap.vjp`."""
        first, second, series = _Known(*one), _Known(*two), _Shared(*shared)
        kappa, variable = saved
        weighted, product = upstream * kappa, upstream * value

        def side(known: _Known, to: Tensor, weights: Tensor, products: Tensor) -> Tensors:
            along = (to * known.x).sum(-1, keepdim=True) + series.bias * weights
            twice = (2 * known.injected).masked_fill(known.injected == 0, math.inf)
            return to, (products - along) / twice, None

        # with a wide left factor: the thin products are several times slower
        to = (second.x.mT @ weighted.mT).mT
        by_one = side(first, to, weighted.sum(-1, True), product.sum(-1, True))
        if needs.only_one:
            return Gradients(by_one, [None] * 3, [None] * 4)
        to, weights = (first.x.mT @ weighted).mT, weighted.sum(-2).unsqueeze(-1)
        by_two = side(second, to, weights, product.sum(-2).unsqueeze(-1))
        by_bias = weights.sum(-2, True)
        scaled = torch.mul(upstream, first.injected.sqrt(), out=product)
        scaled.mul_(second.injected.sqrt().mT)
        by_identical = None
        if series.identical is not None:
            same = _coincide(first, second)
            by_identical = (scaled * same).sum((-2, -1), True)
            scaled.masked_fill_(same, 0.0)
        by_value = chebyshev_sums(scaled, variable, series.value.shape[-1])
        return Gradients(by_one, by_two, (by_bias, by_value, None, by_identical))

    def _tangent(self, first: _Known, second: _Known, bias: Tensor) -> Tensor:
        """The tangent of a quarter of the injected angles."""
        sine = direction_distance(first.directions, second.directions)
        if self.shape.cusp and sine.numel():
            # near a cusp all digits of the angle matter
            low, high = sine.aminmax()
            if float(low) < _NEAR or float(high) > _FAR:
                return exact_angle(first.x, second.x, bias).mul_(0.25).tan_()
        cosine = sine.square().neg_().add_(1).sqrt_()
        return sine.div_(cosine.add_(1))


def _interpolate(
    profile: Profile, shape: Shape, hyperparameters: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor] | None:
    """Coefficients of a profile, with a graph, and of its derivative with respect to the cosine.

    None where no polynomial of a reasonable degree has the accuracy.
    """
    like = hyperparameters[0]
    epsilon = torch.finfo(like.dtype).eps
    nodes, transform, _ = (value.to(like.device) for value in chebyshev(_NODES))
    tangent = shape.tangent(nodes)
    with torch.enable_grad():
        theta = (4 * tangent.atan()).repeat(like.shape[0], 1, 1).requires_grad_()
        values = profile(theta, *(value.double() for value in hyperparameters))
        (slopes,) = torch.autograd.grad(values.sum(), theta, retain_graph=True)
    if not any(value.requires_grad for value in hyperparameters):
        # the nodes are no variables
        values = values.detach()
    series = values @ transform
    # by the cosine, without the factor that is singular
    by_cosine = tangent ** (1 - 0.5**shape.roots) if shape.cusp else 1 / theta.detach().sin()
    slope_series = -(slopes * by_cosine) @ transform
    degree = _degree(series.detach(), 4 * epsilon)
    slope_degree = _degree(slope_series, max(_SLOPE_ACCURACY, 4 * epsilon))
    if degree is None or slope_degree is None:
        return None
    return (
        series[..., : degree + 1].to(like.dtype),
        slope_series[..., : slope_degree + 1].to(like.dtype),
    )


def _degree(series: Tensor, accuracy: float) -> int | None:
    """Degree beyond which all coefficients are negligible, if it is a reasonable one."""
    scale = series.abs().sum(-1, keepdim=True)
    degree = degree_of(tails(series, scale.masked_fill(scale == 0, 1.0)), accuracy)
    return None if degree is None or degree > _LARGEST_DEGREE else degree


def _coincide(first: _Known, second: _Known) -> Tensor:
    return torch.cdist(first.x, second.x, p=1.0) == 0
