"""Eigenvalues of a DEQ kernel's matrix beside those of its equivalents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels import DEQNNGPKernel, DEQNTKKernel
from .centered import Centered
from .coefficients import gaussian_moments
from .explicit import ExplicitNetwork, match_explicit
from .kernel import (
    HighDimensionalDEQKernel,
    equivalent_kernel,
    with_hyperparameters,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Spectrum", "centered_kernel", "spectrum"]


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a DEQ kernel's matrix and of its equivalents', and their distances.

    Args:
        exact: Eigenvalues of the DEQ kernel with a centred activation, ``n``, decreasing.
        equivalent: Eigenvalues of its high-dimensional equivalent, ``n``, decreasing.
        explicit: Eigenvalues of the matched network's kernel, ``n``, decreasing; None if there is
            no exact match.
        norm: Largest eigenvalue of the exact matrix.
        equivalent_error: Spectral norm of the difference of the exact matrix and the equivalent.
        explicit_error: Spectral norm of the difference of the exact matrix and that of the matched
            network; NaN without a match.
        network: Matched network; None if there is no exact match.
        reason: Reason why there is no match; empty if there is one.
    """

    exact: Tensor
    equivalent: Tensor
    explicit: Tensor | None
    norm: float
    equivalent_error: float
    explicit_error: float
    network: ExplicitNetwork | None
    reason: str

    def draw(self, axes: Axes) -> None:
        """Draw the eigenvalues by rank, on logarithmic axes.

        Args:
            axes: Axes of matplotlib to draw into.
        """
        rank = range(1, len(self.exact) + 1)
        axes.loglog(rank, self.exact, color="black", linewidth=2.5, label="equilibrium")
        label = f"equivalent, error {self.equivalent_error / self.norm:.1e}"
        axes.loglog(rank, self.equivalent, color="C0", label=label)
        if self.explicit is not None and self.network is not None:
            label = f"{self.network.family} network, error {self.explicit_error / self.norm:.1e}"
            axes.loglog(rank, self.explicit, color="C1", linestyle="--", label=label)
        axes.set(xlabel="rank", ylabel="eigenvalue")
        axes.legend(fontsize=8)


def centered_kernel(
    kernel: DEQNNGPKernel | DEQNTKKernel, reference: Tensor
) -> DEQNNGPKernel | DEQNTKKernel:
    r"""The DEQ kernel with a centred activation, which the equivalents approximate.

    It has the hyperparameters of the given kernel, :math:`\varphi - \operatorname E\varphi(\tau z)`
    in the place of its activation, and no bias. The constant stays as it is when hyperparameters
    are changed.

    Args:
        kernel: DEQ-NNGP kernel, or DEQ-NTK kernel of the recurrent weights.
        reference: Inputs, ``n x d``, from whose mean injected variance :math:`\tau` is computed.

    Returns:
        The centred kernel, of the same class.

    Raises:
        TypeError: the kernel is of another class.
        ValueError: the kernel is a tangent kernel of other weights, or a batch of kernels.
    """
    return _centered(kernel, equivalent_kernel(kernel, reference))


def _centered(
    kernel: DEQNNGPKernel | DEQNTKKernel, equivalent: HighDimensionalDEQKernel
) -> DEQNNGPKernel | DEQNTKKernel:
    with torch.no_grad():
        moments = gaussian_moments(kernel.activation, equivalent.coefficients().tau)
    options = {"trained": kernel.trained} if isinstance(kernel, DEQNTKKernel) else {}
    activation = Centered(kernel.activation, moments.mean.item())
    centered = with_hyperparameters(partial(type(kernel), activation, **options), kernel)
    centered.bias_variance = 0.0
    return centered


def spectrum(kernel: DEQNNGPKernel | DEQNTKKernel, X: Tensor) -> Spectrum:
    """Compare a DEQ kernel with its equivalents on some inputs.

    Args:
        kernel: DEQ-NNGP kernel, or DEQ-NTK kernel of the recurrent weights, for which no network is
            matched. Its bias is left out, and its activation centred.
        X: Inputs, ``n x d``.

    Returns:
        The eigenvalues, in decreasing order, and the distances.

    Raises:
        TypeError: the kernel is of another class.
        ValueError: the kernel is a tangent kernel of other weights, or a batch of kernels.
    """
    X = X if X.is_floating_point() else X.to(kernel.dtype)
    equivalent = equivalent_kernel(kernel, X)
    network, reason = None, "Networks are matched to covariances, not to tangent kernels."
    if isinstance(kernel, DEQNNGPKernel):
        try:
            network, reason = match_explicit(kernel, equivalent.double().level().sqrt().item()), ""
        except ValueError as error:
            reason = str(error)
    with torch.no_grad():
        exact = _centered(kernel, equivalent)(X).to_dense()
        structured = equivalent.to(X)(X).to_dense()
        explicit = None if network is None else network.kernel()(X).to_dense()
    values = torch.linalg.eigvalsh(exact).flip(-1)
    return Spectrum(
        values,
        torch.linalg.eigvalsh(structured).flip(-1),
        None if explicit is None else torch.linalg.eigvalsh(explicit).flip(-1),
        values[0].item(),
        _distance(exact, structured),
        math.nan if explicit is None else _distance(exact, explicit),
        network,
        reason,
    )


def _distance(first: Tensor, second: Tensor) -> float:
    return torch.linalg.eigvalsh(first - second).abs().max().item()
