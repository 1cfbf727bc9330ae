"""The high-dimensional equivalent of a DEQ kernel as a GPyTorch kernel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from gpytorch.utils.warnings import NumericalWarning
from linear_operator.operators import LinearOperator
from torch import Tensor

from ..activations import Activation
from ..kernels import DEQNNGPKernel, DEQNTKKernel
from ..kernels._base import _same
from ..kernels._weighted import EquilibriumKernel
from .coefficients import HighDimensionalCoefficients, high_dimensional_coefficients
from .input_scalars import InputScalars, input_scalars
from .operator import EquivalentLinearOperator

__all__ = ["HighDimensionalDEQKernel", "equivalent_kernel"]

#: Standard deviation of the squared norms, relative to their mean, beyond which to warn.
_WIDE_SPREAD = 1.0
#: Root mean square of the inputs' correlations, beyond which to warn.
_CORRELATED = 0.5
#: Factor between the mean squared norms of inputs and reference, beyond which to warn.
_FAR = 4.0


K = TypeVar("K", bound=EquilibriumKernel)


class HighDimensionalDEQKernel(EquilibriumKernel):
    r"""What a DEQ kernel with a centred activation tends to for inputs of many dimensions.

    With :math:`b` the covariance of the scaled inputs and scalars :math:`m_i, s_i, q_i, \kappa_i`
    that depend on an input through :math:`b_{ii}` alone (see the page "Explicit equivalents" of the
    documentation, after [Ling2024]_),

    .. math::
        k(x_i, x_j) = m_i m_j + s_i s_j\, b_{ij} + q_i q_j\, b_{ij}^2
            + [x_i = x_j]\,(\kappa_i - m_i^2 - s_i^2 b_{ii} - q_i^2 b_{ii}^2) .

    The matrix is an :class:`EquivalentLinearOperator`, so that no :math:`n \times n` matrix is
    formed. Its diagonal is that of the exact kernel. The last term is a nugget, never negative:
    identical inputs have it, those that nearly coincide do not.

    Args:
        activation: See :class:`~gp_deq.kernels.DEQNNGPKernel`; its mean at the scale of the
            reference inputs is subtracted.
        tangent: Whether to take the tangent kernel of the recurrent weights
            (``DEQNTKKernel(trained="recurrent")``) instead of the covariance.
        reference: Inputs of the usual size, such as the training inputs, ``n x d``, as the kernel
            will see them (after an input transform, before ``active_dims``). None:
            :meth:`set_reference` is called later.
        center: See :class:`~gp_deq.kernels.DEQNNGPKernel`.
        **kwargs: Priors, constraints and GPyTorch's arguments, as there, but for those of a bias:
            there is none.

    Attributes:
        mean_square: Mean of the reference inputs' centred squares, for each dimension with ARD,
            ``*batch_shape x 1 x d``, and for all together without, ``*batch_shape x 1 x 1``.

    Raises:
        TypeError: a prior or a constraint of a bias is given.

    Warns:
        NumericalWarning: inputs are far from what the equivalence needs, see :meth:`set_reference`,
            or of another size than the reference.

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
        self._set_hyperparameter("bias_variance", 0.0)
        self.raw_bias_variance.requires_grad_(False)
        shape = (*self.batch_shape, 1, self.ard_num_dims or 1)
        # in double precision, whatever the dtype of the parameters is now
        self.register_buffer("mean_square", torch.full(shape, torch.nan, dtype=torch.float64))
        if reference is not None:
            self.set_reference(reference)

    @property
    def bias_variance(self) -> Tensor:
        """Zero."""
        return self._hyperparameter("bias_variance")

    @bias_variance.setter
    def bias_variance(self, value: Tensor | float) -> None:
        raise AttributeError("HighDimensionalDEQKernel has no bias.")

    def set_reference(self, inputs: Tensor) -> None:
        """Take the mean square of some inputs, to be called with those of the training data.

        Args:
            inputs: ``n x d``, before ``active_dims``.

        Raises:
            ValueError: they are not ``n x d``, not finite, or all at the centre.

        Warns:
            NumericalWarning: their squared norms vary by more than their mean, or they are
                correlated by more than a half in root mean square.
        """
        if inputs.dim() != 2 or not inputs.numel():
            raise ValueError(f"The reference inputs must be n x d, got {tuple(inputs.shape)}.")
        inputs = to_floating(inputs, self.mean_square.dtype)
        if self.active_dims is not None:
            inputs = inputs.index_select(-1, self.active_dims)
        self._check_inputs(inputs, inputs, False)
        offset = inputs.detach() - self.center.to(inputs)
        mean = offset.square().mean(-2, keepdim=True)
        if not bool((mean.sum(-1) > 0).all()):
            raise ValueError("The reference inputs are all at the center of the kernel.")
        if self.ard_num_dims is None:
            mean = mean.mean(-1, keepdim=True)
        self.mean_square = mean.expand_as(self.mean_square).to(self.mean_square).clone()
        self._check_theory(offset / self.lengthscale.detach().to(offset))

    def level(self) -> Tensor:
        r"""Mean injected variance of the reference inputs, of the shape of the batch.

        Raises:
            RuntimeError: there are no reference inputs.
        """
        unit, mean_square = self._units()
        return unit * mean_square

    def coefficients(self) -> HighDimensionalCoefficients:
        """The scalars of inputs of equal norms, each of the shape of the batch.

        Raises:
            RuntimeError: there are no reference inputs.
        """
        weight, level = self.weight_variance[..., 0, 0], self.level()
        found = [
            high_dimensional_coefficients(self.activation, *values)
            for values in zip(weight.reshape(-1), level.reshape(-1), strict=True)
        ]
        return HighDimensionalCoefficients(
            *(torch.stack(values).reshape(level.shape) for values in zip(*found, strict=True))
        )

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
        x1, x2 = (to_floating(x, self.dtype) for x in (x1, x2))
        self._check_inputs(x1, x2, diag)
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2], self.batch_shape)
        rows = self._side(x1, batch)
        columns = rows if _same(x1, x2) else self._side(x2, batch)
        operator = EquivalentLinearOperator(*rows, *columns)
        return operator._diagonal() if diag else operator

    def _side(self, x: Tensor, batch: torch.Size) -> list[Tensor]:
        """What the operator needs of some inputs."""
        unit, mean_square = (value[..., None, None] for value in self._units())
        z = (x - self.center.to(x)) / math.sqrt(x.shape[-1])
        if self.ard_num_dims is not None:
            z = z / self.lengthscale
        norms = z.square().sum(-1, keepdim=True)
        self._check_size(norms, mean_square)
        # a lengthscale for all dimensions goes into the scalars, which spares z a gradient
        injected = unit * norms
        scalars = self._scalars(injected, (unit * mean_square)[..., 0, 0])
        mean, slope, curvature, diagonal = (value.unsqueeze(-1) for value in scalars)
        nugget = diagonal - mean.square() - slope.square() * injected
        nugget = nugget - curvature.square() * injected.square()
        root = torch.cat([mean, unit.sqrt() * slope * z], -1)
        # zero but for rounding at least
        parts = (root, z, unit * curvature, nugget.clamp_min(0.0), _keys(x))
        return [part.expand(*batch, -1, -1) for part in parts]

    def _scalars(self, injected: Tensor, level: Tensor) -> InputScalars:
        shape, weight = injected.shape[:-1], self.weight_variance[..., 0, 0]
        if not self.batch_shape:
            found = input_scalars(self.activation, weight, level, injected.flatten(), self.tangent)
            return InputScalars(*(value.reshape(shape) for value in found))
        # the batch dimensions of the kernel are the last of those of the inputs
        rows = injected.expand(*shape[: -1 - len(self.batch_shape)], *self.batch_shape, -1, -1)
        rows = rows.reshape(-1, self.batch_shape.numel(), shape[-1])
        batch = [
            input_scalars(self.activation, w, b0, b.flatten(), self.tangent)
            for w, b0, b in zip(weight.reshape(-1), level.reshape(-1), rows.unbind(1), strict=True)
        ]
        return InputScalars(
            *(
                torch.stack([value.reshape(-1, shape[-1]) for value in values], 1).reshape(shape)
                for values in zip(*batch, strict=True)
            )
        )

    def _units(self) -> tuple[Tensor, Tensor]:
        """Of what ``b`` is a multiple, and the mean of its diagonal there."""
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

    def _check_theory(self, scaled: Tensor) -> None:
        norms = scaled.square().sum(-1)
        spread = (norms.std(-1, correction=0) / norms.mean(-1)).max().item()
        unit = torch.nn.functional.normalize(scaled, dim=-1)
        count = unit.shape[-2]
        squares = (unit.mT @ unit).square().sum((-2, -1)) - count
        correlation = (squares / max(1, count * (count - 1))).clamp_min(0.0).sqrt().max().item()
        if spread > _WIDE_SPREAD or correlation > _CORRELATED:
            warnings.warn(
                f"The squared norms of the inputs have a standard deviation of {spread:.2f} times "
                f"their mean, and their correlations a root mean square of {correlation:.2f}; the "
                "equivalence needs both to be small. Set center to the mean of the inputs, "
                "standardise them, or use the exact kernel.",
                NumericalWarning,
                stacklevel=4,
            )

    def _check_size(self, norms: Tensor, mean_square: Tensor) -> None:
        if not norms.numel():
            return
        ratio = (norms.detach().mean() / mean_square.detach().mean()).item()
        if not 1 / _FAR < ratio < _FAR:
            warnings.warn(
                f"The inputs have {ratio:.1e} times the mean squared norm of the reference inputs; "
                "call set_reference with inputs as the kernel sees them, after any transform.",
                NumericalWarning,
                stacklevel=4,
            )


