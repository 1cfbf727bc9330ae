r"""Gaussian processes with non-Gaussian targets by Laplace's approximation.

With a prior :math:`f \sim \mathcal N(m, K)` and targets of an exponential family with natural
parameters :math:`f` the posterior is replaced by a Gaussian at its mode (Williams and Barber 1998,
"Bayesian classification with Gaussian processes"; Rasmussen and Williams 2006, section 3.4). The
mode is the fixed point that :class:`~gp_deq.implicit_layers.KernelGLM` solves.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple, Self

import gpytorch
import numpy as np
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.means import Mean, ZeroMean
from linear_operator import to_linear_operator
from linear_operator.utils.errors import NanError, NotPSDError
from scipy.optimize import minimize
from torch import Tensor

from . import settings
from .activations import ExponentialFamily, Gaussian, Poisson, get_family, safe_sqrt
from .equilibrium import ConvergenceWarning, SolverMonitor
from .implicit_layers import (
    Curvature,
    check_covariance,
    check_data,
    check_new_inputs,
    most_probable,
    without_autocast,
)

__all__ = ["LaplaceGP", "LaplacePosterior", "Moments", "log_predictive", "target_moments"]

#: Step of trapezoidal sums; poles of the means of targets are 1.57 or more from the reals.
_STEP = 0.25
#: A standard normal has 2e-17 of its mass beyond.
_REACH = 8.5
#: Nodes of a sum at most, and numbers at a time.
_MOST_NODES, _CHUNK = 4096, 2_000_000
#: Nodes of the integral of a likelihood.
_LIKELIHOOD_NODES = 401
_LOG_2PI = math.log(2 * math.pi)
#: Expected counts over observed ones, plus one, that are called meaningless: an excess by a factor
#: of e^(v/2) with a latent variance v above 4.6, where the posterior is far from a Gaussian.
_EXCESS = 10


class Moments(NamedTuple):
    """Mean and variance of each target, or of each latent value.

    Args:
        mean: ``... x m``.
        variance: ``... x m``.
    """

    mean: Tensor
    variance: Tensor


class LaplacePosterior:
    r"""The posterior, with a Gaussian for the latent function.

    It belongs to the hyperparameters that the model had when it was made: condition anew when they
    change. The posterior that :meth:`LaplaceGP.fit` returns has hyperparameters of its own.

    Args:
        model: The prior and its hyperparameters.
        X: Inputs, ``... x n x d``.
        y: Targets, ``... x n``.
        similar: A posterior of the same data at similar hyperparameters, from whose mode this one's
            is found sooner.

    Attributes:
        mode: Most probable latent values at ``X``, ``... x n``.
        log_evidence: Laplace's approximation of :math:`\log p(y)`, ``...``.
        solver_report: Record of the solve for the mode.
    """

    _residual: Tensor

    def __init__(
        self, model: LaplaceGP, X: Tensor, y: Tensor, similar: LaplacePosterior | None = None
    ) -> None:
        check_data(X, y)
        family = model.family
        family.check(y)
        self.model, self.X = model, X
        statistic = family.sufficient_statistic(y)
        covariance = model.kernel(X).to_dense()
        check_covariance(covariance)
        offset, monitor = model.mean(X), SolverMonitor()
        start = None if similar is None else similar._residual.detach()
        self.mode = most_probable(covariance, statistic, family, monitor, offset, start)
        self.solver_report = monitor.report()
        self._curvature = Curvature.at(self.mode, covariance, family)
        self._residual = statistic - family.mean(self.mode)
        fit = family.log_prob(y, self.mode) - self._residual * (self.mode - offset) / 2
        log_factor = self._curvature.factor.diagonal(dim1=-2, dim2=-1).log()
        self.log_evidence = (fit - log_factor).sum(-1)

    @without_autocast
    def __call__(self, X_new: Tensor) -> MultivariateNormal:
        """The latent function.

        Args:
            X_new: Inputs, ``... x m x d``.

        Returns:
            The joint distribution of its ``m`` values.
        """
        mean, spread = self._project(X_new)
        covariance = self.model.kernel(X_new).to_dense() - spread.mT @ spread
        # as an operator, so that GPyTorch factorises it with a jitter if need be
        return MultivariateNormal(mean, to_linear_operator((covariance + covariance.mT) / 2))

    @without_autocast
    def latent(self, X_new: Tensor) -> Moments:
        """Mean and variance of each latent value alone, without the ``m x m`` covariance.

        Args:
            X_new: Inputs, ``... x m x d``.
        """
        mean, spread = self._project(X_new)
        prior = self.model.kernel(X_new, diag=True)
        # the difference may be negative by the rounding of the prior variance
        floor = torch.finfo(prior.dtype).eps * prior
        return Moments(mean, torch.maximum(prior - spread.square().sum(-2), floor))

    @without_autocast
    def predict(self, X_new: Tensor) -> Moments:
        r"""Mean and variance of new targets.

        The integrals of :math:`A'` and :math:`A''` over the latent Gaussian are closed forms for
        Gaussian and Poisson targets and otherwise trapezoidal sums: to rounding while standard
        deviations of the latent function stay below 60, to 1e-4 at 1000.

        Args:
            X_new: Inputs, ``... x m x d``.

        Returns:
            For Bernoulli targets the mean is the probability of a one.
        """
        return target_moments(self.model.family, *self.latent(X_new))

    @without_autocast
    def log_prob(self, X_new: Tensor, y_new: Tensor) -> Tensor:
        """Log predictive density, or probability, of each new target alone.

        Args:
            X_new: Inputs, ``... x m x d``.
            y_new: Targets, ``... x m``.

        Returns:
            ``... x m``.

        Raises:
            ValueError: shapes or dtypes do not fit, or targets are not in the family's support.
        """
        check_data(X_new, y_new)
        return log_predictive(self.model.family, y_new, *self.latent(X_new))

    def _project(self, X_new: Tensor) -> tuple[Tensor, Tensor]:
        """Means, and the factor whose square the data subtract from the prior covariance."""
        check_new_inputs(X_new, self.X)
        cross = self.model.kernel(X_new, self.X).to_dense()
        mean = self.model.mean(X_new) + (cross @ self._residual.unsqueeze(-1)).squeeze(-1)
        root, factor = self._curvature
        return mean, torch.linalg.solve_triangular(factor, root * cross.mT, upper=False)


class LaplaceGP(gpytorch.Module):
    r"""A GP with targets of an exponential family, by Laplace's approximation.

    The evidence is, with :math:`\hat f` the mode, :math:`W = A''(\hat f)` and :math:`\alpha = T -
    A'(\hat f)`,

    .. math:: \log Z = -\tfrac12 \alpha^\top (\hat f - m) + \sum_i \log p(y_i | \hat f_i)
        - \tfrac12 \log|I + W^{1/2} K W^{1/2}| ,

    and its gradient goes through the mode by the implicit function theorem. The posterior of the
    latent function at :math:`x_*` has the mean :math:`m_* + k_*^\top\alpha` and the variance
    :math:`k_{**} - k_*^\top (W^{-1} + K)^{-1} k_*`.

    Where classes can be told apart without an error the evidence grows with the output scale, for
    ever or for long. The mode then lies far within the posterior's mass, and probabilities are too
    close to a half. A prior on the output scale keeps it in bounds.

    Args:
        kernel: Any GPyTorch kernel, of the latent function; give it an output scale.
        family: Name or :class:`~gp_deq.activations.ExponentialFamily` of the targets.
        mean: GPyTorch mean of the latent function. Default: zero. Counts want a
            ``ConstantMean()``.

    Attributes:
        train_inputs: Inputs given to :meth:`fit` or :meth:`set_train_data`, None before.
        train_targets: Targets given there.

    Raises:
        ValueError: the family is unknown.

    Example:
        >>> from gpytorch.kernels import ScaleKernel
        >>> from gp_deq import DEQNNGPKernel
        >>> X = torch.linspace(-2, 2, 40, dtype=torch.float64).unsqueeze(-1)
        >>> y = (X[:, 0].abs() < 1).double()
        >>> model = LaplaceGP(ScaleKernel(DEQNNGPKernel("erf")).double(), "bernoulli")
        >>> posterior = model.fit(X, y)
        >>> bool((posterior.predict(X).mean.round() == y).all())
        True
    """

    train_inputs: Tensor | None = None
    train_targets: Tensor | None = None

    def __init__(
        self,
        kernel: Kernel,
        family: str | ExponentialFamily = "bernoulli",
        mean: Mean | None = None,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.family = get_family(family)
        self.mean = ZeroMean() if mean is None else mean

    def set_train_data(self, X: Tensor, y: Tensor) -> None:
        """Data for :meth:`posterior` and :meth:`log_evidence`.

        Args:
            X: Inputs, ``... x n x d``.
            y: Targets, ``... x n``.
        """
        self.train_inputs, self.train_targets = X, y

    def posterior(self, X: Tensor | None = None, y: Tensor | None = None) -> LaplacePosterior:
        """Condition on data; keep the result where several predictions are wanted.

        Args:
            X: Inputs, ``... x n x d``; None for the training data.
            y: Targets, ``... x n``.

        Returns:
            The posterior, differentiable with respect to hyperparameters and inputs.

        Raises:
            ValueError: shapes or dtypes do not fit, values are not finite or not in the family's
                support, or there are no data.
            NotPSDError: the kernel's matrix is not positive semi-definite.
        """
        if (X is None) != (y is None):
            raise ValueError(
                "Give both X and y, or neither. To predict, call predict or the model."
            )
        if X is None or y is None:
            X, y = self.train_inputs, self.train_targets
        if X is None or y is None:
            raise ValueError("There are no data: give X and y, or call fit or set_train_data.")
        return self._condition(X, y)

    def log_evidence(self, X: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Laplace's approximation of the log marginal likelihood.

        Args:
            X: As for :meth:`posterior`.
            y: As for :meth:`posterior`.

        Returns:
            ``...``, the leading dimensions of the data.
        """
        return self.posterior(X, y).log_evidence

    def forward(self, X_new: Tensor) -> MultivariateNormal:
        """The latent function given the training data.

        Args:
            X_new: Inputs, ``... x m x d``.
        """
        return self.posterior()(X_new)

    def predict(self, X_new: Tensor) -> Moments:
        """Mean and variance of new targets given the training data.

        Args:
            X_new: Inputs, ``... x m x d``.
        """
        return self.posterior().predict(X_new)

    @without_autocast
    def fit(self, X: Tensor, y: Tensor, max_iterations: int = 200) -> LaplacePosterior:
        """Learn the hyperparameters by maximising the evidence, and the priors that there are.

        All parameters of kernel and mean that require gradients are learned, by L-BFGS from their
        present values.

        Args:
            X: Inputs, ``... x n x d``.
            y: Targets, ``... x n``; evidences of leading dimensions add up.
            max_iterations: Steps of L-BFGS at most.

        Returns:
            The posterior, without a graph, at the best hyperparameters that were seen. There is a
            warning if L-BFGS did not converge, or if expected counts come out much larger than the
            observed ones.

        Raises:
            ValueError: as for :meth:`posterior`.
            NotPSDError: the kernel's matrix is not positive semi-definite at the present values.
        """
        self.set_train_data(X, y)
        parameters = [p for p in self.parameters() if p.requires_grad]
        start = _flatten(parameters)
        with torch.no_grad():
            similar = self.posterior()  # raises the errors of bad data before anything changes
        best, best_point, best_posterior = math.inf, start, similar

        def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal similar, best, best_point, best_posterior
            _assign(parameters, point)
            try:
                similar = self._condition(X, y, similar)
            except (NotPSDError, NanError, torch.linalg.LinAlgError):
                return math.inf, np.zeros_like(point)
            loss = -similar.log_evidence.sum()
            for _, module, prior, closure, _ in self.named_priors():
                loss = loss - prior.log_prob(closure(module)).sum()
            if not bool(loss.isfinite()):
                return math.inf, np.zeros_like(point)
            gradients = torch.autograd.grad(
                loss, parameters, allow_unused=True, materialize_grads=True
            )
            if loss.item() < best:
                best, best_point, best_posterior = loss.item(), point.copy(), similar
            return loss.item(), _flatten(gradients)

        if parameters:
            options = {"maxiter": max_iterations}
            try:
                with torch.enable_grad():
                    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
            except BaseException:
                _assign(parameters, start)
                raise
            _assign(parameters, best_point)
            finite = math.isfinite(found.fun)  # else its derivative is no reason to stop
            if not (found.success and finite):
                reason = found.message if finite else "trial points without a finite evidence"
                warnings.warn(
                    f"LaplaceGP.fit stopped after {found.nit} iterations: {reason}. Call fit "
                    "again to go on, raise max_iterations, or scale inputs and targets.",
                    stacklevel=3,
                )
        with torch.no_grad():
            fitted = deepcopy(self)._condition(X, y, best_posterior)
            if not math.isfinite(self.family.lipschitz):
                self._check_totals(fitted, y)
        return fitted

    def _check_totals(self, fitted: LaplacePosterior, y: Tensor) -> None:
        """Warns if the expected counts are meaningless.

        With a fitted constant mean the expected counts of the exact posterior add up to the
        observed ones. Where there are few events, the evidence may lead to a latent variance of
        hundreds, and Laplace's Gaussian, unlike the posterior, has mass at huge rates.
        """
        total = y.sum(-1)
        limit = _EXCESS * (total + 1)
        # the prior variance bounds that of the posterior, and is often small enough
        prior = fitted.model.kernel(fitted.X, diag=True)
        bound = target_moments(self.family, fitted.mode, prior).mean.sum(-1)
        if bool((bound <= limit).all()):
            return
        expected = fitted.predict(fitted.X).mean.sum(-1)
        if bool((expected > limit).any()):
            warnings.warn(
                f"LaplaceGP.fit ({self.family!r}): at the training inputs {total.max().item():.3g} "
                f"events were observed and {expected.max().item():.1e} are expected. The latent "
                f"variance is up to {fitted.latent(fitted.X).variance.max().item():.1e}, too large "
                "for Laplace's approximation. Give the model a ConstantMean and the kernel priors "
                "that bound its variance, as those of gp_deq.bayesopt.get_covar_module do.",
                stacklevel=4,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # the data go where the parameters go
        if self.train_inputs is not None and self.train_targets is not None:
            self.train_inputs, self.train_targets = fn(self.train_inputs), fn(self.train_targets)
        return super()._apply(fn, recurse)

    @without_autocast
    def _condition(
        self, X: Tensor, y: Tensor, similar: LaplacePosterior | None = None
    ) -> LaplacePosterior:
        found = LaplacePosterior(self, X, y, similar)
        report = found.solver_report
        if not report.converged and settings.warn_not_converged.value():
            warnings.warn(
                f"LaplaceGP ({self.family!r}): the mode did not converge in {report.iterations} "
                f"iterations, relative step {report.residual:.1e}. Scale inputs or output scale, "
                "or raise gp_deq.settings.max_solver_iterations.",
                ConvergenceWarning,
                stacklevel=5,
            )
        return found


def _flatten(tensors: Sequence[Tensor]) -> np.ndarray:
    flat = [t.detach().double().cpu().numpy().ravel() for t in tensors]
    return np.concatenate([np.zeros(0), *flat])


def _assign(parameters: Sequence[Tensor], point: np.ndarray) -> None:
    """Sets parameters, each in its dtype and on its device."""
    values = torch.as_tensor(point).split([p.numel() for p in parameters])
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value.reshape(parameter.shape))


