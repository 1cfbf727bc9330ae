"""Covariance modules for the unit cube."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from bo_priors import training_data
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.kernels import ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Size

from gp_deq.activations import ExponentialFamilyLink
from gp_deq.bayesopt import get_covar_module
from gp_deq.bayesopt.covar_modules import KERNELS
from gp_deq.benchmarks.problems import make_problem

every_kernel = pytest.mark.parametrize(
    "kernel, activation",
    [("deq-nngp", "relu"), ("deq-nngp", "erf"), ("deq-ntk", "relu"), ("deker", "relu")],
)


@every_kernel
@pytest.mark.parametrize("num_dims", [1, 6, 200])
def test_prior_variance_is_one_on_average(kernel: str, activation: str, num_dims: int) -> None:
    """Over the unit cube, at the initial values; smooth activations bend the average a little."""
    module = get_covar_module(kernel, num_dims, activation=activation).double()
    x = torch.quasirandom.SobolEngine(num_dims, scramble=True, seed=0).draw(
        512, dtype=torch.float64
    )
    assert module(x, diag=True).mean().item() == pytest.approx(1.0, abs=0.03)


@every_kernel
def test_initial_values_are_the_modes_and_medians_of_the_priors(
    kernel: str, activation: str
) -> None:
    module = get_covar_module(kernel, 3, Size([2]), activation=activation).double()
    base, priors = module.base_kernel, {n: p for n, _, p, *_ in module.named_priors()}
    assert isinstance(module, ScaleKernel) and base.center.unique().tolist() == [0.5]
    assert base.lengthscale.shape == (2, 1, 3) and module.outputscale.shape == (2,)
    for value, name in (
        (base.bias_variance, "base_kernel.bias_variance_prior"),
        (module.outputscale, "outputscale_prior"),
    ):
        torch.testing.assert_close(
            value.flatten()[0].log(), priors[name].loc.double(), rtol=1e-5, atol=1e-5
        )
    mode = priors["base_kernel.lengthscale_prior"].mode
    torch.testing.assert_close(base.lengthscale, base.lengthscale * 0 + mode, rtol=1e-6, atol=0.0)


@every_kernel
def test_priors_are_those_of_the_documentation(kernel: str, activation: str) -> None:
    module = get_covar_module(kernel, 3, activation=activation).double()
    base = module.base_kernel
    strength = base.regularization_prior if kernel == "deker" else base.weight_variance_prior
    for prior, loc, scale in (
        (base.lengthscale_prior, -1.4, 0.2),
        (base.bias_variance_prior, 1.0, 1.0),
        (module.outputscale_prior, module.outputscale.item(), 1.0),
    ):
        expected = math.log(loc) if prior is module.outputscale_prior else loc
        assert float(prior.loc) == pytest.approx(expected, abs=1e-6)
        assert float(prior.scale) == pytest.approx(scale)
    value = base.regularization if kernel == "deker" else base.weight_variance
    assert float(strength.concentration) == 2
    assert strength.share(value).item() == pytest.approx(0.5, abs=1e-6)


def test_strength_starts_at_half_for_any_link() -> None:
    base = get_covar_module("deker", activation="logistic").base_kernel
    assert base.regularization_prior.share(base.regularization).item() == pytest.approx(0.5)


def test_constant_functions_are_refused() -> None:
    with pytest.raises(ValueError, match="constant"):
        get_covar_module(activation=lambda x: 0 * x + 1.0)
    constant = ExponentialFamilyLink(lambda x: 0 * x + 0.5, torch.ones_like)
    with pytest.raises(ValueError, match="constant"):
        get_covar_module("deker", activation=constant)


def test_dimension_leaves_the_prior_correlation_alone() -> None:
    """As squared distances are divided by d, that of typical points is the same for every d."""
    correlations = []
    for num_dims in (5, 50, 500):
        module = get_covar_module(ard_num_dims=num_dims).double()
        x = torch.rand(
            40, num_dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        matrix = module(x).to_dense()
        root = matrix.diagonal().sqrt()
        correlation = matrix / (root * root[:, None])
        correlations.append(correlation.tril(-1).sum().item() / (40 * 39 / 2))
    assert max(correlations) - min(correlations) < 0.02
    assert 0.3 < correlations[0] < 0.9


def test_arguments() -> None:
    module = get_covar_module("deker", 2, activation="tanh", active_dims=[0, 3])
    assert module.base_kernel.active_dims.tolist() == [0, 3]
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert get_covar_module(activation=torch.tanh).base_kernel.lengthscale.shape == (1, 1)
    restored = pickle.loads(pickle.dumps(module))
    assert restored.outputscale.item() == module.outputscale.item()
    with pytest.raises(
        ValueError, match="kernel must be 'deq-nngp', 'deq-ntk', 'deker', got 'rbf'"
    ):
        get_covar_module("rbf")
    with pytest.raises(ValueError, match="bounded slope"):
        get_covar_module(activation=torch.square)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_fixed_is_redundant(kernel: str) -> None:
    """The output scale reproduces the matrix at any value of the feature scale of DEKer."""
    module = get_covar_module(kernel, 2).double()
    base = module.base_kernel
    fixed = {name for name, value in base.named_parameters() if not value.requires_grad}
    assert fixed == ({"raw_feature_scale"} if kernel == "deker" else set())
    if fixed:
        x = torch.rand(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected = module(x).to_dense()
        base.feature_scale = base.feature_scale * 3
        module.outputscale = module.outputscale / 9
        torch.testing.assert_close(module(x).to_dense(), expected, rtol=1e-10, atol=1e-10)


@every_kernel
def test_scales_stay_positive_at_any_raw_value(kernel: str, activation: str) -> None:
    module = get_covar_module(kernel, 2, activation=activation).double()
    for raw in (-1e3, -50.0, 50.0, 1e4):
        for name, parameter in module.named_parameters():
            if "weight" not in name and "regularization" not in name:
                parameter.data.fill_(raw)
        base = module.base_kernel
        for value in (base.lengthscale, base.bias_variance, module.outputscale):
            assert bool((value > 0).all() and value.isfinite().all())


@every_kernel
@pytest.mark.parametrize("problem", ["Hartmann 3", "DixonPrice 10", "Polynomial 60"])
def test_fits_do_not_collapse_to_noise(kernel: str, activation: str, problem: str) -> None:
    data = make_problem(problem, 0)
    x, y, test_x, test_y = training_data(data, 40, 0)
    covar_module = get_covar_module(kernel, data.num_dims, activation=activation)
    model = SingleTaskGP(x, y, covar_module=covar_module, outcome_transform=None)
    fit_gpytorch_mll(
        ExactMarginalLogLikelihood(model.likelihood, model),
        optimizer_kwargs={"options": {"maxiter": 60}},
    )
    assert model.likelihood.noise.item() < 0.1
    residual = test_y - model.posterior(test_x).mean
    r2 = 1 - (residual.square().sum() / (test_y - test_y.mean()).square().sum()).item()
    assert r2 > {"Hartmann 3": 0.8, "DixonPrice 10": 0.4, "Polynomial 60": 0.2}[problem]
