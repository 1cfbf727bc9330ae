"""Any activation, by its Hermite coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from ..interpolation import chebyshev, chebyshev_polynomials, count_for_strip
from .activation import Activation
from .cancellation import LossEstimate, loss_of_smooth
from .gradients import value_and_slope
from .pair_covariance import PairCovariance, bounded
from .power_series import UNIT_ROOT, diagonal_series, expansion_dual, expansion_ratio, power_series


class Hermite(Activation):
    r"""Any activation, through normalised Hermite coefficients computed by quadrature.

    With :math:`h_k` the normalised (probabilists') Hermite polynomials, :math:`z \sim N(0, 1)` and
    :math:`a_k(q) = \operatorname E\varphi(\sqrt q z) h_k(z)`, Mehler's formula gives for a pair of
    correlation :math:`r`

    .. math::
        G = \sum_{k \le K} a_k(v_1) a_k(v_2) r^k, \qquad
        P = \sum_{k < K} b_k(v_1) b_k(v_2) r^k, \qquad \sqrt q\, b_k = \sqrt{k+1}\, a_{k+1} .

    Cut off at degree ``K`` this is still a positive semi-definite kernel. The cut loses at most
    :math:`\sum_{k>K} |a_k(v_1) a_k(v_2)| |r|^k`; :meth:`truncation_error` gives it for coincident
    inputs, where it is largest. For tanh with the default degree and :math:`r = 1` it is 1e-14 at
    ``q = 1``, 1e-8 at ``q = 3`` and 3e-5 at ``q = 10``, relative to ``G``; it falls off fast with
    smaller :math:`r`.

    Args:
        fn: Elementwise function of a tensor, differentiable by torch, for arguments of any size.
            A jump or a kink is integrated exactly only at zero.
        degree: ``K``, at least 1. Default 128.
        lipschitz: Least upper bound of ``abs(fn')``. Default: found on a grid; infinite where the
            slope still grows at the grid's ends, and then only finite-depth kernels accept it.

    Raises:
        TypeError: ``fn`` does not map a tensor to a tensor of the same shape.
        ValueError: ``degree`` is less than 1, or ``fn`` is not finite.

    Example:
        >>> tanh = Hermite(torch.tanh)
        >>> tanh.critical_weight_variance
        1.0
    """

    closed_form = False
    smooth = True

    def __init__(
        self,
        fn: Callable[[Tensor], Tensor],
        degree: int = 128,
        lipschitz: float | None = None,
    ) -> None:
        if int(degree) != degree or degree < 1:
            raise ValueError(f"degree must be an integer of at least 1, got {degree!r}.")
        self.fn = fn
        self.degree = int(degree)
        self._check_function()
        self._constant = _constant(fn)
        self._lipschitz = _largest_slope(fn) if lipschitz is None else float(lipschitz)

    def __call__(self, u: Tensor) -> Tensor:
        """See :meth:`Activation.__call__`."""
        return self.fn(u)

    @property
    def lipschitz(self) -> float:
        """Least upper bound of the slope, as given or found on a grid."""
        return self._lipschitz

    def features(self, variance: Tensor) -> Tensor:
        r"""Variance, root of the variance, and the coefficients a, b (``... x n x f``).

        Root and coefficients are those of :meth:`expansion`.
        """
        columns = torch.cat((variance, *self.expansion(variance)), -1)
        # a series reads one coefficient of all inputs at a time
        return columns.mT.contiguous().mT

    def expectations(
        self,
        features1: Tensor,
        features2: Tensor,
        sqdist: Tensor,
        accuracy: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Activation.expectations`."""
        value1, value2 = (self._split(features)[2] for features in (features1, features2))
        correlation = self._correlation(features1, features2, sqdist)
        root = None if accuracy is None else accuracy**0.5
        return (
            power_series(value1, value2, correlation, accuracy),
            self._slope(features1, features2, correlation, root),
        )

    def variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""See :meth:`Activation.variance_slopes`.

        :math:`\frac12 \sum_k c_k(v_1) a_k(v_2) r^k` with :math:`\sqrt q\, c_k = \sqrt{k+1}\,
        b_{k+1}`.
        """
        _, root1, value1, slope1 = self._split(features1)
        _, root2, value2, slope2 = self._split(features2)
        correlation = self._correlation(features1, features2, sqdist)
        half1, half2 = self.half_curvature(root1, slope1), self.half_curvature(root2, slope2)
        return (
            power_series(half1, value2, correlation),
            power_series(value1, half2, correlation),
        )

    def curvature(self, features1: Tensor, features2: Tensor, sqdist: Tensor) -> Tensor:
        r"""See :meth:`Activation.curvature`; :math:`\sum_{k < K-1} c_k(v_1) c_k(v_2) r^k`."""

        def coefficients(features: Tensor) -> Tensor:
            _, root, _, slope = self._split(features)
            values = 2 * self.half_curvature(root, slope)[..., : self.degree]
            values[..., -1] = 0.0
            return values

        correlation = self._correlation(features1, features2, sqdist)
        return power_series(coefficients(features1), coefficients(features2), correlation)

    def derivative_variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""See :meth:`Activation.derivative_variance_slopes`.

        :math:`\frac12 \sum_{k < K} d_k(v_1) b_k(v_2) r^k` with :math:`\sqrt q\, d_k = \sqrt{k+1}\,
        c_{k+1}`.
        """
        correlation = self._correlation(features1, features2, sqdist)
        (slope1, third1), (slope2, third2) = (
            (slope[..., : self.degree], self._half_third(root, slope))
            for _, root, _, slope in map(self._split, (features1, features2))
        )
        return (
            power_series(third1, slope2, correlation),
            power_series(slope1, third2, correlation),
        )

    def dual(self, pair: PairCovariance) -> PairCovariance:
        r"""See :meth:`Activation.dual`.

        The squared distance is :math:`\sum_k (a_k - a_k')^2 + 2 e \sum_j r^j \sum_{k > j} a_k
        a_k'` with :math:`e = 1 - r`, the second sum by summation by parts.
        """
        return self._dual(pair, *self._pair_features(pair))

    def derivative_dual(self, pair: PairCovariance) -> Tensor:
        """See :meth:`Activation.derivative_dual`."""
        features1, features2 = self._pair_features(pair)
        return self._slope(features1, features2, expansion_ratio(pair))

    def dual_and_derivative(self, pair: PairCovariance) -> tuple[PairCovariance, Tensor]:
        """See :meth:`Activation.dual_and_derivative`."""
        features1, features2 = self._pair_features(pair)
        slope = self._slope(features1, features2, expansion_ratio(pair))
        return self._dual(pair, features1, features2), slope

    def _dual(self, pair: PairCovariance, features1: Tensor, features2: Tensor) -> PairCovariance:
        value1, value2 = (self._split(features)[2] for features in (features1, features2))
        dual = expansion_dual(value1, value2, pair)
        return pair.after_activation(
            *dual, lambda: power_series(value1, value2, expansion_ratio(pair))
        )

    def loss(self, tangent: bool) -> LossEstimate:
        """See :meth:`Activation.loss`."""
        return loss_of_smooth(tangent)

    def diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal`; cut at the same degree."""
        column = _column(variance)
        _, value, _ = self.expansion(column)
        return diagonal_series(value, value, column).reshape(variance.shape)

    def derivative_diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.derivative_diagonal`; cut at the same degree."""
        column = _column(variance)
        slope = self.expansion(column)[2][..., : self.degree]
        return diagonal_series(slope, slope, column).reshape(variance.shape)

    def diagonal_slope(self, variance: Tensor) -> Tensor:
        """See :meth:`Activation.diagonal_slope`; cut at the same degree."""
        return self.diagonal_and_slope(variance)[1]

    def diagonal_and_slope(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Activation.diagonal_and_slope`."""
        column = _column(variance)
        root, value, slope = self.expansion(column)
        bend = 2 * diagonal_series(self.half_curvature(root, slope), value, column)
        slope = slope[..., : self.degree]
        total = diagonal_series(slope, slope, column) + bend
        square = diagonal_series(value, value, column)
        return square.reshape(variance.shape), total.reshape(variance.shape)

    def truncation_error(self, variance: float) -> float:
        r"""Relative loss :math:`\sum_{k>K} a_k(q)^2 / \operatorname E\varphi(\sqrt q z)^2`.

        Args:
            variance: ``q``.
        """
        root = torch.tensor([[float(variance)]], dtype=torch.float64).sqrt()
        nodes, table = gaussian_quadrature(self.degree + 2, panel_halvings(root))
        square = self.fn(root * nodes).square() @ table[:, :1]
        kept = self.diagonal(root.square())
        return float((1 - kept / square).clamp_min(0.0))

    def _split(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        variance, root, value, slope = features.split((1, 1, self.degree + 1, self.degree + 2), -1)
        return variance, root, value, slope

    def _slope(
        self,
        features1: Tensor,
        features2: Tensor,
        correlation: Tensor,
        accuracy: float | None = None,
    ) -> Tensor:
        """P."""
        slope1, slope2 = (self._split(x)[3][..., : self.degree] for x in (features1, features2))
        return power_series(slope1, slope2, correlation, accuracy)

    def _correlation(self, features1: Tensor, features2: Tensor, sqdist: Tensor) -> Tensor:
        var1, var2 = features1[..., :1], features2[..., :1].mT
        scale = 2 * features1[..., 1:2] * features2[..., 1:2].mT
        return bounded((var1 + var2 - sqdist) / scale, -1.0, 1.0)

    def half_curvature(self, root: Tensor, slope: Tensor) -> Tensor:
        """Coefficients of half the second derivative, zero at a zero variance."""
        weights = torch.arange(1, self.degree + 2, dtype=slope.dtype, device=slope.device).sqrt()
        return weights * slope[..., 1:] / (2 * root.masked_fill(root == 0, math.inf))

    def _half_third(self, root: Tensor, slope: Tensor) -> Tensor:
        """Coefficients of half the third derivative."""
        curvature = self.half_curvature(root, slope)[..., 1:]
        weights = torch.arange(1, self.degree + 1, dtype=slope.dtype, device=slope.device).sqrt()
        return weights * curvature / root

    def expansion(self, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Roots of the variances, and the coefficients a and b that go with them.

        At variance zero they are :data:`UNIT_ROOT` and the coefficients of :meth:`_taylor`.

        Args:
            variance: ``... x n x 1``.

        Returns:
            ``... x n x 1``, ``... x n x (K + 1)`` and ``... x n x (K + 2)``.
        """
        zero = variance == 0
        if not bool(zero.any()):
            root = variance.sqrt()
            return root, *self.coefficients(root)
        root = torch.where(zero, 1.0, variance).sqrt()
        regular, taylor = self.coefficients(root), self._taylor(variance)
        return (
            root.masked_fill(zero, UNIT_ROOT),
            torch.where(zero, taylor[0], regular[0]),
            torch.where(zero, taylor[1], regular[1]),
        )

    def _taylor(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        r"""Coefficients a and b at variance zero, with two derivatives with respect to it.

        There :math:`G = \sum_k \alpha_k(v_1) a_k(v_2) (c / \sqrt{v_2})^k` with :math:`\alpha_k =
        \operatorname E\varphi^{(k)}(\sqrt{v_1} z) / \sqrt{k!}`, a function of the covariance that
        has all derivatives, while :math:`a_k = v_1^{k/2} \alpha_k` and the correlation have none.
        These are the :math:`\epsilon^k \alpha_k` for a root :math:`\epsilon` = :data:`UNIT_ROOT`.

        Args:
            variance: ``... x n x 1``, zero where this is of use.
        """
        half = variance / 2
        phi = [*self._derivatives_at_zero, *[0.0] * 12]

        def coefficients(order: int, count: int) -> Tensor:
            terms: list[Tensor] = []
            for k in range(min(count, 6 - order)):
                mean, bend, further = phi[order + k : order + k + 5 : 2]
                term = mean + half * bend + half.square() * (further / 2)
                terms.append(term * (UNIT_ROOT**k / math.sqrt(math.factorial(k))))
            rest = variance.new_zeros(*variance.shape[:-1], count - len(terms))
            return torch.cat((*terms, rest), -1)

        return coefficients(0, self.degree + 1), coefficients(1, self.degree + 2)

    @cached_property
    def _derivatives_at_zero(self) -> list[float]:
        """Derivatives of the function up to the fifth, means of both sides where one jumps.

        Derivatives that torch does not have count as zero.
        """
        sides = torch.tensor([1e-300, -1e-300], dtype=torch.float64, requires_grad=True)
        derivatives: list[float] = []
        with torch.enable_grad():
            value = self.fn(sides)
            while len(derivatives) < 6:
                mean = value.detach().mean().item()
                derivatives.append(mean if math.isfinite(mean) else 0.0)
                if not value.requires_grad:
                    break
                try:
                    (value,) = torch.autograd.grad(value.sum(), sides, create_graph=True)
                except RuntimeError:
                    break
        return derivatives

    def coefficients(self, root: Tensor) -> tuple[Tensor, Tensor]:
        """``a_0 ... a_K`` and ``b_0 ... b_(K+1)``, computed in double precision.

        For many variances they are interpolated: ``a_k / root`` and ``b_k`` are smooth functions of
        the logarithm of ``root``.

        Args:
            root: Square root of the variance, ``... x n x 1``.
        """
        if self._constant is not None:
            value = root.new_zeros(*root.shape[:-1], self.degree + 1)
            value[..., 0] = self._constant
            return value, root.new_zeros(*root.shape[:-1], self.degree + 2)
        if not (torch.is_grad_enabled() and root.requires_grad):
            grid = _log_grid(root.double())
            if grid is not None:
                nodes, weights = grid
                value, slope = self._integrate(nodes)
                value, slope = weights @ (value / nodes), weights @ slope
                return (root * value).to(root.dtype), slope.to(root.dtype)
        return self._integrate(root)

    def _integrate(self, root: Tensor) -> tuple[Tensor, Tensor]:
        wide = root.double()
        nodes, table = gaussian_quadrature(self.degree + 2, panel_halvings(wide), root.device)
        value, slope = value_and_slope(self.fn, wide * nodes)
        return (
            (value @ table[:, : self.degree + 1]).to(root.dtype),
            (slope @ table[:, : self.degree + 2]).to(root.dtype),
        )

    def _check_function(self) -> None:
        probe = torch.linspace(-3.0, 3.0, 7, dtype=torch.float64)
        result = self.fn(probe)
        if not isinstance(result, Tensor) or result.shape != probe.shape:
            raise TypeError(
                "An activation must map a tensor to a tensor of the same shape, elementwise; "
                f"{self.fn!r} returned {getattr(result, 'shape', result)!r} for shape (7,)."
            )
        if not result.isfinite().all():
            raise ValueError(f"The activation {self.fn!r} is not finite on [-3, 3].")

    def __repr__(self) -> str:
        name = getattr(self.fn, "__name__", None) or repr(self.fn)
        return f"Hermite({name}, degree={self.degree})"


def _column(variance: Tensor) -> Tensor:
    return variance.unsqueeze(-1)


def _log_grid(root: Tensor) -> tuple[Tensor, Tensor] | None:
    r"""Chebyshev nodes in ``log(root)``, and the weights that interpolate from them.

    None where the number of nodes that reach rounding (:func:`~gp_deq.interpolation.
    count_for_strip`) is not less than half of the number of inputs.

    Args:
        root: ``... x n x 1``.

    Returns:
        Nodes ``m x 1``, and weights ``... x n x m``.
    """
    if root.numel() < 2 * 16:
        return None
    low, high = (float(x) for x in root.aminmax())
    if not 0 < low <= high < math.inf:
        return None
    if low == high:
        return root.flatten()[:1, None], torch.ones_like(root)
    middle, half = math.log(low * high) / 2, math.log(high / low) / 2
    count = count_for_strip(half)
    if 2 * count > root.numel():
        return None
    nodes, transform, _ = (value.to(root.device) for value in chebyshev(count))
    polynomials = chebyshev_polynomials(count, (root.squeeze(-1).log() - middle) / half)
    return (middle + half * nodes).exp().unsqueeze(-1), polynomials @ transform.mT


def panel_halvings(root: Tensor) -> int:
    """Number of halvings of the panels around zero that resolve ``fn(root * z)``."""
    largest = float(root.detach().max()) if root.numel() else 0.0
    return max(0, math.ceil(math.log2(max(largest, 1.0) / 2)))


@lru_cache(maxsize=32)
def gaussian_quadrature(
    degree: int, halvings: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Nodes ``z`` on the line and a table of weights times ``h_k(z)`` for ``k <= degree``.

    Gauss-Legendre rules of 12 nodes on panels of width 1/2 up to 11, the first panel on each side
    of zero halved towards zero ``halvings`` times: so a kink at zero, and a function that varies on
    the scale ``2**-halvings``, are integrated to rounding. The recurrence runs on
    ``h_k(z) exp(-z^2/4)``, which neither overflows nor underflows to noise.
    """
    edges = np.concatenate(([0.0], 0.5 ** np.arange(halvings + 1, 1, -1), np.arange(1, 23) / 2))
    points, weights = np.polynomial.legendre.leggauss(12)
    widths = np.diff(edges) / 2
    nodes = (edges[:-1, None] + widths[:, None] * (points + 1)).ravel()
    mass = (widths[:, None] * weights).ravel()
    nodes, mass = np.concatenate((-nodes[::-1], nodes)), np.concatenate((mass[::-1], mass))
    envelope = np.exp(-(nodes**2) / 4)
    columns = [envelope, nodes * envelope]
    for k in range(2, degree + 1):
        columns.append((nodes * columns[-1] - math.sqrt(k - 1) * columns[-2]) / math.sqrt(k))
    table = np.stack(columns, -1) * (mass * envelope / math.sqrt(2 * math.pi))[:, None]
    return torch.from_numpy(nodes).to(device), torch.from_numpy(table).to(device)


def _line() -> Tensor:
    """Points all over the line."""
    reach = torch.logspace(-3, 3, 601, dtype=torch.float64)
    return torch.cat((torch.linspace(-20, 20, 4001, dtype=torch.float64), reach, -reach))


def _constant(fn: Callable[[Tensor], Tensor]) -> float | None:
    """The value of a function that has one only, else None."""
    value = fn(_line()).detach()
    return float(value[0]) if bool((value == value[0]).all()) else None


def _largest_slope(fn: Callable[[Tensor], Tensor]) -> float:
    """Supremum of ``abs(fn')`` on the line, infinite where it still grows far out."""
    coarse = _line()
    slope = value_and_slope(fn, coarse)[1].abs()
    if not slope.isfinite().all():
        return math.inf
    inner = slope[coarse.abs() <= 100].max()
    if slope.max() > inner * (1 + 1e-6):
        return math.inf
    best = coarse[slope.argmax()]
    width = 0.01
    for _ in range(3):
        fine = torch.linspace(float(best) - width, float(best) + width, 2001, dtype=torch.float64)
        slopes = value_and_slope(fn, fine)[1].abs()
        best, width = fine[slopes.argmax()], width / 500
        slope = torch.cat((slope, slopes))
    return float(slope.max())
