"""The kernels of the benchmark of speed, by names that another process understands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel

from gp_deq.kernels import DEKerKernel, DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel

try:
    from botorch.models.kernels import InfiniteWidthBNNKernel
except ImportError as error:
    raise ImportError(
        'the benchmarks compare with kernels of BoTorch: pip install "gp_deq[bo]"'
    ) from error

__all__ = [
    "DEKERS",
    "DEQ_NTK",
    "MATERN",
    "OVER",
    "RBF",
    "KernelSpec",
    "deq_nngp",
    "infinite_width_bnn",
]
__all__ += ["nngp"]


def _matern(ard_num_dims: int) -> Kernel:
    return MaternKernel(2.5, ard_num_dims=ard_num_dims)


def _infinite_width_bnn(ard_num_dims: int, depth: int) -> Kernel:
    return InfiniteWidthBNNKernel(depth=depth)  # without lengthscales


def _deker_steps(ard_num_dims: int) -> Kernel:
    return DEKerKernel(num_steps=3, ard_num_dims=ard_num_dims)


def _deker_tanh(ard_num_dims: int) -> Kernel:
    return DEKerKernel("tanh", ard_num_dims=ard_num_dims)


_FAMILIES: Mapping[str, Callable[..., Kernel]] = {
    "DEQ-NNGP": DEQNNGPKernel,
    "DEQ-NTK": DEQNTKKernel,
    "DEKer": DEKerKernel,
    "DEKer, 3 steps": _deker_steps,
    "DEKer, link tanh": _deker_tanh,
    "NNGP": NNGPKernel,
    "NTK": NTKKernel,
    "Matérn-5/2": _matern,
    "RBF": RBFKernel,
    "InfiniteWidthBNN": _infinite_width_bnn,
}


@dataclass(frozen=True)
class KernelSpec:
    """A kernel by name, so that it can be built in another process.

    Args:
        family: ``"DEQ-NNGP"``, ``"DEQ-NTK"``, ``"DEKer"`` (fixed point, link and features "relu"),
            ``"DEKer, 3 steps"``, ``"DEKer, link tanh"``, ``"NNGP"``, ``"NTK"``, or one of the peers
            ``"Matérn-5/2"``, ``"RBF"``, ``"InfiniteWidthBNN"``.
        activation: The activation of this package's kernels.
        depth: The depth of the finite-depth kernels.
        weight_variance: Replaces the initial value.
        base: The family of the base kernel, ``"Matérn-5/2"`` or ``"RBF"``; None for an affine map.
    """

    family: str
    activation: str | None = None
    depth: int | None = None
    weight_variance: float | None = None
    base: str | None = None

    @property
    def label(self) -> str:
        """The name in tables."""
        parts = [self.family]
        if self.activation is not None:
            parts.append(self.activation)
        if self.depth is not None:
            parts.append(f"depth {self.depth}")
        if self.weight_variance is not None:
            parts.append(f"w={self.weight_variance:g}")
        if self.base is not None:
            parts.append(f"over {self.base}")
        return " ".join(parts)

    def build(self, num_dims: int) -> ScaleKernel:
        """The kernel inside a ScaleKernel, float64.

        Args:
            num_dims: Number of input dimensions, one lengthscale each where the kernel has ARD.

        Returns:
            The kernel.

        Raises:
            ValueError: The family is unknown.
        """
        if self.family not in _FAMILIES:
            raise ValueError(f"unknown family {self.family!r}; there are {', '.join(_FAMILIES)}")
        options = {"activation": self.activation, "depth": self.depth}
        given: dict[str, Any] = {
            name: value for name, value in options.items() if value is not None
        }
        if self.base is None:
            given["ard_num_dims"] = num_dims
        else:
            given["base_kernel"] = _FAMILIES[self.base](ard_num_dims=num_dims)
        kernel = ScaleKernel(_FAMILIES[self.family](**given)).double()
        if self.weight_variance is not None:
            kernel.base_kernel.weight_variance = self.weight_variance
        return kernel


MATERN = KernelSpec("Matérn-5/2")
RBF = KernelSpec("RBF")


def infinite_width_bnn(depth: int) -> KernelSpec:
    """BoTorch's kernel.

    Args:
        depth: Number of layers.

    Returns:
        Its specification.
    """
    return KernelSpec("InfiniteWidthBNN", depth=depth)


def deq_nngp(activation: str, weight_variance: float | None = None) -> KernelSpec:
    """The DEQ-NNGP kernel.

    Args:
        activation: Its activation.
        weight_variance: Replaces the initial value.
    """
    return KernelSpec("DEQ-NNGP", activation, weight_variance=weight_variance)


def nngp(depth: int) -> KernelSpec:
    """The NNGP kernel with ReLU.

    Args:
        depth: Number of layers.
    """
    return KernelSpec("NNGP", "relu", depth=depth)


DEQ_NTK = KernelSpec("DEQ-NTK", "relu")
#: Networks over the kernels that they are compared with, at any activation.
OVER = tuple(
    KernelSpec(family, activation, base=base.label)
    for base in (MATERN, RBF)
    for family, activations in (
        ("DEQ-NNGP", ("relu", "erf", "gelu", "tanh")),
        ("DEQ-NTK", ("relu", "erf", "tanh")),
    )
    for activation in activations
)
DEKERS = (KernelSpec("DEKer"), KernelSpec("DEKer, 3 steps"))
