"""Covariance modules for the unit cube."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from bo_priors import training_data
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
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
    module = get_covar_module(kernel, num_dims, activation=activation, base="affine").double()
    x = torch.quasirandom.SobolEngine(num_dims, scramble=True, seed=0).draw(
        512, dtype=torch.float64
    )
    assert module(x, diag=True).mean().item() == pytest.approx(1.0, abs=0.03)


@every_kernel
def test_initial_values_are_the_modes_and_medians_of_the_priors(
    kernel: str, activation: str
) -> None:
    module = get_covar_module(kernel, 3, Size([2]), activation=activation, base="affine").double()
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
    module = get_covar_module(kernel, 3, activation=activation, base="affine").double()
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
        module = get_covar_module(ard_num_dims=num_dims, activation="relu", base="affine").double()
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
    affine = get_covar_module(activation=torch.tanh, base="affine")
    assert affine.base_kernel.lengthscale.shape == (1, 1)
    restored = pickle.loads(pickle.dumps(module))
    assert restored.outputscale.item() == module.outputscale.item()
    with pytest.raises(
        ValueError, match="kernel must be 'deq-nngp', 'deq-ntk', 'deker', got 'rbf'"
    ):
        get_covar_module("rbf")
    with pytest.raises(
        ValueError, match="base of DEQNTKKernel must be 'matern', 'rbf', 'affine', got 'linear'"
    ):
        get_covar_module("deq-ntk", base="linear")
    with pytest.raises(ValueError, match="base of DEKerKernel must be 'affine', got 'rbf'"):
        get_covar_module("deker", base="rbf")
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
    module = get_covar_module(kernel, 2, activation=activation, base="affine").double()
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
    covar_module = get_covar_module(kernel, data.num_dims, activation=activation, base="affine")
    model = SingleTaskGP(x, y, covar_module=covar_module, outcome_transform=None)
    fit_gpytorch_mll(
        ExactMarginalLogLikelihood(model.likelihood, model),
        optimizer_kwargs={"options": {"maxiter": 60}},
    )
    assert model.likelihood.noise.item() < 0.1
    residual = test_y - model.posterior(test_x).mean
    r2 = 1 - (residual.square().sum() / (test_y - test_y.mean()).square().sum()).item()
    assert r2 > {"Hartmann 3": 0.8, "DixonPrice 10": 0.4, "Polynomial 60": 0.2}[problem]


# ------------------------------------------------------------------------------------------
# Over a base kernel
# ------------------------------------------------------------------------------------------

every_bounded_kernel = pytest.mark.parametrize(
    "kernel, activation", [("deq-nngp", "relu"), ("deq-nngp", "erf"), ("deq-ntk", "relu")]
)
every_base = pytest.mark.parametrize("base", ["matern", "rbf"])


def stationary(module: ScaleKernel) -> Any:
    """The kernel that has the lengthscales."""
    inner = module.base_kernel.base_kernel
    return inner.base_kernel if isinstance(inner, ScaleKernel) else inner


def test_the_default_is_bounded() -> None:
    """Whatever the bases are, and at any hyperparameters, none of the default's grows."""
    module = get_covar_module(ard_num_dims=3).double()
    x = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    far = torch.cat((x, 1e3 * x))
    torch.testing.assert_close(module(far, diag=True), torch.ones(100).double(), rtol=1e-6, atol=0)
    assert module.base_kernel.is_stationary


@every_bounded_kernel
@every_base
@pytest.mark.parametrize("num_dims", [1, 6, 200])
def test_prior_variance_is_one_everywhere(
    kernel: str, activation: str, base: str, num_dims: int
) -> None:
    """To single precision, in which the initial values are computed."""
    module = get_covar_module(kernel, num_dims, activation=activation, base=base).double()
    x = torch.rand(64, num_dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for points in (x, x - 1, 100 * x):
        variance = module(points, diag=True)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=2e-6, atol=0)
        # constant to rounding of double precision
        torch.testing.assert_close(variance, variance[:1].expand(64), rtol=1e-12, atol=0)


