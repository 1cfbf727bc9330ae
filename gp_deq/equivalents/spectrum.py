"""Eigenvalues of a DEQ kernel's matrix beside those of its equivalents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels import DEQNNGPKernel
from .centered import Centered
from .coefficients import gaussian_moments
from .explicit import ExplicitNetwork, match_explicit
from .kernel import HighDimensionalDEQKernel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Spectrum", "centered_kernel", "spectrum"]


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of three matrices, and how far they are from one another.

    Args:
        exact: Of the DEQ kernel with a centred activation, ``n``, falling.
        equivalent: Of its high-dimensional equivalent.
        explicit: Of the matched network's kernel; None if there is no exact match.
        norm: Largest eigenvalue of the exact matrix.
        equivalent_error: Spectral norm of the difference of exact matrix and equivalent.
        explicit_error: That of exact matrix and matched network; NaN without a match.
        network: The match, if there is one.
    """

    exact: Tensor
    equivalent: Tensor
    explicit: Tensor | None
    norm: float
    equivalent_error: float
    explicit_error: float
    network: ExplicitNetwork | None

    def draw(self, axes: Axes) -> None:
        """Eigenvalues by rank, on logarithmic axes.

        Args:
            axes: Drawn into.
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


def centered_kernel(kernel: DEQNNGPKernel, reference: Tensor) -> DEQNNGPKernel:
    r"""The DEQ kernel of the same hyperparameters with :math:`\varphi - \operatorname E\varphi(\tau z)`
    and no bias, which the equivalents are equivalents of.

    Args:
        kernel: The kernel.
        reference: Inputs, ``n x d``, for :math:`\tau`.
    """
    equivalent = _equivalent(kernel, reference)
    with torch.no_grad():
        moments = gaussian_moments(kernel.activation, equivalent.coefficients().tau)
    activation = Centered(kernel.activation, moments.mean.item())
    centered = DEQNNGPKernel(
        activation,
        kernel.center.reshape(-1),
        ard_num_dims=kernel.ard_num_dims,
        active_dims=kernel.active_dims,
    ).to(kernel.raw_lengthscale)
    centered.lengthscale = kernel.lengthscale.detach()
    centered.weight_variance = kernel.weight_variance.detach()
    centered.bias_variance = 0.0
    return centered


def spectrum(kernel: DEQNNGPKernel, X: Tensor) -> Spectrum:
    """Compare a DEQ kernel with its equivalents on some inputs.

    Args:
        kernel: The kernel; its bias is left out, and its activation centred.
        X: Inputs, ``n x d``.

    Returns:
        The eigenvalues, in order, and the distances.
    """
    with torch.no_grad():
        exact = centered_kernel(kernel, X)(X).to_dense()
        equivalent = _equivalent(kernel, X)(X).to_dense()
        try:
            network = match_explicit(kernel, X)
        except ValueError:
            network = None
        explicit = None if network is None else network.kernel()(X).to_dense()
        values = [
            None if matrix is None else torch.linalg.eigvalsh(matrix).flip(-1)
            for matrix in (exact, equivalent, explicit)
        ]
        distances = [
            float("nan")
            if matrix is None
            else torch.linalg.eigvalsh(matrix - exact).abs().max().item()
            for matrix in (equivalent, explicit)
        ]
    assert values[0] is not None and values[1] is not None
    return Spectrum(
        values[0], values[1], values[2], values[0][0].item(), *distances, network
    )


def _equivalent(kernel: DEQNNGPKernel, reference: Tensor) -> HighDimensionalDEQKernel:
    equivalent = HighDimensionalDEQKernel(
        kernel.activation,
        center=kernel.center.reshape(-1),
        ard_num_dims=kernel.ard_num_dims,
        active_dims=kernel.active_dims,
    ).to(kernel.raw_lengthscale)
    equivalent.lengthscale = kernel.lengthscale.detach()
    equivalent.weight_variance = kernel.weight_variance.detach()
    equivalent.set_reference(reference)
    return equivalent
