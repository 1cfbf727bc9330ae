"""The neural tangent kernel of an infinitely wide network of finite depth."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ..activations import Activation, PairCovariance
from ..equilibrium import SolverMonitor, check_trained
from .weighted import FiniteDepthKernel


class NTKKernel(FiniteDepthKernel):
    r"""Neural tangent kernel of an infinitely wide network of finite depth (NTK).

    With :math:`\Sigma_l` the covariances of :class:`~gp_deq.kernels.NNGPKernel` and :math:`P_l =
    \operatorname E\varphi'(u)\varphi'(v)` at :math:`\Sigma_l`,

    .. math:: \Theta_1 = \Sigma_1, \qquad \Theta_{l+1} = \Sigma_{l+1} + w P_l\, \Theta_l .

    The value is that of :class:`~gp_deq.kernels.DEQNTKKernel` at the last layer, with
    :math:`\Theta_L` for :math:`\Sigma/(1 - wP)`: "all" :math:`G + P\Theta_L`, "hidden"
    :math:`P\Theta_L`, "preactivation" :math:`\Theta_L`; and "recurrent" :math:`G + P T_L`, where
    :math:`T_1 = 0` and :math:`T_{l+1} = w G(\Sigma_l) + w P_l T_l`. With input injection and
    growing depth it converges to :class:`~gp_deq.kernels.DEQNTKKernel`.

    Args:
        activation: See :class:`~gp_deq.kernels.DEQNNGPKernel`.
        center: See :class:`~gp_deq.kernels.DEQNNGPKernel`.
        depth: :math:`L`. Default 3.
        input_injection: Whether the input enters every layer. Default False.
        trained: "all" (default), "hidden", "recurrent" or "preactivation".
        **kwargs: ``base_kernel``, priors, constraints and GPyTorch's arguments, as for
            :class:`~gp_deq.kernels.DEQNNGPKernel`. The weight variance may be any positive number.

    Raises:
        ValueError: ``depth`` is less than 1 or ``trained`` is unknown.

    Example:
        >>> import torch
        >>> from gp_deq import NTKKernel
        >>> NTKKernel(depth=4)(torch.randn(4, 2)).shape
        torch.Size([4, 4])
    """

    uses_slope = True

    def __init__(
        self,
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        *args: Any,
        trained: str = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(activation, *args, **kwargs)
        self.trained = check_trained(trained)

    def _pair(
        self,
        injected: PairCovariance,
        monitor: SolverMonitor,
        weight_variance: Tensor,
        bias_variance: Tensor,
    ) -> Tensor:
        recurrent = self.trained == "recurrent"
        theta = torch.zeros_like(injected.sqdist) if recurrent else injected.cov
        dual, slope = self.activation.dual_and_derivative(injected)
        for _ in range(self.depth - 1):
            sigma = self._layer(dual, injected, weight_variance, bias_variance)
            source = weight_variance * dual.cov if recurrent else sigma.cov
            theta = source + weight_variance * slope * theta
            dual, slope = self.activation.dual_and_derivative(sigma)
        if self.trained == "preactivation":
            return theta
        return slope * theta if self.trained == "hidden" else dual.cov + slope * theta

    def _structure(self) -> tuple[Hashable, ...]:
        return (self.depth, self.input_injection, self.trained)
