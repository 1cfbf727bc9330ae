from .deq_nngp_kernel import DEQNNGPKernel
