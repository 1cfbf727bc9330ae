"""The pair map of an equilibrium of any activation, by squared distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..activations import Activation, squared_distance
from ..interpolation import chebyshev
from .blockwise import Gradients, Needs, PairMap, Tensors
from .fixed_point import attach_variance, contraction, rounding, solve_variance
from .monitor import SolverMonitor
from .newton import newton
from .read_out import Layer, ReadOut

#: Newton steps without a bracket before the safeguarded iteration takes over.
_PLAIN_STEPS = 8
#: Accuracies to which the first of them need the expectations: a step squares the error that is
#: left, and the start is good to two digits.
_ACCURACIES = {1: 1e-4, 2: 1e-9}
#: Nodes of the polynomials from which they start, and steps to fit these.
_START_NODES, _START_STEPS = 6, 3
#: Variance above which ``P`` of an activation without bounds shows that squared distances are
#: rounded: its error between close inputs grows like the root of the variance, and at this one it
#: uses up the bound on tangent kernels, 64 units in the last place.
_LARGE_VARIANCE = 2.0**16


class _Known(NamedTuple):
    """Quantities of the inputs of one side, each ``b x n x ...``.

    Args:
        x: Scaled inputs.
        variance: Variances at equilibrium, with a graph.
        root: Their roots.
        injected: Injected variances.
        features: The features of the activation at the variances.
        dual: :math:`g(v)`.
        start: Coefficients of the first point of Newton's iteration; None for a simpler one.
    """

    x: Tensor
    variance: Tensor
    root: Tensor
    injected: Tensor
    features: Tensor
    dual: Tensor
    start: Tensor | None


class PairDistance(PairMap):
    r"""DEQ kernels of any activation, the tangent kernels of a smooth one, in squared distances.

    Newton's method solves :math:`m - m_b - w(g(v_1) + g(v_2) - 2 G(m)) = 0`, bracketed by
    :math:`m_b` and :math:`m_b/(1 - w/w_{\text{critical}})`. With the covariance :math:`b_{12} =
    \langle z_1, z_2\rangle + \beta` of the injected input the derivatives of the kernel K are
    :math:`\kappa = \partial K/\partial b_{12}` and, at fixed :math:`b_{12}`, those with respect to
    the variances and to w; for DEQ-NNGP :math:`\kappa = P/(1 - wP)`, :math:`K_{v_1} =
    G_{v_1}/(1 - wP)` and :math:`K_w = \kappa K`.

    Args:
        activation: Gives the expectations.
        read_out: The kernel of a layer at equilibrium.
        uses_slope: Whether it depends on ``P``, which is then a smooth one.
        monitor: Collects the record of the solves.
        weight_variance: ``b x 1 x 1``.
        bias_variance: ``b x 1 x 1``.
    """

    def __init__(
        self,
        activation: Activation,
        read_out: Callable[[Layer], ReadOut],
        uses_slope: bool,
        monitor: SolverMonitor,
        weight_variance: Tensor,
        bias_variance: Tensor,
    ) -> None:
        self.activation, self.read_out, self.uses_slope = activation, read_out, uses_slope
        self.monitor = monitor
        self.shared = (weight_variance, bias_variance)
        self.noise = rounding(activation, weight_variance)

    def inputs(self, x1: Tensor, x2: Tensor | None) -> tuple[_Known, _Known] | None:
        """See :meth:`PairMap.inputs`."""
        points = (x1,) if x2 is None else (x1, x2)
        activation, (weight, bias) = self.activation, self.shared
        injected = [x.square().sum(-1, keepdim=True) + bias for x in points]
        with torch.no_grad():
            # both sides in one solve; batches of a model repeat its training inputs, whose
            # variances are solved for once
            distinct = torch.cat(injected, -2)
            places: Any = ...
            if weight.shape[0] == 1 < x1.shape[0] and not activation.closed_form:
                distinct, index = distinct.unique(return_inverse=True)
                distinct, places = distinct.reshape(1, -1, 1), (0, index.squeeze(-1))
            variance = solve_variance(activation, weight, distinct, self.monitor)
            if self.uses_slope and not bool((variance <= _LARGE_VARIANCE).all()):
                return None
            columns = (
                variance,
                activation.features(variance),
                *activation.diagonal_and_slope(variance),
            )
            lengths = [x.shape[-2] for x in points]
            parts = zip(*(column[places].split(lengths, -2) for column in columns), strict=True)
        sides = []
        for x, source, (variance, features, dual, slope) in zip(
            points, injected, parts, strict=True
        ):
            attached = attach_variance(variance, dual, slope, weight, source)
            root = variance.sqrt()
            sides.append(_Known(x, attached, root, source.detach(), features, dual, None))
        # a fit for each input pays where each has many partners, and expectations are not cheap
        pairs = lengths[0] * lengths[-1]
        if not activation.closed_form and pairs > _START_NODES**2 * sum(lengths):
            with torch.no_grad():
                sides = [side._replace(start=self._fit_start(side)) for side in sides]
        return sides[0], sides[-1]

    def _fit_start(self, known: _Known) -> Tensor:
        """Correlation at equilibrium of two inputs of equal variance, as a polynomial in theirs.

        Returns:
            Coefficients for each input, ``b x n x 1 x p``.
        """
        nodes, transform, monomials = (x.to(known.x) for x in chebyshev(_START_NODES))
        features, weight = known.features.unsqueeze(-2), self.shared[0].unsqueeze(-1)
        variance = known.variance.unsqueeze(-1).clamp_min(torch.finfo(nodes.dtype).tiny)
        square = known.dual.unsqueeze(-1)
        same = features.expand(*features.shape[:-2], _START_NODES, -1)
        lower = 2 * known.injected.unsqueeze(-1) * (1 - nodes)
        sqdist = 2 * variance * (1 - nodes)
        for _ in range(_START_STEPS):
            value, slope = self.activation.expectations(features, same, sqdist, _ACCURACIES[1])
            change = sqdist - lower - 2 * weight * (square - value)
            sqdist = (sqdist - change / (1 - weight * slope)).clamp_min(0.0)
        return (1 - sqdist / (2 * variance)) @ transform @ monomials

    def _start(self, first: _Known, second: _Known, lower: Tensor, total: Tensor) -> Tensor:
        """Squared distances from which Newton's method starts."""
        tiny = torch.finfo(total.dtype).tiny
        injected = (first.injected + second.injected.mT).clamp_min_(tiny)
        if first.start is None or second.start is None:
            # the injected squared distance, scaled as the variances are
            return lower * (total / injected)
        scale = (first.injected.sqrt() * second.injected.sqrt().mT).clamp_min_(tiny)
        correlation = (injected - lower).div_(scale).mul_(0.5)
        rows = first.start.unbind(-1)
        columns = second.start.transpose(-2, -3).unbind(-1)
        result = torch.zeros_like(lower)
        for row, column in zip(reversed(rows), reversed(columns), strict=True):
            result.mul_(correlation).add_(row).add_(column)
        # the mean of both polynomials, times twice the product of the roots
        return total - result * (first.root * second.root.mT)

    def forward(
        self, one: Tensors, two: Tensors, shared: Tensors, pairs: Tensors = ()
    ) -> tuple[Tensor, Tensors]:
        """See :meth:`PairMap.forward`; what is saved are kappa and, for tangent kernels, m."""
        first, second = _Known(*one), _Known(*two)
        weight, _ = shared
        lower = squared_distance(first.x, second.x)
        widest = (first.root + second.root.mT).square_()
        upper = torch.minimum(lower / contraction(self.activation, weight), widest)
        total = first.variance + second.variance.mT
        constant = weight * (first.dual + second.dual.mT) + lower

        def equation(sqdist: Tensor, accuracy: float | None) -> tuple[Tensor, ...]:
            dual, slope = self.activation.expectations(
                first.features, second.features, sqdist, accuracy
            )
            value = (sqdist - constant).addcmul_(dual, 2 * weight)
            return value, (slope * -weight).add_(1), dual, slope

        sqdist, change, (_, gap, dual, slope) = newton(
            equation,
            self._start(first, second, lower, total),
            lower,
            upper,
            # not the variances, which a large bias makes much larger than any distance
            constant,
            self.noise,
            self.monitor,
            plain_steps=_PLAIN_STEPS,
            accuracies=_ACCURACIES,
        )
        # the last step moved the covariance by minus half of its change
        dual.addcmul_(slope, change, value=-0.5)
        if not self.uses_slope:
            read = self.read_out(Layer(dual, slope, weight))
            return read.value, (slope.div_(gap),)
        curvature = self.activation.curvature(first.features, second.features, sqdist)
        slope.addcmul_(curvature, change, value=-0.5)
        inverse = torch.mul(slope, -weight, out=gap).add_(1).reciprocal_()
        cov = total.sub_(sqdist).mul_(0.5)
        read = self.read_out(Layer(dual, slope, weight, cov, inverse))
        return read.value, (read.along_cov(slope, curvature).mul_(inverse), sqdist)

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
        first, second = _Known(*one), _Known(*two)
        weight, bias = shared
        kappa, *rest = saved
        weighted = upstream * kappa
        by_dual = weight * weighted
        if self.uses_slope:
            sqdist = rest[0]
            given = first.features, second.features, sqdist
            dual, slope = self.activation.expectations(*given)
            inverse = (slope * -weight).add_(1).reciprocal_()
            cov = (first.variance + second.variance.mT).sub_(sqdist).mul_(0.5)
            read = self.read_out(Layer(dual, slope, weight, cov, inverse))
            assert read.by_slope is not None and read.by_weight is not None
            if read.by_dual is not None:
                by_dual.addcmul_(upstream, read.by_dual)
            by_slope = upstream * read.by_slope
            by_weight = (upstream * read.by_weight).addcmul_(weighted, dual)
            by_variance = [
                (by_dual * one).addcmul_(by_slope, other)
                for one, other in zip(
                    self.activation.variance_slopes(*given),
                    self.activation.derivative_variance_slopes(*given),
                    strict=True,
                )
            ]
        else:
            # m from the equation's two sides; a difference may be less than zero by rounding
            sqdist = (first.x @ second.x.mT + bias).addcmul_(value, weight).mul_(-2)
            sqdist.add_(first.variance + second.variance.mT).clamp_min_(0.0)
            by_dual.add_(upstream)
            by_weight = weighted * value
            given = first.features, second.features, sqdist
            by_variance = [by_dual * slope for slope in self.activation.variance_slopes(*given)]
        # with a wide left factor: the thin products are several times slower
        by_one = (second.x.mT @ weighted.mT).mT, by_variance[0].sum(-1, True), *[None] * 5
        if needs.only_one:
            return Gradients(by_one, [None] * 7, [None] * 2)
        by_two = (first.x.mT @ weighted).mT, by_variance[1].sum(-2).unsqueeze(-1), *[None] * 5
        by_shared = by_weight.sum((-2, -1), True), weighted.sum((-2, -1), True)
        return Gradients(by_one, by_two, by_shared)
