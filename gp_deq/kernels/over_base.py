"""The kernel of a network over a base kernel: a series where that has one variance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from ..activations import PairCovariance, squared_distance
from ..equilibrium import (
    PairKernel,
    PairMap,
    PairStationary,
    PairVersine,
    Recomputed,
    SeriesFit,
    SolverMonitor,
    Versines,
    pair_matrix,
    series_of,
)
from .base_kernel import base_pairs, stationary_inputs, versine_of

#: Pairs of a batch below which they are solved for one by one: these are fewer than the nodes of a
#: series.
FEWEST_PAIRS = 96
#: Pairs up to which angles are used where they can be. A polynomial for each pair is then dearer by
#: its fit, and beyond it is cheaper; both are right to rounding.
MOST_ANGLES = 2**16
#: Rounding of variances that are meant to be equal, in units in the last place.
ROUNDINGS = 8.0


class Network(NamedTuple):
    """A network over a base kernel, its hyperparameters given.

    Args:
        kernel: The kernel of the injected covariance.
        gap: The least of ``1 - w / w_critical``; 1 for finite depth.
        monitor: Collects the record of the solves.
        angle_map: Makes the pair map over a function of a distance from its versines, the base
            variance and the hyperparameters, for kernels that one angle determines; None for
            others.
    """

    kernel: PairKernel
    gap: float
    monitor: SolverMonitor
    angle_map: Callable[..., PairMap] | None = None

    def over_stationary(
        self,
        versines: Versines,
        z1: Tensor,
        z2: Tensor | None,
        hyperparameters: Sequence[Tensor],
    ) -> Tensor:
        """Kernel matrix over a base kernel that is a function of a distance.

        Args:
            versines: One minus the correlations of the base kernel.
            z1: Inputs over lengthscales, ``... x n x d``.
            z2: ``... x m x d``; None for ``z1`` again.
            hyperparameters: The variance of the base kernel, the weight variance and the bias
                variance, ``... x 1 x 1``.
        """

        def reference(z1: Tensor, z2: Tensor, variance: Tensor, *values: Tensor) -> Tensor:
            versine = versine_of(versines, squared_distance(z1, z2))
            total = variance + values[-1]
            return self._of(total, total, 2 * variance * versine, values)

        def make_map(*values: Tensor) -> PairMap:
            if self.angle_map is not None and _count(z1, z2) <= MOST_ANGLES:
                return self.angle_map(versines, *values)
            fit = self._fit(z1, z2, values, 1.0)
            if fit is None:
                return Recomputed(reference, values)
            return PairStationary(fit, self.kernel.cusp, values, versines)

        return pair_matrix(make_map, reference, z1, z2, hyperparameters)

    def over_pairs(
        self,
        var1: Tensor,
        var2: Tensor | None,
        sqdist: Tensor,
        hyperparameters: Sequence[Tensor],
    ) -> Tensor:
        """Kernel matrix over any base kernel.

        Args:
            var1: Variances of the base kernel, ``... x n x 1``.
            var2: ``... x m x 1``; None for ``var1`` again.
            sqdist: Its squared distances, ``... x n x m``.
            hyperparameters: The weight variance and the bias variance, ``... x 1 x 1``.
        """
        others = var1 if var2 is None else var2

        def general(var1: Tensor, var2: Tensor, *given: Tensor) -> Tensor:
            *values, sqdist = given
            return self._of(var1 + values[-1], var2.mT + values[-1], sqdist, values)

        def general_map(*values: Tensor) -> PairMap:
            return Recomputed(general, values)

        variance = _constant(var1, others)
        if variance is None:
            return pair_matrix(general_map, general, var1, var2, hyperparameters, pairs=(sqdist,))
        # a function of the versine and of one variance, but with derivatives by each of them
        total = var1 + others.mT
        versine = sqdist / total
        widest = 1.0 if bool((versine <= 1 + ROUNDINGS * _epsilon(versine)).all()) else 2.0

        def reference(var1: Tensor, var2: Tensor, _: Tensor, *given: Tensor) -> Tensor:
            *values, versine = given
            return general(var1, var2, *values, versine * (var1 + var2.mT))

        def make_map(*values: Tensor) -> PairMap:
            fit = self._fit(var1, var2, values, widest)
            return (
                Recomputed(reference, values)
                if fit is None
                else PairVersine(fit, self.kernel.cusp, values)
            )

        values = (variance, *hyperparameters)
        return pair_matrix(make_map, reference, var1, var2, values, pairs=(versine,))

    def _of(self, var1: Tensor, var2: Tensor, sqdist: Tensor, values: Sequence[Tensor]) -> Tensor:
        pair = PairCovariance.from_distance(var1, var2, sqdist)
        return self.kernel.function(pair, self.monitor, *values)

    def _fit(
        self, x1: Tensor, x2: Tensor | None, values: Sequence[Tensor], widest: float
    ) -> SeriesFit | None:
        """The series, where there are enough pairs for one."""
        if _count(x1, x2) < FEWEST_PAIRS:
            return None
        return series_of(self.kernel, values, self.gap, widest, self.monitor)


def network_inputs(
    kernel: Kernel, x1: Tensor, x2: Tensor | None, diag: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Arguments of :meth:`Network.over_stationary` or of :meth:`Network.over_pairs`.

    Args:
        kernel: The base kernel.
        x1: ``... x n x d``.
        x2: ``... x m x d``; None for ``x1`` again.
        diag: Only the pairs of equal index, each a 1 x 1 matrix of its own.

    Returns:
        The inputs over lengthscales and the variance of a stationary base kernel; the variances and
        squared distances of any other.
    """
    found = stationary_inputs(kernel, x1, x2)
    if found is None:
        var1, var2, sqdist = base_pairs(kernel, x1, x2, diag)
        return var1, None if x2 is None else var2, sqdist
    _, z1, z2, variance = found
    if not diag:
        return z1, z2, variance
    return z1.unsqueeze(-2), None if z2 is None else z2.unsqueeze(-2), variance.unsqueeze(-1)


def _count(x1: Tensor, x2: Tensor | None) -> int:
    """Number of pairs of all batches."""
    others = x1 if x2 is None else x2
    batch = torch.broadcast_shapes(x1.shape[:-2], others.shape[:-2])
    return batch.numel() * x1.shape[-2] * others.shape[-2]


def _constant(var1: Tensor, var2: Tensor) -> Tensor | None:
    """The one variance of each batch, ``... x 1 x 1`` without a graph; None if there is none."""
    with torch.no_grad():
        if not (var1.numel() and var2.numel()):
            return None
        ends = [end.amin((-2, -1), True) for end in (var1, var2)]
        tops = [end.amax((-2, -1), True) for end in (var1, var2)]
        low, high = torch.minimum(*ends), torch.maximum(*tops)
        return low if bool((high - low <= ROUNDINGS * _epsilon(low) * high).all()) else None


def _epsilon(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps
