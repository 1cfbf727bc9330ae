r"""The pair map of an equilibrium of a homogeneous activation, by angles.

A pair is two variances and the angle :math:`\theta` of its pre-activations. With :math:`t =
\sin(\theta/2)`, ``t0`` that of the injected input, :math:`A = w\,` ``linear_part``, :math:`B = w\,`
``angular_part`` (see :class:`~gp_deq.activations.Activation`) and :math:`S(\theta) = \sin\theta -
\theta\cos\theta`, one equation gives the angle:

.. math:: (1 - A)(t^2 - t_0^2) + \tfrac B2 S(\theta) = 0 .

Its derivative is :math:`2t(1 - wP)`, :math:`1 - wP = 1 - A + B\theta`. So the angle is a function
of ``t0`` alone, which is solved for at a few nodes and interpolated for all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import settings
from ..activations import Activation, safe_sqrt, sine_excess_of_angle, squared_distance
from ..interpolation import chebyshev, degree_of, polynomial, tails
from .blockwise import Gradients, Needs, PairMap, Tensors, distance_gradients
from .fixed_point import contraction, solve_angle
from .monitor import SolverMonitor
from .read_out import Layer, ReadOut
from .versines import Versines

#: Nodes of the interpolation. From 40 coefficients a Newton step costs less than more of them.
_NODES = 40
#: Terms of a polynomial that cost as much as a Newton step, measured on blocks in cache.
_TERMS_OF_A_STEP = 36
#: Reach at which both variables of :class:`AngleSeries` need the same degree for float64's
#: accuracy, 27; that of ReLU at a weight variance of 1.78.
_NEAR_CRITICAL = 0.45
#: Sine of half the angle beyond which it is computed from the opposite input: there a unit in the
#: last place of the sine is four of the angle's.
_NEAR_ANTIPODAL = 0.97


class AngleSeries(NamedTuple):
    r"""The solution ``t`` for all ``t0``, as a polynomial for each batch.

    It is smooth but for two places outside of ``[0, 1]``. One is :math:`t_0 = 1/c`, :math:`c^{-2} =
    1 + \pi B/(2(1 - A))`, where :math:`\theta = \pi`: the square root :math:`Y = \sqrt{1 - T^2}` of
    :math:`T = c t_0` takes it away. The other is at about :math:`-(1 - A)`, beyond which
    :math:`t/t_0` falls like :math:`t_0^{-1/3}`: hence the rational variable :math:`T / (T +
    k(1 + Y))`, :math:`k = \frac32(1 - A)`. Close to the critical weight variance the second
    dominates, and :math:`(1 + t_0/k)^{-1/4}` takes it away better. The quotient ``t / T`` is a
    polynomial in this variable mapped to ``[-1, 1]``.

    Args:
        gap: :math:`1 - A`, as the other fields ``b x 1 x 1``.
        bend: :math:`B`.
        coefficients: Coefficients of the polynomial, lowest first, ``b x 1 x (degree + 1)``.
        reach: ``c``.
        crossover: ``k``.
        middle: Middle of the range of the variable.
        half: Half of that range.
        near_critical: Which of the variables.
    """

    gap: Tensor
    bend: Tensor
    coefficients: Tensor
    reach: Tensor
    crossover: Tensor
    middle: Tensor
    half: Tensor
    near_critical: Tensor

    def evaluate(self, scaled: Tensor, kinds: frozenset[bool]) -> Tensor:
        """``t`` of :math:`T = c t_0`.

        Args:
            scaled: ``T``, ``b x n x m``.
            kinds: The values of ``near_critical``.
        """
        if True in kinds:
            near = scaled * (1 / (self.crossover * self.reach))
            variable = near.add_(1).sqrt_().rsqrt_()
        if False in kinds:
            far = scaled.square().neg_().add_(1).sqrt_().add_(1).mul_(self.crossover).add_(scaled)
            torch.div(scaled, far, out=far)
            variable = torch.where(self.near_critical, variable, far) if len(kinds) > 1 else far
        variable.sub_(self.middle).mul_(1 / self.half)
        return polynomial(self.coefficients, variable).mul_(scaled).clamp_(0.0, 1.0)


class AngleFit(NamedTuple):
    """The series, and what was found of it.

    Args:
        series: The series.
        kinds: The values of its ``near_critical``.
        refine: Whether Newton steps for each pair are still needed.
        iterations: Number of Newton steps at the nodes.
        error: Relative error of the series.
    """

    series: AngleSeries
    kinds: frozenset[bool]
    refine: bool
    iterations: int
    error: float


@lru_cache(maxsize=256)
def fit_angle(
    gaps: tuple[float, ...],
    bends: tuple[float, ...],
    dtype: torch.dtype,
    tolerance: float,
    max_iterations: int,
) -> AngleFit:
    """Interpolates the solution, to the accuracy of a dtype if a polynomial has it.

    Args:
        gaps: :math:`1 - A` of each batch.
        bends: :math:`B` of each batch.
        dtype: The series is for this one.
        tolerance: ``settings.solver_tolerance``, on which the solution at the nodes depends.
        max_iterations: ``settings.max_solver_iterations``, likewise.
    """
    nodes, transform, monomials = chebyshev(_NODES)
    gap = torch.tensor(gaps, dtype=torch.float64).reshape(-1, 1, 1)
    bend = torch.tensor(bends, dtype=torch.float64).reshape(-1, 1, 1)
    reach = (1 + math.pi / 2 * bend / gap).rsqrt()
    crossover = 1.5 * gap
    near = reach < _NEAR_CRITICAL
    top = (1 - reach.square()).sqrt() + 1
    least = torch.where(near, (1 + 1 / crossover) ** -0.25, 0.0)
    largest = torch.where(near, 1.0, reach / (reach + crossover * top))
    middle, half = (least + largest) / 2, (largest - least) / 2
    variable = middle + half * nodes
    # T/(1 + Y) is the tangent of half the angle whose sine is T
    rational = (2 * (crossover * variable / (1 - variable)).atan()).sin() / reach
    sine0 = torch.where(near, crossover * (variable**-4 - 1), rational).clamp(1e-12, 1.0)
    monitor = SolverMonitor()
    epsilon = torch.finfo(dtype).eps
    solved = solve_angle(sine0, gap, bend, monitor)
    quotient = solved / (sine0 * reach)
    series = quotient @ transform
    sizes = tails(series, quotient.amin(-1, keepdim=True))
    # the coefficients carry a few roundings; an error that is smaller than the root of what a
    # Newton step reaches is one that the step takes away
    degree = degree_of(sizes, 4 * epsilon)
    refine = degree is None
    if degree is None:
        degree = degree_of(sizes, min(math.sqrt(epsilon), tolerance)) or _TERMS_OF_A_STEP
    coefficients = series[..., : degree + 1] @ monomials[: degree + 1, : degree + 1]
    # powers cancel: this many roundings are left, beside the 1/(1 - A) of the equation itself
    roundings = coefficients.abs().sum(-1, keepdim=True) / quotient.amin(-1, keepdim=True) * gap
    refine = refine or bool((roundings > 16).any())
    values = (gap, bend, coefficients, reach, crossover, middle, half)
    report = monitor.report()
    error = max(report.residual if not report.converged else 0.0, sizes[degree + 1])
    return AngleFit(
        AngleSeries._make([*(value.to(dtype) for value in values), near]),
        frozenset(near.flatten().tolist()) or frozenset({False}),
        refine,
        report.iterations,
        error,
    )


class _Known(NamedTuple):
    """Quantities of the inputs of one side, each ``b x n x ...``.

    Args:
        x: Scaled inputs.
        root: Roots of the variances at equilibrium, with a graph.
        directions: Injected inputs, the bias being a coordinate of theirs, at half the length at
            which their distance is the variable of the series.
    """

    x: Tensor
    root: Tensor
    directions: Tensor


class PairAngle(PairMap):
    r"""DEQ kernels of a homogeneous activation, by the angle of each pair.

    With the covariance :math:`b_{12} = \langle z_1, z_2\rangle + \beta` of the injected input and
    the roots :math:`r` of the variances at equilibrium, the kernel K is homogeneous of degree one
    in :math:`(b_{12}, r_1)`. Its derivatives are :math:`\kappa = \partial K/\partial b_{12}`, by
    Euler's theorem :math:`K_{r_1} = (K - \kappa b_{12})/r_1`, and that with respect to w; for
    DEQ-NNGP :math:`\kappa = P/(1 - wP)` and :math:`K_w = \kappa K`.

    Args:
        activation: Gives the constants.
        read_out: The kernel of a layer at equilibrium.
        uses_slope: Whether it depends on ``P``.
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
        with torch.no_grad():
            gaps = contraction(activation, weight_variance).flatten().tolist()
            bends = (weight_variance * activation.angular_part).flatten().tolist()
        dtype = weight_variance.dtype
        self.fit = fit_angle(
            tuple(gaps),
            tuple(bends),
            dtype,
            tolerance := settings.solver_tolerance.value(dtype),
            settings.max_solver_iterations.value(),
        )
        error = torch.tensor(0.0 if self.fit.refine else self.fit.error)
        monitor.record(self.fit.iterations, error, tolerance)
        series = (value.to(weight_variance.device) for value in self.fit.series)
        self.shared = (weight_variance, bias_variance, *series)
        self.biased = bool((bias_variance > 0).all())

    def inputs(self, x1: Tensor, x2: Tensor | None) -> tuple[_Known, _Known]:
        """See :meth:`PairMap.inputs`."""
        weight, bias, *series = self.shared
        gap = contraction(self.activation, weight)
        sides = []
        for x in (x1,) if x2 is None else (x1, x2):
            injected = x.square().sum(-1, keepdim=True) + bias
            with torch.no_grad():
                scaled = directions(x, injected, bias, AngleSeries(*series).reach / 2)
            variance = injected / gap
            # without a bias an input may be zero, and the root has no derivative there
            root = variance.sqrt() if self.biased else safe_sqrt(variance)
            sides.append(_Known(x, root, scaled))
        return sides[0], sides[-1]

    def forward(
        self, one: Tensors, two: Tensors, shared: Tensors, pairs: Tensors = ()
    ) -> tuple[Tensor, Tensors]:
        """See :meth:`PairMap.forward`; kappa is saved and, for tangent kernels, ``K_w``."""
        first, second = _Known(*one), _Known(*two)
        weight, _, *constants = shared
        series = AngleSeries(*constants)
        sine, cosine, theta = self._angle(
            series, direction_distance(first.directions, second.directions)
        )
        if self.uses_slope and sine.numel() and float(sine.amax()) > _NEAR_ANTIPODAL:
            sine, cosine, theta = _near_antipodal(first, second, series, sine, cosine, theta)
        return self._of_angle(series, weight, sine, cosine, theta, first.root, second.root.mT)

    def _angle(self, series: AngleSeries, scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sine and cosine of half the angle at equilibrium, and the angle, of :math:`c t_0`."""
        sine = series.evaluate(scaled, self.fit.kinds)
        if self.fit.refine:
            sine0 = scaled / series.reach
            sine = solve_angle(sine0, series.gap, series.bend, self.monitor, start=sine)
        return sine, (1 - sine).mul_(sine + 1).sqrt_(), sine.asin().mul_(2)

    def _of_angle(
        self,
        series: AngleSeries,
        weight: Tensor,
        sine: Tensor,
        cosine: Tensor,
        theta: Tensor,
        root1: Tensor,
        root2: Tensor,
    ) -> tuple[Tensor, Tensors]:
        """The kernel, kappa and, for tangent kernels, ``K_w``."""
        # the layer of two unit variances; a kernel is homogeneous in their roots
        linear, angular = self.activation.linear_part, self.activation.angular_part
        correlation = torch.addcmul(sine.new_ones(()), sine, sine, value=-2)
        sine_full = cosine.mul_(sine).mul_(2)
        slope = (theta * -angular).add_(linear)
        dual = (correlation * slope).add_(sine_full, alpha=angular)
        inverse = theta.mul_(series.bend).add_(series.gap).reciprocal_()
        read = self.read_out(Layer(dual, slope, weight, correlation, inverse))
        if read.by_weight is None:
            return read.value.mul_(root1).mul_(root2), (slope.mul_(inverse),)
        # the cusp: d(theta) / d(cos(theta)) = -1 / sin(theta), taken as zero where directions
        # coincide or are opposite, to their rounding
        distinct = sine_full > torch.finfo(sine_full.dtype).eps
        cusp = torch.where(distinct, angular / sine_full, 0.0)
        kappa = read.along_cov(slope, cusp).mul_(inverse)
        scale = root1 * root2
        by_weight = read.by_weight.addcmul_(kappa, dual).mul_(scale)
        return read.value.mul_(scale), (kappa, by_weight)

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
        _, bias, *constants = shared
        kappa, *by_weight = saved
        weighted, product = upstream * kappa, upstream * value

        def by_root(known: _Known, to: Tensor, weights: Tensor, products: Tensor) -> Tensor:
            injected = (to * known.x).sum(-1, keepdim=True) + bias * weights
            root = known.root if self.biased else known.root.masked_fill(known.root == 0, math.inf)
            return (products - injected) / root

        # with a wide left factor: the thin products are several times slower
        to = (second.x.mT @ weighted.mT).mT
        by_one = to, by_root(first, to, weighted.sum(-1, True), product.sum(-1, True)), None
        rest = [None] * len(constants)
        if needs.only_one:
            return Gradients(by_one, [None] * 3, [None, None, *rest])
        to, weights = (first.x.mT @ weighted).mT, weighted.sum(-2).unsqueeze(-1)
        by_two = to, by_root(second, to, weights, product.sum(-2).unsqueeze(-1)), None
        if by_weight:
            torch.mul(upstream, by_weight[0], out=product)
        else:
            product.mul_(kappa)
        by_shared = product.sum((-2, -1), True), weights.sum(-2, True), *rest
        return Gradients(by_one, by_two, by_shared)


class PairStationaryAngle(PairAngle):
    r""":class:`PairAngle` over a base kernel that is a function of a distance.

    With the variance s of the base kernel, :math:`V = s + \beta` and the versine e of a pair, the
    injected angle has :math:`t_0^2 = s e / 2V`. Both variances at equilibrium are :math:`r^2 = V /
    (1 - A)`, so that by Euler's theorem K has the derivative :math:`2(K - \kappa b_{12})` with
    respect to :math:`\log r`, :math:`b_{12} = V - s e`.

    Args:
        versines: One minus the correlations of the base kernel.
        base_variance: ``s``, ``b x 1 x 1``.
        *given: As for :class:`PairAngle`.
    """

    def __init__(self, versines: Versines, base_variance: Tensor, *given: Any) -> None:
        super().__init__(*given)
        self.versines = versines
        self.shared = (base_variance, *self.shared)

    def inputs(  # type: ignore[override]
        self, x1: Tensor, x2: Tensor | None
    ) -> tuple[Tensors, Tensors]:
        """See :meth:`PairMap.inputs`; the inputs over lengthscales themselves."""
        return (x1,), (x1 if x2 is None else x2,)

    def forward(
        self, one: Tensors, two: Tensors, shared: Tensors, pairs: Tensors = ()
    ) -> tuple[Tensor, Tensors]:
        """See :meth:`PairMap.forward`; squared distances are saved first."""
        variance, weight, bias, *constants = shared
        series, total = AngleSeries(*constants), variance + bias
        sqdist = squared_distance(one[0], two[0])
        scaled = self.versines.versine(sqdist)
        scaled.mul_(series.reach.square() * variance / (2 * total)).sqrt_()
        root = (total / series.gap).sqrt()
        value, saved = self._of_angle(series, weight, *self._angle(series, scaled), root, root)
        return value, (sqdist, *saved)

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
        variance, _, bias, *constants = shared
        sqdist, kappa, *by_weight = saved
        weighted = upstream * kappa
        versine = self.versines.versine(sqdist)
        by_half = self.versines.slope(sqdist, versine).mul_(weighted).mul_(-variance)
        to_one, to_two = distance_gradients(by_half, one[0], two[0], needs)
        rest = [None] * len(constants)
        if needs.only_one:
            return Gradients((to_one,), (to_two,), [None, None, None, *rest])
        product = upstream * value
        sums, weights = product.sum((-2, -1), True), weighted.sum((-2, -1), True)
        falls = weighted.mul_(versine).sum((-2, -1), True)
        total, series = variance + bias, AngleSeries(*constants)
        # the roots of the variances at equilibrium, V over the gap 1 - A, occur twice
        by_roots = sums - total * weights + variance * falls
        euler, gap = by_roots / total, by_roots * (self.activation.linear_part / series.gap)
        if by_weight:
            torch.mul(upstream, by_weight[0], out=product)
        else:
            product.mul_(kappa)
        by_weight_variance = product.sum((-2, -1), True) + gap
        by_values = weights - falls + euler, by_weight_variance, weights + euler
        return Gradients((to_one,), (to_two,), (*by_values, *rest))


def directions(
    x: Tensor, injected: Tensor, bias_variance: Tensor, length: Tensor | float
) -> Tensor:
    """The injected inputs, scaled to a length; the bias is a coordinate of theirs.

    A zero input without bias points along a coordinate of its own.

    Args:
        x: ``b x n x d``.
        injected: Their injected variances, ``b x n x 1``.
        bias_variance: ``b x 1 x 1``.
        length: ``b x 1 x 1`` or a number.
    """
    dims, zero = x.shape[-1], injected == 0
    own = bool((bias_variance == 0).any())
    inverse = length / injected.sqrt().masked_fill_(zero, 1.0)
    scaled = x.new_empty(*x.shape[:-1], dims + 1 + own)
    torch.mul(x, inverse, out=scaled[..., :dims])
    torch.mul(bias_variance.sqrt(), inverse, out=scaled[..., dims : dims + 1])
    if own:
        scaled[..., dims + 1 :] = zero.to(x) * length
    return scaled


def direction_distance(first: Tensor, second: Tensor) -> Tensor:
    """Distances of vectors of half the unit length at most: the sines of half their angles."""
    distance = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.clamp_(max=1.0)


def _near_antipodal(
    first: _Known, second: _Known, series: AngleSeries, sine: Tensor, cosine: Tensor, theta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Half-angle sine, cosine and angle near :math:`\pi`, where the sine hardly varies.

    From :math:`\cos^2\frac\theta2 = \cos^2\frac{\theta_0}2 + B S(\theta)/(2(1 - A))`, where
    the first term is the squared distance from the mirrored input.
    """
    mirrored = squared_distance(first.directions, -second.directions)
    mirrored.mul_(series.reach**-2)
    rise = series.bend / (2 * series.gap)
    square = mirrored.addcmul_(sine_excess_of_angle(theta), rise).clamp_(0.0, 1.0)
    near, root = sine > _NEAR_ANTIPODAL, square.sqrt()
    return (
        torch.where(near, (1 - square).sqrt_(), sine),
        torch.where(near, root, cosine),
        torch.where(near, math.pi - 2 * root.asin(), theta),
    )
