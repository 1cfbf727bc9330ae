"""Kernels with a weight variance: of any size at finite depth, below critical at equilibrium."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from gpytorch.constraints import Interval, Positive
from gpytorch.priors import Prior
from torch import Tensor

from ..activations import Activation, PairCovariance, get_activation
from ..activations.piecewise_linear import LeakyReLU
from ..equilibrium import SolverMonitor
from ..equilibrium.angle import AngleSolver
from ..equilibrium.distance import DistanceSolver, tangent_solver
from ..equilibrium.fast import fast_matrix
from ..equilibrium.solution import BlockSolver
from ._base import NeuralKernel
from .constraints import BelowCritical


class WeightedKernel(NeuralKernel):
    """A kernel with hyperparameters ``weight_variance`` and ``bias_variance``."""

    def __init__(
        self,
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        *args: Any,
        weight_variance_prior: Prior | None = None,
        weight_variance_constraint: Interval | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.activation = get_activation(activation)
        constraint = weight_variance_constraint or self._default_constraint()
        self._check_constraint(constraint)
        self._register_hyperparameter("weight_variance", constraint, weight_variance_prior)

    @property
    def _nonlinearity(self) -> object:
        return self.activation

    @property
    def weight_variance(self) -> Tensor:
        """Variance of the recurrent weights, ``*batch_shape x 1 x 1``."""
        return self._hyperparameter("weight_variance")

    @weight_variance.setter
    def weight_variance(self, value: Tensor | float) -> None:
        self._set_hyperparameter("weight_variance", value)

    @abstractmethod
    def _default_constraint(self) -> Interval: ...

    def _check_constraint(self, constraint: Interval) -> None:
        if float(constraint.lower_bound.min()) < 0:
            raise ValueError(
                f"weight_variance_constraint must keep weight_variance positive, got {constraint}."
            )

    def _allowed(self, name: str, value: Tensor) -> bool:
        if name == "weight_variance" and not bool((value > 0).all()):
            return False
        return super()._allowed(name, value)


class FiniteDepthKernel(WeightedKernel):
    """A kernel of ``depth`` layers."""

    def __init__(
        self,
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        *args: Any,
        depth: int = 3,
        input_injection: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(activation, *args, **kwargs)
        if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
            raise ValueError(f"depth must be an integer of at least 1, got {depth!r}.")
        self.depth = depth
        self.input_injection = bool(input_injection)

    def _default_constraint(self) -> Interval:
        return Positive()

    def _layer(
        self,
        dual: PairCovariance,
        injected: PairCovariance,
        weight_variance: Tensor,
        bias_variance: Tensor,
    ) -> PairCovariance:
        """Covariance of the pre-activations of the layer after one with these activations."""
        if self.input_injection:
            terms = zip(dual, injected, strict=True)
            return PairCovariance(*(weight_variance * term + other for term, other in terms))
        return PairCovariance(
            weight_variance * dual.var1 + bias_variance,
            weight_variance * dual.var2 + bias_variance,
            weight_variance * dual.sqdist,
            weight_variance * dual.vardiff,
        )

    def _region(self, name: str) -> str:
        return "(0, inf)" if name == "weight_variance" else super()._region(name)


class EquilibriumKernel(WeightedKernel):
    """A kernel at equilibrium, its weight variance below the critical value."""

    @property
    def _block_read_out(self) -> str:
        """Read-out of the solvers of blocks: "nngp", or what is trained in the NTK."""
        return "nngp"

    def _default_constraint(self) -> Interval:
        critical = self.activation.critical_weight_variance
        if not critical > 0:
            raise ValueError(
                f"{type(self).__name__} needs an activation of bounded slope, and that of "
                f"{self.activation!r} is not bounded, so its equilibrium need not exist. Use a "
                "kernel of finite depth (NNGPKernel, NTKKernel) or another activation."
            )
        return BelowCritical(critical)

    def _check_constraint(self, constraint: Interval) -> None:
        critical = self.activation.critical_weight_variance
        below = float(constraint.upper_bound.max()) < critical
        if not below or float(constraint.lower_bound.min()) < 0:
            raise ValueError(
                f"weight_variance_constraint must keep weight_variance in (0, {critical:g}), below "
                f"the critical value of {self.activation!r}; got {constraint}."
            )

    def _region(self, name: str) -> str:
        if name == "weight_variance":
            return f"(0, {self.activation.critical_weight_variance:g})"
        return super()._region(name)

    def _evaluate(
        self,
        z1: Tensor,
        z2: Tensor | None,
        hyperparameters: list[Tensor],
        monitor: SolverMonitor,
    ) -> Tensor:
        make_solver: Callable[..., BlockSolver | None]
        if isinstance(self.activation, LeakyReLU):
            make_solver = partial(AngleSolver, self.activation, self._block_read_out)
        elif self._block_read_out == "nngp":
            make_solver = partial(DistanceSolver, self.activation, "nngp")
        elif self.activation.smooth:
            make_solver = partial(tangent_solver, self.activation, self._block_read_out)
        else:
            return super()._evaluate(z1, z2, hyperparameters, monitor)
        reference = self._pair_function(SolverMonitor())
        return fast_matrix(make_solver, reference, z1, z2, hyperparameters, monitor)
