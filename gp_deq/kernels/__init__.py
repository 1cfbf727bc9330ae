"""What a GPyTorch user imports: kernels of infinitely wide networks."""

from .deker import DEKerKernel
from .deq_nngp_kernel import DEQNNGPKernel
from .deq_ntk_kernel import DEQNTKKernel
from .nngp_kernel import NNGPKernel
from .ntk_kernel import NTKKernel

__all__ = ["DEKerKernel", "DEQNNGPKernel", "DEQNTKKernel", "NNGPKernel", "NTKKernel"]
