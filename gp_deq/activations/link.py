"""Links: exponential families with a natural parameter, as they enter a gradient update."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .angles import angle
from .families import Bernoulli, ExponentialFamily, Gaussian, SignedBernoulli, get_family
from .hermite import Hermite, value_and_slope
from .pair_covariance import PairCovariance, safe_sqrt
from .piecewise_linear import ReLU
from .power_series import expansion_dual, expansion_ratio, power_series

#: Degree at which series are cut, unless another one is asked for.
_DEGREE = 128


class ExponentialFamilyLink:
    r"""The two functions by which an exponential family enters a gradient update.

    A family with log-partition function :math:`A`, sufficient statistic :math:`T` and natural
    parameter :math:`R(\eta)` has the negative log-likelihood :math:`A(R(\eta)) - T R(\eta)`, whose
    derivative is :math:`\sigma(\eta) - T \rho(\eta)` with

    .. math:: \sigma = A'(R) R', \qquad \rho = R' .

    For :math:`(u, v) \sim \mathcal N(0, \Psi)` a link offers :math:`\operatorname E
    \sigma(u)\sigma(v)`, :math:`\operatorname E \rho(u)\rho(v)` and :math:`\operatorname E
    \rho(u)\sigma(v)`, here through the Hermite coefficients of both functions (see
    :class:`~gp_deq.activations.Hermite`). It is made from the two functions, or by
    :meth:`from_family` from a family and :math:`R`. :func:`get_link` knows, by name:

    ==================== ================ =========== ================ ================
    name                 family           :math:`R`   :math:`\sigma`   critical
    ==================== ================ =========== ================ ================
    "relu"               Gaussian         relu        relu             :math:`1/\sqrt 2`
    "identity"           Gaussian         identity    identity         1
    "softplus-gaussian"  Gaussian         softplus    softplus sigmoid 1.04533
    "logistic"           Bernoulli        identity    sigmoid          1/4
    "tanh"               SignedBernoulli  identity    tanh             1
    ==================== ================ =========== ================ ================

    See [TsuchidaOng2023]_.

    Args:
        sigma: Elementwise torch function, differentiable.
        rho: Elementwise torch function, differentiable but for a jump at zero. The series of a jump
            loses two percent at the default degree where inputs coincide; "relu" is exact.
        degree: Degree at which the series are cut. Default 128.
        critical_regularization: The regularization must exceed it. Default: the least upper bound
            of :math:`|\sigma'|`, found on a grid.

    Attributes:
        family: The family, None for a link that was made from two functions.
        natural_parameter: The function :math:`R`, None for the identity or if there is no family.

    Raises:
        TypeError: ``sigma`` or ``rho`` does not map a tensor to a tensor of the same shape.
        ValueError: one of them is not finite, or ``critical_regularization`` is negative.

    Example:
        >>> import torch
        >>> ExponentialFamilyLink(torch.erf, torch.ones_like).critical_regularization
        1.128379
    """

    family: ExponentialFamily | None = None
    natural_parameter: Callable[[Tensor], Tensor] | None = None
    #: Whether ``sigma`` is homogeneous of degree one and ``rho`` of degree zero.
    homogeneous: bool = False

    def __init__(
        self,
        sigma: Callable[[Tensor], Tensor],
        rho: Callable[[Tensor], Tensor],
        *,
        degree: int = _DEGREE,
        critical_regularization: float | None = None,
    ) -> None:
        self.sigma = _series("sigma", sigma, degree, critical_regularization)
        self.rho = _series("rho", rho, degree, 1.0)
        self._jumps = _jumps(self.rho)
        if not self.sigma.lipschitz >= 0:
            raise ValueError(
                f"critical_regularization must not be negative, got {critical_regularization!r}."
            )

    @staticmethod
    def from_family(
        family: str | ExponentialFamily,
        natural_parameter: Callable[[Tensor], Tensor] | None = None,
        slope: Callable[[Tensor], Tensor] | None = None,
        *,
        degree: int | None = None,
        critical_regularization: float | None = None,
    ) -> ExponentialFamilyLink:
        r"""The link of a family and a natural parameter :math:`R(\eta)`.

        Args:
            family: Name or :class:`ExponentialFamily`.
            natural_parameter: :math:`R`, an elementwise torch function, differentiable twice.
                Default: the identity.
            slope: Its derivative :math:`R'`. Default: by automatic differentiation.
            degree: As for the class. Default: 128, or 1 where :math:`\sigma` is the identity, whose
                series ends there.
            critical_regularization: As for the class. The default for :math:`R(\eta) = \eta` is the
                least upper bound of :math:`A''`, which the family knows.

        Raises:
            TypeError: as for the class, or ``family`` is neither a name nor a family.
            ValueError: as for the class, or the name of the family is not known.

        Example:
            >>> ExponentialFamilyLink.from_family("continuous-bernoulli")
            ExponentialFamilyLink.from_family(ContinuousBernoulli())
        """
        family = get_family(family)
        sigma: Callable[[Tensor], Tensor]
        rho: Callable[[Tensor], Tensor]
        if natural_parameter is None:
            sigma, rho = family.mean, torch.ones_like
            if critical_regularization is None:
                critical_regularization = family.lipschitz
        else:
            rho = slope or partial(_derivative, natural_parameter)
            sigma = partial(_mean_gradient, family, natural_parameter, rho)
        if degree is None:
            linear = natural_parameter is None and isinstance(family, Gaussian)
            degree = 1 if linear else _DEGREE
        link = ExponentialFamilyLink(
            sigma, rho, degree=degree, critical_regularization=critical_regularization
        )
        link.family, link.natural_parameter = family, natural_parameter
        return link

    @property
    def critical_regularization(self) -> float:
        r"""Regularization above which the updates have a fixed point, if :math:`\rho` is bounded.

        It is the least upper bound :math:`L_\sigma` of :math:`|\sigma'|`. Where :math:`\rho` is
        constant the fixed point is also unique: the update of :math:`\sqrt{\psi(x, x)}` and then
        that of :math:`\psi(x, x')` contract. Otherwise uniqueness is certain for a regularization
        above :math:`L_\sigma + a L_\rho \max_x \sqrt{c(x, x)}`, which depends on the data.
        """
        return self.sigma.lipschitz

    def sigma_dual(self, pair: PairCovariance) -> PairCovariance:
        r"""Covariance of :math:`\sigma(u)` and :math:`\sigma(v)`."""
        return self.residual_dual(pair, None, None)

    def rho_dual(self, pair: PairCovariance) -> PairCovariance:
        r"""Covariance of :math:`\rho(u)` and :math:`\rho(v)`."""
        rho1, _ = self.coefficients(pair.var1)
        rho2, _ = self.coefficients(pair.var2.mT)
        return expansion_dual(rho1, rho2, pair)

    def residual_dual(
        self, pair: PairCovariance, mean1: Tensor | None, mean2: Tensor | None
    ) -> PairCovariance:
        r"""Covariance of :math:`t\rho(u) - \sigma(u)` and :math:`t'\rho(v) - \sigma(v)`.

        Args:
            pair: Covariance of ``u`` and ``v``.
            mean1: :math:`t`, ``... x n x 1``; None for zero.
            mean2: :math:`t'`, ``... x 1 x m``; None for zero.
        """
        rho1, sigma1 = self.coefficients(pair.var1)
        rho2, sigma2 = self.coefficients(pair.var2.mT)
        if mean1 is not None and mean2 is not None:
            sigma1, sigma2 = sigma1 - mean1 * rho1, sigma2 - mean2.mT * rho2
        return expansion_dual(sigma1, sigma2, pair)

    def cross(self, pair: PairCovariance) -> Tensor:
        r""":math:`\operatorname E \rho(u)\sigma(v)`, ``... x n x m``."""
        rho, _ = self.coefficients(pair.var1)
        _, sigma = self.coefficients(pair.var2.mT)
        return power_series(rho, sigma, expansion_ratio(pair))

    def coefficients(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        r"""Hermite coefficients of :math:`\rho` and :math:`\sigma`, each ``... x n x (K + 1)``.

        Args:
            variance: ``... x n x 1``.
        """
        return self.rho.expansion(variance)[1], self.sigma.expansion(variance)[1]

    def rho_slopes(self, root: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        r"""Hermite coefficients of :math:`\rho'` below the degree, a jump's part among them.

        Args:
            root: Square root of the variance, ``... x n x 1``.
            value: Coefficients of :math:`\rho`, ``... x n x (K + 1)``.
            slope: Coefficients of its derivative where it has one, of the same shape.
        """
        if not self._jumps:
            return slope[..., : self.rho.degree]
        weights = torch.arange(1, value.shape[-1], dtype=value.dtype, device=value.device).sqrt()
        return weights * value[..., 1:] / root.masked_fill(root == 0, math.inf)

    def __repr__(self) -> str:
        if self.family is None:
            return f"ExponentialFamilyLink(sigma={_name(self.sigma.fn)}, rho={_name(self.rho.fn)})"
        parameter = "" if self.natural_parameter is None else f", {_name(self.natural_parameter)}"
        return f"ExponentialFamilyLink.from_family({self.family!r}{parameter})"


class ReLULink(ExponentialFamilyLink):
    r"""The link "relu": the Gaussian family with :math:`R(\eta) = \max(\eta, 0)`, in closed form.

    With :math:`\theta` the angle of a pair and :math:`e = 1 - \cos\theta`,

    .. math::
        \operatorname E \rho(u)\rho(v) = \frac{\pi - \theta}{2\pi}, \qquad
        \operatorname E \rho(u)\sigma(v) = \sqrt{v_2}\, \frac{2 - e}{2\sqrt{2\pi}},

    and :math:`\operatorname E\sigma(u)\sigma(v)` is that of
    :class:`~gp_deq.activations.ReLU`. The critical regularization :math:`1/\sqrt 2` is exact.
    """

    homogeneous = True
    family = Gaussian()
    natural_parameter = staticmethod(torch.relu)

    def __init__(self) -> None:
        self._relu = ReLU()

    @property
    def critical_regularization(self) -> float:
        r""":math:`1/\sqrt 2`."""
        return math.sqrt(0.5)

    def sigma_dual(self, pair: PairCovariance) -> PairCovariance:
        """See :meth:`ExponentialFamilyLink.sigma_dual`."""
        return self._relu.dual(pair)

    def rho_dual(self, pair: PairCovariance) -> PairCovariance:
        """See :meth:`ExponentialFamilyLink.rho_dual`."""
        sqdist = angle(pair.versine) / math.pi
        half1, half2 = (torch.full_like(variance, 0.5) for variance in pair[:2])
        return PairCovariance(half1, half2, sqdist, torch.zeros_like(sqdist))

    def residual_dual(
        self, pair: PairCovariance, mean1: Tensor | None, mean2: Tensor | None
    ) -> PairCovariance:
        """See :meth:`ExponentialFamilyLink.residual_dual`."""
        sigma = self.sigma_dual(pair)
        if mean1 is None or mean2 is None:
            return sigma
        root1, root2 = safe_sqrt(pair.var1), safe_sqrt(pair.var2)
        total = root1 + root2
        rootdiff = pair.vardiff / total.masked_fill(total == 0, 1.0)
        meandiff = mean1 - mean2
        means = PairCovariance(
            mean1.square(), mean2.square(), meandiff.square(), meandiff * (mean1 + mean2)
        )
        first = product_dual(means, self.rho_dual(pair))
        bend = pair.versine * (mean1 * root2 + mean2 * root1)
        cross = (2 * meandiff * rootdiff + bend) / math.sqrt(2 * math.pi)
        twice = math.sqrt(2 / math.pi)
        var1 = first.var1 - twice * mean1 * root1 + sigma.var1
        var2 = first.var2 - twice * mean2 * root2 + sigma.var2
        return PairCovariance(var1, var2, first.sqdist - cross + sigma.sqdist, var1 - var2)

    def cross(self, pair: PairCovariance) -> Tensor:
        """See :meth:`ExponentialFamilyLink.cross`."""
        return safe_sqrt(pair.var2) * (2 - pair.versine) / (2 * math.sqrt(2 * math.pi))

    def __repr__(self) -> str:
        return "ReLULink()"


def product_dual(first: PairCovariance, second: PairCovariance) -> PairCovariance:
    r"""Covariance of the products of two independent pairs, elementwise.

    The squared distance :math:`c_{11}k_{11} + c_{22}k_{22} - 2 c_{12}k_{12}` without cancellation
    at coincident inputs.
    """
    total = (first.var1 + first.var2) / 2
    sqdist = first.vardiff * second.vardiff / 2 + first.sqdist * second.cov + second.sqdist * total
    mean = (second.var1 + second.var2) / 2
    vardiff = first.vardiff * mean + second.vardiff * total
    return PairCovariance(first.var1 * second.var1, first.var2 * second.var2, sqdist, vardiff)


def get_link(
    link: str
    | ExponentialFamilyLink
    | ExponentialFamily
    | tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
) -> ExponentialFamilyLink:
    """Link of a given name, family or pair of functions.

    Args:
        link: "relu", "identity", "logistic", "tanh", "softplus-gaussian"; an
            :class:`ExponentialFamilyLink`, returned as it is; an :class:`ExponentialFamily` such as
            ``Binomial(10)``, in its own natural parameter; or a pair ``(sigma, rho)``.

    Raises:
        ValueError: the name is not known.
        TypeError: something else was given.

    Example:
        >>> get_link("logistic").critical_regularization
        0.25
    """
    if isinstance(link, ExponentialFamilyLink):
        return link
    if isinstance(link, ExponentialFamily):
        return ExponentialFamilyLink.from_family(link)
    if isinstance(link, str):
        if link in _NAMED:
            return _NAMED[link]()
        names = ", ".join(map(repr, _NAMED))
        raise ValueError(
            f"Unknown link {link!r}. Give one of {names}, or an ExponentialFamilyLink(sigma, rho)."
        )
    if isinstance(link, tuple) and len(link) == 2:
        return ExponentialFamilyLink(*link)
    raise TypeError(
        "A link is a name, an ExponentialFamilyLink, an ExponentialFamily or a pair of functions "
        f"(sigma, rho), not {link!r}."
    )


_NAMED: dict[str, Callable[[], ExponentialFamilyLink]] = {
    "relu": ReLULink,
    "identity": partial(ExponentialFamilyLink.from_family, Gaussian()),
    "logistic": partial(ExponentialFamilyLink.from_family, Bernoulli()),
    "tanh": partial(ExponentialFamilyLink.from_family, SignedBernoulli()),
    "softplus-gaussian": partial(
        ExponentialFamilyLink.from_family, Gaussian(), softplus, torch.sigmoid
    ),
}


def _mean_gradient(
    family: ExponentialFamily,
    natural_parameter: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    eta: Tensor,
) -> Tensor:
    r""":math:`A'(R(\eta)) R'(\eta)`."""
    return family.mean(natural_parameter(eta)) * slope(eta)


def _derivative(fn: Callable[[Tensor], Tensor], eta: Tensor) -> Tensor:
    return value_and_slope(fn, eta)[1]


def _series(
    role: str, fn: Callable[[Tensor], Tensor], degree: int, lipschitz: float | None
) -> Hermite:
    if not callable(fn):
        raise TypeError(f"{role} of a link must be an elementwise torch function, not {fn!r}.")
    try:
        return Hermite(fn, degree, lipschitz)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{role} of a link: {error}") from error


def _jumps(series: Hermite) -> bool:
    """Whether the function is not the integral of its derivative."""
    value, slope = series.coefficients(torch.ones(1, 1, dtype=torch.float64))
    return bool((value[..., 1] - slope[..., 0]).abs().max() > 1e-8 * value.abs().max())


def _name(fn: Callable[[Tensor], Tensor]) -> str:
    return getattr(fn, "__name__", None) or repr(fn)
