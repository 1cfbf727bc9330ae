"""Kernels that are homogeneous of degree one in each injected input."""

from __future__ import annotations

import torch
from torch import Tensor

from .solution import Side


class HomogeneousSolver:
    """What solvers of such kernels share: a pair is two variances and an angle.

    Args:
        bias_variance: ``b x 1 x 1``.
    """

    num_slopes = 1

    def __init__(self, bias_variance: Tensor) -> None:
        self.bias_variance = bias_variance
        # a zero input without bias points along a coordinate of its own
        self.own = bool((bias_variance == 0).any())

    def directions(self, x: Tensor, length: Tensor | float) -> tuple[Tensor, Tensor]:
        """Injected variances, and the injected inputs scaled to a length.

        The bias is a coordinate of theirs.

        Args:
            x: ``b x n x d``.
            length: ``b x 1 x 1`` or a number.
        """
        dims = x.shape[-1]
        injected = x.square().sum(-1, keepdim=True) + self.bias_variance
        zero = injected == 0
        inverse = length / injected.sqrt().masked_fill_(zero, 1.0)
        scaled = x.new_empty(*x.shape[:-1], dims + 1 + self.own)
        torch.mul(x, inverse, out=scaled[..., :dims])
        torch.mul(self.bias_variance.sqrt(), inverse, out=scaled[..., dims : dims + 1])
        if self.own:
            scaled[..., dims + 1 :] = zero.to(x) * length
        return injected, scaled

    def finish(self, side: Side, total: Tensor, to: Tensor, weighted: Tensor) -> Tensor:
        r"""Gradients by the variances: :math:`2 v_1 K_{v_1} = K - \kappa b_{12}`.

        This is Euler's theorem: ``K`` is homogeneous of degree one in each injected input.
        """
        injected = (to * side.x).sum(-1, keepdim=True) + self.bias_variance * weighted
        zero = side.variance == 0
        slope = (total - injected) / (2 * side.variance).masked_fill_(zero, 1.0)
        return slope.masked_fill_(zero, 0.0)
