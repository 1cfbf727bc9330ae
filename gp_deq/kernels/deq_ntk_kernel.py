"""The neural tangent kernel of an infinitely wide deep equilibrium network."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from ..activations import Activation
from ..equilibrium import Layer, ReadOut, check_trained, tangent
from .weighted import EquilibriumKernel


class DEQNTKKernel(EquilibriumKernel):
    r"""Neural tangent kernel of an infinitely wide deep equilibrium network (DEQ-NTK).

    With :math:`\Sigma` the covariance at equilibrium of
    :class:`~gp_deq.kernels.DEQNNGPKernel`, :math:`G = \operatorname E\varphi(u)\varphi(v)` and
    :math:`P = \operatorname E\varphi'(u)\varphi'(v)` there, the tangent kernel :math:`\Theta` of a
    pre-activation solves :math:`\Theta = \Sigma + w P\, \Theta` (elementwise; [FengKolter2023]_).
    The kernel is that of the network :math:`V\varphi(u)/\sqrt N`, :math:`u = \sqrt{w/N}\,W
    \varphi(u) + \text{input} + \text{bias}`, for what is trained:

    ================= ============================ =======================================
    ``trained``       value                        trained parameters
    ================= ============================ =======================================
    "all"             :math:`G + P\Sigma/(1-wP)`   everything
    "hidden"          :math:`P\Sigma/(1-wP)`       all but the read-out ``V``
    "recurrent"       :math:`G/(1-wP)`             ``V`` and ``W`` ([Ling2024]_)
    "preactivation"   :math:`\Sigma/(1-wP)`        all, for a pre-activation as the output
    ================= ============================ =======================================

    .. note::
        For ReLU the kernel has a cusp :math:`|x - x'|` at coincident inputs, so its sample paths
        are rough, like those of a Matern-1/2 kernel; gradients there are those of its smooth part.
        As for all kernels here, there is no output scale, and the inputs should be centred.

    Args:
        activation: See :class:`~gp_deq.kernels.DEQNNGPKernel`.
        center: See :class:`~gp_deq.kernels.DEQNNGPKernel`.
        trained: "all" (default), "hidden", "recurrent" or "preactivation".
        **kwargs: ``base_kernel``, priors, constraints and GPyTorch's arguments, as for
            :class:`~gp_deq.kernels.DEQNNGPKernel`.

    Raises:
        ValueError: ``trained`` is unknown; and as :class:`~gp_deq.kernels.DEQNNGPKernel`.

    Example:
        >>> import torch
        >>> from gp_deq import DEQNTKKernel
        >>> kernel = DEQNTKKernel("erf", trained="hidden")
        >>> kernel(torch.randn(4, 2)).shape
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

    def _read_out(self, layer: Layer) -> ReadOut:
        return tangent(self.trained, layer)

    def _structure(self) -> tuple[Hashable, ...]:
        return (self.trained,)
