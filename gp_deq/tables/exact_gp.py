"""An exact Gaussian process at the initial values that all kernels share."""

import gpytorch
import torch
from botorch.models import SingleTaskGP
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor


def make_model(kernel: Kernel, train_x: Tensor, train_y: Tensor) -> ExactMarginalLogLikelihood:
    """An exact GP at the initial values that all kernels share, and its marginal likelihood.

    The mean is constant, the noise Gaussian with a variance of 0.1, and the output scale is such
    that the mean prior variance of the training inputs is 1.

    Args:
        kernel: The kernel, without an output scale.
        train_x: Standardised inputs, ``n x d``.
        train_y: Standardised targets, ``n``.

    Returns:
        The marginal likelihood, whose ``model`` is the GP.
    """
    covar = ScaleKernel(kernel).to(train_x)
    likelihood = GaussianLikelihood().to(train_x)
    likelihood.noise = 0.1
    with torch.no_grad():
        covar.outputscale = 1 / kernel(train_x, diag=True).mean()
    model = SingleTaskGP(
        train_x,
        train_y.unsqueeze(-1),
        likelihood=likelihood,
        covar_module=covar,
        outcome_transform=None,
    )
    return ExactMarginalLogLikelihood(likelihood, model)


def scalar_hyperparameters(model: gpytorch.Module) -> dict[str, float]:
    """The value of every hyperparameter that has only one.

    Args:
        model: A model, or any other module of GPyTorch.

    Returns:
        Values by name.
    """
    values = {}
    for name, raw, constraint in model.named_parameters_and_constraints():
        if raw.numel() == 1 and constraint is not None:
            path, _, leaf = name.rpartition(".")
            short = leaf.removeprefix("raw_")
            values[short] = getattr(model.get_submodule(path), short).item()
    return values
