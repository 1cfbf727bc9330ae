"""A generalised linear model in the space of a kernel, solved in the forward pass."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import gpytorch
import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.kernels import Kernel
from gpytorch.priors import Prior
from torch import Tensor

from .. import settings
from ..activations import ExponentialFamily, get_family
from ..equilibrium import ConvergenceWarning, SolverMonitor, SolverReport
from .autocast import without_autocast
from .map_solver import (
    attach,
    check_covariance,
    check_data,
    check_new_inputs,
    most_probable,
)

__all__ = ["GLMWeights", "KernelGLM"]

_PLAIN_ITERATIONS = 10_000


class GLMWeights(NamedTuple):
    r"""The four linear maps of the equilibrium.

    .. math:: z = A'(W_1 z + W_2 T(y)), \qquad z_* = A'(W_3 z + W_4 T(y))

    Args:
        W1: :math:`-K/\lambda`, ``... x n x n``.
        W2: :math:`K/\lambda`, ``... x n x n``.
        W3: :math:`-K_*/\lambda`, ``... x m x n``.
        W4: :math:`K_*/\lambda`, ``... x m x n``.
    """

    W1: Tensor
    W2: Tensor
    W3: Tensor
    W4: Tensor


class KernelGLM(gpytorch.Module):
    r"""Regularised maximum likelihood in the space of a kernel, as a layer.

    For targets :math:`y` at inputs :math:`X` the layer minimises over :math:`f = K\alpha`

    .. math:: \sum_i [A(f_i) - T(y_i) f_i] + \tfrac{\lambda}{2} \alpha^\top K \alpha ,

    whose minimum is where :math:`\lambda\alpha = T(y) - A'(f)`; with :math:`z = A'(f)` it is the
    equilibrium of :class:`GLMWeights` [Tsuchida2022]_. The objective is strictly convex, so there
    is one for every :math:`\lambda > 0`, though the iteration :math:`z \leftarrow A'(W_1 z + W_2
    T)` need not converge unless :math:`\sup A''\, \|K\|_2 < \lambda`. Derivatives with respect to
    targets, inputs, :math:`\lambda` and the kernel's hyperparameters are implicit: their cost does
    not depend on the number of iterations.

    Args:
        kernel: Any GPyTorch kernel.
        family: Name or :class:`~gp_deq.activations.ExponentialFamily` of the targets.
        regularization: :math:`\lambda`, positive; a hyperparameter.
        solver: "newton" converges for every regularization; "plain" is the iteration above, from
            :math:`z = 0`.
        regularization_prior: Prior of :math:`\lambda`.
        regularization_constraint: Constraint of :math:`\lambda`. Default: positive.

    Attributes:
        solver_report: Record of the last solve.

    Raises:
        ValueError: ``regularization`` is not positive, or the family or the solver is unknown.

    Example:
        >>> from gpytorch.kernels import RBFKernel
        >>> glm = KernelGLM(RBFKernel(), "bernoulli", regularization=0.5)
        >>> X, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.0, 1.0, 1.0])
        >>> (glm(X, y) > 0.5).tolist()
        [False, True, True]
    """

    solver_report: SolverReport | None = None

    def __init__(
        self,
        kernel: Kernel,
        family: str | ExponentialFamily = "gaussian",
        regularization: float = 1.0,
        *,
        solver: Literal["newton", "plain"] = "newton",
        regularization_prior: Prior | None = None,
        regularization_constraint: Interval | None = None,
    ) -> None:
        super().__init__()
        if solver not in ("newton", "plain"):
            raise ValueError(f'solver must be "newton" or "plain", not {solver!r}.')
        self.kernel = kernel
        self.family = get_family(family)
        self.solver = solver
        # in float64, whatever the dtype of the data: 0.1 must stay 0.1, and a tensor without
        # dimensions does not change the dtype of others
        raw = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.register_parameter("raw_regularization", raw)
        self.register_constraint("raw_regularization", regularization_constraint or Positive())
        if regularization_prior is not None:
            self.register_prior(
                "regularization_prior",
                regularization_prior,
                lambda module: module.regularization,
                lambda module, value: setattr(module, "regularization", value),
            )
        self.regularization = regularization

    @property
    def regularization(self) -> Tensor:
        r""":math:`\lambda`, a positive number."""
        return self.raw_regularization_constraint.transform(self.raw_regularization)

    @regularization.setter
    def regularization(self, value: float | Tensor) -> None:
        value = torch.as_tensor(value, dtype=self.raw_regularization.dtype)
        if value.numel() != 1:
            raise ValueError("regularization must be one number.")
        value = value.reshape(())
        if not (bool(value.isfinite()) and bool(value > 0)):
            raise ValueError(f"regularization must be a positive number, got {value.item():g}.")
        inverse = self.raw_regularization_constraint.inverse_transform(value)
        self.initialize(raw_regularization=inverse)

    def forward(self, X: Tensor, Y: Tensor, X_new: Tensor | None = None) -> Tensor:
        """Means of the targets.

        Args:
            X: Inputs, ``... x n x d``.
            Y: Targets, ``... x n``; leading dimensions are independent problems.
            X_new: Inputs to predict at, ``... x m x d``; None for ``X``.

        Returns:
            ``... x n``, or ``... x m``.

        Raises:
            ValueError: shapes or dtypes do not fit, or values are not finite or not in the family's
                support.
            NotPSDError: the kernel's matrix is not positive semi-definite.
            NanError: the kernel's matrix is not finite.
        """
        return self.family.mean(self.natural_parameters(X, Y, X_new))

    @without_autocast
    def natural_parameters(self, X: Tensor, Y: Tensor, X_new: Tensor | None = None) -> Tensor:
        """The natural parameters, from which the activation makes the means of :meth:`forward`.

        Args:
            X: As for :meth:`forward`.
            Y: As for :meth:`forward`.
            X_new: As for :meth:`forward`.
        """
        check_data(X, Y)
        if X_new is not None:
            check_new_inputs(X_new, X)
        self.family.check(Y)
        statistic = self.family.sufficient_statistic(Y)
        covariance = self.kernel(X).to_dense() / self.regularization
        check_covariance(covariance)
        monitor = SolverMonitor()
        if self.solver == "newton":
            eta = most_probable(covariance, statistic, self.family, monitor)
        else:
            with torch.no_grad():
                eta = self._iterate(covariance, statistic, monitor)
            eta = attach(eta, covariance, statistic, self.family, torch.zeros_like(eta))
        self._record(monitor, covariance)
        if X_new is None:
            return eta
        residual = (statistic - self.family.mean(eta)).unsqueeze(-1)
        cross = self.kernel(X_new, X).to_dense() / self.regularization
        return (cross @ residual).squeeze(-1)

    @without_autocast
    def weights(self, X: Tensor, X_new: Tensor | None = None) -> GLMWeights:
        """The linear maps of the equilibrium.

        Args:
            X: Inputs, ``... x n x d``.
            X_new: Inputs to predict at, ``... x m x d``; None for ``X``.
        """
        matrix = self.kernel(X).to_dense() / self.regularization
        cross = matrix
        if X_new is not None:
            cross = self.kernel(X_new, X).to_dense() / self.regularization
        return GLMWeights(-matrix, matrix, -cross, cross)

    def _iterate(self, covariance: Tensor, statistic: Tensor, monitor: SolverMonitor) -> Tensor:
        """The plain iteration, from z = 0; its last natural parameters."""
        tolerance = settings.solver_tolerance.value(statistic.dtype)
        mean = torch.zeros_like(statistic)
        if not mean.numel():
            return mean
        residual, count = mean, 0
        for count in range(1, _PLAIN_ITERATIONS + 1):  # noqa: B007
            eta = (covariance @ (statistic - mean).unsqueeze(-1)).squeeze(-1)
            new = self.family.mean(eta)
            step, mean = (new - mean).abs().amax(-1), new
            residual = torch.where(step == 0, 0.0, step / new.abs().amax(-1))
            if bool((residual <= tolerance).all()) or not bool(residual.isfinite().all()):
                break
        monitor.record(count, residual, tolerance)
        return eta

    def _record(self, monitor: SolverMonitor, covariance: Tensor) -> None:
        self.solver_report = report = monitor.report()
        if report.converged or not settings.warn_not_converged.value():
            return
        advice = "Scale the inputs, or raise the regularization"
        if self.solver == "plain":
            norm = torch.linalg.matrix_norm(covariance.detach(), 2).max().item()
            advice = (
                f"sup A'' |K|/regularization is {self.family.lipschitz * norm:.3g} and should be "
                'below 1. Use solver="newton", which converges for every regularization'
            )
        warnings.warn(
            f"KernelGLM ({self.family!r}, solver {self.solver!r}) did not converge in "
            f"{report.iterations} iterations: residual {report.residual:.1e}. {advice}.",
            ConvergenceWarning,
            stacklevel=5,
        )
