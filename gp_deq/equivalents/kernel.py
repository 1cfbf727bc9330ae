"""The high-dimensional equivalent of a DEQ kernel as a GPyTorch kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from linear_operator.operators import LinearOperator
from torch import Tensor

from ..activations import Activation
from ..equilibrium import SolverMonitor
from ..kernels._base import _same
from ..kernels._weighted import EquilibriumKernel
from .coefficients import HighDimensionalCoefficients, high_dimensional_coefficients
from .operator import EquivalentLinearOperator

__all__ = ["HighDimensionalDEQKernel"]


class HighDimensionalDEQKernel(EquilibriumKernel):
    r"""What a DEQ kernel with a centred activation tends to for inputs of many dimensions.

    With :math:`b` the covariance of the scaled inputs, :math:`\beta_0` the mean of its diagonal over
    the reference inputs and :math:`\chi = b(x, x) - \beta_0`,

    .. math::
        k(x, x') = \alpha_1 b + \alpha_2\chi\chi' + \alpha_3 (b^2 - [x = x']\,b^2)
            + [x = x'](\gamma^2 - \beta_0\alpha_1) ,

    without labels (see the page "Explicit equivalents" of the documentation, after [LingEtAl2024]_).
    It is a structured matrix: a product with a vector takes :math:`O(nd^2)` operations and no
    :math:`n \times n` matrix. The last term makes it a kernel with a nugget: identical inputs have
    it, inputs however close do not.

    Args:
        activation: See :class:`~gp_deq.kernels.DEQNNGPKernel`; its mean is subtracted.
        tangent: Whether to take the tangent kernel of the recurrent weights
            (``DEQNTKKernel(trained="recurrent")``) instead of the covariance.
        reference: Inputs whose mean square the scalars are taken at, such as the training inputs,
            ``n x d`` (before ``active_dims``). None: :meth:`set_reference` is called later.
        center: See :class:`~gp_deq.kernels.DEQNNGPKernel`.
        **kwargs: Priors, constraints and GPyTorch's arguments, as there, but for ``batch_shape``.
            There is no bias.

    Raises:
        ValueError: a batch shape is given.
    """

    def __init__(
        self,
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        tangent: bool = False,
        reference: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("batch_shape"):
            raise ValueError("HighDimensionalDEQKernel has no batches.")
        super().__init__(activation, **kwargs)
        self.tangent = bool(tangent)
        self.bias_variance = 0.0
        self.raw_bias_variance.requires_grad_(False)
        dims = self.ard_num_dims or 1
        self.register_buffer("mean_square", torch.full((1, dims), torch.nan))
        if reference is not None:
            self.set_reference(reference)
