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
from ..kernels import DEQNNGPKernel, DEQNTKKernel, EquilibriumKernel, same_inputs
from .coefficients import HighDimensionalCoefficients, high_dimensional_coefficients
from .input_scalars import InputScalars, input_scalars
from .operator import EquivalentLinearOperator

__all__ = ["HighDimensionalDEQKernel", "equivalent_kernel"]

# The thresholds of the warnings are round numbers, chosen where errors are 0.5 to 5 % of the
# largest eigenvalue, as measured on 200 normal inputs with weight variance 0.2.
#: Largest standard deviation of the squared norms, relative to their mean. At 1.2 the error was
#: 0.5 %, but that of a matched network, which has the mean norm in its activations, 5 % (tanh).
_WIDE_SPREAD = 1.0
#: Largest root mean square of the inputs' correlations, that of normal inputs in 4 dimensions,
#: where the error was 1.5 % (ReLU) and 5.5 % (tanh).
_CORRELATED = 0.5
#: Largest factor between the mean squared norms of inputs and reference. With 4 the constant that
#: is subtracted is that of twice or half the scale: for ReLU the matrix then changed by ten times
#: its largest eigenvalue and more. Factors this large come from inputs before a transform.
_FAR = 4.0


K = TypeVar("K", bound=EquilibriumKernel)


