"""The fixed point of a layer, and its derivatives by the implicit function theorem."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from torch import Tensor

from ..activations import Activation, GramPair, PairCovariance, sine_excess_of_angle
from .implicit import implicit_root
from .monitor import SolverMonitor
from .newton import newton

#: First Newton steps that need no bracket: the equations have one root, and their slopes are
#: between ``1 - w / w_critical`` and a small number.
_PLAIN_STEPS = 4
#: The same for angles: the equation is convex, and six steps from its leading terms suffice for
#: ``1 - w / w_critical`` down to 1e-12.
_PLAIN_ANGLE_STEPS = 8

#: Steps at equilibrium that give the quantities of a :class:`GramPair` their last digits; they
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
    return _solve_pair(injected, activation, weight_variance, var1, var2, vardiff, monitor)


@singledispatch
def _solve_pair(
    injected: PairCovariance,
    activation: Activation,
    weight_variance: Tensor,
    var1: Tensor,
    var2: Tensor,
    vardiff: Tensor,
    monitor: SolverMonitor,
) -> PairCovariance:
    """The covariance at equilibrium of a pair of one kind, given the variances there."""
    with torch.no_grad():
        solve = _solve_by_angle if activation.homogeneous else _solve_distance
        sqdist = solve(activation, weight_variance, injected, var1, var2, vardiff, monitor)

    def equation(
        sqdist: Tensor,
        weight: Tensor,
        source: Tensor,
        var1: Tensor,
        var2: Tensor,
        vardiff: Tensor,
    ) -> tuple[Tensor, Tensor]:
        pair = PairCovariance(var1, var2, sqdist, vardiff)
        dual, slope = activation.dual_and_derivative(pair)
        return sqdist - weight * dual.sqdist - source, 1 - weight * slope

    sqdist = implicit_root(sqdist, equation, weight_variance, injected.sqdist, var1, var2, vardiff)
    return PairCovariance(var1, var2, sqdist, vardiff)


@_solve_pair.register
def _solve_gram_pair(
    injected: GramPair,
    activation: Activation,
    weight_variance: Tensor,
    var1: Tensor,
    var2: Tensor,
    vardiff: Tensor,
    monitor: SolverMonitor,
) -> GramPair:
    r"""Solves for all that a pair carries.

    The unknown is :math:`G_{12}`, from which one layer makes the pair; then Newton steps move every
    quantity of the pair by what one layer would change it, divided by the common slope :math:`1 -
    wP`: so each gets the digits that the layer keeps.
    """
    with torch.no_grad():
        diagonal1, diagonal2 = activation.diagonal(var1), activation.diagonal(var2)
        change = activation.diagonal_difference(var1, var2, vardiff)
        total, scale = diagonal1 + diagonal2, diagonal1.sqrt() * diagonal2.sqrt()

        def pair_of(value: Tensor) -> GramPair:
            sqdist = (total - 2 * value).clamp_min(0.0)
            gram = (scale - value) * (scale + value)
            dual = GramPair(diagonal1, diagonal2, sqdist, change, value, gram)
            return dual.next_layer(weight_variance, injected)

        def residual(value: Tensor, accuracy: float | None) -> tuple[Tensor, Tensor]:
            dual, slope = activation.dual_and_derivative(pair_of(value))
            return value - dual.cov, 1 - weight_variance * slope

        start = activation.dual(injected).cov
        noise = rounding(activation, weight_variance)
        pair = pair_of(newton(residual, start, -scale, scale, scale, noise, monitor).point)
        for _ in range(_LAST_STEPS):
            dual, slope = activation.dual_and_derivative(pair)
            layer = dual.next_layer(weight_variance, injected)
            gap = 1 - weight_variance * slope
            sqdist = pair.sqdist + (layer.sqdist - pair.sqdist) / gap
            cov = pair.cov + (layer.cov - pair.cov) / gap
            gram = pair.gram + (layer.gram - pair.gram) / gap
            pair = GramPair(var1, var2, sqdist.clamp_min(0.0), vardiff, cov, gram.clamp_min(0.0))

    def equation(
        cov: Tensor, weight: Tensor, source: Tensor, var1: Tensor, var2: Tensor
    ) -> tuple[Tensor, Tensor]:
        solved = GramPair.of_covariance(var1, var2, cov, pair)
        dual, slope = activation.dual_and_derivative(solved)
        return cov - weight * dual.cov - source, 1 - weight * slope

    cov = implicit_root(pair.cov, equation, weight_variance, injected.cov, var1, var2)
    return GramPair.of_covariance(var1, var2, cov, pair)


def equilibrium_variance(
    activation: Activation, weight_variance: Tensor, injected: Tensor, monitor: SolverMonitor
) -> Tensor:
    r"""Solves :math:`v = w\, g(v) + b` elementwise, with derivatives of any order.

    Args:
        activation: Gives :math:`g`, its diagonal.
        weight_variance: :math:`w`, ``... x 1 x 1``.
        injected: Injected variances :math:`b`, of a shape that broadcasts with it.
        monitor: Collects the record of the solve.
    """
    if activation.homogeneous:
        return injected / contraction(activation, weight_variance)
    with torch.no_grad():
        variance = solve_variance(activation, weight_variance, injected, monitor)

    def equation(variance: Tensor, weight: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = activation.diagonal_and_slope(variance)
        return variance - weight * value - source, 1 - weight * slope

    return implicit_root(variance, equation, weight_variance, injected)


def solve_variance(
    activation: Activation, weight_variance: Tensor, injected: Tensor, monitor: SolverMonitor
) -> Tensor:
    r"""The variances of :func:`equilibrium_variance` without a graph, for any activation.

    :math:`\sqrt v` lies between :math:`\sqrt b` and :math:`(\sqrt w |\varphi(0)| + \sqrt b)/(1 -
    \sqrt{w/w_{\text{critical}}})`, since :math:`\sqrt{g(v)} \le |\varphi(0)| +
    \sqrt{v/w_{\text{critical}}}`.
    """
    at_zero = activation.diagonal(injected.new_zeros(1, 1)).sqrt()
    root = weight_variance.sqrt()
    growth = root * activation.critical_weight_variance**-0.5
    upper = (root * at_zero + injected.sqrt()) / (1 - growth)
    lower = injected.expand(upper.shape)

    def equation(variance: Tensor, _: float | None) -> tuple[Tensor, Tensor]:
        value, slope = activation.diagonal_and_slope(variance)
        return variance - weight_variance * value - injected, 1 - weight_variance * slope

    start = injected + weight_variance * activation.diagonal(lower)
    noise = rounding(activation, weight_variance)
    return newton(
        equation, start, lower, upper.square(), start, noise, monitor, plain_steps=_PLAIN_STEPS
    ).point


def attach_variance(
    variance: Tensor, dual: Tensor, slope: Tensor, weight_variance: Tensor, injected: Tensor
) -> Tensor:
    r"""Variances with derivatives of first order, from what is known of the diagonal there.

    Args:
        variance: The result of :func:`solve_variance`.
        dual: :math:`g(v)`.
        slope: :math:`g'(v)`.
        weight_variance: :math:`w`, ``... x 1 x 1``.
        injected: Injected variances.
    """

    def equation(variance: Tensor, weight: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        return variance - weight * dual - source, 1 - weight.detach() * slope

    return implicit_root(variance, equation, weight_variance, injected)


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

    def equation(sqdist: Tensor, accuracy: float | None) -> tuple[Tensor, Tensor]:
        value, slope = activation.expectations(features1, features2, sqdist, accuracy)
        step = sqdist - lower - total + 2 * weight_variance * value
        return step, 1 - weight_variance * slope

    injected_total = injected.var1 + injected.var2
    start = lower * ((var1 + var2) / injected_total.masked_fill(injected_total == 0, 1.0))
    noise = rounding(activation, weight_variance)
    sqdist = newton(equation, start, lower, upper, var1 + var2, noise, monitor).point
    for _ in range(2):
        pair = PairCovariance(var1, var2, sqdist, vardiff)
        step = sqdist - lower - weight_variance * activation.dual(pair).sqdist
        sqdist = sqdist - step / (1 - weight_variance * activation.derivative_dual(pair))
        sqdist = torch.minimum(torch.maximum(sqdist, lower), upper)
    return sqdist


def _solve_by_angle(
    activation: Activation,
    weight_variance: Tensor,
    injected: PairCovariance,
    var1: Tensor,
    var2: Tensor,
    vardiff: Tensor,
    monitor: SolverMonitor,
) -> Tensor:
    """The same for homogeneous activations, where one angle describes a pair."""
    gap = contraction(activation, weight_variance)
    bend = weight_variance * activation.angular_part
    sine = solve_angle((injected.versine / 2).sqrt(), gap, bend, monitor)
    root1, root2 = var1.sqrt(), var2.sqrt()
    total = root1 + root2
    radial = (vardiff / total.masked_fill(total == 0, 1.0)).square()
    degenerate = (root1 == 0) | (root2 == 0)
    return torch.where(degenerate, var1 + var2, radial + 4 * root1 * root2 * sine.square())


def solve_angle(
    sine0: Tensor, gap: Tensor, bend: Tensor, monitor: SolverMonitor, start: Tensor | None = None
) -> Tensor:
    r"""The angles of pairs at the equilibrium of a homogeneous activation, without a graph.

    Variances scale out, and with :math:`t = \sin(\theta/2)` and :math:`S = \sin\theta -
    \theta\cos\theta` the equation for the squared distances becomes

    .. math:: (1 - A)(t^2 - t_0^2) + \tfrac B2 S(\theta) = 0 .

    The left side is increasing and convex in :math:`t^2`.

    Args:
        sine0: ``t0``, that of the injected input.
        gap: :math:`1 - A = 1 - w/w_{\text{critical}}`, ``... x 1 x 1``.
        bend: :math:`B = w\,` ``activation.angular_part``, ``... x 1 x 1``.
        monitor: Collects the record of the solve; steps are relative to the start.
        start: First points; the smaller of ``t0`` and the root of the leading terms for small
            angles if None.

    Returns:
        ``t``, accurate in relative terms.
    """
    if start is None:
        leading = (6 * gap * sine0.square() / bend.masked_fill(bend == 0, 1.0)).pow(1 / 3)
        leading = torch.where(bend == 0, math.pi, leading.clamp_max(math.pi))
        start = torch.minimum(sine0, (leading / 2).sin())

    def equation(sine: Tensor, _: float | None) -> tuple[Tensor, Tensor]:
        theta = sine.asin().mul_(2)
        value = (sine - sine0).mul_(sine + sine0).mul_(gap)
        value.addcmul_(sine_excess_of_angle(theta), bend, value=0.5)
        slope = theta.mul_(bend).add_(gap).mul_(sine).mul_(2)
        return value, slope.add_(torch.finfo(sine.dtype).tiny)

    epsilon = torch.finfo(start.dtype).eps
    noise = 16 * epsilon / float(gap.min()) if gap.numel() else 0.0
    zero = torch.zeros_like(start)
    upper = sine0.expand(start.shape)
    return newton(
        equation, start, zero, upper, start, noise, monitor, plain_steps=_PLAIN_ANGLE_STEPS
    ).point
