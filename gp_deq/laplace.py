r"""Gaussian processes with non-Gaussian targets by Laplace's approximation.

With a prior :math:`f \sim \mathcal N(m, K)` and targets of an exponential family with natural
parameters :math:`f` the posterior is replaced by a Gaussian at its mode (Williams and Barber 1998,
"Bayesian classification with Gaussian processes"; Rasmussen and Williams 2006, section 3.4). The
mode is the fixed point that :class:`~gp_deq.implicit_layers.KernelGLM` solves.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import gpytorch
import numpy as np
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.means import Mean, ZeroMean
from linear_operator.utils.errors import NanError, NotPSDError
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from . import settings
from .equilibrium.report import ConvergenceWarning, SolverMonitor
from .implicit_layers.exponential_family import ExponentialFamily, Gaussian, Poisson, get_family
from .implicit_layers.map_solver import Curvature, check_covariance, check_data, most_probable

__all__ = ["LaplaceGP", "LaplacePosterior", "Moments"]

#: Steps of quadratures in units of natural parameters; poles of the means are 1.57 or more away.
_STEP = 0.25
#: A standard normal has 2e-17 of its mass beyond.
_REACH = 8.5
_MOST_NODES = 4096


class Moments(NamedTuple):
    """Mean and variance of targets.

    Args:
        mean: ``... x m``.
        variance: ``... x m``.
    """

    mean: Tensor
    variance: Tensor


class LaplacePosterior:
    r"""What is known after the data: a Gaussian for the latent function.

    Args:
        model: The prior and its hyperparameters.
        X: Inputs, ``... x n x d``.
        y: Targets, ``... x n``.
        similar: Of the same data and similar hyperparameters; the mode is found sooner from there.

    Attributes:
        mode: Most probable latent values at ``X``, ``... x n``.
        log_evidence: Laplace's approximation of :math:`\log p(y)`, ``...``.
        solver_report: Record of the solve for the mode.
    """

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

    def __call__(self, X_new: Tensor) -> MultivariateNormal:
        """The latent function.

        Args:
            X_new: Inputs, ``... x m x d``.

        Returns:
            The joint distribution of its ``m`` values.
        """
        mean, spread = self._project(X_new)
        covariance = self.model.kernel(X_new).to_dense() - spread.mT @ spread
        return MultivariateNormal(mean, covariance)

    def latent(self, X_new: Tensor) -> Moments:
        """Mean and variance of each latent value alone, without the ``m x m`` covariance.

        Args:
            X_new: Inputs, ``... x m x d``.
        """
        mean, spread = self._project(X_new)
        prior = self.model.kernel(X_new, diag=True)
        # no less than rounding of the prior's
        floor = torch.finfo(prior.dtype).eps * prior
        return Moments(mean, torch.maximum(prior - spread.square().sum(-2), floor))

    def predict(self, X_new: Tensor) -> Moments:
        r"""Mean and variance of new targets.

        The integrals of :math:`A'` and :math:`A''` over the latent Gaussian are closed forms for
        Gaussian and Poisson targets and otherwise trapezoidal sums, to about 1e-10 while standard
        deviations of the latent function stay below 60.

        Args:
            X_new: Inputs, ``... x m x d``.

        Returns:
            For Bernoulli targets the mean is the probability of a one.
        """
        mean, variance = self.latent(X_new)
        family = self.model.family
        if isinstance(family, Gaussian):
            return Moments(mean, variance + 1)
        if isinstance(family, Poisson):
            rate = (mean + variance / 2).exp()
            return Moments(rate, rate + rate.square() * variance.expm1())
        points, log_weights = _nodes(mean, variance, _STEP)
        weights = log_weights.exp()
        means = family.mean(points)
        first = (weights * means).sum(-1)
        within = (weights * family.variance(points)).sum(-1)
        between = (weights * (means - first.unsqueeze(-1)).square()).sum(-1)
        return Moments(first, within + between)

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
        family = self.model.family
        family.check(y_new)
        if not y_new.numel():
            return torch.zeros_like(y_new)
        mean, variance = self.latent(X_new)
        largest = min(family.lipschitz, float(y_new.abs().max()) + 1)
        # a likelihood is as narrow as the root of its curvature
        points, log_weights = _nodes(mean, variance, _STEP / math.sqrt(max(1.0, largest)))
        return (family.log_prob(y_new.unsqueeze(-1), points) + log_weights).logsumexp(-1)

    def _project(self, X_new: Tensor) -> tuple[Tensor, Tensor]:
        """Means, and the factor whose square is what the data take off the covariance."""
        check_data(X_new, X_new[..., 0])
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

    Args:
        kernel: Any GPyTorch kernel, of the latent function; give it an output scale.
        family: Name or :class:`~gp_deq.implicit_layers.ExponentialFamily` of the targets.
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
        X, y = self.train_inputs if X is None else X, self.train_targets if y is None else y
        if X is None or y is None:
            raise ValueError("There are no data: give X and y, or call fit or set_train_data.")
        return self._condition(X, y)

    def log_evidence(self, X: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Laplace's approximation of the log marginal likelihood.

        Args:
            X: As for :meth:`posterior`.
            y: As there.

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

    def fit(self, X: Tensor, y: Tensor, max_iterations: int = 200) -> LaplacePosterior:
        """Learn the hyperparameters by maximising the evidence, and the priors that there are.

        All parameters of kernel and mean that require gradients are learned, by L-BFGS from their
        present values.

        Args:
            X: Inputs, ``... x n x d``.
            y: Targets, ``... x n``; evidences of leading dimensions add up.
            max_iterations: Steps of L-BFGS at most; where they do not do, there is a warning.

        Returns:
            The posterior, without a graph.

        Raises:
            ValueError: as for :meth:`posterior`.
            NotPSDError: the kernel's matrix is not positive semi-definite at the present values.
        """
        self.set_train_data(X, y)
        parameters = [p for p in self.parameters() if p.requires_grad]
        with torch.no_grad():
            start = parameters_to_vector(parameters) if parameters else torch.zeros(0)
            similar = self.posterior()  # what is wrong with the data is said here

        def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
            vector_to_parameters(torch.as_tensor(point).to(start), parameters)
            for parameter in parameters:
                parameter.grad = None
            nonlocal similar
            try:
                similar = self._condition(X, y, similar)
            except (NotPSDError, NanError, ValueError):
                return math.inf, np.zeros_like(point)
            loss = -similar.log_evidence.sum()
            for _, module, prior, closure, _ in self.named_priors():
                loss = loss - prior.log_prob(closure(module)).sum()
            if not bool(loss.isfinite()):
                return math.inf, np.zeros_like(point)
            loss.backward()
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            return loss.item(), parameters_to_vector(gradients).double().numpy(force=True)

        if parameters:
            found = minimize(
                objective,
                start.double().numpy(force=True),
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": max_iterations},
            )
            vector_to_parameters(torch.as_tensor(found.x).to(start), parameters)
            for parameter in parameters:
                parameter.grad = None
            if found.nit >= max_iterations:
                warnings.warn(
                    f"LaplaceGP.fit took all of its {max_iterations} iterations; raise "
                    "max_iterations, or call it again.",
                    stacklevel=2,
                )
        with torch.no_grad():
            return self.posterior()

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
                stacklevel=4,
            )
        return found


def _nodes(mean: Tensor, variance: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Points and log weights of a trapezoidal sum over Gaussians, ``... x m x nodes``.

    The error falls like ``exp(-2 pi a / step)`` for integrands analytic within ``a`` of the reals.
    """
    std = variance.sqrt().unsqueeze(-1)
    widest = float(std.detach().max()) if std.numel() else 0.0
    count = int(min(max(2 * _REACH * widest / step, 64), _MOST_NODES))
    z = torch.linspace(-_REACH, _REACH, count, dtype=mean.dtype, device=mean.device)
    log_weights = -z.square() / 2
    log_weights = log_weights - log_weights.logsumexp(-1)
    return mean.unsqueeze(-1) + std * z, log_weights
