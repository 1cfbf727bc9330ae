"""Kernels with a weight variance: of any size at finite depth, below critical at equilibrium."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
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
    PairKernel,
    PairMap,
    PairStationaryAngle,
    ReadOut,
    SolverMonitor,
    Versines,
    contraction,
    equilibrium,
    pair_matrix,
)
from .base import Hyperparameter, NeuralKernel, same_inputs
from .base_kernel import stationary_form
from .careful_pairs import lossy_pairs, with_care
from .constraints import Region
from .over_base import Network, network_inputs


class WeightedKernel(NeuralKernel):
    """A kernel with hyperparameters ``weight_variance`` and ``bias_variance``."""

    #: Whether the kernel depends on the derivatives of the activations.
    uses_slope: bool = False

    weight_variance = Hyperparameter("Variance of the recurrent weights, ``*batch_shape x 1 x 1``.")

    def __init__(
        self,
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        *args: Any,
        base_kernel: Kernel | None = None,
        weight_variance_prior: Prior | None = None,
        weight_variance_constraint: Interval | None = None,
        **kwargs: Any,
    ) -> None:
        if base_kernel is not None:
            # without a lengthscale and a center: GPyTorch's constructor asks for this
            self.has_lengthscale = False
            self._check_base_kernel(base_kernel, args, kwargs)
        super().__init__(*args, **kwargs)
        #: The kernel of what is injected beside the bias; None for a linear one.
        self.base_kernel = base_kernel
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
        """Also the inputs, center and lengthscale, of which pairs computed with care are made.

        With a base kernel, those of :func:`~gp_deq.kernels.over_base.network_inputs`.
        """
        if self.base_kernel is not None:
            values = [getattr(self, name) for name in self.hyperparameter_names]
            values = [value.unsqueeze(-1) for value in values] if diag else values
            z1, z2, given = network_inputs(
                self.base_kernel, x1, None if same_inputs(x1, x2) else x2, diag
            )
            return z1, z2, [*values, given]
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
        if self.base_kernel is not None:
            values, given = hyperparameters[:number], hyperparameters[number]
            network = Network(self._pair_kernel(), self._gap(), monitor, self._angle_map(monitor))
            versines = stationary_form(self.base_kernel)
            if versines is not None:
                return network.over_stationary(versines, z1, z2, (given, *values))
            return network.over_pairs(z1, z2, given, values)
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

    @property
    def is_stationary(self) -> bool:
        """Whether the base kernel is; without one, kernels depend on where inputs lie."""
        return self.base_kernel is not None and self.base_kernel.is_stationary

    @abstractmethod
    def _weight_region(self) -> Region:
        """The weight variances for which the kernel exists."""

    @abstractmethod
    def _structure(self) -> tuple[Hashable, ...]:
        """All that :meth:`_pair` depends on beside its arguments and the activation."""

    def _gap(self) -> float:
        """The least of ``1 - w / w_critical`` over the batch; 1 for finite depth."""
        return 1.0

    def _angle_map(self, monitor: SolverMonitor) -> Callable[..., PairMap] | None:
        """See :class:`~gp_deq.kernels.over_base.Network`."""
        return None

    def _pair_kernel(self) -> PairKernel:
        homogeneous = self.activation.homogeneous
        return PairKernel(
            (type(self).__qualname__, self.activation, *self._structure()),
            self._pair,
            self._of_versine,
            smooth=not homogeneous,
            cusp=self.uses_slope and homogeneous,
        )

    def _of_versine(
        self, versine: Tensor, variance: Tensor, monitor: SolverMonitor, *values: Tensor
    ) -> Tensor:
        """The kernel of pairs over a base kernel, each a batch of its own.

        Args:
            versine: One minus the correlation of the base kernel, ``b x 1 x 1``.
            variance: Its variance.
            monitor: Collects the record of the solves.
            *values: The hyperparameters.
        """
        total = variance + values[-1]
        sqdist = 2 * variance * versine
        injected = PairCovariance.from_distance(total, total, sqdist)
        return self._pair(injected, monitor, *values)

    def _check_base_kernel(
        self, base_kernel: Kernel, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> None:
        name = type(self).__name__
        if not isinstance(base_kernel, Kernel):
            raise TypeError(
                f"base_kernel of {name} must be a gpytorch.kernels.Kernel, not {base_kernel!r}."
            )
        given = {"center": args[0]} if args else {}
        given |= {key: value for key, value in kwargs.items() if value is not None}
        for key in ("ard_num_dims", "lengthscale_prior", "lengthscale_constraint"):
            if key in given:
                raise ValueError(
                    f"{key} belongs to the base kernel, which has the lengthscales: give it to "
                    f"{type(base_kernel).__name__} and not to {name}."
                )
        if "center" in given and bool(torch.as_tensor(given["center"]).any()):
            raise ValueError(
                f"center has no meaning for {name} over a base kernel, which sees the inputs as "
                "they are; leave it out."
            )
        shape = torch.Size(given.get("batch_shape", ()))
        if base_kernel.batch_shape not in (torch.Size([]), shape):
            raise ValueError(
                f"base_kernel has batch_shape {tuple(base_kernel.batch_shape)}, but {name} has "
                f"{tuple(shape)}: give batch_shape={tuple(base_kernel.batch_shape)} to both."
            )


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

    def _gap(self) -> float:
        return float(contraction(self.activation, self.weight_variance.detach()).min())

    def _angle_map(self, monitor: SolverMonitor) -> Callable[..., PairMap] | None:
        if not self.activation.homogeneous:
            return None
        given = self.activation, self._read_out, self.uses_slope, monitor

        def make_map(versines: Versines, variance: Tensor, *values: Tensor) -> PairMap:
            return PairStationaryAngle(versines, variance, *given, *values)

        return make_map

    def _of_versine(
        self, versine: Tensor, variance: Tensor, monitor: SolverMonitor, *values: Tensor
    ) -> Tensor:
        if self.activation.homogeneous:
            return super()._of_versine(versine, variance, monitor, *values)
        # two inputs of an affine map, on a circle: the pair map of these is two to four times
        # faster than differentiating the equilibrium
        root = variance.sqrt()
        across = root * (versine * (2 - versine)).sqrt()
        first = torch.cat((root, torch.zeros_like(root)), -1)
        second = torch.cat((root * (1 - versine), across), -1)
        make_map, reference = partial(self._pair_map, monitor), self._pair_function(monitor)
        return pair_matrix(make_map, reference, first, second, values)

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
