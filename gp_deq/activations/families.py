"""Exponential families in natural parameters, safe at extreme arguments."""

from __future__ import annotations

import math

import torch
from scipy.special import zeta
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = [
    "Bernoulli",
    "Binomial",
    "ContinuousBernoulli",
    "ExponentialFamily",
    "Gaussian",
    "Poisson",
    "SignedBernoulli",
    "get_family",
]


class ExponentialFamily:
    r"""Densities :math:`h(y) \exp(T(y)\,\eta - A(\eta))`, elementwise.

    The mean of :math:`T` is :math:`A'(\eta)`, which is the activation of an equilibrium layer whose
    fixed point is the regularised maximum of the likelihood [Tsuchida2022]_; its variance is
    :math:`A''(\eta)`.

    All functions map a tensor to one of the same shape and are differentiable. Where
    :math:`A'(\eta)` itself exceeds the range of floating point (Poisson beyond 709 in float64) it
    is infinite.

    Attributes:
        name: Name by which :func:`get_family` knows it.
        lipschitz: Least upper bound of :math:`A''`; infinite if there is none.
        support: The targets, in words.
    """

    name: str
    lipschitz: float
    support: str

    def log_partition(self, eta: Tensor) -> Tensor:
        r""":math:`A(\eta)`."""
        raise NotImplementedError

    def mean(self, eta: Tensor) -> Tensor:
        r""":math:`A'(\eta)`, the mean of :math:`T`."""
        raise NotImplementedError

    def std(self, eta: Tensor) -> Tensor:
        r""":math:`\sqrt{A''(\eta)}`, the standard deviation of :math:`T`."""
        raise NotImplementedError

    def variance(self, eta: Tensor) -> Tensor:
        r""":math:`A''(\eta)`, the variance of :math:`T`."""
        return self.std(eta).square()

    def third_cumulant(self, eta: Tensor) -> Tensor:
        r""":math:`A'''(\eta)`, the third central moment of :math:`T`."""
        raise NotImplementedError

    def sufficient_statistic(self, targets: Tensor) -> Tensor:
        r""":math:`T(y)`; the target itself for all families here."""
        return targets

    def likely_parameter(self, statistic: Tensor) -> Tensor:
        r"""A finite :math:`\eta` whose mean is near a value of :math:`T`: a start for solvers.

        Args:
            statistic: Values of :math:`T`.
        """
        raise NotImplementedError

    def log_base_measure(self, targets: Tensor) -> Tensor:
        r""":math:`\log h(y)`."""
        return torch.zeros_like(targets)

    def log_prob(self, targets: Tensor, eta: Tensor) -> Tensor:
        """Logarithm of the density or probability.

        Args:
            targets: In the support.
            eta: Natural parameters, of a shape that broadcasts.
        """
        fit = self.sufficient_statistic(targets) * eta - self.log_partition(eta)
        return fit + self.log_base_measure(targets)

    def sample(self, eta: Tensor, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Random targets.

        Args:
            eta: Natural parameters.
            sample_shape: Leading dimensions of independent draws.

        Returns:
            ``*sample_shape x *eta.shape``.
        """
        with torch.no_grad():
            return self._draw(eta.expand(*sample_shape, *eta.shape))

    def _draw(self, eta: Tensor) -> Tensor:
        raise NotImplementedError

    def check(self, targets: Tensor) -> None:
        """Refuse targets outside the support.

        Args:
            targets: Any shape.

        Raises:
            ValueError: A target is not finite or not in the support; the message has its index.
        """
        inside = targets.isfinite()
        inside = inside & self._inside(targets.where(inside, torch.zeros_like(targets)))
        if not bool(inside.all()):
            index = tuple((~inside).nonzero()[0].tolist())
            where = f" at {list(index)}" if index else ""
            raise ValueError(
                f"Targets of {self!r} are {self.support}, but there is "
                f"{targets[index].item():g}{where}."
            )

    def _inside(self, targets: Tensor) -> Tensor:
        return torch.ones_like(targets, dtype=torch.bool)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Gaussian(ExponentialFamily):
    r"""Real numbers with variance 1: :math:`A = \eta^2/2`.

    Example:
        >>> Gaussian().mean(torch.tensor(-2.0))
        tensor(-2.)
    """

    name = "gaussian"
    lipschitz = 1.0
    support = "finite numbers"

    def log_partition(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return eta.square() / 2

    def mean(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return eta

    def std(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return torch.ones_like(eta)

    def third_cumulant(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return torch.zeros_like(eta)

    def log_base_measure(self, targets: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return -(targets.square() + math.log(2 * math.pi)) / 2

    def likely_parameter(self, statistic: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return statistic

    def _draw(self, eta: Tensor) -> Tensor:
        return eta + torch.randn_like(eta)


class Binomial(ExponentialFamily):
    r"""Successes among ``total_count`` trials: :math:`A = n \log(1 + e^\eta)`.

    Args:
        total_count: :math:`n`, at least 1.

    Raises:
        ValueError: ``total_count`` is not a positive integer.

    Example:
        >>> Binomial(4).mean(torch.tensor(0.0))
        tensor(2.)
    """

    name = "binomial"

    def __init__(self, total_count: int) -> None:
        if not math.isfinite(total_count) or int(total_count) != total_count or total_count < 1:
            raise ValueError(f"total_count must be a positive integer, got {total_count!r}.")
        self.total_count = int(total_count)

    @property
    def lipschitz(self) -> float:  # type: ignore[override]
        r""":math:`n/4`."""
        return self.total_count / 4

    @property
    def support(self) -> str:  # type: ignore[override]
        """The targets, in words."""
        return f"whole numbers from 0 to {self.total_count}"

    def log_partition(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return -self.total_count * logsigmoid(-eta)

    def mean(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return self.total_count * eta.sigmoid()

    def std(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        root = ((logsigmoid(eta) + logsigmoid(-eta)) / 2).exp()
        return math.sqrt(self.total_count) * root

    def third_cumulant(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return -self.variance(eta) * (eta / 2).tanh()

    def log_base_measure(self, targets: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        whole = targets.new_tensor(self.total_count + 1.0)
        return whole.lgamma() - (targets + 1).lgamma() - (whole - targets).lgamma()

    def likely_parameter(self, statistic: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return ((statistic + 0.5) / (self.total_count - statistic + 0.5)).log()

    def _draw(self, eta: Tensor) -> Tensor:
        return torch.distributions.Binomial(self.total_count, logits=eta).sample()

    def _inside(self, targets: Tensor) -> Tensor:
        return (targets >= 0) & (targets <= self.total_count) & (targets == targets.round())

    def __repr__(self) -> str:
        return f"Binomial({self.total_count})"


class Bernoulli(Binomial):
    r"""Zero or one: :math:`A = \log(1 + e^\eta)`, whose derivative is the sigmoid.

    Example:
        >>> Bernoulli().log_partition(torch.tensor([-800.0, 0.0, 800.0])).tolist()
        [0.0, 0.6931472, 800.0]
    """

    name = "bernoulli"
    support = "0 or 1"

    def __init__(self) -> None:
        super().__init__(1)

    def _draw(self, eta: Tensor) -> Tensor:
        return torch.bernoulli(eta.sigmoid())

    def __repr__(self) -> str:
        return "Bernoulli()"


class SignedBernoulli(ExponentialFamily):
    r"""Minus one or one: :math:`A = \log(2\cosh\eta)`, whose derivative is tanh.

    Example:
        >>> SignedBernoulli().mean(torch.tensor([-50.0, 0.0, 50.0]))
        tensor([-1.,  0.,  1.])
    """

    name = "signed-bernoulli"
    lipschitz = 1.0
    support = "-1 or 1"

    def log_partition(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return -logsigmoid(-2 * eta) - eta

    def mean(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return eta.tanh()

    def std(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return 2 * ((logsigmoid(2 * eta) + logsigmoid(-2 * eta)) / 2).exp()

    def third_cumulant(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return -2 * self.variance(eta) * eta.tanh()

    def likely_parameter(self, statistic: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return (statistic / 2).atanh()

    def _draw(self, eta: Tensor) -> Tensor:
        return 2 * torch.bernoulli((2 * eta).sigmoid()) - 1

    def _inside(self, targets: Tensor) -> Tensor:
        return targets.abs() == 1


class Poisson(ExponentialFamily):
    r"""Counts: :math:`A = e^\eta`.

    Example:
        >>> Poisson().mean(torch.tensor(0.0))
        tensor(1.)
    """

    name = "poisson"
    lipschitz = math.inf
    support = "whole numbers from 0"

    def log_partition(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return eta.exp()

    def mean(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return eta.exp()

    def std(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return (eta / 2).exp()

    def third_cumulant(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return eta.exp()

    def log_base_measure(self, targets: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return -(targets + 1).lgamma()

    def likely_parameter(self, statistic: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return (statistic + 0.5).log()

    def _draw(self, eta: Tensor) -> Tensor:
        # torch.poisson counts with 64-bit integers; at rates above 1e12 the skewness, by which the
        # counts differ from their normal limit, is below 1e-6
        rate = eta.exp()
        large = rate > 1e12
        normal = (rate + rate.sqrt() * torch.randn_like(rate)).round()
        return torch.where(large, normal, torch.poisson(rate.masked_fill(large, 0.0)))

    def _inside(self, targets: Tensor) -> Tensor:
        return (targets >= 0) & (targets == targets.round())


class ContinuousBernoulli(ExponentialFamily):
    r"""Numbers from 0 to 1: :math:`A = \log((e^\eta - 1)/\eta)`.

    With :math:`x = \eta/2` and Langevin's function :math:`L(x) = \coth x - 1/x`, :math:`A = x +
    \log(\sinh x / x)`, :math:`A' = (1 + L(x))/2`, :math:`A'' = L'(x)/4`, :math:`A''' = L''(x)/8`.
    These are differences of nearly equal terms near zero; for :math:`|x| < 1` they are computed by
    the power series of :math:`L`, whose coefficients are made of Bernoulli's numbers.

    Example:
        >>> ContinuousBernoulli().mean(torch.tensor([-1000.0, 0.0, 1e-12, 1000.0])).tolist()
        [0.001, 0.5, 0.5, 0.999]
    """

    name = "continuous-bernoulli"
    lipschitz = 1 / 12
    support = "numbers from 0 to 1"

    def log_partition(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        x, small, inner, outer = _halves(eta)
        square = inner.square()
        series = square * _polynomial(square, [c / (2 * k) for k, c in _LANGEVIN])
        far = outer.abs()
        direct = far + (-torch.expm1(-2 * far) / (2 * far)).log()
        return x + torch.where(small, series, direct)

    def mean(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        _, small, inner, outer = _halves(eta)
        series = 0.5 + 0.5 * inner * _polynomial(inner.square(), [c for _, c in _LANGEVIN])
        # e^eta / (e^eta - 1) - 1 / eta, arranged so that nothing cancels at either end
        decay = torch.expm1(-2 * outer.abs())
        lower = 1 / (2 * outer.abs()) + (1 + decay) / decay
        direct = torch.where(outer < 0, lower, 1 - lower)
        return torch.where(small, series, direct)

    def std(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        _, small, inner, outer = _halves(eta)
        terms = [c * (2 * k - 1) for k, c in _LANGEVIN]
        series = _polynomial(inner.square(), terms).sqrt()
        far = outer.abs()
        ratio = 2 * far * (-far).exp() / -torch.expm1(-2 * far)
        direct = (1 - ratio.square()).sqrt() / far
        return torch.where(small, series, direct) / 2

    def third_cumulant(self, eta: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        _, small, inner, outer = _halves(eta)
        terms = [c * (2 * k - 1) * (2 * k - 2) for k, c in _LANGEVIN[1:]]
        series = inner * _polynomial(inner.square(), terms)
        far, decay = outer.abs(), (-2 * outer.abs()).exp()
        # 2 cosh x / sinh^3 x in terms of e^(-2|x|), which does not overflow
        direct = 8 * decay * (1 + decay) / (1 - decay).pow(3) - 2 * far.reciprocal().pow(3)
        return torch.where(small, series, outer.sign() * direct) / 8

    def likely_parameter(self, statistic: Tensor) -> Tensor:
        """See :class:`ExponentialFamily`."""
        return 12 * (statistic - 0.5)

    def _draw(self, eta: Tensor) -> Tensor:
        # the inverse of the distribution function (e^(eta y) - 1) / (e^eta - 1), reflected so that
        # eta is not positive and nothing overflows
        uniform, slope = torch.rand_like(eta), -eta.abs()
        flat = slope > -1e-4  # here the expansion to first order is right to 1e-9
        safe = slope.masked_fill(flat, -1.0)
        low = torch.log1p(uniform * torch.expm1(safe)) / safe
        low = torch.where(flat, uniform * (1 + slope * (uniform - 1) / 2), low)
        return torch.where(eta > 0, 1 - low, low).clamp(0.0, 1.0)

    def _inside(self, targets: Tensor) -> Tensor:
        return (targets >= 0) & (targets <= 1)


# L(x) = sum_k c_k x^(2k-1), c_k = 2^(2k) B_2k / (2k)!; successive terms fall by (x / pi)^2, so that
# 23 of them reach rounding for |x| < 1
_LANGEVIN = [
    (k, 2 * (-1) ** (k + 1) * float(zeta(2 * k)) / math.pi ** (2 * k)) for k in range(1, 24)
]


def _halves(eta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Splits ``x = eta / 2`` between the power series and the closed form.

    Returns:
        ``x``; where it is below 1 in size; ``x`` there and 0 elsewhere; 1 there and ``x``
        elsewhere. The constants keep NaN out of the branch that is not taken, and of its gradient.
    """
    x = eta / 2
    small = x.abs() < 1
    return x, small, torch.where(small, x, 0.0), torch.where(small, 1.0, x)


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


_NAMED = {
    family.name: family
    for family in (Gaussian, Bernoulli, SignedBernoulli, Poisson, ContinuousBernoulli)
}


def get_family(family: str | ExponentialFamily) -> ExponentialFamily:
    """Family of a given name.

    Args:
        family: "gaussian", "bernoulli", "signed-bernoulli", "poisson", "continuous-bernoulli", or
            an :class:`ExponentialFamily`, returned as it is, such as ``Binomial(10)``.

    Raises:
        ValueError: the name is not known.
        TypeError: something else was given.

    Example:
        >>> get_family("bernoulli").lipschitz
        0.25
    """
    if isinstance(family, ExponentialFamily):
        return family
    if not isinstance(family, str):
        raise TypeError(f"A family is a name or an ExponentialFamily, not {family!r}.")
    if family == "binomial":
        raise ValueError("A binomial family needs its number of trials: give Binomial(n).")
    if family not in _NAMED:
        names = ", ".join(map(repr, _NAMED))
        raise ValueError(f"Unknown family {family!r}. Give one of {names}, or Binomial(n).")
    return _NAMED[family]()
