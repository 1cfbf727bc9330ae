"""The fixed point of a layer, and its derivatives by the implicit function theorem."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..activations import Activation, PairCovariance
from ..activations.angles import angle, sine_excess_of_angle
from ..activations.detailed_pair import from_covariance, layer_of
from ..activations.pair_covariance import DetailedPair
from ..activations.piecewise_linear import LeakyReLU
from .implicit import implicit_root
from .newton import newton
from .report import SolverMonitor

#: Steps at equilibrium that give the quantities of a :class:`DetailedPair` their last digits; they
#: converge quadratically, from the solver's tolerance.
_LAST_STEPS = 3


def equilibrium(
    activation: Activation,
    weight_variance: Tensor,
    injected: PairCovariance,
    monitor: SolverMonitor | None = None,
) -> PairCovariance:
    r"""Solves :math:`\Sigma = w\, G(\Sigma) + b` for all pairs.

    First each variance, :math:`v = w g(v) + b`; then, the variances being given, one scalar
    equation a pair, :math:`m = w\, m_G(m) + m_b` in squared distances. Both are solved without a
    graph and then differentiated implicitly, so that memory and the cost of the backward pass do
    not depend on the number of steps; all orders of derivatives are right.

    Args:
        activation: Its expectations are the layer.
        weight_variance: :math:`w`, ``... x 1 x 1``, below ``activation.critical_weight_variance``.
        injected: Covariance :math:`b` of the injected input.
        monitor: Collects the record of the solves.

    Returns:
        The covariance :math:`\Sigma` of the pre-activations.
    """
    monitor = monitor or SolverMonitor()
    var1 = equilibrium_variance(activation, weight_variance, injected.var1, monitor)
    var2 = equilibrium_variance(activation, weight_variance, injected.var2, monitor)
    vardiff = _equilibrium_vardiff(activation, weight_variance, injected, var1, var2)
    if isinstance(injected, DetailedPair):
        return _equilibrium_in_detail(
            activation, weight_variance, injected, (var1, var2, vardiff), monitor
        )
    with torch.no_grad():
        solve = _solve_angle if isinstance(activation, LeakyReLU) else _solve_distance
        sqdist = solve(activation, weight_variance, injected, var1, var2, vardiff, monitor)
    sqdist = _ImplicitDistance.apply(
        sqdist, activation, weight_variance, injected.sqdist, var1, var2, vardiff
    )
    return PairCovariance(var1, var2, sqdist, vardiff)


def equilibrium_variance(
    activation: Activation, weight_variance: Tensor, injected: Tensor, monitor: SolverMonitor
) -> Tensor:
    r"""Solves :math:`v = w\, g(v) + b` elementwise: :math:`b / (1 - wg(1))` where homogeneous.

    In general :math:`\sqrt v` lies between :math:`\sqrt b` and :math:`(\sqrt w |\varphi(0)| +
    \sqrt b)/(1 - \sqrt{w/w_{\text{critical}}})`, since :math:`\sqrt{g(v)} \le |\varphi(0)| +
    \sqrt{v/w_{\text{critical}}}`.
    """
    if activation.homogeneous:
        return injected / contraction(activation, weight_variance)
    with torch.no_grad():
        at_zero = activation.diagonal(injected.new_zeros(1, 1)).sqrt()
        root = weight_variance.sqrt()
        growth = root * activation.critical_weight_variance**-0.5
        upper = (root * at_zero + injected.sqrt()) / (1 - growth)
        lower = injected.expand(upper.shape)

        def excess(variance: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = activation.diagonal_and_slope(variance)
            return variance - weight_variance * value - injected, 1 - weight_variance * slope

        start = injected + weight_variance * activation.diagonal(lower)
        variance = newton(
            excess,
            start,
            lower,
            upper.square(),
            start,
            rounding(activation, weight_variance),
            monitor,
            plain_steps=4,
        )
    return _ImplicitVariance.apply(variance, activation, weight_variance, injected)


def contraction(activation: Activation, weight_variance: Tensor) -> Tensor:
    r""":math:`1 - w / w_{\text{critical}}`, without cancellation."""
    critical = activation.critical_weight_variance
    return (critical - weight_variance) / critical


def rounding(activation: Activation, weight_variance: Tensor) -> float:
    """Size of a Newton step that rounding of the equation alone makes, relative to variances.

    It is a few units in the last place over ``1 - w / w_critical``, the equation's least slope.
    """
    if weight_variance.numel() == 0:
        return 0.0
    epsilon = torch.finfo(weight_variance.dtype).eps
    return 16 * epsilon / float(contraction(activation, weight_variance.detach()).min())


def _equilibrium_vardiff(
    activation: Activation,
    weight_variance: Tensor,
    injected: PairCovariance,
    var1: Tensor,
    var2: Tensor,
) -> Tensor:
    r"""The difference :math:`v_1 - v_2`, with the relative precision of the injected difference.

    It is the injected difference over one minus :math:`w` times the divided difference of g.
    """
    if activation.homogeneous:
        return injected.vardiff / contraction(activation, weight_variance)
    with torch.no_grad():
        difference = var1 - var2
        distinct = difference != 0
        change = activation.diagonal_difference(var1, var2, difference)
        quotient = change / torch.where(distinct, difference, 1.0)
        slope = torch.where(distinct, quotient, activation.diagonal_slope(var1))
        exact = injected.vardiff / (1 - weight_variance * slope)
    # the derivative is that of the difference of the two variances
    difference = var1 - var2
    return difference + (exact - difference).detach()


def _equilibrium_in_detail(
    activation: Activation,
    weight_variance: Tensor,
    injected: DetailedPair,
    variances: tuple[Tensor, Tensor, Tensor],
    monitor: SolverMonitor,
) -> DetailedPair:
    r"""Solves :math:`\Sigma = w\, G(\Sigma) + b` for all that a pair carries.

    The unknown is :math:`G_{12}`, from which one layer makes the pair (:func:`layer_of`); then
    Newton steps move every quantity of the pair by what one layer would change it, divided by the
    common slope :math:`1 - wP`: so each gets the digits that the layer keeps.
    """
    var1, var2, vardiff = variances
    with torch.no_grad():
        diagonal1, diagonal2 = activation.diagonal(var1), activation.diagonal(var2)
        change = activation.diagonal_difference(var1, var2, vardiff)
        total, scale = diagonal1 + diagonal2, diagonal1.sqrt() * diagonal2.sqrt()

        def pair_of(value: Tensor) -> DetailedPair:
            dual = PairCovariance(diagonal1, diagonal2, (total - 2 * value).clamp_min(0.0), change)
            gram = (scale - value) * (scale + value)
            opposite = (total + 2 * value).clamp_min(0.0)
            return layer_of(weight_variance, DetailedPair(dual, value, opposite, gram), injected)

        def excess(value: Tensor) -> tuple[Tensor, Tensor]:
            dual, slope = activation.dual_and_derivative(pair_of(value))
            return value - dual.cov, 1 - weight_variance * slope

        start = activation.dual(injected).cov
        noise = rounding(activation, weight_variance)
        pair = pair_of(newton(excess, start, -scale, scale, scale, noise, monitor))
        for _ in range(_LAST_STEPS):
            dual, slope = activation.dual_and_derivative(pair)
            assert isinstance(dual, DetailedPair)
            inverse = 1 / (1 - weight_variance * slope)
            layer = layer_of(weight_variance, dual, injected)
            sqdist, cov, opposite, gram = (
                old + (new - old) * inverse
                for old, new in zip(_details(pair), _details(layer), strict=True)
            )
            pair = DetailedPair(
                PairCovariance(var1, var2, sqdist.clamp_min(0.0), vardiff),
                cov,
                opposite.clamp_min(0.0),
                gram.clamp_min(0.0),
            )

    def equation(
        cov: Tensor, weight_variance: Tensor, injected: Tensor, var1: Tensor, var2: Tensor
    ) -> tuple[Tensor, Tensor]:
        dual, slope = activation.dual_and_derivative(from_covariance(var1, var2, cov, pair))
        return cov - weight_variance * dual.cov - injected, 1 - weight_variance * slope

    cov = implicit_root(pair.cov, equation, weight_variance, injected.cov, var1, var2)
    return from_covariance(var1, var2, cov, pair)


def _details(pair: DetailedPair) -> tuple[Tensor, ...]:
    return pair.sqdist, pair.cov, pair.opposite, pair.gram


def _solve_distance(
    activation: Activation,
    weight_variance: Tensor,
    injected: PairCovariance,
    var1: Tensor,
    var2: Tensor,
    vardiff: Tensor,
    monitor: SolverMonitor,
) -> Tensor:
    r"""Solves :math:`m = w\, m_G(m) + m_b` for the squared distances m.

    The root lies between :math:`m_b` and the smaller of :math:`m_b / (1 -
    w/w_{\text{critical}})` and :math:`(\sqrt{v_1} + \sqrt{v_2})^2`. Two last steps use the squared
    distance in its form without cancellation, which makes the relative error as small as the
    absolute one.
    """
    lower = injected.sqdist
    widest = (var1.sqrt() + var2.sqrt()).square()
    upper = torch.minimum(lower / contraction(activation, weight_variance), widest)
    features1, features2 = activation.features(var1), activation.features(var2.mT)
    total = weight_variance * (activation.diagonal(var1) + activation.diagonal(var2))

    def excess(sqdist: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = activation.expectations(features1, features2, sqdist)
        step = sqdist - lower - total + 2 * weight_variance * value
        return step, 1 - weight_variance * slope

    injected_total = injected.var1 + injected.var2
    start = lower * ((var1 + var2) / injected_total.masked_fill(injected_total == 0, 1.0))
    noise = rounding(activation, weight_variance)
    scale = var1 + var2
    sqdist = newton(excess, start, lower.expand(start.shape), upper, scale, noise, monitor)
    for _ in range(2):
        pair = PairCovariance(var1, var2, sqdist, vardiff)
        step = sqdist - lower - weight_variance * activation.dual(pair).sqdist
        sqdist = sqdist - step / (1 - weight_variance * activation.derivative_dual(pair))
        sqdist = torch.minimum(torch.maximum(sqdist, lower), upper)
    return sqdist


def _solve_angle(
    activation: Activation,
    weight_variance: Tensor,
    injected: PairCovariance,
    var1: Tensor,
    var2: Tensor,
    vardiff: Tensor,
    monitor: SolverMonitor,
) -> Tensor:
    r"""The same for homogeneous activations, where one angle describes a pair.

    Variances scale out, and with :math:`e = 1 - \cos\theta`

    .. math:: (1 - A)(e - e_0) + B S(\theta) = 0, \qquad
        A = w\tfrac{1+n^2}2, \quad B = w\tfrac{(1-n)^2}{2\pi},

    where :math:`e_0` is that of the injected input. The left side is increasing and convex in
    :math:`e`. Newton starts from the smaller of :math:`e_0` and the root of the leading terms for
    small angles, from where six steps suffice for :math:`1 - A` down to 1e-12.
    """
    assert isinstance(activation, LeakyReLU)
    gap = contraction(activation, weight_variance)
    bend = weight_variance * activation.angular_part
    versine0 = injected.versine
    cubic = (3 * gap * versine0 / bend.masked_fill(bend == 0, 1.0)).pow(1 / 3)
    cubic = torch.where(bend == 0, math.pi, cubic.clamp_max(math.pi))
    start = torch.minimum(versine0, 2 * (cubic / 2).sin().square())

    def excess(versine: Tensor) -> tuple[Tensor, Tensor]:
        theta = angle(versine)
        value = gap * (versine - versine0) + bend * sine_excess_of_angle(theta)
        return value, gap + bend * theta

    zero = torch.zeros_like(start)
    noise = rounding(activation, weight_variance)
    upper = versine0.expand(start.shape)
    versine = newton(excess, start, zero, upper, versine0, noise, monitor)
    root1, root2 = var1.sqrt(), var2.sqrt()
    total = root1 + root2
    radial = (vardiff / total.masked_fill(total == 0, 1.0)).square()
    degenerate = (root1 == 0) | (root2 == 0)
    return torch.where(degenerate, var1 + var2, radial + 2 * root1 * root2 * versine)


class _ImplicitVariance(torch.autograd.Function):
    r"""Attaches :math:`dv = (g\,dw + db) / (1 - w g'(v))` to a solved variance."""

    @staticmethod
    def forward(
        ctx: Any,
        variance: Tensor,
        activation: Activation,
        weight_variance: Tensor,
        injected: Tensor,
    ) -> Tensor:
        ctx.activation = activation
        result = variance.clone()
        ctx.shapes = weight_variance.shape, injected.shape
        ctx.save_for_backward(result, weight_variance)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, Tensor]:
        variance, weight_variance = ctx.saved_tensors
        weight_shape, injected_shape = ctx.shapes
        adjoint = grad / (1 - weight_variance * ctx.activation.diagonal_slope(variance))
        grad_weight = (adjoint * ctx.activation.diagonal(variance)).sum_to_size(weight_shape)
        return None, None, grad_weight, adjoint.sum_to_size(injected_shape)


class _ImplicitDistance(torch.autograd.Function):
    r"""Attaches the derivatives of the root of :math:`m = w\, m_G(m; v_1, v_2) + m_b`.

    They are those of the right side at fixed ``m``, divided by :math:`1 - wP`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        sqdist: Tensor,
        activation: Activation,
        weight_variance: Tensor,
        injected: Tensor,
        var1: Tensor,
        var2: Tensor,
        vardiff: Tensor,
    ) -> Tensor:
        ctx.activation = activation
        result = sqdist.clone()
        ctx.save_for_backward(result, weight_variance, injected, var1, var2, vardiff)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sqdist, *inputs = ctx.saved_tensors
        _, _, var1, var2, vardiff = inputs
        slope = ctx.activation.derivative_dual(PairCovariance(var1, var2, sqdist, vardiff))
        adjoint = grad / (1 - inputs[0] * slope)
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            # aliases stop the differentiation at this layer's own arguments
            if differentiable:
                leaves = [tensor.view_as(tensor) for tensor in inputs]
            else:
                leaves = [tensor.detach() for tensor in inputs]
            leaves = [leaf if leaf.requires_grad else leaf.requires_grad_() for leaf in leaves]
            weight_variance, injected, var1, var2, vardiff = leaves
            pair = PairCovariance(
                var1, var2, sqdist if differentiable else sqdist.detach(), vardiff
            )
            layer = weight_variance * ctx.activation.dual(pair).sqdist + injected
            grads = torch.autograd.grad(
                layer, leaves, adjoint, create_graph=differentiable, allow_unused=True
            )
        return None, None, *grads
