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
from .pathwise import gen_nystrom_features
from .strength_prior import StrengthPrior

__all__ = [
    "DEQFullyBayesianSingleTaskGP",
    "DEQPyroModel",
    "DEQSingleTaskGP",
    "StrengthPrior",
    "fit_fully_bayesian_model_nuts",
    "gen_nystrom_features",
    "get_covar_module",
]
