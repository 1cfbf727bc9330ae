from . import settings
from .kernels import DEQNNGPKernel
