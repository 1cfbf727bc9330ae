"""Links of exponential families, whose gradient updates have a kernel as their limit."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .angles import angle
from .hermite import Hermite
from .pair_covariance import PairCovariance, safe_sqrt
from .piecewise_linear import ReLU
from .power_series import expansion_dual, expansion_ratio, power_series


class ExponentialFamilyLink:
    r"""The two functions by which an exponential family enters a gradient update.

    A family with log-partition function :math:`A`, sufficient statistic :math:`T` and natural
    parameter :math:`R(\eta)` has the negative log-likelihood :math:`A(R(\eta)) - T R(\eta)`, whose
    derivative is :math:`\sigma(\eta) - T \rho(\eta)` with

    .. math:: \sigma = A'(R) R', \qquad \rho = R' .

    For :math:`(u, v) \sim \mathcal N(0, \Psi)` a link offers :math:`\operatorname E
    \sigma(u)\sigma(v)`, :math:`\operatorname E \rho(u)\rho(v)` and :math:`\operatorname E
    \rho(u)\sigma(v)`, here through the Hermite coefficients of both functions (see
    :class:`~gp_deq.activations.Hermite`). ``get_link`` knows, by name:

    ==================== ============================ ==================== ============
    name                 :math:`\sigma`               :math:`\rho`         critical
    ==================== ============================ ==================== ============
    "relu"               :math:`\max(\eta, 0)`        :math:`1[\eta > 0]`  :math:`1/\sqrt 2`
    "identity"           :math:`\eta`                 1                    1
    "logistic"           sigmoid                      1                    1/4
    "tanh"               tanh                         1                    1
    "softplus-gaussian"  softplus sigmoid             sigmoid              1.04533
    ==================== ============================ ==================== ============

    (the Gaussian family with :math:`R` = relu, identity and softplus; Bernoulli on {0, 1} and on
    {-1, 1}). See [TsuchidaOng2023]_.

    Args:
        sigma: Elementwise torch function, differentiable.
        rho: Elementwise torch function, differentiable but for a jump at zero. Of a jump the series
            at the default degree loses two percent where inputs coincide; "relu" is exact.
        degree: Degree at which the series are cut. Default 128.
        critical_regularization: The regularization must exceed it. Default: the least upper bound
            of :math:`|\sigma'|`, found on a grid.

    Raises:
        TypeError: ``sigma`` or ``rho`` does not map a tensor to a tensor of the same shape.
        ValueError: one of them is not finite, or ``critical_regularization`` is negative.

    Example:
        >>> import torch
        >>> ExponentialFamilyLink(torch.erf, torch.ones_like).critical_regularization
        1.128379
    """

    #: Whether ``sigma`` is homogeneous of degree one and ``rho`` of degree zero.
    homogeneous: bool = False

    def __init__(
        self,
        sigma: Callable[[Tensor], Tensor],
        rho: Callable[[Tensor], Tensor],
        *,
        degree: int = 128,
        critical_regularization: float | None = None,
    ) -> None:
        self.sigma = _series("sigma", sigma, degree, critical_regularization)
        self.rho = _series("rho", rho, degree, 1.0)
        self._jumps = _jumps(self.rho)
        if not self.sigma.lipschitz >= 0:
            raise ValueError(
                f"critical_regularization must not be negative, got {critical_regularization!r}."
            )

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
        r"""Coefficients of :math:`\rho'` below the degree, a jump's part among them.

        Args:
            root: Square root of the variance.
            value: Coefficients of :math:`\rho`.
            slope: Those of its derivative where it has one.
        """
        if not self._jumps:
            return slope[..., : self.rho.degree]
        weights = torch.arange(1, value.shape[-1], dtype=value.dtype, device=value.device).sqrt()
        return weights * value[..., 1:] / root.masked_fill(root == 0, math.inf)

    def __repr__(self) -> str:
        return f"ExponentialFamilyLink(sigma={_name(self.sigma.fn)}, rho={_name(self.rho.fn)})"


class ReLULink(ExponentialFamilyLink):
    r"""The link "relu": a Gaussian family whose mean is rectified, in closed form.

    With :math:`\theta` the angle of a pair and :math:`e = 1 - \cos\theta`,

    .. math::
        \operatorname E \rho(u)\rho(v) = \frac{\pi - \theta}{2\pi}, \qquad
        \operatorname E \rho(u)\sigma(v) = \sqrt{v_2}\, \frac{2 - e}{2\sqrt{2\pi}},

    and :math:`\operatorname E\sigma(u)\sigma(v)` is that of
    :class:`~gp_deq.activations.ReLU`. The critical regularization :math:`1/\sqrt 2` is exact.
    """

    homogeneous = True

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
    | tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
) -> ExponentialFamilyLink:
    """Link of a given name.

    Args:
        link: "relu", "identity", "logistic", "tanh", "softplus-gaussian"; an
            :class:`ExponentialFamilyLink`, returned as it is; or a pair ``(sigma, rho)``.

    Raises:
        ValueError: the name is not known.
        TypeError: something else was given.

    Example:
        >>> get_link("logistic").critical_regularization
        0.25
    """
    if isinstance(link, ExponentialFamilyLink):
        return link
    if isinstance(link, str):
        if link == "relu":
            return ReLULink()
        if link in _NAMED:
            sigma, rho, degree, critical = _NAMED[link]
            return ExponentialFamilyLink(
                sigma, rho, degree=degree, critical_regularization=critical
            )
        names = ", ".join(repr(name) for name in ["relu", *_NAMED])
        raise ValueError(
            f"Unknown link {link!r}. Give one of {names}, or an ExponentialFamilyLink(sigma, rho)."
        )
    if isinstance(link, tuple) and len(link) == 2:
        return ExponentialFamilyLink(*link)
    raise TypeError(
        "A link is a name, an ExponentialFamilyLink or a pair of functions (sigma, rho), not "
        f"{link!r}."
    )


def _identity(eta: Tensor) -> Tensor:
    return eta


def _softplus_mean(eta: Tensor) -> Tensor:
    return torch.nn.functional.softplus(eta) * torch.sigmoid(eta)


# sigma, rho, degree of the series, critical regularization (None where the grid finds it)
_NAMED: dict[
    str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], int, float | None]
] = {
    "identity": (_identity, torch.ones_like, 1, 1.0),
    "logistic": (torch.sigmoid, torch.ones_like, 128, 0.25),
    "tanh": (torch.tanh, torch.ones_like, 128, 1.0),
    "softplus-gaussian": (_softplus_mean, torch.sigmoid, 128, None),
}


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