@every_bounded_kernel
@every_base
@pytest.mark.parametrize("num_dims", [1, 20])
def test_base_is_botorchs_kernel(kernel: str, activation: str, base: str, num_dims: int) -> None:
    module = get_covar_module(kernel, num_dims, Size([2]), activation=activation, base=base)
    ours = stationary(module)
    theirs = get_covar_module_with_dim_scaled_prior(num_dims, Size([2]), base == "rbf")
    assert type(ours) is type(theirs)
    assert torch.equal(ours.lengthscale_prior.loc, theirs.lengthscale_prior.loc)
    assert torch.equal(ours.lengthscale_prior.scale, theirs.lengthscale_prior.scale)
    torch.testing.assert_close(ours.lengthscale, theirs.lengthscale, rtol=1e-6, atol=0)
    bounds = [float(k.raw_lengthscale_constraint.lower_bound) for k in (ours, theirs)]
    assert bounds[0] == bounds[1]


@every_bounded_kernel
@every_base
def test_priors_over_a_base_are_those_of_the_documentation(
    kernel: str, activation: str, base: str
) -> None:
    module = get_covar_module(kernel, 3, Size([2]), activation=activation, base=base).double()
    network, inner = module.base_kernel, module.base_kernel.base_kernel
    medians = [
        (network.bias_variance, network.bias_variance_prior, -1.0),
        (module.outputscale, module.outputscale_prior, None),
    ]
    if network.activation.homogeneous:
        assert not isinstance(inner, ScaleKernel)
    else:
        medians.append((inner.outputscale, inner.outputscale_prior, 0.0))
    for value, prior, loc in medians:
        # initial values are computed in single precision
        torch.testing.assert_close(value.log(), value * 0 + prior.loc, rtol=1e-5, atol=1e-6)
        assert float(prior.scale) == 1
        assert loc is None or float(prior.loc) == loc
    share = network.weight_variance_prior.share(network.weight_variance)
    assert float(network.weight_variance_prior.concentration) == 2
    torch.testing.assert_close(share, share * 0 + 0.5, rtol=1e-6, atol=0)
    assert all(parameter.requires_grad for parameter in module.parameters())


@every_bounded_kernel
@every_base
def test_pickle_active_dims_and_single_precision(kernel: str, activation: str, base: str) -> None:
    options = {"activation": activation, "base": base, "active_dims": [0, 2]}
    module = get_covar_module(kernel, 2, **options).double()
    x = torch.rand(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = module(x).to_dense()
    assert torch.equal(pickle.loads(pickle.dumps(module))(x).to_dense(), expected)
    assert torch.equal(module(x + torch.tensor([0.0, 7.0, 0.0])).to_dense(), expected)
    single = get_covar_module(kernel, 2, **options)(x.float()).to_dense()
    assert single.dtype == torch.float32
    # a few roundings of 6e-8, amplified near coincident inputs by the root of a versine
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-5)


@every_bounded_kernel
@every_base
def test_scales_over_a_base_stay_positive_at_any_raw_value(
    kernel: str, activation: str, base: str
) -> None:
    module = get_covar_module(kernel, 2, activation=activation, base=base).double()
    for raw in (-1e3, -50.0, 50.0, 1e4):
        for name, parameter in module.named_parameters():
            if "weight" not in name:
                parameter.data.fill_(raw)
        values = [module.outputscale, module.base_kernel.bias_variance]
        values.append(stationary(module).lengthscale)
        inner = module.base_kernel.base_kernel
        values += [inner.outputscale] if isinstance(inner, ScaleKernel) else []
        for value in values:
            assert bool((value > 0).all() and value.isfinite().all())


@every_bounded_kernel
@every_base
def test_fits_over_a_base_do_not_collapse_to_noise(kernel: str, activation: str, base: str) -> None:
    data = make_problem("Hartmann 3", 0)
    x, y, test_x, test_y = training_data(data, 40, 0)
    covar_module = get_covar_module(kernel, 3, activation=activation, base=base)
    model = SingleTaskGP(x, y, covar_module=covar_module, outcome_transform=None)
    fit_gpytorch_mll(
        ExactMarginalLogLikelihood(model.likelihood, model),
        optimizer_kwargs={"options": {"maxiter": 60}},
    )
    assert model.likelihood.noise.item() < 0.1
    residual = test_y - model.posterior(test_x).mean
    assert 1 - (residual.square().sum() / (test_y - test_y.mean()).square().sum()).item() > 0.8
