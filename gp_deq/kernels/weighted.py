"""Kernels with a weight variance: of any size at finite depth, below critical at equilibrium."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor

from ..activations import (
    Activation,
    LossEstimate,
    PairCovariance,
    get_activation,
    scaled_in_parts,
)
from ..equilibrium import (
    Layer,
    PairAngle,
    PairDistance,
    PairMap,
    ReadOut,
    SolverMonitor,
    equilibrium,
)
from .base import Hyperparameter, NeuralKernel
from .careful_pairs import lossy_pairs, with_care
from .constraints import Region


class WeightedKernel(NeuralKernel):
    """A kernel with hyperparameters ``weight_variance`` and ``bias_variance``."""

    #: Whether the kernel depends on the derivatives of the activations.
    uses_slope: bool = False

    weight_variance = Hyperparameter("Variance of the recurrent weights, ``*batch_shape x 1 x 1``.")

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
        WeightedKernel.weight_variance.register(
            self, self._weight_region(), weight_variance_constraint, weight_variance_prior
        )

    @property
    def _nonlinearity(self) -> object:
        return self.activation

    def _loss(self) -> LossEstimate | None:
        """Estimates what squared distances alone lose; None if no pair loses too many digits."""
        return self.activation.loss(self.uses_slope)

    def _arguments(
        self, x1: Tensor, x2: Tensor, diag: bool
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Also the inputs, center and lengthscale, of which pairs computed with care are made."""
        z1, z2, values = super()._arguments(x1, x2, diag)
        exact = [self.center, self.lengthscale.detach(), x1.detach()]
        if z2 is not None:
            exact.append(x2.detach())
        return z1, z2, [*values, *(x.unsqueeze(-2) if diag else x for x in exact)]

    def _evaluate(
        self,
        z1: Tensor,
        z2: Tensor | None,
        hyperparameters: Sequence[Tensor],
        monitor: SolverMonitor,
    ) -> Tensor:
        number = len(self.hyperparameter_names)
        values, (center, lengthscale, *inputs) = hyperparameters[:number], hyperparameters[number:]
        ordinary = partial(super()._evaluate, z1, z2, values, monitor)
        estimate = self._loss()
        if estimate is None:
            return ordinary()
        places = lossy_pairs(estimate, self.activation.homogeneous, z1, z2, values[-1])
        if places is None:
            return ordinary()
        scale = lengthscale.double() * math.sqrt(z1.shape[-1])
        first = scaled_in_parts(z1, inputs[0], center, scale)
        second = None if z2 is None else scaled_in_parts(z2, inputs[1], center, scale)

        def kernel(injected: PairCovariance, *values: Tensor) -> Tensor:
            return self._pair(injected, monitor, *values)

        return with_care(places, ordinary, kernel, first, second, values).to(z1.dtype)

    @abstractmethod
    def _weight_region(self) -> Region:
        """The weight variances for which the kernel exists."""


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

    def _weight_region(self) -> Region:
        return Region.positive()

    def _layer(
        self,
        dual: PairCovariance,
        injected: PairCovariance,
        weight_variance: Tensor,
        bias_variance: Tensor,
    ) -> PairCovariance:
        """Covariance of the pre-activations of the layer after one with these activations."""
        if self.input_injection:
            return dual.next_layer(weight_variance, injected)
        return dual.next_layer_without_input(weight_variance, bias_variance)


class EquilibriumKernel(WeightedKernel):
    """A kernel at equilibrium, its weight variance below the critical value."""

    def __init__(
        self,
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if "depth" in kwargs or "input_injection" in kwargs:
            finite = "NTKKernel" if self.uses_slope else "NNGPKernel"
            raise TypeError(
                f"{type(self).__name__} has no depth to choose: its network is infinitely deep. "
                f"Use {finite}(depth=..., input_injection=True) for a network of finite depth."
            )
        super().__init__(activation, *args, **kwargs)

    def _loss(self) -> LossEstimate | None:
        # homogeneous activations are solved in angles, which have all digits
        return None if self.activation.homogeneous else super()._loss()

    @abstractmethod
    def _read_out(self, layer: Layer) -> ReadOut:
        """The kernel of a layer at equilibrium."""

    def _weight_region(self) -> Region:
        critical = self.activation.critical_weight_variance
        if not critical > 0:
            raise ValueError(
                f"{type(self).__name__} needs an activation of bounded slope, and that of "
                f"{self.activation!r} is not bounded, so its equilibrium need not exist. Use a "
                "kernel of finite depth (NNGPKernel, NTKKernel) or another activation."
            )
        return Region.below_critical(critical, self.activation)

    def _pair(
        self,
        injected: PairCovariance,
        monitor: SolverMonitor,
        weight_variance: Tensor,
        bias_variance: Tensor,
    ) -> Tensor:
        sigma = equilibrium(self.activation, weight_variance, injected, monitor)
        dual, slope = self.activation.dual_and_derivative(sigma)
        inverse = 1 / (1 - weight_variance * slope)
        return self._read_out(Layer(dual.cov, slope, weight_variance, sigma.cov, inverse)).value

    def _pair_map(self, monitor: SolverMonitor, *hyperparameters: Tensor) -> PairMap:
        given = self.activation, self._read_out, self.uses_slope, monitor
        if self.activation.homogeneous:
            return PairAngle(*given, *hyperparameters)
        if self.activation.smooth or not self.uses_slope:
            return PairDistance(*given, *hyperparameters)
        return super()._pair_map(monitor, *hyperparameters)