def to_floating(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Inputs in floating point: integers and booleans in the given dtype, others as they are."""
    return x if x.is_floating_point() else x.to(dtype)


def _keys(x: Tensor) -> Tensor:
    """Integers that are equal for identical rows, and else but for a chance of ``2**-64``."""
    bits = (x.detach().double() + 0.0).contiguous().view(torch.int64)  # one zero of the two
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (x.shape[-1],), generator=generator)
    bits = bits ^ (bits >> 29)  # the low bits of short numbers are zeros
    return (bits * (2 * factors + 1).to(x.device)).sum(-1, keepdim=True)


def equivalent_kernel(
    kernel: DEQNNGPKernel | DEQNTKKernel, reference: Tensor
) -> HighDimensionalDEQKernel:
    """The equivalent with the hyperparameters of a DEQ kernel, but for its bias.

    Args:
        kernel: A covariance, or a tangent kernel of the recurrent weights.
        reference: See :class:`HighDimensionalDEQKernel`.

    Raises:
        TypeError: the kernel is of another class.
        ValueError: the kernel is a tangent kernel of other weights, or a batch of kernels.
    """
    if not isinstance(kernel, DEQNNGPKernel | DEQNTKKernel):
        raise TypeError(f"Give a DEQNNGPKernel or a DEQNTKKernel, not a {type(kernel).__name__}.")
    if kernel.batch_shape:
        raise ValueError("Give one kernel, not a batch of them: index it, as kernel[0].")
    tangent = isinstance(kernel, DEQNTKKernel)
    if isinstance(kernel, DEQNTKKernel) and kernel.trained != "recurrent":
        raise ValueError(
            'Only the tangent kernel of the recurrent weights, trained="recurrent", has an '
            f"equivalent, not {kernel.trained!r}."
        )
    make = partial(HighDimensionalDEQKernel, kernel.activation, tangent)
    equivalent = with_hyperparameters(make, kernel)
    equivalent.set_reference(reference)
    return equivalent


def with_hyperparameters(make: Callable[..., K], source: EquilibriumKernel) -> K:
    """A kernel with the centre, the lengthscales and the weight variance of another, not its bias.

    Args:
        make: Makes the kernel, given GPyTorch's arguments.
        source: The other, not a batch.
    """
    kernel = make(
        center=source.center.reshape(-1),
        ard_num_dims=source.ard_num_dims,
        active_dims=source.active_dims,
        lengthscale_constraint=source.raw_lengthscale_constraint,
        weight_variance_constraint=source.raw_weight_variance_constraint,
    ).to(source.raw_lengthscale)
    kernel.lengthscale = source.lengthscale.detach()
    kernel.weight_variance = source.weight_variance.detach()
    return kernel
