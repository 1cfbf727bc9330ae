r"""Matrices of kernels that are a function of one angle, interpolated.

A kernel that is homogeneous of degree one in each injected input is the product of
:math:`\sqrt{b_{11} b_{22}}` and a profile :math:`F(\theta_0)` of the angle of the injected inputs,
which depends on hyperparameters alone. However much work F is, it is done at a few angles only: a
Chebyshev series through them gives F for all pairs, and another one its derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..activations.injected import exact_angle
from .chebyshev import chebyshev
from .homogeneous import HomogeneousSolver
from .pairwise import Block, take
from .solution import Gradients, Side, Slopes

#: Maps angles ``b x 1 x m`` and hyperparameters ``b x 1 x 1`` to values of F, ``b x 1 x m``, with a
#: graph.
Profile = Callable[..., Tensor]

#: Nodes of the interpolation, and the largest degree of a polynomial that is used.
_NODES = 96
_LARGEST_DEGREE = 72
#: Accuracy of slopes, relative to their largest, where the dtype has it.
_SLOPE_ACCURACY = 1e-11
#: Bounds of the sine of half the angle between which unit vectors give it to rounding.
_NEAR, _FAR = 0.05, 0.97


class ProfileFit(NamedTuple):
    r"""A profile and its slope as Chebyshev series.

    With :math:`s = \tan(\theta_0/4)` in ``[0, 1]``, a profile that behaves like :math:`\theta_0^p`
    near zero, :math:`p = 2^{-k}`, is smooth in :math:`u = s^p`, and so is its derivative by
    :math:`\cos\theta_0` times :math:`s^{1-p}\sin\theta_0`. That of a profile without a cusp is
    smooth as it is. The variable of both is :math:`2(1 + \kappa)u/(u + \kappa) - 1`: a knee
    :math:`\kappa` spreads out the part of the interval where they vary most, the lower one if it is
    positive, the upper one if it is less than minus one.

    Args:
        value: Coefficients of F, lowest first, ``b x 1 x (degree + 1)``, with a graph.
        slope: Those of its derivative.
        roots: ``k``, the number of square roots.
        cusp: Whether F has a cusp at zero.
        knee: :math:`\kappa`.
        given: The hyperparameters, leaves of the graph.
    """

    value: Tensor
    slope: Tensor
    roots: int
    cusp: bool
    knee: float
    given: tuple[Tensor, ...]


def fit_profile(
    profile: Profile, hyperparameters: tuple[Tensor, ...], roots: int, cusp: bool, knee: float
) -> ProfileFit | None:
    """Interpolates a profile to rounding; None if no polynomial of a reasonable degree does.

    Args:
        profile: F.
        hyperparameters: ``b x 1 x 1``.
        roots: See :class:`ProfileFit`.
        cusp: See :class:`ProfileFit`.
        knee: See :class:`ProfileFit`.
    """
    like = hyperparameters[0]
    epsilon = torch.finfo(like.dtype).eps
    nodes, transform, _ = (value.to(like.device) for value in chebyshev(_NODES))
    middle = (1 + nodes) / 2
    tangent = (knee * middle / (1 + knee - middle)) ** (2**roots)
    with torch.enable_grad():
        given = tuple(value.detach().clone().requires_grad_() for value in hyperparameters)
        theta = (4 * tangent.atan()).repeat(like.shape[0], 1, 1).requires_grad_()
        values = profile(theta, *(value.double() for value in given))
        (slopes,) = torch.autograd.grad(values.sum(), theta, retain_graph=True)
        series = values @ transform
        degree = _degree(series.detach(), 4 * epsilon)
        # by the cosine, without what is singular
        by_cosine = tangent ** (1 - 0.5**roots) if cusp else 1 / theta.detach().sin()
        slope_series = -(slopes * by_cosine) @ transform
        slope_degree = _degree(slope_series, max(_SLOPE_ACCURACY, 4 * epsilon))
        if degree is None or slope_degree is None:
            return None
        value = series[..., : degree + 1].to(like.dtype)
    slope = slope_series[..., : slope_degree + 1].to(like.dtype)
    return ProfileFit(value, slope, roots, cusp, knee, given)


def _degree(series: Tensor, accuracy: float) -> int | None:
    """Degree beyond which all coefficients are negligible."""
    if series.numel() == 0:
        return None
    scale = series.abs().sum(-1, keepdim=True)
    sizes = (series.abs() / scale.masked_fill(scale == 0, 1.0)).flatten(0, -2)
    if not bool(sizes.isfinite().all()):
        return None
    tails = sizes.amax(0).flip(0).cummax(0).values.flip(0).tolist()
    return next((k for k in range(1, _LARGEST_DEGREE + 1) if tails[k + 1] <= accuracy), None)


class ProfileSolver(HomogeneousSolver):
    """Kernel matrices by the series of a profile.

    Args:
        fit: The series.
        identical: F of identical inputs, ``b x 1 x 1`` with a graph from ``fit.given``, where it is
            not the limit of close ones; else None.
        x1: Scaled inputs, ``b x n x d``.
        x2: Scaled inputs, ``b x m x d``; None for ``x1``.
        bias_variance: ``b x 1 x 1``.
    """

    def __init__(
        self,
        fit: ProfileFit,
        identical: Tensor | None,
        x1: Tensor,
        x2: Tensor | None,
        bias_variance: Tensor,
    ) -> None:
        super().__init__(bias_variance)
        self.fit, self.identical = fit, identical
        self.side1 = self._side(x1)
        self.side2 = self.side1 if x2 is None else self._side(x2)

    def _side(self, x: Tensor) -> Side:
        injected, features = self.directions(x, 0.5)
        return Side(x, injected, injected, injected.sqrt(), features)

    def solve(self, block: Block) -> tuple[Tensor, Slopes]:
        """See :meth:`BlockSolver.solve`."""
        along, down, across = block
        side1, side2 = self.side1.take(along, down), self.side2.take(along, across)
        tangent = self._tangent(block)
        power = tangent
        for _ in range(self.fit.roots):
            power = power.sqrt()
        knee = self.fit.knee
        variable = (power / (power + knee)).mul_(2 * (1 + knee)).sub_(1)
        value = _polynomial(take(self.fit.value.detach(), along), variable)
        slope = _polynomial(take(self.fit.slope, along), variable)
        if self.fit.cusp:
            square = tangent.square()
            # s^(1 - p) sin(theta) = 4 s^(2 - p) (1 - s^2) / (1 + s^2)^2
            singular = 4 * square * (1 - square) / (power * (1 + square).square_())
            distinct = (1 - square) * tangent > torch.finfo(tangent.dtype).eps
            slope = torch.where(distinct, slope / singular, 0.0)
        if self.identical is not None:
            same = self._same(block)
            value = torch.where(same, take(self.identical.detach(), along), value)
            slope.masked_fill_(same, 0.0)
        return value.mul_(side1.root).mul_(side2.root.mT), Slopes(slope, variable)

    def _tangent(self, block: Block) -> Tensor:
        """The tangent of a quarter of the injected angles."""
        along, down, across = block
        side1, side2 = self.side1.take(along, down), self.side2.take(along, across)
        sine = torch.cdist(
            side1.features, side2.features, compute_mode="donot_use_mm_for_euclid_dist"
        ).clamp_(max=1.0)
        if self.fit.cusp and sine.numel():
            # near a cusp all digits of the angle matter
            low, high = sine.aminmax()
            if float(low) < _NEAR or float(high) > _FAR:
                bias = take(self.bias_variance, along)
                return exact_angle(side1.x, side2.x, bias).mul_(0.25).tan_()
        cosine = sine.square().neg_().add_(1).sqrt_()
        return sine.div_(cosine.add_(1))

    def _same(self, block: Block) -> Tensor:
        along, down, across = block
        return torch.cdist(self.side1.x[along, down], self.side2.x[along, across], p=1.0) == 0

    def pull_back(
        self,
        block: Block,
        upstream: Tensor,
        weighted: Tensor,
        value: Tensor,
        slopes: Slopes,
        only_first: bool,
    ) -> Gradients:
        """Gradients by the coefficients: weighted sums of Chebyshev polynomials."""
        product = upstream * value
        by_row = product.sum(-1, keepdim=True)
        if only_first:
            return Gradients(by_row, by_row, by_row)
        by_column = product.sum(-2).unsqueeze(-1)
        along, down, across = block
        variable = slopes.other
        assert variable is not None
        weights = torch.mul(upstream, self.side1.root[along, down], out=product)
        weights.mul_(self.side2.root[along, across].mT)
        moments = []
        if self.identical is not None:
            same = self._same(block)
            moments.append((weights * same).sum((-2, -1)))
            weights.masked_fill_(same, 0.0)
        # the recurrence of the Chebyshev polynomials, each times the weights
        double = variable * 2
        before, current = weights, weights * variable
        moments += [before.sum((-2, -1)), current.sum((-2, -1))]
        for _ in range(self.fit.value.shape[-1] - 2):
            before.neg_().addcmul_(double, current)
            before, current = current, before
            moments.append(current.sum((-2, -1)))
        return Gradients(by_row, by_column, torch.stack(moments, -1).unsqueeze(-2))

    def injected_gradient(self, side: Side, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """The variances are the injected ones."""
        return grad, None

    def hyperparameter_gradients(self, moments: Tensor) -> tuple[Tensor, ...]:
        """From those by the coefficients, through the profile at its nodes."""
        outputs = [self.fit.value]
        if self.identical is not None:
            outputs.insert(0, self.identical)
        pieces = moments.split([output.shape[-1] for output in outputs], -1)
        return torch.autograd.grad(
            outputs,
            self.fit.given,
            [p.sum_to_size(output.shape) for p, output in zip(pieces, outputs, strict=True)],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )


def _polynomial(coefficients: Tensor, variable: Tensor) -> Tensor:
    """A Chebyshev series of degree one at least, by Clenshaw's recurrence."""
    constant, *terms = coefficients.split(1, -1)
    double = variable * 2
    current = torch.zeros_like(variable).add_(terms[-1])
    after = torch.zeros_like(variable)
    for term in terms[-2::-1]:
        torch.sub(term, after, out=after).addcmul_(double, current)
        current, after = after, current
    return torch.sub(constant, after, out=after).addcmul_(variable, current)
