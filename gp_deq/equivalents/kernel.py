"""The high-dimensional equivalent of a DEQ kernel as a GPyTorch kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from linear_operator.operators import LinearOperator
from torch import Tensor

from ..activations import Activation, PairCovariance
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

    def set_reference(self, inputs: Tensor) -> None:
        """Take the mean square of the inputs, to be called with the training inputs.

        Args:
            inputs: ``n x d``, before ``active_dims``.

        Raises:
            ValueError: they are not ``n x d`` with finite entries.
        """
        if inputs.dim() != 2 or not inputs.numel() or not bool(inputs.isfinite().all()):
            raise ValueError("The reference inputs are to be n x d and finite.")
        if self.active_dims is not None:
            inputs = inputs.index_select(-1, self.active_dims)
        square = (inputs - self.center.to(inputs)).square().mean(0, keepdim=True)
        self.mean_square = square.to(self.raw_lengthscale)

    def coefficients(self) -> HighDimensionalCoefficients:
        """The scalars at the present hyperparameters.

        Raises:
            RuntimeError: there are no reference inputs.
        """
        if bool(self.mean_square.isnan().any()):
            raise RuntimeError(
                "The mean square of the inputs is not known: call set_reference(train_x)."
            )
        norm = (self.mean_square / self.lengthscale.square()).mean(-1).squeeze()
        return high_dimensional_coefficients(
            self.activation, self.weight_variance.squeeze(), tau0=norm.sqrt()
        )

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any
    ) -> Tensor | LinearOperator:
        """The structured matrix.

        Args:
            x1: ``... x n x d``.
            x2: ``... x m x d``.
            diag: Only the pairs of equal index.
            **params: Ignored, as in GPyTorch.
        """
        self._check_inputs(x1, x2, diag)
        found = self.coefficients()
        level = (self.mean_square / self.lengthscale.square()).mean()
        if self.tangent:
            weights = torch.stack([found.beta_1, found.beta_2, found.beta_3])
            variance = found.kappa.square()
        else:
            weights = torch.stack([found.alpha_1, found.alpha_2, found.alpha_3])
            variance = found.gamma.square()
        z1, same = self._scale(x1), _same(x1, x2)
        z2 = z1 if same else self._scale(x2)
        norm1, norm2 = (z.square().sum(-1, keepdim=True) for z in (z1, z2))
        nugget = (variance - level * weights[0] - weights[2] * norm1.square()).squeeze(-1)
        if diag:
            operator = EquivalentLinearOperator(z1, z2, norm1 - level, norm2 - level, weights)
            equal = (x1 == x2).all(-1)
            return operator._diagonal() + torch.where(equal, nugget, 0.0)
        return EquivalentLinearOperator(
            z1, z2, norm1 - level, norm2 - level, weights, nugget if same else None
        )

    def _read_out(
        self, injected: PairCovariance, monitor: SolverMonitor, *args: Any, **kwargs: Any
    ) -> Tensor:
        raise NotImplementedError
