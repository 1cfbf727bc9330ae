r"""The pair map of a kernel over a base kernel of constant variance, interpolated.

Where the injected covariance is :math:`b = s\,\rho + \beta`, with one variance s for all inputs and
a correlation :math:`\rho` of each pair, all inputs have one variance at equilibrium and in every
layer. So the kernel is a function of one number a pair, whatever the activation, the read-out or
the depth: of the *versine* :math:`e = 1 - \rho`, which keeps its digits at close inputs,

.. math:: K = F(e;\, s, w, \beta) .

F is solved for at a few versines, with its derivatives by all its arguments, and polynomials
through these give it for all pairs. The derivatives by s, w and :math:`\beta` need no polynomial
for each pair: with the polynomial :math:`\sum_k c_k y^k` of one of them, a sum over pairs
:math:`\sum U F_w = \sum_k c_k \sum U y^k` needs sums of powers, which serve all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import settings
from ..activations import squared_distance
from ..interpolation import (
    chebyshev,
    chebyshev_series,
    chebyshev_sums,
    degree_of,
    polynomial,
    power_sums,
)
from .blockwise import Gradients, Needs, PairMap, Tensors, distance_gradients
from .monitor import SolverMonitor, SolverReport
from .versines import Versines

#: Numbers of nodes that are tried. The coefficients of the last quarter of the degrees, which are
#: not used, show whether a series has converged.
_NODES = 48, 96
#: Accuracy of derivatives, relative to the sum of their coefficients, where the dtype has it.
_SLOPE_ACCURACY = 1e-12
#: Units in the last place that coefficients of powers may lose where these cancel.
_LARGEST_CANCELLATION = 16.0


@dataclass(frozen=True)
class PairKernel:
    r"""A kernel as a function of the injected covariance and of hyperparameters.

    Args:
        identity: All that the function depends on beside its arguments: two with one identity are
            the same function.
        function: Maps a :class:`~gp_deq.activations.PairCovariance`, a
            :class:`~gp_deq.equilibrium.SolverMonitor` and hyperparameters to kernels.
        of_versine: The same over a base of constant variance, with first derivatives: maps
            versines, base variances, a monitor and hyperparameters, all ``b x 1 x 1``, to kernels.
        smooth: Whether it is a smooth function of the squared distance, for the first choice of a
            variable.
        cusp: Whether its derivative by the squared distance is infinite at zero.
    """

    identity: Hashable
    function: Callable[..., Tensor] = field(compare=False)
    of_versine: Callable[..., Tensor] = field(compare=False)
    smooth: bool
    cusp: bool


class Variable(NamedTuple):
    r"""The variable in which a kernel is interpolated.

    For smooth activations it is :math:`\sqrt{1 + m/\kappa}` of the squared distance m. Both an
    activation like erf and an equilibrium near criticality are singular at a small negative
    squared distance, as a square root is, and it takes that place away; the best :math:`\kappa` is
    of the order of one, the scale on which activations bend. For others it is :math:`(1 +
    u/\kappa)^{-1/4}` of the root :math:`u = \sqrt{m/m_{\max}}`, since F has odd powers of u and is
    singular at about :math:`-\kappa`, with :math:`\kappa` of the order of ``1 - w / w_critical``.

    Args:
        root: Whether it is the second.
        knee: :math:`\kappa`, ``b x 1 x 1``.
        scale: :math:`m/e` for the first, :math:`e_{\max}` for the second, ``b x 1 x 1``.
        middle: Middle of its range, ``b x 1 x 1``.
        half: Half of that range.
    """

    root: bool
    knee: Tensor
    scale: Tensor
    middle: Tensor
    half: Tensor

    @classmethod
    def choose(cls, root: bool, knee: Tensor, base_variance: Tensor, widest: float) -> Variable:
        """The variable for versines up to ``widest``."""
        scale = torch.full_like(base_variance, widest) if root else 2 * base_variance
        reach = (1 + 1 / knee) ** -0.25 if root else (1 + widest * scale / knee).sqrt()
        return cls(root, knee, scale, (1 + reach) / 2, (1 - reach).abs() / 2)

    def versine(self, variable: Tensor) -> Tensor:
        """:math:`e` of the variable, mapped to ``[-1, 1]``."""
        y = self.middle + self.half * variable
        if self.root:
            return self.scale * (self.knee * (y**-4 - 1)).clamp_min(0.0).square()
        return self.knee * (y.square() - 1).clamp_min(0.0) / self.scale

    def of(self, versine: Tensor) -> Tensor:
        """The variable, mapped to ``[-1, 1]``, of versines ``b x n x m``."""
        one = versine.new_ones(())
        if self.root:
            y = versine.sqrt()
            torch.addcmul(one, y, self.scale.rsqrt() / self.knee, out=y).sqrt_().rsqrt_()
        else:
            y = torch.addcmul(one, versine, self.scale / self.knee).sqrt_()
        return torch.addcmul(-self.middle / self.half, y, 1 / self.half, out=y)


class SeriesFit(NamedTuple):
    """The polynomials of a kernel, constants for given hyperparameters.

    Args:
        variable: The variable.
        powers: Whether coefficients are those of powers, or of Chebyshev polynomials.
        value: Coefficients of F, ``b x 1 x (degree + 1)``.
        slope: Those of its derivative by the versine, times the root of the versine if the kernel
            has a cusp.
        partials: Those of its derivatives by the base variance and by the hyperparameters.
        report: How the solution at the nodes went.
    """

    variable: Variable
    powers: bool
    value: Tensor
    slope: Tensor
    partials: tuple[Tensor, ...]
    report: SolverReport


@lru_cache(maxsize=64)
def fit_series(
    kernel: PairKernel,
    base_variances: tuple[float, ...],
    hyperparameters: tuple[tuple[float, ...], ...],
    gap: float,
    widest: float,
    dtype: torch.dtype,
    tolerance: float,
    max_iterations: int,
) -> SeriesFit | None:
    """Interpolates a kernel; None where no polynomial of a reasonable degree has the accuracy.

    Args:
        kernel: The kernel.
        base_variances: ``s`` of each batch.
        hyperparameters: The weight variances and the bias variances of each batch.
        gap: The least of ``1 - w / w_critical``, whose inverse times rounding is the accuracy that
            an equilibrium has; 1 for finite depth.
        widest: The largest versine, 1 or 2.
        dtype: The series is for this one.
        tolerance: ``settings.solver_tolerance``, on which the solution at the nodes depends.
        max_iterations: ``settings.max_solver_iterations``, likewise.
    """
    base = torch.tensor(base_variances, dtype=torch.float64).reshape(-1, 1, 1)
    values = [torch.tensor(x, dtype=torch.float64).reshape(-1, 1, 1) for x in hyperparameters]
    epsilon = torch.finfo(dtype).eps
    # a tangent kernel has 1 / gap as a factor, and its derivatives have two of them
    accuracies = 4 * epsilon / gap, max(_SLOPE_ACCURACY, 4 * epsilon / gap**2)
    for count in _NODES:
        for root, knee in _candidates(kernel, gap):
            variable = Variable.choose(root, torch.full_like(base, knee), base, widest)
            series, report = _solve(kernel, variable, base, values, count)
            degrees = _degrees(series, accuracies)
            if degrees is not None:
                return _fit(variable, series, degrees, report, dtype)
    return None


def _fit(
    variable: Variable,
    series: Tensor,
    degrees: Sequence[int],
    report: SolverReport,
    dtype: torch.dtype,
) -> SeriesFit:
    """The fit, with coefficients of powers where these do not cancel."""
    count = series.shape[-1]
    last = torch.tensor(degrees)[:, None, None, None]
    series = series.masked_fill(torch.arange(count) > last, 0.0)
    powers = series @ chebyshev(count)[2]
    cancel = powers.abs().sum(-1, keepdim=True) > _LARGEST_CANCELLATION * _scale(series)
    use_powers = not bool(cancel.any())
    value, slope, *partials = (
        x[..., : degree + 1]
        for x, degree in zip((powers if use_powers else series).to(dtype), degrees, strict=True)
    )
    root, *constants = variable
    variable = Variable(root, *(x.to(dtype) for x in constants))
    return SeriesFit(variable, use_powers, value, slope, tuple(partials), report)


def _candidates(kernel: PairKernel, gap: float) -> list[tuple[bool, float]]:
    """Variables to try, the likely ones first."""
    smooth = [(False, 0.5), (False, 0.05), (False, 5.0)]
    root = [(True, 3 * gap), (True, 0.3)]
    return smooth + root if kernel.smooth else root + smooth


def _solve(
    kernel: PairKernel, variable: Variable, base: Tensor, values: Sequence[Tensor], count: int
) -> tuple[Tensor, SolverReport]:
    """Chebyshev coefficients of F, of its derivative by the versine, and of the other partials.

    Returns:
        ``(2 + number of values) x b x 1 x count``.
    """
    nodes, transform, _ = chebyshev(count)
    monitor = SolverMonitor()
    versine = variable.versine(nodes)
    with torch.enable_grad():
        # each node is a batch of its own, so that one backward pass finds all derivatives
        shape = versine.shape[0], count
        leaves = [
            x.expand(shape[0], 1, count).reshape(-1, 1, 1).clone().requires_grad_()
            for x in (versine, base, *values)
        ]
        e, s, *others = leaves
        found = kernel.of_versine(e, s, monitor, *others)
        gradients = torch.autograd.grad(
            found.sum(), leaves, allow_unused=True, materialize_grads=True
        )
    by_versine, *partials = (x.reshape(shape[0], 1, count) for x in gradients)
    if kernel.cusp:
        by_versine = by_versine * versine.sqrt()
    rows = found.detach().reshape(shape[0], 1, count), by_versine, *partials
    return torch.stack(rows) @ transform, monitor.report()


def _scale(series: Tensor) -> Tensor:
    scale = series.abs().sum(-1, keepdim=True)
    return scale.masked_fill(scale == 0, 1.0)


def _degrees(series: Tensor, accuracies: tuple[float, float]) -> list[int] | None:
    """Degrees beyond which coefficients are negligible; None if a series has not converged."""
    sizes = (series.abs() / _scale(series)).amax((1, 2))
    rows = sizes.flip(-1).cummax(-1).values.flip(-1).tolist()
    found = [degree_of(row, accuracies[min(index, 1)]) for index, row in enumerate(rows)]
    degrees = [degree for degree in found if degree is not None]
    if len(degrees) < len(found) or 4 * max(degrees) > 3 * series.shape[-1]:
        return None
    return degrees


class PairPolynomial(PairMap):
    """Kernels over a base of constant variance.

    Args:
        fit: Its polynomials.
        cusp: Whether it has a cusp, see :class:`PairKernel`.
        values: The base variance and the hyperparameters, ``b x 1 x 1`` each.
    """

    def __init__(self, fit: SeriesFit, cusp: bool, values: Sequence[Tensor]) -> None:
        self.fit, self.cusp, self.num_values = fit, cusp, len(values)
        constants = (*fit.variable[1:], fit.value, fit.slope, *fit.partials)
        self.shared = (*values, *(x.to(values[0].device) for x in constants))

    def _series(self, shared: Tensors) -> SeriesFit:
        knee, scale, middle, half, value, slope, *partials = shared[self.num_values :]
        variable = Variable(self.fit.variable.root, knee, scale, middle, half)
        return self.fit._replace(
            variable=variable, value=value, slope=slope, partials=tuple(partials)
        )

    def _evaluate(self, coefficients: Tensor, variable: Tensor) -> Tensor:
        return (polynomial if self.fit.powers else chebyshev_series)(coefficients, variable)

    def _by_versine(self, series: SeriesFit, versine: Tensor, variable: Tensor) -> Tensor:
        slope = self._evaluate(series.slope, variable)
        if not self.cusp:
            return slope
        # the cusp's part of the derivative is taken as zero where inputs coincide
        distinct = versine > torch.finfo(versine.dtype).eps ** 2
        return torch.where(distinct, slope / versine.sqrt(), 0.0)

    def _by_values(self, upstream: Tensor, series: SeriesFit, variable: Tensor) -> list[Tensor]:
        """Gradients by the base variance and the hyperparameters; overwrites ``upstream``."""
        count = max(2, *(x.shape[-1] for x in series.partials))
        sums = (power_sums if self.fit.powers else chebyshev_sums)(upstream, variable, count)
        return [(sums[..., : x.shape[-1]] * x).sum(-1, keepdim=True) for x in series.partials]


class PairVersine(PairPolynomial):
    """:class:`PairPolynomial` where the versine of each pair is given."""

    def inputs(self, x1: Tensor, x2: Tensor | None) -> tuple[Tensors, Tensors]:
        """See :meth:`PairMap.inputs`; the base variance of each input."""
        return (x1,), (x1 if x2 is None else x2,)

    def forward(
        self, one: Tensors, two: Tensors, shared: Tensors, pairs: Tensors = ()
    ) -> tuple[Tensor, Tensors]:
        """See :meth:`PairMap.forward`."""
        series = self._series(shared)
        return self._evaluate(series.value, series.variable.of(pairs[0])), ()

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
        series, (versine,) = self._series(shared), pairs
        variable = series.variable.of(versine)
        to_pairs = self._by_versine(series, versine, variable).mul_(upstream)
        to_one = to_two = None
        if needs.one[0] or needs.two[0]:
            # F is symmetric in the variances of the two inputs
            by_variance = self._evaluate(series.partials[0], variable).mul_(upstream).mul_(0.5)
            to_one, to_two = by_variance.sum(-1, True), by_variance.sum(-2).unsqueeze(-1)
        rest: list[Any] = [None] * len(shared)
        if any(needs.shared):
            rest[: self.num_values] = self._by_values(upstream.clone(), series, variable)
        return Gradients((to_one,), (to_two,), rest, (to_pairs,))


class PairStationary(PairPolynomial):
    """:class:`PairPolynomial` where the versine is a function of the distance of scaled inputs."""

    def __init__(
        self, fit: SeriesFit, cusp: bool, values: Sequence[Tensor], versines: Versines
    ) -> None:
        super().__init__(fit, cusp, values)
        self.versines = versines

    def inputs(self, x1: Tensor, x2: Tensor | None) -> tuple[Tensors, Tensors]:
        """See :meth:`PairMap.inputs`; the inputs themselves."""
        return (x1,), (x1 if x2 is None else x2,)

    def forward(
        self, one: Tensors, two: Tensors, shared: Tensors, pairs: Tensors = ()
    ) -> tuple[Tensor, Tensors]:
        """See :meth:`PairMap.forward`; squared distances are saved."""
        series, sqdist = self._series(shared), squared_distance(one[0], two[0])
        variable = series.variable.of(self.versines.versine(sqdist))
        return self._evaluate(series.value, variable), (sqdist,)

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
        series, (sqdist,) = self._series(shared), saved
        versine = self.versines.versine(sqdist)
        variable = series.variable.of(versine)
        weights = self._by_versine(series, versine, variable)
        weights.mul_(self.versines.slope(sqdist, versine)).mul_(upstream)
        to_one, to_two = distance_gradients(weights, one[0], two[0], needs)
        rest: list[Any] = [None] * len(shared)
        if any(needs.shared):
            # the block is not needed any more
            total = torch.mul(upstream, 1.0, out=weights)
            rest[: self.num_values] = self._by_values(total, series, variable)
        return Gradients((to_one,), (to_two,), rest)


def series_of(
    kernel: PairKernel,
    values: Sequence[Tensor],
    gap: float,
    widest: float,
    monitor: SolverMonitor,
) -> SeriesFit | None:
    """:func:`fit_series`, its record given to the monitor.

    Args:
        kernel: The kernel.
        values: The base variance and the hyperparameters, ``b x 1 x 1`` each.
        gap: See :func:`fit_series`.
        widest: See :func:`fit_series`.
        monitor: Gets the record.
    """
    base, *others = (tuple(x.detach().double().flatten().tolist()) for x in values)
    tolerance = settings.solver_tolerance.value(torch.float64)
    fit = fit_series(
        kernel,
        base,
        tuple(others),
        gap,
        widest,
        values[0].dtype,
        tolerance,
        settings.max_solver_iterations.value(),
    )
    if fit is not None:
        monitor.method = "series"
        monitor.record(fit.report.iterations, torch.tensor(fit.report.residual), tolerance)
    return fit
