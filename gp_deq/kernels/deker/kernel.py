"""The kernel of stochastic gradient updates of infinitely many features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
from gpytorch.priors import Prior
from torch import Tensor

from ...activations import ExponentialFamilyLink, PairCovariance, bounded, get_link
from ...equilibrium import PairFunction, PairMap, SolverMonitor
from ..base import Hyperparameter, NeuralKernel
from ..base_kernel import base_pairs
from ..constraints import Region
from .angle_fixed_point import AngleFixedPoint, KernelAngleFixedPoint
from .covariance_fixed_point import CovarianceFixedPoint
from .observed import UNIT_FEATURES, InjectedPair
from .regime import Evaluation, Regime
from .updates import AngleUpdates, CovarianceUpdates

#: Features known by name.
FEATURES = tuple(UNIT_FEATURES)
#: Values of identical inputs.
COINCIDENT = ("continuous", "sgd")
_CONSTRUCTOR_ONLY = ("link", "features", "step_size")


class DEKerKernel(NeuralKernel):
    r"""Covariance of features learned by stochastic gradient updates (DEKer).

    The features :math:`\phi(x)` of an input maximise the penalised likelihood of an exponential
    family with random weights, by gradient steps of fresh weights each. With many features and
    more observations their covariance :math:`\psi` is mapped by one step to

    .. math::
        F(\psi)(x, x') = \lambda^{-2} \operatorname E \bigl(a\gamma\rho(u) - \sigma(u)\bigr)
        \bigl(a\gamma'\rho(v) - \sigma(v)\bigr), \qquad (u, v) \sim \mathcal N(0, \Psi),

    for ``step_size`` one and by :math:`(1 - h)^2\psi + h^2 F(\psi)` in general
    ([TsuchidaOng2023]_). The functions :math:`\sigma` and :math:`\rho` are those of the link and
    :math:`\gamma = \gamma(x)` are observed features, independent of :math:`u` and :math:`v`, with
    second moment :math:`c(x, x') = \operatorname E\gamma\gamma'` and mean :math:`\mu(x)`, so that

    .. math::
        \lambda^2 F = a^2 c \operatorname E\rho(u)\rho(v)
        - a\mu(x) \operatorname E\rho(u)\sigma(v) - a\mu(x') \operatorname E\sigma(u)\rho(v)
        + \operatorname E\sigma(u)\sigma(v) .

    The kernel is :math:`\psi` after ``num_steps`` updates from the covariance :math:`b` of the
    injected input (see :class:`~gp_deq.kernels.DEQNNGPKernel`), or at their fixed point. A
    regularization :math:`\lambda` above a critical value, :math:`1/\sqrt 2` for the link "relu" and
    ``step_size`` one, keeps it where that point exists.

    .. note::
        At the fixed point of the link "relu", whose :math:`\rho` jumps, the features of two inputs
        that are close to each other have a correlation :math:`r_c < 1`, while those of an input
        with itself have one. ``coincident="continuous"`` makes :math:`k(x, x)` the limit
        :math:`r_c \psi(x, x)`; ``"sgd"`` makes it :math:`\psi(x, x)`, which adds the
        :meth:`nugget` :math:`(1 - r_c)\psi(x, x)`, a noise proportional to the variance. Inputs
        coincide when their squared distance is exactly zero, also between ``x1`` and ``x2``.
        With finite ``num_steps`` there is no jump, but paths are rough: :math:`1 - r` falls like
        :math:`|x - x'|` to the power :math:`2^{1 - T}`.

    .. note::
        As for all kernels here, there is no output scale, and the inputs should be centred.

    Args:
        link: "relu" (default), "identity", "logistic", "tanh", "softplus-gaussian", an
            :class:`~gp_deq.activations.ExponentialFamilyLink` or a pair of functions ``(sigma,
            rho)``.
        features: "relu" (default), :math:`c = \operatorname E\max(s, 0)\max(s', 0)` and
            :math:`\mu = \sqrt{b/2\pi}` for :math:`(s, s') \sim \mathcal N(0, b)`; "linear",
            :math:`c = b` and :math:`\mu = 0`; or a GPyTorch kernel :math:`c`, with :math:`\mu = 0`,
            evaluated on the inputs as they are given, neither centred nor scaled.
        num_steps: Number of updates; None (default) for their fixed point.
        step_size: :math:`h`, between 0 and 2. Default 1.
        coincident: "continuous" (default) or "sgd"; see above.
        center: See :class:`~gp_deq.kernels.DEQNNGPKernel`.
        regularization_prior: Prior on ``regularization``.
        regularization_constraint: Default: above the critical value.
        feature_scale_prior: Prior on ``feature_scale``.
        feature_scale_constraint: Default: zero or more.
        **kwargs: ``bias_variance`` and ``lengthscale`` priors and constraints and GPyTorch's
            arguments, as for :class:`~gp_deq.kernels.DEQNNGPKernel`.

    Attributes:
        regularization: :math:`\lambda`, ``*batch_shape x 1 x 1``. Initially, for
            ``step_size`` one, the square root of two times its critical value, or times that of
            :math:`\operatorname E\sigma(u)^2` at a variance of one where this is larger.
        feature_scale: :math:`a`, ``*batch_shape x 1 x 1``. Initially such that an injected input
            of variance one has the variance one after any number of updates (a kernel as
            ``features`` having the variance one too).
        bias_variance: ``*batch_shape x 1 x 1``.
        lengthscale: ``*batch_shape x 1 x d``.
        solver_report: :class:`~gp_deq.equilibrium.SolverReport` of the last evaluation.

    Raises:
        ValueError: An argument is outside of what is listed above, the slope of ``sigma`` is not
            bounded, or a hyperparameter is set outside its region.
        AttributeError: ``link``, ``features`` or ``step_size`` is assigned after construction.

    Example:
        >>> import torch
        >>> from gpytorch.kernels import ScaleKernel
        >>> from gp_deq import DEKerKernel
        >>> kernel = ScaleKernel(DEKerKernel(ard_num_dims=3)).double()
        >>> kernel.base_kernel.regularization = 1.5
        >>> x = torch.randn(10, 3, dtype=torch.float64)
        >>> kernel(x).shape
        torch.Size([10, 10])
    """

    hyperparameter_names = ("regularization", "feature_scale", "bias_variance")

    regularization = Hyperparameter(
        r"Strength :math:`\lambda` of the penalty, ``*batch_shape x 1 x 1``."
    )
    feature_scale = Hyperparameter(
        "Scale :math:`a` of the observed features, ``*batch_shape x 1 x 1``."
    )

    def __init__(
        self,
        link: str
        | ExponentialFamilyLink
        | tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = "relu",
        features: str | Kernel = "relu",
        num_steps: int | None = None,
        step_size: float = 1.0,
        coincident: str = "continuous",
        *args: Any,
        regularization_prior: Prior | None = None,
        regularization_constraint: Interval | None = None,
        feature_scale_prior: Prior | None = None,
        feature_scale_constraint: Interval | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.link = get_link(link)
        self.features = self._check_features(features)
        self.step_size = check_step_size(step_size)
        if coincident not in COINCIDENT:
            raise ValueError(
                f"coincident must be one of {', '.join(map(repr, COINCIDENT))}, got {coincident!r}."
            )
        self.coincident = coincident
        self.num_steps = num_steps
        critical = self.critical_regularization
        if not math.isfinite(critical):
            raise ValueError(
                f"{type(self).__name__} needs a link with a sigma of bounded slope, and that of "
                f"{self.link!r} is not bounded, so its updates need not have a fixed point."
            )
        regularization, scale = self._initial_values()
        DEKerKernel.regularization.register(
            self,
            Region.above_critical(critical, self.link, regularization),
            regularization_constraint,
            regularization_prior,
        )
        DEKerKernel.feature_scale.register(
            self, Region.not_negative(scale), feature_scale_constraint, feature_scale_prior
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """See :meth:`torch.nn.Module.__setattr__`; what the regime is chosen by is not assigned.

        Raises:
            AttributeError: ``link``, ``step_size`` or ``features`` is assigned after construction.
        """
        # GPyTorch assigns the parts of a kernel of features when it takes a part of a batch
        kept = isinstance(value, Kernel) and isinstance(getattr(self, name, None), Kernel)
        if name in _CONSTRUCTOR_ONLY and "_regime" in self.__dict__ and not kept:
            raise AttributeError(
                f"{name} of a {type(self).__name__} cannot be assigned, as the computation and the "
                f"region of the hyperparameters depend on it; construct a kernel with this {name}."
            )
        super().__setattr__(name, value)

    @property
    def num_steps(self) -> int | None:
        """Number of updates; None for their fixed point."""
        return self._num_steps

    @num_steps.setter
    def num_steps(self, num_steps: int | None) -> None:
        self._num_steps = _check_num_steps(num_steps)
        features = self.features if isinstance(self.features, str) else None
        self._regime = choose_regime(self.link, features, num_steps, self.step_size)

    def _initial_values(self) -> tuple[float, float]:
        """Of ``regularization`` and ``feature_scale``, such that a variance of one stays one.

        The variance of the update of step size one at ``psi = b = 1`` is a quadratic polynomial of
        ``feature_scale``; with a step size the same ``lambda**2 (2 - h)/h`` gives the same root.
        """
        one = torch.ones(1, 1, dtype=torch.float64)
        pair = PairCovariance(one, one, torch.zeros_like(one), torch.zeros_like(one))
        rho, cross, sigma = (
            float(value)
            for value in (
                self.link.rho_dual(pair).var1,
                self.link.cross(pair),
                self.link.sigma_dual(pair).var1,
            )
        )
        inertia = 2 * max(self.link.critical_regularization**2, sigma) or 1.0
        moment, mean = (0.5, math.sqrt(0.5 / math.pi)) if self.features == "relu" else (1.0, 0.0)
        half, size = mean * cross, moment * rho
        # no root if size is zero; otherwise one that is positive, as inertia exceeds sigma
        scale = (half + math.sqrt(half**2 + size * (inertia - sigma))) / size if size else 1.0
        return math.sqrt(inertia * self.step_size / (2 - self.step_size)), scale

    @property
    def _nonlinearity(self) -> object:
        return self.link

    @property
    def critical_regularization(self) -> float:
        r"""That of the link times :math:`\sqrt{h/(2-h)}`; ``regularization`` is larger."""
        return self.link.critical_regularization * math.sqrt(self.step_size / (2 - self.step_size))

    def nugget(self, x: Tensor) -> Tensor:
        r"""What ``coincident="sgd"`` adds to the variances, whatever the option of this kernel is.

        Args:
            x: ``... x n x d``.

        Returns:
            ``... x n``; zero for finite ``num_steps`` and where :math:`\rho` is constant.
        """
        x = self._floating(x.unsqueeze(-1) if x.dim() == 1 else x)
        if self.active_dims is not None:
            x = x.index_select(-1, self.active_dims)
        self._check_inputs(x, x, True)
        z1, z2, values = self._arguments(x, x, True)
        assert z2 is not None
        pair = InjectedPair.of(z1, z2, values[2])
        sgd, limit = (
            self._covariance(pair, identical, SolverMonitor(), values)
            for identical in (True, False)
        )
        return (sgd - limit).squeeze(-1).squeeze(-1)

    def _arguments(
        self, x1: Tensor, x2: Tensor, diag: bool
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        z1, z2, values = super()._arguments(x1, x2, diag)
        if isinstance(self.features, str):
            return z1, z2, values
        pairs = base_pairs(self.features, x1, None if x2 is x1 else x2, diag)
        var1, var2 = pairs.var1, pairs.var2.mT
        return z1, z2, [*values, (var1 + var2 - pairs.sqdist) / 2, var1, var2]

    def _pair(
        self, injected: PairCovariance, monitor: SolverMonitor, *values: Any, **inputs: Any
    ) -> Tensor:
        """The kernel; the angle of a pair has digits that the covariance has lost.

        Args:
            injected: Covariance of the injected input.
            monitor: Collects the record of the solves.
            *values: Hyperparameters, and the covariance and variances of the features if these are
                a GPyTorch kernel.
            **inputs: The scaled inputs, ``x1`` and ``x2``.
        """
        pair = InjectedPair(**inputs, bias_variance=values[2], cov=injected)
        return self._covariance(pair, self.coincident == "sgd", monitor, values)

    def _covariance(
        self,
        pair: InjectedPair,
        identical: bool,
        monitor: SolverMonitor,
        values: Sequence[Tensor],
    ) -> Tensor:
        regularization, feature_scale, _, *moments = values
        features = _features_of_a_kernel(pair, *moments) if moments else None
        at = Evaluation(regularization, feature_scale, identical, monitor)
        return self._regime.covariance(pair, features, at)

    def _pair_function(self, monitor: SolverMonitor) -> PairFunction:
        def function(z1: Tensor, z2: Tensor, *values: Tensor) -> Tensor:
            injected = PairCovariance.from_inputs(z1, z2, values[2])
            return self._pair(injected, monitor, *values, x1=z1, x2=z2)

        return function

    def _pair_map(self, monitor: SolverMonitor, *hyperparameters: Tensor) -> PairMap:
        regularization, feature_scale, bias_variance = hyperparameters
        at = Evaluation(regularization, feature_scale, self.coincident == "sgd", monitor)
        found = self._regime.pair_map(bias_variance, at)
        return super()._pair_map(monitor, *hyperparameters) if found is None else found

    def _evaluate(
        self,
        z1: Tensor,
        z2: Tensor | None,
        hyperparameters: Sequence[Tensor],
        monitor: SolverMonitor,
    ) -> Tensor:
        if isinstance(self.features, str):
            return super()._evaluate(z1, z2, hyperparameters, monitor)
        # the features have hyperparameters of their own, and so are evaluated once, for all pairs
        others = z1 if z2 is None else z2
        value = self._pair_function(monitor)(z1, others, *hyperparameters)
        if z2 is not None:
            return value
        upper = torch.ones(value.shape[-2:], dtype=torch.bool, device=value.device).triu_()
        return torch.where(upper, value, value.mT)

    def _check_features(self, features: str | Kernel) -> str | Kernel:
        if isinstance(features, Kernel):
            if features.batch_shape not in (torch.Size([]), self.batch_shape):
                raise ValueError(
                    f"The kernel of the features has batch_shape {tuple(features.batch_shape)}; "
                    f"allowed are {tuple(self.batch_shape)}, that of {type(self).__name__}, and "
                    "() for one kernel that the whole batch shares."
                )
            return features
        if not isinstance(features, str) or features not in FEATURES:
            raise ValueError(
                f"features must be {', '.join(map(repr, FEATURES))} or a gpytorch kernel, got "
                f"{features!r}."
            )
        return features


def choose_regime(
    link: ExponentialFamilyLink, features: str | None, num_steps: int | None, step_size: float
) -> Regime:
    """The way to compute the kernel.

    Args:
        link: The link.
        features: "relu" or "linear"; None for a GPyTorch kernel.
        num_steps: Number of updates; None for their fixed point.
        step_size: Step size of the updates.
    """
    if link.homogeneous and features is not None:
        unit = UNIT_FEATURES[features]
        if num_steps is None:
            return AngleFixedPoint(unit, step_size)
        return AngleUpdates(unit, step_size, num_steps)
    if num_steps is not None:
        return CovarianceUpdates(link, features, num_steps, step_size)
    if link.homogeneous:
        return KernelAngleFixedPoint(step_size)
    return CovarianceFixedPoint(link, features, step_size)


def _features_of_a_kernel(
    pair: InjectedPair, cov: Tensor, var1: Tensor, var2: Tensor
) -> PairCovariance:
    """Covariance of observed features that are a GPyTorch kernel."""
    # rounding must not separate inputs that coincide
    sqdist = torch.where(pair.coincident, 0.0, bounded(var1 + var2 - 2 * cov, 0.0))
    return PairCovariance(var1, var2, sqdist, var1 - var2)


def _check_num_steps(num_steps: int | None) -> int | None:
    if num_steps is None:
        return None
    if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
        raise ValueError(
            "num_steps must be an integer of at least 1, or None for the fixed point, got "
            f"{num_steps!r}."
        )
    return num_steps


def check_step_size(step_size: float) -> float:
    """The step size of the updates as a float.

    Args:
        step_size: A number.

    Raises:
        ValueError: It is not between 0 and 2.
    """
    try:
        value = float(step_size)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < 2:
        raise ValueError(f"step_size must lie between 0 and 2, got {step_size!r}.")
    return value
