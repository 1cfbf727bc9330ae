"""Who takes part in the regression benchmark: the kernels, and the predictions of a fit."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel
from torch import Tensor

from gp_deq.datasets import Split
from gp_deq.kernels import (
    AboveRounding,
    DEKerKernel,
    DEQNNGPKernel,
    DEQNTKKernel,
    NNGPKernel,
    NTKKernel,
)

try:
    from botorch.models.kernels import InfiniteWidthBNNKernel
except ImportError as error:
    raise ImportError(
        'the benchmark compares with BoTorch\'s kernels: pip install "gp_deq[bo]"'
    ) from error

__all__ = ["KERNELS", "Maker", "Predictions", "length_unit", "start_kernel"]

#: Makes a kernel with so many lengthscales, or with one for None.
Maker = Callable[[int | None], Kernel]


def _depths(kernel_class: type[Kernel]) -> tuple[Maker, ...]:
    return tuple(
        lambda dims, depth=depth: kernel_class(depth=depth, ard_num_dims=dims)
        for depth in range(1, 6)
    )


#: The kernels by name; those with several makers choose among them on the training part.
KERNELS: Mapping[str, tuple[Maker, ...]] = {
    "DEKer relu": (lambda dims: DEKerKernel(ard_num_dims=dims),),
    "DEKer tanh": (lambda dims: DEKerKernel(link="tanh", ard_num_dims=dims),),
    "DEQ-NNGP relu": (lambda dims: DEQNNGPKernel(ard_num_dims=dims),),
    "DEQ-NNGP erf": (lambda dims: DEQNNGPKernel(activation="erf", ard_num_dims=dims),),
    "DEQ-NTK relu": (lambda dims: DEQNTKKernel(ard_num_dims=dims),),
    "DEQ-NTK erf": (lambda dims: DEQNTKKernel(activation="erf", ard_num_dims=dims),),
    "NNGP": _depths(NNGPKernel),
    "NTK": _depths(NTKKernel),
    "NNGP, depth 3": _depths(NNGPKernel)[2:3],
    "NTK, depth 3": _depths(NTKKernel)[2:3],
    "RBF": (lambda dims: RBFKernel(ard_num_dims=dims, lengthscale_constraint=AboveRounding()),),
    "Matérn-5/2": (
        lambda dims: MaternKernel(2.5, ard_num_dims=dims, lengthscale_constraint=AboveRounding()),
    ),
    "I-BNN": (lambda dims: InfiniteWidthBNNKernel(depth=3),),
}


@dataclass(frozen=True)
class Predictions:
    """Standardised predictions of the test targets.

    Args:
        mean: Means, ``n``.
        std: Standard deviations, noise included, ``n``.
        chosen: Index of the maker chosen.
        ridge: The ridge chosen.
        failures: Number of starts, or of settings and ridges, that failed.
    """

    mean: Tensor
    std: Tensor
    chosen: int = 0
    ridge: float = 0.0
    failures: int = 0

    @classmethod
    def none(cls, split: Split) -> "Predictions":
        """NaN, where nothing could be fitted."""
        nan = torch.full_like(split.test_y, math.nan)
        return cls(nan, nan)


def start_kernel(maker: Maker, split: Split, perturb: bool = False) -> Kernel:
    """A kernel with one lengthscale for each input, as a fit by gradients starts from it.

    Args:
        maker: Makes the kernel.
        split: The data.
        perturb: Whether to add a standard normal draw to each unconstrained parameter of the
            defaults.
    """
    num_dims = split.train_x.shape[-1]
    kernel = maker(num_dims).to(split.train_x)
    if isinstance(kernel, RBFKernel | MaternKernel):
        kernel.lengthscale = kernel.lengthscale.detach() * length_unit(kernel, num_dims)
    if perturb:
        with torch.no_grad():
            for parameter in kernel.parameters():
                parameter.add_(torch.randn_like(parameter))
    return kernel


def length_unit(kernel: Kernel, num_dims: int) -> float:
    """A lengthscale of one, in the units of a kernel.

    The kernels of this package divide squared distances by the number of inputs.

    Args:
        kernel: Any.
        num_dims: Number of inputs.
    """
    return math.sqrt(num_dims) if isinstance(kernel, RBFKernel | MaternKernel) else 1.0
