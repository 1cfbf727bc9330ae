"""Deep-equilibrium kernels as BoTorch surrogates."""

try:
    import botorch as _botorch  # noqa: F401
except ImportError as error:
    raise ImportError('gp_deq.bayesopt needs BoTorch: pip install "gp_deq[bo]"') from error

from .covar_modules import get_covar_module
from .fully_bayesian import (
    DEQFullyBayesianSingleTaskGP,
    DEQPyroModel,
    fit_fully_bayesian_model_nuts,
)
from .models import DEQSingleTaskGP

__all__ = [
    "DEQFullyBayesianSingleTaskGP",
    "DEQPyroModel",
    "DEQSingleTaskGP",
    "fit_fully_bayesian_model_nuts",
    "get_covar_module",
]
