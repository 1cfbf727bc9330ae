"""The pairs of a matrix that lose digits to cancellation, and their kernel without that loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..activations import GramPair, LossEstimate, PairCovariance
from ..equilibrium import (
    PairMap,
    Recomputed,
    block_edge,
    blocks,
    flatten_batches,
    pair_matrix,
)

#: Error, in units in the last place, beyond which pairs are computed with care: half of the
#: documented bound of 64, as the estimate is one of orders of magnitude and other errors add.
LARGEST_LOSS = 32.0

#: Batch, row and column of some pairs.
Places = tuple[Tensor, Tensor, Tensor]


def lossy_pairs(
    estimate: LossEstimate,
    scale_free: bool,
    z1: Tensor,
    z2: Tensor | None,
    bias_variance: Tensor,
) -> Places | None:
    r"""The pairs that lose more digits than the documented bound allows; None if there are none.

    Mostly the norms :math:`|z|^2` of the inputs tell that there are none. Estimates of smooth
    activations are at most of the order of the largest norm. That of ReLU is :math:`4 m / (v_1 +
    v_2)` over the sine of an angle, where :math:`v_1 v_2 \sin^2\theta \ge \beta m` because the bias
    is a coordinate of all inputs: it is at most :math:`2 \sqrt{m / \beta}`, and :math:`m \le 4 \max
    |z|^2`.

    Args:
        estimate: The activation's estimate of what a pair loses.
        scale_free: Whether the estimate does not change with the scale of the variances.
        z1: Scaled inputs, ``... x n x d``.
        z2: Scaled inputs, ``... x m x d``; None for ``z1``, then only the upper triangle counts.
        bias_variance: :math:`\beta`, ``... x 1 x 1``.

    Returns:
        Indices into the matrices of all batches, which have one batch dimension
        (:func:`~gp_deq.equilibrium.blockwise.flatten_batches`).
    """
    with torch.no_grad():
        limit = (LARGEST_LOSS / 4) ** 2 * bias_variance if scale_free else LARGEST_LOSS
        given = [z for z in (z1, z2) if z is not None]
        if all(bool((z.square().sum(-1, keepdim=True) <= limit).all()) for z in given):
            return None
        _, (first, second), (bias,) = flatten_batches((z1, z2), (bias_variance,))
        assert first is not None
        symmetric, second = second is None, first if second is None else second
        bias = bias.expand(first.shape[0], 1, 1)
        var1, var2 = (z.square().sum(-1, keepdim=True) + bias for z in (first, second))
        found = []
        shape = first.shape[0], first.shape[1], second.shape[1]
        for block in blocks(*shape, block_edge(first), symmetric):
            along, down, across = block
            cov = first[along, down] @ second[along, across].mT + bias[along]
            lossy = estimate(var1[along, down], var2[along, across].mT, cov) > LARGEST_LOSS
            if symmetric and down == across:
                lossy = lossy.triu_()
            places = lossy.nonzero()
            if len(places):
                found.append(places + places.new_tensor([part.start for part in block]))
    if not found:
        return None
    batch, rows, columns = torch.cat(found).unbind(-1)
    return batch, rows, columns


def with_care(
    places: Places,
    ordinary: Callable[[], Tensor],
    kernel: Callable[..., Tensor],
    x1: Tensor,
    x2: Tensor | None,
    hyperparameters: Sequence[Tensor],
) -> Tensor:
    """Kernel matrix, ``... x n x m``, some of its pairs computed as :class:`GramPair`, in float64.

    If these are more than half of all, all are.

    Args:
        places: The pairs that need it.
        ordinary: Gives the matrix without that care.
        kernel: The kernel as a function of the covariance of the injected input and of the
            hyperparameters.
        x1: Scaled inputs in two parts (:func:`~gp_deq.activations.scaled_in_parts`).
        x2: Likewise; None for ``x1`` again.
        hyperparameters: ``... x 1 x 1``, the last the bias variance.
    """

    def function(x1: Tensor, x2: Tensor, *values: Tensor) -> Tensor:
        injected: PairCovariance = GramPair.from_inputs(x1, x2, values[-1])
        return kernel(injected, *values)

    def make_map(*values: Tensor) -> PairMap:
        return Recomputed(function, values)

    wide = [value.double() for value in hyperparameters]
    _, (first, second), flat = flatten_batches((x1, x2), wide)
    assert first is not None
    along, rows, columns = places
    count = first.shape[0] * first.shape[1] * (first if second is None else second).shape[1]
    if len(along) * (4 if second is None else 2) > count:
        return pair_matrix(make_map, function, x1, x2, wide)
    value = ordinary()
    entries = pair_matrix(
        make_map,
        function,
        first[along, rows].unsqueeze(-2),
        (first if second is None else second)[along, columns].unsqueeze(-2),
        [tensor if tensor.shape[0] == 1 else tensor[along] for tensor in flat],
    )
    entries = entries.reshape(-1).to(value.dtype)
    matrices = value.reshape(-1, *value.shape[-2:]).index_put((along, rows, columns), entries)
    if second is None:
        matrices = matrices.index_put((along, columns, rows), entries)
    return matrices.reshape(value.shape)
