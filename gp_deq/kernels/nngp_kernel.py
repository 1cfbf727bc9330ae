"""The kernel of an infinitely wide network of finite depth at initialisation."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from ..activations import PairCovariance
from ..equilibrium import SolverMonitor
from .weighted import FiniteDepthKernel


class NNGPKernel(FiniteDepthKernel):
    r"""Covariance of the outputs of an infinitely wide network of finite depth (NNGP).

    .. math::
        \Sigma_1 = b, \qquad \Sigma_{l+1} = w\, G(\Sigma_l) + \mathtt{bias\_variance}
        \;[+ s \text{ with } \mathtt{input\_injection}], \qquad k(x, x') = G(\Sigma_L),

    with :math:`b = s + \mathtt{bias\_variance}`, :math:`s` the covariance of the scaled inputs (see
    :class:`~gp_deq.kernels.DEQNNGPKernel`) and :math:`L` the depth ([ChoSaul2009]_ for ReLU). With
    input injection and growing depth it converges to :class:`~gp_deq.kernels.DEQNNGPKernel`;
    without, and for a weight variance up to the critical value, all inputs become correlated.

    BoTorch's ``InfiniteWidthBNNKernel(depth=L)`` with weight variance ``w`` and bias variance ``b``
    is ``w * NNGPKernel(depth=L) + b`` with lengthscale ``w**-0.5``.

    Args:
        activation: See :class:`~gp_deq.kernels.DEQNNGPKernel`.
        center: See :class:`~gp_deq.kernels.DEQNNGPKernel`.
        depth: :math:`L`, the number of activations on the way. Default 3.
        input_injection: Whether the input enters every layer. Default False.
        **kwargs: ``base_kernel``, priors, constraints and GPyTorch's arguments, as for
            :class:`~gp_deq.kernels.DEQNNGPKernel`. The weight variance may be any positive number.

    Raises:
        ValueError: ``depth`` is less than 1.

    Example:
        >>> import torch
        >>> from gp_deq import NNGPKernel
        >>> kernel = NNGPKernel("erf", depth=5, input_injection=True)
        >>> kernel(torch.randn(4, 2)).shape
        torch.Size([4, 4])
    """

    def _pair(
        self,
        injected: PairCovariance,
        monitor: SolverMonitor,
        weight_variance: Tensor,
        bias_variance: Tensor,
    ) -> Tensor:
        sigma = injected
        for _ in range(self.depth - 1):
            dual = self.activation.dual(sigma)
            sigma = self._layer(dual, injected, weight_variance, bias_variance)
        return self.activation.dual(sigma).cov

    def _structure(self) -> tuple[Hashable, ...]:
        return (self.depth, self.input_injection)
