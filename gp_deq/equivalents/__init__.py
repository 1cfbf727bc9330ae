r"""Shallow explicit networks and structured matrices equivalent to a DEQ kernel.

For inputs of many dimensions the equilibrium's kernel depends on its activation and weight variance
only through a few coefficients [Ling2024]_. :func:`high_dimensional_coefficients` computes them,
:class:`HighDimensionalDEQKernel` is the kernel made of them, :func:`match_explicit` designs a
network of one or two layers that has the same coefficients, and :func:`spectrum` compares all of
these with the exact kernel on given inputs.

Example:
    >>> import torch
    >>> from gp_deq import DEQNNGPKernel
    >>> from gp_deq.equivalents import spectrum
    >>> kernel = DEQNNGPKernel("relu").double()
    >>> kernel.weight_variance = 0.2
    >>> X = torch.randn(50, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> found = spectrum(kernel, X)
    >>> found.equivalent_error < 0.02 * found.norm
    True
    >>> found.network.family
    'leaky-relu'
"""

from .centered import Centered
from .coefficients import HighDimensionalCoefficients, high_dimensional_coefficients
from .explicit import ExplicitKernel, ExplicitNetwork, match_explicit
from .hard_tanh import HardTanh
from .kernel import HighDimensionalDEQKernel, equivalent_kernel
from .operator import EquivalentLinearOperator
from .spectrum import Spectrum, centered_kernel, spectrum

__all__ = [
    "Centered",
    "EquivalentLinearOperator",
    "ExplicitKernel",
    "ExplicitNetwork",
    "HardTanh",
    "HighDimensionalCoefficients",
    "HighDimensionalDEQKernel",
    "Spectrum",
    "centered_kernel",
    "equivalent_kernel",
    "high_dimensional_coefficients",
    "match_explicit",
    "spectrum",
]
