"""The surrogates of the benchmark of Bayesian optimisation, and how they are fitted.

Beside the kernels of this package, over a Matern kernel and over an affine map, and BoTorch's
default there are the Matérn kernel with the same dimension-scaled prior, with and without the
output scale that ours have, a linear kernel, and BoTorch's ``InfiniteWidthBNNKernel`` (I-BNN)
twice: as it was published, and fitted, centred and with an output scale, but without priors.
"""

import math
from collections.abc import Callable, Mapping

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, LinearKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood, SumMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from torch import Tensor

try:
    from botorch.exceptions.errors import BotorchError, ModelFittingError
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.models.kernels import InfiniteWidthBNNKernel
    from botorch.models.transforms.input import AffineInputTransform
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
except ImportError as error:
    raise ImportError('the surrogates are models of BoTorch: pip install "gp_deq[bo]"') from error

from gp_deq.bayesopt import get_covar_module

__all__ = ["FAILURES", "SURROGATES", "Surrogate", "fit_surrogate"]

#: Makes the model of one output from inputs in the unit cube, ``n x d``, and values, ``n x 1``.
Surrogate = Callable[[Tensor, Tensor], SingleTaskGP]

#: Exceptions that a numerical failure of a fit or of an acquisition function raises.
FAILURES = (ArithmeticError, RuntimeError, ValueError, BotorchError, ModelFittingError)

#: Constants of I-BNN in Li, Rudner and Wilson (2024): weight variance, bias variance, depth.
_IBNN = 10.0, 1.6, 3


def _deq(kernel: str, base: str, activation: str | None = None) -> Surrogate:
    def make(x: Tensor, y: Tensor) -> SingleTaskGP:
        covar_module = get_covar_module(
            kernel, ard_num_dims=x.shape[-1], activation=activation, base=base
        )
        return SingleTaskGP(x, y, covar_module=covar_module)

    return make


def _matern(x: Tensor, y: Tensor) -> SingleTaskGP:
    covar_module = get_covar_module_with_dim_scaled_prior(x.shape[-1], use_rbf_kernel=False)
    return SingleTaskGP(x, y, covar_module=covar_module)


def _scaled_matern(x: Tensor, y: Tensor) -> SingleTaskGP:
    """With an output scale, whose prior is that of this package's kernels."""
    kernel = get_covar_module_with_dim_scaled_prior(x.shape[-1], use_rbf_kernel=False)
    covar_module = ScaleKernel(
        kernel,
        outputscale_prior=LogNormalPrior(0.0, 1.0),
        outputscale_constraint=GreaterThan(1e-6, initial_value=1.0),
    )
    return SingleTaskGP(x, y, covar_module=covar_module)


def _centred(kernel: Kernel, x: Tensor, y: Tensor) -> SingleTaskGP:
    """The kernel on inputs mapped to [-1, 1], with an output scale such that it starts near 1."""
    typical = torch.full((1, x.shape[-1]), 3**-0.5)
    covar_module = ScaleKernel(kernel)
    with torch.no_grad():
        covar_module.outputscale = 1 / float(kernel(typical, diag=True))
    half = torch.full((x.shape[-1],), 0.5).to(x)
    return SingleTaskGP(
        x,
        y,
        covar_module=covar_module,
        input_transform=AffineInputTransform(x.shape[-1], coefficient=half, offset=half),
    )


def _ibnn() -> InfiniteWidthBNNKernel:
    weight_var, bias_var, depth = _IBNN
    kernel = InfiniteWidthBNNKernel(depth)
    kernel.weight_var = weight_var
    kernel.bias_var = bias_var
    return kernel


def _fitted_ibnn(x: Tensor, y: Tensor) -> SingleTaskGP:
    """Centred, with an output scale; learned without priors from the published constants."""
    return _centred(_ibnn(), x, y)


def _fixed_ibnn(x: Tensor, y: Tensor) -> SingleTaskGP:
    """As published: on the unit cube, without an output scale; mean and noise are learned."""
    return SingleTaskGP(x, y, covar_module=_ibnn().requires_grad_(False))


def _linear(x: Tensor, y: Tensor) -> SingleTaskGP:
    """One variance for each input, with a prior as wide as BoTorch's on lengthscales."""
    num_dims = x.shape[-1]
    median = 3 / num_dims
    prior = LogNormalPrior(math.log(median), math.sqrt(3))
    kernel = LinearKernel(ard_num_dims=num_dims, variance_prior=prior)
    kernel.variance = median
    return _centred(kernel, x, y)


#: The surrogates by name; None evaluates Sobol points.
SURROGATES: Mapping[str, Surrogate | None] = {
    "DEQ-NNGP": _deq("deq-nngp", "matern"),
    "DEQ-NNGP affine": _deq("deq-nngp", "affine"),
    "DEQ-NNGP erf affine": _deq("deq-nngp", "affine", "erf"),
    "DEQ-NTK affine": _deq("deq-ntk", "affine"),
    "DEKer": _deq("deker", "affine"),
    "BoTorch default": SingleTaskGP,
    "Matérn-5/2": _matern,
    "Matérn-5/2 scaled": _scaled_matern,
    "I-BNN fitted": _fitted_ibnn,
    "I-BNN fixed": _fixed_ibnn,
    "linear": _linear,
    "random": None,
}


def fit_surrogate(make: Surrogate, x: Tensor, y: Tensor) -> SingleTaskGP | ModelListGP:
    """Learn the hyperparameters of a surrogate; several outputs are independent.

    Args:
        make: One of `SURROGATES`.
        x: Inputs in the unit cube, ``n x d``.
        y: Values, ``n x m``.

    Returns:
        The model.
    """
    models = [make(x, column) for column in y.split(1, dim=-1)]
    if len(models) == 1:
        fit_gpytorch_mll(ExactMarginalLogLikelihood(models[0].likelihood, models[0]))
        return models[0]
    model = ModelListGP(*models)
    fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
    return model
