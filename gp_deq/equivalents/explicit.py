"""Shallow networks in the place of an equilibrium: their kernels, and modules that draw them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..activations import Activation, LeakyReLU, PairCovariance, get_activation
from ..equilibrium import SolverMonitor
from ..kernels import DEQNNGPKernel, NeuralKernel
from .centered import Centered
from .coefficients import HighDimensionalCoefficients, high_dimensional_coefficients
from .hard_tanh import HardTanh
from .kernel import equivalent_kernel
from .matching import Design, Target, hard_tanh_design, leaky_relu_design

__all__ = ["ExplicitKernel", "ExplicitNetwork", "match_explicit"]

#: Residual, a sum of squares of relative errors, below which a match counts as exact. Measured for
#: ReLU, leaky ReLU, tanh, erf and sine, matches end at 1e-29 and less, and the best networks where
#: there is no match at 1e-7 and more.
_EXACT = 1e-20
#: Share of the linear part of a kernel below which its activation counts as even. The quadrature
#: leaves 1e-33 of an even activation; a share this small is beyond the digits of a design.
_EVEN = 1e-12


class ExplicitKernel(NeuralKernel):
    r"""Covariance of the outputs of a wide network with an activation for each layer.

    :math:`\Sigma_1 = b` is the covariance of the scaled inputs, :math:`\Sigma_{l+1} =
    G_l(\Sigma_l)`, and the value of the kernel is the last of these.

    Args:
        activations: Activations of the layers, the first layer's first, each a name, an object or
            a function.
        center: See :class:`~gp_deq.kernels.DEQNNGPKernel`.
        **kwargs: Priors, constraints and GPyTorch's arguments, as there.
    """

    hyperparameter_names = ("bias_variance",)

    def __init__(
        self,
        activations: Sequence[str | Activation | Callable[[Tensor], Tensor]],
        center: float | Sequence[float] | Tensor = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(center, **kwargs)
        self.activations = tuple(get_activation(activation) for activation in activations)

    @property
    def _nonlinearity(self) -> object:
        return self.activations

    def _pair(
        self, injected: PairCovariance, monitor: SolverMonitor, *args: Tensor, **kwargs: Any
    ) -> Tensor:
        sigma = injected
        for activation in self.activations:
            sigma = activation.dual(sigma)
        return sigma.cov


class ExplicitNetwork:
    """A shallow network designed to have the high-dimensional kernel of an equilibrium.

    Args:
        design: Family, parameters and residual of the match.
        coefficients: High-dimensional coefficients of the equilibrium.
        source: The DEQ kernel, of which a copy is kept.
        tau0: Root of the mean of the injected variances.

    Attributes:
        family: "hard-tanh" or "leaky-relu".
        parameters: Parameters ``(a, c)`` of ``a clip(u, -c, c)``, or ``(a1, b1, a2, b2)`` of two
            layers of ``max(a u, b u)``.
        residual: Sum of squares of the four equations' relative errors.
        activations: Centred activations of the layers.
    """

    def __init__(
        self,
        design: Design,
        coefficients: HighDimensionalCoefficients,
        source: DEQNNGPKernel,
        tau0: float,
    ) -> None:
        self.family, self.parameters, self.residual = design
        self.coefficients, self.source = coefficients, deepcopy(source)
        self.activations = _activations(design, tau0)

    def kernel(self) -> ExplicitKernel:
        """A kernel with the centre and the lengthscales of the DEQ kernel."""
        source = self.source
        kernel = ExplicitKernel(
            self.activations,
            source.center.reshape(-1),
            ard_num_dims=source.ard_num_dims,
            active_dims=source.active_dims,
        ).to(source.raw_lengthscale)
        kernel.lengthscale = source.lengthscale.detach()
        kernel.bias_variance = 0.0
        kernel.raw_bias_variance.requires_grad_(False)
        return kernel

    def module(self, in_features: int, width: int) -> nn.Sequential:
        """A random network whose features' inner products tend to the kernel with the width.

        Args:
            in_features: Number of input dimensions, only those of ``active_dims`` counted. The
                network itself applies centre and lengthscales.
            width: Width of each layer; the error of an inner product falls like its inverse root.

        Returns:
            Centre and lengthscales, then linear layers with normal weights of variance one over
            the number of their inputs, each followed by its activation, then division by the root
            of ``width``.
        """
        source, layers = self.source, nn.Sequential()
        layers.append(
            _Standardize(source.center.to(source.raw_lengthscale), source.lengthscale.detach())
        )
        size = in_features
        for activation in self.activations:
            linear = nn.Linear(size, width, bias=False).to(source.raw_lengthscale)
            nn.init.normal_(linear.weight, std=size**-0.5)
            layers.extend([linear, _Elementwise(activation)])
            size = width
        layers.append(_Scale(width**-0.5))
        return layers

    def __repr__(self) -> str:
        numbers = ", ".join(f"{value:.4g}" for value in self.parameters)
        return f"ExplicitNetwork({self.family}, ({numbers}), residual={self.residual:.1e})"


class _Standardize(nn.Module):
    center: Tensor
    lengthscale: Tensor

    def __init__(self, center: Tensor, lengthscale: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", center.clone())
        self.register_buffer("lengthscale", lengthscale.reshape(-1).clone())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.center) / self.lengthscale


class _Elementwise(nn.Module):
    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def _activations(design: Design, tau0: float) -> tuple[Activation, ...]:
    if design.family == "hard-tanh":
        return (HardTanh(design.parameters[0], design.parameters[1]),)
    found: list[Activation] = []
    tau = tau0
    a1, b1, a2, b2 = design.parameters
    for a, b in ((a1, b1), (a2, b2)):
        constant = (1 - b / a) * tau / math.sqrt(2 * math.pi)
        found.append(Centered(LeakyReLU(b / a), constant, a))
        k = (a**2 + b**2) * (math.pi - 1) + 2 * a * b
        tau = tau * math.sqrt(k / (2 * math.pi))
    return tuple(found)


def match_explicit(
    deq_kernel: DEQNNGPKernel,
    X_or_tau0: Tensor | float,
    family: Literal["auto", "hard-tanh", "leaky-relu"] = "auto",
) -> ExplicitNetwork:
    r"""Design a shallow network with the high-dimensional kernel of a DEQ kernel.

    Args:
        deq_kernel: The DEQ kernel, whose activation, weight variance, centre and lengthscales are
            taken, and whose bias is left out.
        X_or_tau0: Inputs, ``n x d``, whose mean injected variance is :math:`\tau_0^2`; or
            :math:`\tau_0` itself.
        family: Family of networks: "hard-tanh", one layer, for odd activations; "leaky-relu", two
            layers, for ReLU and leaky ReLU; "auto" for the family of the smaller residual.

    Returns:
        The matched network.

    Raises:
        TypeError: the kernel is not a DEQ-NNGP kernel.
        ValueError: there is no exact match in the family; the message has the best residual.

    Example:
        >>> from gp_deq import DEQNNGPKernel
        >>> kernel = DEQNNGPKernel("tanh").double()
        >>> kernel.weight_variance = 0.1
        >>> match_explicit(kernel, 0.9**0.5).residual < 1e-20
        True
    """
    if not isinstance(deq_kernel, DEQNNGPKernel):
        raise TypeError(
            "Networks are matched to the covariance of a DEQNNGPKernel, not to a "
            f"{type(deq_kernel).__name__}."
        )
    makers = {"hard-tanh": hard_tanh_design, "leaky-relu": leaky_relu_design}
    if family != "auto" and family not in makers:
        raise ValueError(f'family must be "auto", "hard-tanh" or "leaky-relu", not {family!r}.')
    if isinstance(X_or_tau0, Tensor) and X_or_tau0.dim():
        tau0 = equivalent_kernel(deq_kernel, X_or_tau0).double().level().sqrt().item()
    else:
        tau0 = float(X_or_tau0)
    with torch.no_grad():
        # a residual below _EXACT takes double precision
        weight = deq_kernel.weight_variance.double()
        found = high_dimensional_coefficients(deq_kernel.activation, weight, tau0=tau0)
    target = Target(
        found.alpha_1.item(),
        found.alpha_2.item(),
        found.alpha_3.item(),
        found.gamma.item() ** 2,
        tau0,
    )
    if target.alpha_1 < _EVEN * target.variance / tau0**2:
        raise ValueError(
            f"{deq_kernel.activation!r} is even, without a part that is linear in high dimension; "
            "no network is designed for it."
        )
    names = makers if family == "auto" else [family]
    best = min((makers[name](target) for name in names), key=lambda design: design.residual)
    if best.residual > _EXACT:
        name = f"{deq_kernel.activation!r} with weight_variance {weight.item():.4g}"
        numbers = ", ".join(f"{value:.4g}" for value in best.parameters)
        raise ValueError(
            f"No {'explicit' if family == 'auto' else family} network matches {name}: the best, "
            f"{best.family} with parameters ({numbers}), has a residual of {best.residual:.1e}. "
            "Leaky ReLU networks match ReLU and leaky ReLU at small weight variances (ReLU: below "
            "0.85), hard tanh odd activations; HighDimensionalDEQKernel needs no match."
        )
    return ExplicitNetwork(best, found, deq_kernel, tau0)
