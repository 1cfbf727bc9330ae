"""Kernels with a weight variance: of any size at finite depth, below critical at equilibrium."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.priors import Prior
from torch import Tensor

from ..activations import Activation, PairCovariance, get_activation
from ..activations.detailed_pair import constant_pair, detailed_pair, layer_of, scaled_in_parts
from ..activations.pair_covariance import DetailedPair
from ..activations.piecewise_linear import LeakyReLU
from ..equilibrium import SolverMonitor
from ..equilibrium.angle import AngleSolver
from ..equilibrium.distance import DistanceSolver, tangent_solver
from ..equilibrium.fast import fast_matrix
from ..equilibrium.pairwise import flatten_batches, pairwise, take, visits
from ..equilibrium.solution import BlockSolver
from ._base import NeuralKernel
from .constraints import BelowCritical

#: Error, in units in the last place, beyond which pairs are computed in detail: half of the
#: documented bound of 64, as the estimate is one of orders of magnitude and other errors add.
_LARGEST_LOSS = 32.0


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

    @property
    def _is_tangent(self) -> bool:
        """Whether the kernel depends on ``P``."""
        return False

    def _value(self, x1: Tensor, x2: Tensor, diag: bool, monitor: SolverMonitor) -> Tensor:
        z1, z2, hyperparameters = self._arguments(x1, x2, diag)
        pairs = self._lossy_pairs(z1, z2, hyperparameters[-1])
        if pairs is None:
            return self._evaluate(z1, z2, hyperparameters, monitor)

        def scale(x: Tensor) -> Tensor:
            size = self.lengthscale.double() * math.sqrt(x.shape[-1])
            parts = scaled_in_parts(x.double(), self.center.double(), size)
            return parts.unsqueeze(-2) if diag else parts

        def function(z1: Tensor, z2: Tensor, *hyperparameters: Tensor) -> Tensor:
            injected = detailed_pair(z1, z2, hyperparameters[-1])
            return self._read_out(injected, monitor, *hyperparameters)

        parts1, parts2 = scale(x1), None if z2 is None else scale(x2)
        wide = [value.double() for value in hyperparameters]
        batch = torch.broadcast_shapes(
            *(t.shape[:-2] for t in (z1, z1 if z2 is None else z2, *wide))
        )
        count = batch.numel() * z1.shape[-2] * (z1 if z2 is None else z2).shape[-2]
        if 2 * len(pairs[0]) > count:
            return pairwise(function, parts1, parts2, *wide).to(z1.dtype)
        value = self._evaluate(z1, z2, hyperparameters, monitor)
        along, rows, columns = pairs

        def pick(tensor: Tensor, index: Tensor | None) -> Tensor:
            flat = tensor.expand(*batch, *tensor.shape[-2:]).reshape(-1, *tensor.shape[-2:])
            return flat[along, index].unsqueeze(-2) if index is not None else flat[along]

        careful = pairwise(
            function,
            pick(parts1, rows),
            pick(parts1 if parts2 is None else parts2, columns),
            *(pick(value, None) for value in wide),
        )
        careful = careful.reshape(-1).to(value.dtype)
        flat = value.reshape(-1, *value.shape[-2:]).index_put((along, rows, columns), careful)
        if z2 is None:
            flat = flat.index_put((along, columns, rows), careful)
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
            for block in visits(sides[0], points[1]):
                along, down, across = block
                first, second = sides[0][along, down], sides[-1][along, across]
                loss = self.activation.loss(
                    norms[0][along, down] + take(bias, along),
                    norms[-1][along, across].mT + take(bias, along),
                    first @ second.mT + take(bias, along),
                    self._is_tangent,
                )
                lossy = loss > _LARGEST_LOSS
                if z2 is None and down == across:
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

    def _region(self, name: str) -> str:
        return "(0, inf)" if name == "weight_variance" else super()._region(name)


class EquilibriumKernel(WeightedKernel):
    """A kernel at equilibrium, its weight variance below the critical value."""

    @property
    def _block_read_out(self) -> str:
        """Read-out of the solvers of blocks: "nngp", or what is trained in the NTK."""
        return "nngp"

    @property
    def _is_tangent(self) -> bool:
        return self._block_read_out != "nngp"

    @property
    def _solves_angles(self) -> bool:
        return self.activation.homogeneous

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