class HighDimensionalDEQKernel(EquilibriumKernel):
    r"""The limit of a DEQ kernel with a centred activation for inputs of many dimensions.

    With :math:`b` the covariance of the scaled inputs and scalars :math:`m_i, s_i, q_i, \kappa_i`
    that depend on an input through :math:`b_{ii}` alone (see the page "Explicit equivalents" of the
    documentation, after [Ling2024]_),

    .. math::
        k(x_i, x_j) = m_i m_j + s_i s_j\, b_{ij} + q_i q_j\, b_{ij}^2
            + [x_i = x_j]\,(\kappa_i - m_i^2 - s_i^2 b_{ii} - q_i^2 b_{ii}^2) .

    The matrix is an :class:`EquivalentLinearOperator`, so that no :math:`n \times n` matrix is
    formed. Its diagonal is that of the exact kernel. The last term is a nugget, never negative,
    which pairs of identical inputs have and pairs that nearly coincide do not.

    Args:
        activation: See :class:`~gp_deq.kernels.DEQNNGPKernel`; its mean at the scale of the
            reference inputs is subtracted.
        tangent: Whether to take the tangent kernel of the recurrent weights
            (``DEQNTKKernel(trained="recurrent")``) instead of the covariance.
        reference: Inputs of the usual size, such as the training inputs, ``n x d``, as the kernel
            will see them (after an input transform, before ``active_dims``). If None,
            :meth:`set_reference` has to be called before the kernel is evaluated.
        center: See :class:`~gp_deq.kernels.DEQNNGPKernel`.
        **kwargs: Priors, constraints and GPyTorch's arguments, as there, except those of the bias,
            which this kernel does not have.

    Attributes:
        mean_square: Mean of the squares of the centred reference inputs: with ARD for each
            dimension, ``*batch_shape x 1 x d``, else over all of them, ``*batch_shape x 1 x 1``.

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
        self.set_hyperparameter("bias_variance", 0.0)
        self.raw_bias_variance.requires_grad_(False)
        shape = (*self.batch_shape, 1, self.ard_num_dims or 1)
        # in double precision, whatever the dtype of the parameters is now
        self.register_buffer("mean_square", torch.full(shape, torch.nan, dtype=torch.float64))
        if reference is not None:
            self.set_reference(reference)

    @property
    def bias_variance(self) -> Tensor:
        """Variance of the bias, which is always zero."""
        return self.hyperparameter("bias_variance")

    @bias_variance.setter
    def bias_variance(self, value: Tensor | float) -> None:
        raise AttributeError("HighDimensionalDEQKernel has no bias.")

    def set_reference(self, inputs: Tensor) -> None:
        """Set :attr:`mean_square` from some inputs, usually those of the training data.

        Args:
            inputs: Inputs, ``n x d``, before ``active_dims``.

        Raises:
            ValueError: the inputs are not ``n x d``, not finite, or all at the centre.

        Warns:
            NumericalWarning: the standard deviation of the squared norms exceeds their mean, or the
                root mean square of the correlations of the inputs exceeds one half.
        """
        if inputs.dim() != 2 or not inputs.numel():
            raise ValueError(f"The reference inputs must be n x d, got {tuple(inputs.shape)}.")
        # like mean_square in double precision, whatever the dtype of the parameters is now
        inputs = inputs if inputs.is_floating_point() else inputs.double()
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
        """The structured matrix, or its diagonal as a tensor.

        Args:
            x1: First inputs, ``... x n x d``.
            x2: Second inputs, ``... x m x d``.
            diag: Whether to evaluate only the pairs of equal index, for which ``n`` equals ``m``.
            last_dim_is_batch: Not supported.
            **params: Ignored, as in GPyTorch.

        Returns:
            The matrix as an operator, ``... x n x m``, or its diagonal, ``... x n``.

        Raises:
            RuntimeError: there are no reference inputs, ``last_dim_is_batch`` is set, or the number
                of input dimensions is not ``ard_num_dims``.
            ValueError: the inputs are not finite, or their shapes do not agree.
        """
        if last_dim_is_batch:
            raise RuntimeError("HighDimensionalDEQKernel does not support last_dim_is_batch.")
        x1, x2 = (self._floating(x) for x in (x1, x2))
        self._check_inputs(x1, x2, diag)
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2], self.batch_shape)
        rows = self._side(x1, batch)
        columns = rows if same_inputs(x1, x2) else self._side(x2, batch)
        operator = EquivalentLinearOperator(*rows, *columns)
        return operator._diagonal() if diag else operator

    def _side(self, x: Tensor, batch: torch.Size) -> list[Tensor]:
        """Arguments of the operator for its rows or its columns."""
        unit, mean_square = (value[..., None, None] for value in self._units())
        z = (x - self.center.to(x)) / math.sqrt(x.shape[-1])
        if self.ard_num_dims is not None:
            z = z / self.lengthscale
        norms = z.square().sum(-1, keepdim=True)
        self._check_size(norms, mean_square)
        # A lengthscale shared by all dimensions is a factor of the scalars, so that z, the largest
        # tensor, needs no gradient where the inputs need none.
        injected = unit * norms
        scalars = self._scalars(injected, (unit * mean_square)[..., 0, 0])
        mean, slope, curvature, diagonal = (value.unsqueeze(-1) for value in scalars)
        nugget = diagonal - mean.square() - slope.square() * injected
        nugget = nugget - curvature.square() * injected.square()
        root = torch.cat([mean, unit.sqrt() * slope * z], -1)
        # not negative in exact arithmetic
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
        """Factor of a shared lengthscale in ``b`` (1 with ARD), and mean of ``b_ii`` over it."""
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


def _keys(x: Tensor) -> Tensor:
    """Hashes of the rows: equal for identical rows, and for two others with chance ``2**-64``."""
    bits = (x.detach().double() + 0.0).contiguous().view(torch.int64)  # -0.0 becomes 0.0
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (x.shape[-1],), generator=generator)
    # a float32 number has 29 zeros as its last bits in double precision
    bits = bits ^ (bits >> 29)
    return (bits * (2 * factors + 1).to(x.device)).sum(-1, keepdim=True)


def equivalent_kernel(
    kernel: DEQNNGPKernel | DEQNTKKernel, reference: Tensor
) -> HighDimensionalDEQKernel:
    """The high-dimensional equivalent of a DEQ kernel, without its bias.

    Args:
        kernel: DEQ-NNGP kernel, or DEQ-NTK kernel of the recurrent weights.
        reference: Inputs of the usual size, ``n x d``; see :class:`HighDimensionalDEQKernel`.

    Returns:
        The equivalent, with the centre, lengthscales and weight variance of the kernel.

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
    """A kernel with the centre, the lengthscales and the weight variance of another one.

    Args:
        make: Function that makes the kernel from GPyTorch's arguments.
        source: The other kernel, not a batch of kernels.
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
