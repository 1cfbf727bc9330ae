"""The high-dimensional equivalent of a DEQ kernel as a GPyTorch kernel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from gpytorch.utils.warnings import NumericalWarning
from linear_operator.operators import LinearOperator
from torch import Tensor

from ..activations import Activation
from ..kernels import DEQNNGPKernel, DEQNTKKernel
from ..kernels._base import _same
from ..kernels._weighted import EquilibriumKernel
from .coefficients import HighDimensionalCoefficients, high_dimensional_coefficients
from .operator import EquivalentLinearOperator

__all__ = ["HighDimensionalDEQKernel", "equivalent_kernel"]

#: Standard deviation of the squared norms, relative to their mean, beyond which to warn.
_WIDE_SPREAD = 0.25


class HighDimensionalDEQKernel(EquilibriumKernel):
    r"""What a DEQ kernel with a centred activation tends to for inputs of many dimensions.

    With :math:`b` the covariance of the scaled inputs, :math:`\beta_0` the mean of its diagonal
    over the reference inputs and :math:`\chi = b(x, x) - \beta_0`, the matrix of the inputs
    :math:`x_1, \dots, x_n` is

    .. math::
        K_{ij} = \alpha_1 b_{ij} + \alpha_2\chi_i\chi_j + \alpha_3 b_{ij}^2
            + [i = j](\gamma^2 - \beta_0\alpha_1 - \alpha_3 b_{ii}^2),

    without labels (see the page "Explicit equivalents" of the documentation, after [Ling2024]_). It
    is an :class:`EquivalentLinearOperator`: no :math:`n \times n` matrix is formed. The last term
    is a nugget: an input has it with itself, and with no other, however close; a matrix between
    two different sets of inputs has none.

    The matrix is positive semi-definite where the equivalence holds. Where the squared norms vary
    much the nugget of the longest inputs is negative, and near-duplicates among them then need
    noise.

    Args:
        activation: See :class:`~gp_deq.kernels.DEQNNGPKernel`; its mean is subtracted.
        tangent: Whether to take the tangent kernel of the recurrent weights
            (``DEQNTKKernel(trained="recurrent")``) instead of the covariance.
        reference: Inputs that :math:`\beta_0` is the mean over, such as the training inputs,
            ``n x d`` (before ``active_dims``). None: :meth:`set_reference` is called later.
        center: See :class:`~gp_deq.kernels.DEQNNGPKernel`.
        **kwargs: Priors, constraints and GPyTorch's arguments, as there, but for those of a bias:
            there is none.

    Attributes:
        mean_square: Mean of the reference inputs' centred squares, for each dimension with ARD,
            ``*batch_shape x 1 x d``, and for all together without, ``*batch_shape x 1 x 1``.

    Raises:
        TypeError: a prior or a constraint of a bias is given.

    Example:
        >>> x = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
        >>> kernel = HighDimensionalDEQKernel("relu", reference=x)
        >>> type(kernel(x).evaluate_kernel()).__name__
        'EquivalentLinearOperator'
    """

    mean_square: Tensor

    def __init__(
        self,
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        tangent: bool = False,
        reference: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        if any(name.startswith("bias_variance") for name in kwargs):
            raise TypeError("HighDimensionalDEQKernel has no bias.")
        super().__init__(activation, **kwargs)
        self.tangent = bool(tangent)
        self.bias_variance = 0.0
        self.raw_bias_variance.requires_grad_(False)
        shape = (*self.batch_shape, 1, self.ard_num_dims or 1)
        # in double precision, whatever the dtype of the parameters is now
        self.register_buffer("mean_square", torch.full(shape, torch.nan, dtype=torch.float64))
        if reference is not None:
            self.set_reference(reference)

    def set_reference(self, inputs: Tensor) -> None:
        """Take the mean square of some inputs, to be called with those of the training data.

        Args:
            inputs: ``n x d``, before ``active_dims``.

        Raises:
            ValueError: they are not ``n x d`` with finite entries.

        Warns:
            NumericalWarning: their squared norms vary by more than a quarter of their mean.
        """
        if inputs.dim() != 2 or not inputs.numel() or not bool(inputs.isfinite().all()):
            raise ValueError(
                f"The reference inputs must be n x d and finite, got shape {tuple(inputs.shape)}."
            )
        if self.active_dims is not None:
            inputs = inputs.index_select(-1, self.active_dims)
        self._check_inputs(inputs, inputs, False)
        square = (inputs.detach() - self.center.to(inputs)).square()
        mean = square.mean(-2, keepdim=True)
        if self.ard_num_dims is None:
            mean = mean.mean(-1, keepdim=True)
        self.mean_square = mean.expand_as(self.mean_square).to(self.mean_square).clone()
        norms = (square / self.lengthscale.detach().to(square).square()).mean(-1)
        spread = (norms.std(-1, correction=0) / norms.mean(-1)).max().item()
        if spread > _WIDE_SPREAD:
            warnings.warn(
                f"The squared norms of the inputs have a standard deviation of {spread:.2f} times "
                "their mean, and the equivalence needs them nearly equal: center the inputs, "
                "standardise them, or scale each to the same norm.",
                NumericalWarning,
                stacklevel=2,
            )

    def level(self) -> Tensor:
        r""":math:`\beta_0`, of the shape of the batch.

        Raises:
            RuntimeError: there are no reference inputs.
        """
        unit, mean_square = self._units()
        return unit * mean_square

    def coefficients(self) -> HighDimensionalCoefficients:
        """The scalars at the present hyperparameters, each of the shape of the batch.

        Raises:
            RuntimeError: there are no reference inputs.
        """
        unit, mean_square = self._units()
        scalars = (self.weight_variance[..., 0, 0], unit, mean_square.sqrt())
        found = [
            high_dimensional_coefficients(self.activation, *values)
            for values in zip(*(scalar.reshape(-1) for scalar in scalars), strict=True)
        ]
        return HighDimensionalCoefficients(
            *(torch.stack(values).reshape(unit.shape) for values in zip(*found, strict=True))
        )

    def _units(self) -> tuple[Tensor, Tensor]:
        """Of what ``b`` is a multiple, and the mean of its diagonal there.

        A lengthscale for all dimensions is left out of the inputs, which spares them a gradient.
        """
        if bool(self.mean_square.isnan().any()):
            raise RuntimeError(
                "HighDimensionalDEQKernel does not know the mean square of the inputs: call "
                "kernel.set_reference(train_x), or give it as reference=train_x."
            )
        precision = self.lengthscale.square().reciprocal()
        mean_square = self.mean_square.to(precision)
        if self.ard_num_dims is None:
            return precision[..., 0, 0], mean_square[..., 0, 0]
        return torch.ones_like(precision[..., 0, 0]), (precision * mean_square).mean(-1)[..., 0]

    def _standardize(self, x: Tensor) -> Tensor:
        if self.ard_num_dims is None:
            return (x - self.center.to(x)) / math.sqrt(x.shape[-1])
        return self._scale(x)

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor | LinearOperator:
        """The structured matrix, or the tensor of its diagonal.

        Args:
            x1: ``... x n x d``.
            x2: ``... x m x d``.
            diag: Only the pairs of equal index, for which ``n`` equals ``m``.
            last_dim_is_batch: Not supported.
            **params: Ignored, as in GPyTorch.
        """
        if last_dim_is_batch:
            raise RuntimeError("HighDimensionalDEQKernel does not support last_dim_is_batch.")
        self._check_inputs(x1, x2, diag)
        found, (_, mean_square) = self.coefficients().paper_scaling(), self._units()
        if self.tangent:
            weights, variance = (found.beta_1, found.beta_2, found.beta_3), found.kappa.square()
        else:
            weights, variance = (found.alpha_1, found.alpha_2, found.alpha_3), found.gamma.square()
        same = _same(x1, x2)
        z1 = self._standardize(x1)
        z2 = z1 if same else self._standardize(x2)
        norms1, norms2 = (z.square().sum(-1, keepdim=True) for z in (z1, z2))
        level = mean_square[..., None, None]
        batch = torch.broadcast_shapes(z1.shape[:-2], z2.shape[:-2], level.shape[:-2])
        operator = EquivalentLinearOperator(
            z1.expand(*batch, -1, -1),
            z2.expand(*batch, -1, -1),
            (norms1 - level).expand(*batch, -1, -1),
            (norms2 - level).expand(*batch, -1, -1),
            torch.stack(weights, -1).expand(*batch, -1),
        )
        if same:
            nugget = variance - mean_square * weights[0]
            square = weights[2].unsqueeze(-1) * norms1.squeeze(-1).square()
            operator = operator.add_diagonal(nugget.unsqueeze(-1) - square)
        return operator._diagonal() if diag else operator


def equivalent_kernel(
    kernel: DEQNNGPKernel | DEQNTKKernel, reference: Tensor
) -> HighDimensionalDEQKernel:
    """The equivalent with the hyperparameters of a DEQ kernel, but for its bias.

    Args:
        kernel: A covariance, or a tangent kernel of the recurrent weights.
        reference: See :class:`HighDimensionalDEQKernel`.

    Raises:
        ValueError: the kernel is a tangent kernel of other weights.
    """
    tangent = isinstance(kernel, DEQNTKKernel)
    if isinstance(kernel, DEQNTKKernel) and kernel.trained != "recurrent":
        raise ValueError(
            'Only the tangent kernel of the recurrent weights, trained="recurrent", has an '
            f"equivalent, not {kernel.trained!r}."
        )
    equivalent = HighDimensionalDEQKernel(
        kernel.activation,
        tangent,
        center=kernel.center.reshape(-1),
        ard_num_dims=kernel.ard_num_dims,
        active_dims=kernel.active_dims,
    ).to(kernel.raw_lengthscale)
    equivalent.lengthscale = kernel.lengthscale.detach()
    equivalent.weight_variance = kernel.weight_variance.detach()
    equivalent.set_reference(reference)
    return equivalent
