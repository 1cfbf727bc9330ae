"""Trainable equilibrium layers, fully connected and convolutional."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from .. import settings
from ..activations import Activation, ExponentialFamily, get_activation
from ..equilibrium import ConvergenceWarning, SolverMonitor, SolverReport
from .anderson import anderson
from .autocast import without_autocast
from .kernel_glm import KernelGLM
from .layer_equilibrium import layer_equilibrium
from .map_solver import check_covariance
from .well_posed import RecurrentWeight, well_posed

__all__ = ["ConvDEQLayer", "DEQLayer"]

# relative residuals; 1e-5 is 80 times the rounding of float32
_TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


class _EquilibriumLayer(nn.Module):
    """``z = phi(recurrent(z) + injection(x))``, solved by Anderson's acceleration."""

    #: Record of the last forward solve.
    solver_report: SolverReport | None = None
    #: Record of the last adjoint solve.
    adjoint_report: SolverReport | None = None
    #: Number of trailing dimensions that belong to one problem.
    _dims = 1

    def __init__(
        self,
        recurrent: nn.Linear | nn.Conv2d,
        injection: nn.Linear | nn.Conv2d,
        activation: str | Activation | ExponentialFamily | Callable[[Tensor], Tensor],
        tolerance: float | None,
        max_iterations: int,
    ) -> None:
        super().__init__()
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {tolerance!r}.")
        if max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {max_iterations!r}.")
        self.activation = (
            activation if isinstance(activation, ExponentialFamily) else get_activation(activation)
        )
        if not math.isfinite(self.activation.lipschitz):
            raise ValueError(
                f"{self.activation!r} has no Lipschitz constant, so that no iteration is sure to "
                "converge. KernelGLM solves it."
            )
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.recurrent, self.injection = recurrent, injection
        self._monotone = self._nondecreasing()

    def phi(self, u: Tensor) -> Tensor:
        """The activation.

        Args:
            u: Any shape.
        """
        if isinstance(self.activation, ExponentialFamily):
            return self.activation.mean(u)
        return self.activation(u)

    def recurrent_weight(self, x: Tensor) -> RecurrentWeight:
        """The weight that multiplies the equilibrium: ``recurrent.weight``, held within bounds.

        Args:
            x: As for :meth:`forward`; the bounds of a convolution depend on its height and width.
        """
        raise NotImplementedError

    @without_autocast
    def forward(self, x: Tensor) -> Tensor:
        """The equilibrium.

        Under ``torch.autocast`` it is computed and returned in the dtype of the parameters, as
        torch does for softmax and layer norms, and inputs in half precision become float32.

        Args:
            x: ``... x in_features``, or images ``... x in_channels x height x width``.

        Returns:
            ``... x out_features``, or ``... x out_channels x height x width``.

        Raises:
            ValueError: the input or the parameters are not finite.
        """
        if not bool(x.isfinite().all()):
            raise ValueError("The input has NaN or infinite entries.")
        injected = self.injection(x)
        if not bool(injected.isfinite().all() & self.recurrent.weight.isfinite().all()):
            raise ValueError(f"The parameters of {type(self).__name__} are not finite.")
        weight, damping = self.recurrent_weight(x)

        def solve(layer: Callable[[Tensor], Tensor], start: Tensor, adjoint: bool) -> Tensor:
            point, report = self._solve(layer, start, damping)
            if adjoint:
                self.adjoint_report = report
            else:
                self.solver_report = report
            return point

        return layer_equilibrium(self._layer, torch.zeros_like(injected), solve, injected, weight)

    def _layer(self, z: Tensor, injected: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _assign(self, recurrent: Tensor, injection: Tensor) -> None:
        """Sets the weights, and the bias to zero; under ``no_grad``."""
        self.recurrent.weight.copy_(recurrent)
        self.injection.weight.copy_(injection)
        if self.injection.bias is not None:
            self.injection.bias.zero_()

    def _solve(
        self, layer: Callable[[Tensor], Tensor], start: Tensor, damping: Tensor
    ) -> tuple[Tensor, SolverReport]:
        shape, monitor = start.shape, SolverMonitor()
        flat = start.flatten(-self._dims)
        tolerance = self.tolerance or _TOLERANCES.get(start.dtype, 1e-5)
        point = anderson(
            lambda z: layer(z.reshape(shape)).reshape(flat.shape),
            flat,
            tolerance,
            self.max_iterations,
            monitor,
            damping,
        )
        report = monitor.report()
        if not report.converged and settings.warn_not_converged.value():
            warnings.warn(
                f"{type(self).__name__} did not converge in {report.iterations} iterations: "
                f"residual {report.residual:.1e}, tolerance {tolerance:.1e}. Raise "
                "max_iterations, or see whether the weights have grown.",
                ConvergenceWarning,
                stacklevel=4,
            )
        return point.reshape(shape), report

    def _nondecreasing(self) -> bool:
        """Whether the activation is nondecreasing on a grid from -30 to 30, to rounding."""
        grid = torch.linspace(-30, 30, 6001, dtype=torch.float64)
        return bool((self.phi(grid).diff() >= -1e-12).all())


class DEQLayer(_EquilibriumLayer):
    r"""An equilibrium :math:`z = \varphi(W_1 z + W_2 x + b)` as a layer.

    The forward pass finds it by Anderson's acceleration of a damped iteration, the backward pass
    solves :math:`(I - J^\top)u = g` in the same way; neither keeps iterates. While the layer
    trains, :math:`W_1` is ``recurrent.weight`` held where there is exactly one equilibrium: its
    spectral norm is bounded, and for nondecreasing activations a negative semi-definite part is
    free (:meth:`recurrent_weight`). :meth:`from_kernel_glm` makes a layer that starts as a kernel
    GLM [Tsuchida2022]_.

    Args:
        in_features: Size of the input.
        out_features: Size of the equilibrium.
        activation: Name, :class:`~gp_deq.activations.Activation` or torch function with a Lipschitz
            constant, or an :class:`~gp_deq.activations.ExponentialFamily`, whose mean it is then.
        bias: Whether to learn :math:`b`.
        tolerance: Bound on the residual relative to the size of the equilibrium. Default: 1e-10 in
            float64, 1e-5 in float32.
        max_iterations: Evaluations of the layer at most.

    Attributes:
        solver_report: Record of the last forward solve.
        adjoint_report: Record of the last backward solve.

    Raises:
        ValueError: the activation is unknown or has no Lipschitz constant, or a tolerance or a
            number of iterations is not positive.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layer = DEQLayer(3, 5, "relu")
        >>> x = torch.randn(2, 3)
        >>> z = layer(x)
        >>> residual = z - (z @ layer.recurrent_weight(x).value.T + layer.injection(x)).relu()
        >>> bool(residual.abs().max() < 1e-4)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str | Activation | ExponentialFamily | Callable[[Tensor], Tensor] = "tanh",
        *,
        bias: bool = True,
        tolerance: float | None = None,
        max_iterations: int = 1000,
    ) -> None:
        if out_features < 1:
            raise ValueError(f"out_features must be at least 1, got {out_features!r}.")
        super().__init__(
            nn.Linear(out_features, out_features, bias=False),
            nn.Linear(in_features, out_features, bias=bias),
            activation,
            tolerance,
            max_iterations,
        )

    @classmethod
    def from_kernel_glm(
        cls,
        glm: KernelGLM,
        X: Tensor,
        *,
        bias: bool = True,
        tolerance: float | None = None,
        max_iterations: int = 1000,
    ) -> DEQLayer:
        """A layer that maps targets at ``X`` to the means that ``glm`` gives them.

        Args:
            glm: The model; its family must have a Lipschitz constant, so not "poisson".
            X: Inputs, ``n x d``; the layer has ``n`` features in and out.
            bias: As for the class; zero at first.
            tolerance: As for the class.
            max_iterations: As for the class.

        Returns:
            The layer, in the dtype of ``X``, with weights of its own.

        Raises:
            ValueError: the family has no Lipschitz constant, ``X`` is not ``n x d``, or the kernel
                is a batch of kernels.
            NotPSDError: the kernel's matrix is not positive semi-definite.
        """
        if X.dim() != 2:
            raise ValueError(f"X is to be n x d, but it is {tuple(X.shape)}.")
        n = X.shape[-2]
        layer = cls(
            n, n, glm.family, bias=bias, tolerance=tolerance, max_iterations=max_iterations
        ).to(X)
        with torch.no_grad():
            weights = glm.weights(X)
            if weights.W1.dim() != 2:
                raise ValueError("A layer takes one kernel, not a batch of them.")
            check_covariance(weights.W2)
            layer._assign(weights.W1, weights.W2)
        return layer

    def recurrent_weight(self, x: Tensor) -> RecurrentWeight:
        """See :func:`~gp_deq.implicit_layers.well_posed.well_posed`.

        Args:
            x: Not needed here.
        """
        return well_posed(self.recurrent.weight, self.activation.lipschitz, self._monotone)

    def _layer(self, z: Tensor, injected: Tensor, weight: Tensor) -> Tensor:
        return self.phi(nn.functional.linear(z, weight) + injected)


class ConvDEQLayer(_EquilibriumLayer):
    r"""An equilibrium :math:`z = \varphi(W_1 * z + W_2 * x + b)` of images.

    As :class:`DEQLayer`, with convolutions that keep the size of an image.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the equilibrium.
        kernel_size: Height and width of the filters, odd.
        activation: As for :class:`DEQLayer`.
        bias: Whether to learn :math:`b`.
        padding_mode: "zeros" or "circular".
        tolerance: As for :class:`DEQLayer`.
        max_iterations: As for :class:`DEQLayer`.

    Raises:
        ValueError: as for :class:`DEQLayer`, or ``kernel_size`` is even.

    Example:
        >>> layer = ConvDEQLayer(1, 4, 3, "relu")
        >>> layer(torch.ones(2, 1, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    _dims = 3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        activation: str | Activation | ExponentialFamily | Callable[[Tensor], Tensor] = "tanh",
        *,
        bias: bool = True,
        padding_mode: Literal["zeros", "circular"] = "zeros",
        tolerance: float | None = None,
        max_iterations: int = 1000,
    ) -> None:
        if kernel_size % 2 != 1:
            raise ValueError(f"kernel_size must be odd, got {kernel_size!r}.")
        padding = kernel_size // 2
        super().__init__(
            nn.Conv2d(
                out_channels,
                out_channels,
                kernel_size,
                padding=padding,
                padding_mode=padding_mode,
                bias=False,
            ),
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                padding=padding,
                padding_mode=padding_mode,
                bias=bias,
            ),
            activation,
            tolerance,
            max_iterations,
        )

    @classmethod
    def from_kernel_glm(
        cls,
        glm: KernelGLM,
        kernel_size: int,
        channels: int = 1,
        *,
        bias: bool = True,
        padding_mode: Literal["zeros", "circular"] = "zeros",
        tolerance: float | None = None,
        max_iterations: int = 1000,
    ) -> ConvDEQLayer:
        """A layer that maps targets at pixels to the means that ``glm`` gives them.

        The kernel is to be stationary, of the two coordinates of a pixel; neighbours are one apart.
        A filter has its values around a pixel, and beyond it the covariance is cut off. Channels
        are independent at first.

        Args:
            glm: The model; its family must have a Lipschitz constant.
            kernel_size: Height and width of the filters, odd.
            channels: Channels in and out.
            bias: As for the class; zero at first.
            padding_mode: As for the class.
            tolerance: As for the class.
            max_iterations: As for the class.

        Returns:
            The layer, in the dtype of the kernel's parameters.

        Raises:
            ValueError: the kernel is not stationary or too wide for the filters, the family has no
                Lipschitz constant, or ``kernel_size`` is even.
        """
        if not glm.kernel.is_stationary:
            raise ValueError(
                f"Filters need a stationary kernel, and {type(glm.kernel).__name__} is not."
            )
        layer = cls(
            channels,
            channels,
            kernel_size,
            glm.family,
            bias=bias,
            padding_mode=padding_mode,
            tolerance=tolerance,
            max_iterations=max_iterations,
        )
        reference = next(glm.kernel.parameters(), torch.empty(()))
        layer = layer.to(reference)
        axis = torch.arange(kernel_size).to(reference) - kernel_size // 2
        pixels = torch.cartesian_prod(axis, axis)
        with torch.no_grad():
            middle = pixels.new_zeros(1, 2)
            values = glm.kernel(pixels, middle).to_dense() / glm.regularization
            eye = torch.eye(channels).to(reference)[:, :, None, None]
            filters = eye * values.reshape(kernel_size, kernel_size)
            fine = (8 * kernel_size, 8 * kernel_size)
            held = well_posed(-filters, layer.activation.lipschitz, layer._monotone, fine)
            if not torch.equal(held.value, -filters):
                raise ValueError(
                    f"Cut off at {kernel_size} x {kernel_size} pixels the kernel is too far from a "
                    "covariance. Raise kernel_size or the regularization, or shorten the "
                    "lengthscale."
                )
            layer._assign(-filters, filters)
        return layer

    def recurrent_weight(self, x: Tensor) -> RecurrentWeight:
        """See :func:`~gp_deq.implicit_layers.well_posed.well_posed`.

        Args:
            x: Images; only their height and width matter.
        """
        conv = self.recurrent
        assert isinstance(conv, nn.Conv2d)
        # an image padded by zeros is a part of a torus that is larger by the reach of the filter
        margin = 0 if conv.padding_mode == "circular" else conv.kernel_size[0] - 1
        grid = (x.shape[-2] + margin, x.shape[-1] + margin)
        return well_posed(conv.weight, self.activation.lipschitz, self._monotone, grid)

    def _layer(self, z: Tensor, injected: Tensor, weight: Tensor) -> Tensor:
        conv = self.recurrent
        assert isinstance(conv, nn.Conv2d)
        return self.phi(conv._conv_forward(z, weight, None) + injected)
