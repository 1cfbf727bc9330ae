"""Kernels with a weight variance: of any size at finite depth, below critical at equilibrium."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor

from ..activations import Activation, PairCovariance, get_activation
from ..activations.detailed_pair import constant_pair, detailed_pair, layer_of, scaled_in_parts
from ..activations.pair_covariance import DetailedPair
from ..differentiation import transforming
from ..equilibrium import (
    Layer,
    PairAngle,
    PairDistance,
    PairMap,
    ReadOut,
    Recomputed,
    SolverMonitor,
    equilibrium,
    pair_matrix,
)
from ..equilibrium.blockwise import blocks, flatten_batches
from .base import Hyperparameter, NeuralKernel
from .constraints import Region

#: Error, in units in the last place, beyond which pairs are computed in detail: half of the
#: documented bound of 64, as the estimate is one of orders of magnitude and other errors add.
_LARGEST_LOSS = 32.0


#: Rows and columns of the blocks in which these are looked for, which stay in cache.
_EDGE = 256


class WeightedKernel(NeuralKernel):
    """A kernel with hyperparameters ``weight_variance`` and ``bias_variance``."""

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

    @property
    def _is_tangent(self) -> bool:
        """Whether the kernel depends on ``P``."""
        return False

    def _value(self, x1: Tensor, x2: Tensor, diag: bool) -> Tensor:
        if transforming() or torch.compiler.is_compiling():
            # no branch may depend on values there
            return super()._value(x1, x2, diag)
        z1, z2, hyperparameters = self._arguments(x1, x2, diag)
        pairs = self._lossy_pairs(z1, z2, hyperparameters[-1])
        if pairs is None:
            return super()._value(x1, x2, diag)

        def scale(x: Tensor) -> Tensor:
            size = self.lengthscale.double() * math.sqrt(x.shape[-1])
            parts = scaled_in_parts(x.double(), self.center.double(), size)
            return parts.unsqueeze(-2) if diag else parts

        monitor = SolverMonitor()

        def function(z1: Tensor, z2: Tensor, *hyperparameters: Tensor) -> Tensor:
            injected = detailed_pair(z1, z2, hyperparameters[-1])
            return self._pair(injected, monitor, *hyperparameters)

        def careful(x1: Tensor, x2: Tensor | None, others: Sequence[Tensor]) -> Tensor:
            def make_map(*values: Tensor) -> PairMap:
                return Recomputed(function, values)

            value = pair_matrix(make_map, function, x1, x2, others)
            self._report(monitor, value)
            return value

        parts1, parts2 = scale(x1), None if z2 is None else scale(x2)
        wide = [value.double() for value in hyperparameters]
        batch = torch.broadcast_shapes(
            *(t.shape[:-2] for t in (z1, z1 if z2 is None else z2, *wide))
        )
        count = batch.numel() * z1.shape[-2] * (z1 if z2 is None else z2).shape[-2]
        if 2 * len(pairs[0]) > count:
            return careful(parts1, parts2, wide).to(z1.dtype)
        value = super()._value(x1, x2, diag)
        report = self.solver_report
        along, rows, columns = pairs

        def pick(tensor: Tensor, index: Tensor | None) -> Tensor:
            flat = tensor.expand(*batch, *tensor.shape[-2:]).reshape(-1, *tensor.shape[-2:])
            return flat[along, index].unsqueeze(-2) if index is not None else flat[along]

        entries = careful(
            pick(parts1, rows),
            pick(parts1 if parts2 is None else parts2, columns),
            [pick(value, None) for value in wide],
        )
        if not report.converged:
            self.solver_report = report
        entries = entries.reshape(-1).to(value.dtype)
        flat = value.reshape(-1, *value.shape[-2:]).index_put((along, rows, columns), entries)
        if z2 is None:
            flat = flat.index_put((along, columns, rows), entries)
        return flat.reshape(value.shape)

    def _lossy_pairs(
        self, z1: Tensor, z2: Tensor | None, bias_variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Batch, row and column of the pairs that need details; None if there are none.

        Args:
            z1: Scaled inputs.
            z2: Scaled inputs; None for ``z1``, then only the upper triangle counts.
            bias_variance: ``... x 1 x 1``.
        """
        if not self.activation.detailed or self._solves_angles:
            return None
        with torch.no_grad():
            _, points, (bias,) = flatten_batches((z1, z2), (bias_variance,))
            sides = [z for z in points if z is not None]
            norms = [z.square().sum(-1, keepdim=True) for z in sides]
            small = all(bool((norm <= _LARGEST_LOSS).all()) for norm in norms)
            if small and not self.activation.homogeneous:
                return None
            found = []
            for block in self._blocks(sides[0], sides[-1], points[1] is None):
                along, down, across = block
                first, second = sides[0][along, down], sides[-1][along, across]
                loss = self.activation.loss(
                    norms[0][along, down] + (bias if bias.shape[0] == 1 else bias[along]),
                    norms[-1][along, across].mT + (bias if bias.shape[0] == 1 else bias[along]),
                    first @ second.mT + (bias if bias.shape[0] == 1 else bias[along]),
                    self._is_tangent,
                )
                lossy = loss > _LARGEST_LOSS
                if points[1] is None and down == across:
                    lossy = lossy.triu_()
                if bool(lossy.any()):
                    places = lossy.nonzero()
                    found.append(places + places.new_tensor([part.start for part in block]))
        if not found:
            return None
        batch, rows, columns = torch.cat(found).unbind(-1)
        return batch, rows, columns

    @property
    def _solves_angles(self) -> bool:
        """Whether the kernel is computed from angles that have all digits."""
        return False

    @staticmethod
    def _blocks(x1: Tensor, x2: Tensor, symmetric: bool) -> Iterator[tuple[slice, slice, slice]]:
        for block in blocks(x1.shape[0], x1.shape[1], x2.shape[1], _EDGE):
            if not symmetric or block[2].start >= block[1].start:
                yield block

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
        if isinstance(dual, DetailedPair):
            assert isinstance(injected, DetailedPair)
            source = injected if self.input_injection else constant_pair(bias_variance, injected)
            return layer_of(weight_variance, dual, source)
        if self.input_injection:
            terms = zip(dual, injected, strict=True)
            return PairCovariance(*(weight_variance * term + other for term, other in terms))
        return PairCovariance(
            weight_variance * dual.var1 + bias_variance,
            weight_variance * dual.var2 + bias_variance,
            weight_variance * dual.sqdist,
            weight_variance * dual.vardiff,
        )


class EquilibriumKernel(WeightedKernel):
    """A kernel at equilibrium, its weight variance below the critical value."""

    #: Whether the kernel depends on the derivatives of the activations.
    uses_slope: bool = False

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

    @abstractmethod
    def _read_out(self, layer: Layer) -> ReadOut:
        """The kernel of a layer at equilibrium."""

    @property
    def _is_tangent(self) -> bool:
        return self.uses_slope

    @property
    def _solves_angles(self) -> bool:
        return self.activation.homogeneous

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