@without_autocast
def target_moments(family: ExponentialFamily, mean: Tensor, variance: Tensor) -> Moments:
    """Mean and variance of targets with Gaussian natural parameters.

    Trapezoidal sums, whose errors fall like ``exp(-2 pi a / step)`` for integrands analytic within
    ``a`` of the reals; see :meth:`LaplacePosterior.predict`.

    Args:
        family: Family of the targets.
        mean: Means of the natural parameters, ``... x m``.
        variance: Variances of the natural parameters, ``... x m``.
    """
    if isinstance(family, Gaussian):
        return Moments(mean, variance + 1)
    if isinstance(family, Poisson):
        rate = (mean + variance / 2).exp()
        # the rate's variance, e^(2 mean + variance) (e^variance - 1), without 0 times infinity
        spread = (2 * (mean + variance)).exp() * -(-variance).expm1()
        return Moments(rate, rate + spread)
    widest = float(variance.detach().max().sqrt()) if variance.numel() else 0.0
    count = int(min(max(2 * _REACH * widest / _STEP, 64), _MOST_NODES))
    z = torch.linspace(-_REACH, _REACH, count, dtype=mean.dtype, device=mean.device)
    weights = (-z.square() / 2).softmax(-1)
    parts = []
    rows = max(_CHUNK // count, 1)
    flat = mean.flatten(), safe_sqrt(variance).flatten()
    for center, std in zip(flat[0].split(rows), flat[1].split(rows), strict=True):
        points = center.unsqueeze(-1) + std.unsqueeze(-1) * z
        means = family.mean(points)
        first = means @ weights
        between = (means - first.unsqueeze(-1)).square() @ weights
        parts.append((first, family.variance(points) @ weights + between))
    first, second = (torch.cat(column).reshape(mean.shape) for column in zip(*parts, strict=True))
    return Moments(first, second)


@without_autocast
def log_predictive(
    family: ExponentialFamily, targets: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    r"""Log densities of targets with Gaussian natural parameters.

    The integrand :math:`p(y|f)\,\mathcal N(f; m, v)` has one mode, :math:`\hat f`, and near it the
    width :math:`s = (1/v + A'')^{-1/2}`. The integral is a trapezoidal sum of 401 nodes in
    :math:`t` with :math:`f = \hat f + s \sinh t`, over all that 8.5 standard deviations of the
    Gaussian leave: to 1e-6 while these stay below 100, to 2e-3 at 1000.

    Args:
        family: Family of the targets.
        targets: ``... x m``.
        mean: Means of the natural parameters, ``... x m``.
        variance: Variances of the natural parameters, ``... x m``.

    Returns:
        ``... x m``.

    Raises:
        ValueError: a target is not in the support.
    """
    family.check(targets)
    if isinstance(family, Gaussian):
        return -((targets - mean).square() / (variance + 1) + (variance + 1).log() + _LOG_2PI) / 2
    # a variance of zero leaves the likelihood at the mean; the substitute is far below rounding
    prior = variance.clamp_min(torch.finfo(variance.dtype).eps ** 2)
    with torch.no_grad():
        statistic = family.sufficient_statistic(targets)
        single = prior[..., None, None]
        mode = most_probable(
            single, statistic.unsqueeze(-1), family, SolverMonitor(), mean.unsqueeze(-1)
        ).squeeze(-1)
        width = (1 / prior + family.variance(mode)).rsqrt()
        reach = ((mode - mean).abs() + _REACH * prior.sqrt()) / width
        ends = reach.asinh().unsqueeze(-1)
        t = torch.linspace(-1, 1, _LIKELIHOOD_NODES, dtype=mean.dtype, device=mean.device) * ends
        # differences from the mean: the nodes of a narrow Gaussian lie within its rounding
        shift = (mode - mean).unsqueeze(-1) + width.unsqueeze(-1) * t.sinh()
        step = 2 * ends / (_LIKELIHOOD_NODES - 1)
        log_weights = (step * width.unsqueeze(-1)).log() + t.cosh().log()
    square = shift.square() / prior.unsqueeze(-1)
    density = -(square + prior.log().unsqueeze(-1) + _LOG_2PI) / 2
    likelihood = family.log_prob(targets.unsqueeze(-1), mean.unsqueeze(-1) + shift)
    return (likelihood + density + log_weights).logsumexp(-1)
