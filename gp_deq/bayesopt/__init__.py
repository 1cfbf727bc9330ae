"""Deep-equilibrium kernels as BoTorch surrogates."""

try:
    import botorch as _botorch  # noqa: F401
except ImportError as error:
    raise ImportError('gp_deq.bayesopt needs BoTorch: pip install "gp_deq[bo]"') from error

from .covar_modules import get_covar_module

__all__ = ["get_covar_module"]
