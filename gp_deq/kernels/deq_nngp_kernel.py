"""The kernel of a deep equilibrium network at initialisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor

from ..activations import Activation, PairCovariance
from ..equilibrium import SolverMonitor, equilibrium
from ._base import NeuralKernel
from .constraints import BelowCritical


class EquilibriumKernel(NeuralKernel):
    """A kernel with a weight variance inside the region where its equilibrium is unique."""

    def __init__(
        self,
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        *,
        weight_variance_prior: Prior | None = None,
        weight_variance_constraint: Interval | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(activation, **kwargs)
        critical = self.activation.critical_weight_variance
        if not critical > 0:
            raise ValueError(
                f"{type(self).__name__} needs an activation of bounded slope: the slope of "
                f"{self.activation!r} is not, so its equilibrium need not exist. Use a finite "
                "depth (NNGPKernel, NTKKernel) or another activation."
            )
        constraint = weight_variance_constraint or BelowCritical(critical)
        if float(constraint.upper_bound.max()) >= critical or float(constraint.lower_bound.min()) < 0:
            raise ValueError(
                f"weight_variance_constraint must keep weight_variance in (0, {critical:g}), below "
                f"the critical value of {self.activation!r}; got {constraint}."
            )
        self._register_hyperparameter("weight_variance", constraint, weight_variance_prior)

    @property
    def weight_variance(self) -> Tensor:
        """Variance of the recurrent weights, ``*batch_shape x 1 x 1``."""
        return self._hyperparameter("weight_variance")

    @weight_variance.setter
    def weight_variance(self, value: Tensor | float) -> None:
        self._set_hyperparameter("weight_variance", value)

    def _region(self, name: str) -> str:
        if name == "weight_variance":
            return f"(0, {self.activation.critical_weight_variance:g})"
        return super()._region(name)


class DEQNNGPKernel(EquilibriumKernel):
    """DEQ-NNGP."""

    def _read_out(
        self,
        injected: PairCovariance,
        monitor: SolverMonitor,
        weight_variance: Tensor,
        bias_variance: Tensor,
    ) -> Tensor:
        sigma = equilibrium(self.activation, weight_variance, injected, monitor)
        return self.activation.dual(sigma).cov
