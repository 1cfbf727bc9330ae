"""DEQFullyBayesianSingleTaskGP: samples of the right density, and the model made of them."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from typing import Any

import pytest
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.exceptions.errors import InputDataError
from botorch.exceptions.warnings import InputDataWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models.transforms import Normalize, Standardize
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from botorch.utils.datasets import SupervisedDataset
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from gp_deq.activations import get_activation
from gp_deq.bayesopt import (
    DEQFullyBayesianSingleTaskGP,
    DEQPyroModel,
    DEQSingleTaskGP,
    fit_fully_bayesian_model_nuts,
    get_covar_module,
)

pyro = pytest.importorskip("pyro")

KERNELS = [
    ("deq-nngp", "erf", "affine"),
    ("deq-nngp", "relu", "affine"),
    ("deq-ntk", "erf", "affine"),
    ("deq-ntk", "relu", "affine"),
    ("deker", "relu", "affine"),
    ("deq-nngp", "erf", "matern"),
    ("deq-nngp", "relu", "matern"),
]
every_kernel = pytest.mark.parametrize("kernel, activation, base", KERNELS)
BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
STRENGTH = {"deq-nngp": "weight_variance", "deq-ntk": "weight_variance", "deker": "regularization"}


def modules(covar_module: Kernel, kernel: str) -> dict[str, tuple[Any, str]]:
    """Module and attribute of each hyperparameter of the kernel, by the name of its samples."""
    network = covar_module.base_kernel
    found = {
        "outputscale": (covar_module, "outputscale"),
        "bias_variance": (network, "bias_variance"),
        STRENGTH[kernel]: (network, STRENGTH[kernel]),
    }
    inner = network if network.has_lengthscale else network.base_kernel
    if isinstance(inner, ScaleKernel):
        found["base_outputscale"] = (inner, "outputscale")
        inner = inner.base_kernel
    return found | {"lengthscale": (inner, "lengthscale")}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def target(x: Tensor) -> Tensor:
    return (4 * x[..., :1]).sin() + x[..., 1:2].square()


def make(n: int = 12, known: bool = False, **kwargs) -> DEQFullyBayesianSingleTaskGP:
    x = torch.rand(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = torch.full((n, 1), 0.01).double() if known else None
    kwargs.setdefault("outcome_transform", Standardize(1))
    return DEQFullyBayesianSingleTaskGP(x, target(x), noise, **kwargs)


def fit(model: DEQFullyBayesianSingleTaskGP, warmup: int = 8, samples: int = 8, **kwargs) -> None:
    fit_fully_bayesian_model_nuts(
        model,
        max_tree_depth=4,
        warmup_steps=warmup,
        num_samples=samples,
        thinning=2,
        disable_progbar=True,
        **kwargs,
    )


def point_estimate(known: bool, **kwargs: str) -> DEQSingleTaskGP:
    """The same kernel for the data of :func:`make`, at its highest posterior density."""
    x = torch.rand(12, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = torch.full((12, 1), 0.01).double() if known else None
    model = DEQSingleTaskGP(x, target(x), noise, **kwargs)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def trace(model: DEQPyroModel, **values: float | Tensor) -> pyro.poutine.Trace:
    data = {name: torch.as_tensor(v, dtype=torch.float64) for name, v in values.items()}
    return pyro.poutine.trace(pyro.poutine.condition(model.sample, data)).get_trace()


@every_kernel
@pytest.mark.parametrize("known", [False, True])
def test_samples_make_a_batch_of_models(
    kernel: str, activation: str, base: str, known: bool
) -> None:
    model = make(kernel=kernel, activation=activation, base=base, known=known)
    with pytest.raises(RuntimeError, match="not been fitted"):
        model.posterior(inputs(3, 2))
    # the prior on lengthscales over a base kernel is wide: it takes longer to get to the data
    fit(model, *((8, 8) if base == "affine" else (32, 16)))
    assert model.num_mcmc_samples == (4 if base == "affine" else 8)
    assert model.batch_shape == (model.num_mcmc_samples,)
    assert model.median_lengthscale.shape == (2,)
    test = inputs(30, 2)
    with torch.no_grad():
        posterior = model.posterior(test)
    assert posterior.mean.shape == (model.num_mcmc_samples, 30, 1)
    # as good as the point estimate of the same kernel, but for the noise of so short a chain
    point = point_estimate(known, kernel=kernel, activation=activation, base=base)
    errors = [
        (mean - target(test)).square().mean() / target(test).var()
        for mean in (posterior.mixture_mean, point.posterior(test).mean)
    ]
    assert errors[0] < errors[1] + 0.1
    assert bool((posterior.mixture_variance > 0).all())
    found = modules(model.covar_module, kernel)
    assert model.covar_module.base_kernel.solver_report.converged
    assert ("base_outputscale" in found) == (base != "affine" and activation == "erf")
    assert all(len(getattr(*place).unique()) > 1 for place in found.values())
    if not known:
        found["noise"] = (model.likelihood.noise_covar, "noise")
    for module, name in found.values():
        value, constraint = getattr(module, name), getattr(module, f"raw_{name}_constraint")
        assert bool((value > constraint.lower_bound).all())
        assert bool((value < constraint.upper_bound).all())


@every_kernel
def test_each_sample_is_a_model_of_its_own(kernel: str, activation: str, base: str) -> None:
    model = make(kernel=kernel, activation=activation, base=base, outcome_transform=None)
    fit(model, 4, 4)
    test = inputs(5, 2)
    x, y = model.train_inputs[0], model.train_targets.unsqueeze(-1)
    with torch.no_grad():
        posterior = model.posterior(test)
    for i in range(2):
        one = DEQSingleTaskGP(
            x, y, kernel=kernel, activation=activation, base=base, outcome_transform=None
        )
        one.mean_module.constant.data = model.mean_module.constant[i].detach()
        one.likelihood.noise = model.likelihood.noise[i].detach()
        places, batch = modules(one.covar_module, kernel), modules(model.covar_module, kernel)
        for key, (module, name) in places.items():
            setattr(module, name, getattr(*batch[key])[i].detach())
        with torch.no_grad():
            expected = one.posterior(test)
        torch.testing.assert_close(posterior.mean[i], expected.mean, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(posterior.variance[i], expected.variance, rtol=1e-6, atol=1e-7)


some_kernels = pytest.mark.parametrize(
    "kernel, activation, base",
    [
        ("deq-nngp", "relu", "affine"),
        ("deker", "relu", "affine"),
        ("deq-nngp", "relu", "matern"),
        ("deq-nngp", "erf", "matern"),
        ("deq-ntk", "erf", "rbf"),
    ],
)


@some_kernels
def test_density_is_that_of_the_priors_and_the_marginal_likelihood(
    kernel: str, activation: str, base: str
) -> None:
    """The logarithm of the joint density, up to a constant, at two points."""
    options = {"kernel": kernel, "activation": activation, "base": base}
    model = make(outcome_transform=None, **options).pyro_model
    covar_module = get_covar_module(ard_num_dims=2, **options).double()
    places, strength_name = modules(covar_module, kernel), STRENGTH[kernel]
    critical = get_activation(activation).critical_weight_variance if kernel != "deker" else 2.0
    points = [
        {"mean": 0.1, "noise": 0.02, "outputscale": 0.7, "lengthscale": [0.5, 2.0],
         "bias_variance": 0.4, "base_outputscale": 1.7, "share": 0.15},
        {"mean": -0.5, "noise": 0.2, "outputscale": 3.0, "lengthscale": [1.5, 0.3],
         "bias_variance": 2.0, "base_outputscale": 0.2, "share": 0.3},
    ]  # fmt: skip
    found, expected = [], []
    for point in points:
        value = {name: torch.tensor(v, dtype=torch.float64) for name, v in point.items()}
        strength = value.pop("share") * critical
        # with the critical regularization of ReLU, 2 is that of its power -2
        value[strength_name] = strength**-0.5 if kernel == "deker" else strength
        value = {n: v for n, v in value.items() if n in {"mean", "noise", *places}}
        for key, (module, name) in places.items():
            setattr(module, name, value[key])
        with torch.no_grad():
            covariance = covar_module(model.train_X).to_dense() + value["noise"] * torch.eye(12)
        density = torch.distributions.MultivariateNormal(value["mean"].expand(12), covariance)
        log_prob = density.log_prob(model.train_Y.squeeze(-1)) - value["mean"] ** 2 / 2
        log_prob += LogNormalPrior(-4.0, 1.0).log_prob(value["noise"])
        log_prob += torch.distributions.Beta(2.0, 2.0).log_prob(strength / critical)
        latent = {"mean": value["mean"], "noise": value["noise"] - 1e-4, strength_name: strength}
        for key, (module, name) in places.items():
            if key != strength_name:
                log_prob += getattr(module, f"{name}_prior").log_prob(value[key]).sum()
                latent[key] = value[key] - getattr(module, f"raw_{name}_constraint").lower_bound
        expected.append(log_prob.item())
        sampled = trace(model, **latent)
        observed = {n for n in sampled.observation_nodes if not n.endswith("_prior")}
        assert observed == {"Y", *latent}
        found.append(sampled.log_prob_sum().item())
        processed = model.postprocess_mcmc_samples(latent)
        assert processed.keys() == value.keys()
        for key, expected_value in value.items():
            torch.testing.assert_close(processed[key], expected_value)
    assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], abs=1e-6)


@some_kernels
def test_samples_that_rounding_takes_to_a_bound_move_inside(
    kernel: str, activation: str, base: str
) -> None:
    options = {"kernel": kernel, "activation": activation, "base": base}
    model = make(**options).pyro_model
    zero, name = torch.zeros(1, dtype=torch.float64), STRENGTH[kernel]
    places = modules(get_covar_module(ard_num_dims=2, **options).double(), kernel)
    latent = dict.fromkeys(("mean", "noise", *places), zero)
    latent["lengthscale"] = zero.expand(1, 2)
    constraint = getattr(places[name][0], f"raw_{name}_constraint")
    bounds = [zero, constraint.lower_bound**-2 if kernel == "deker" else constraint.upper_bound]
    for bound in bounds:
        samples = model.postprocess_mcmc_samples(latent | {name: bound.reshape(1)})
        _, covar_module, likelihood, _ = model.load_mcmc_samples(samples)
        noise = likelihood.noise_covar
        assert bool(noise.noise > noise.raw_noise_constraint.lower_bound)
        assert bool(getattr(covar_module.base_kernel, f"raw_{name}").isfinite().all())
        for key, (module, attribute) in places.items():
            lower = getattr(module, f"raw_{attribute}_constraint").lower_bound
            assert bool((samples[key] > lower).all())


def test_a_seed_gives_the_same_samples_and_leaves_the_random_state() -> None:
    state = torch.random.get_rng_state()
    scales = []
    for seed in (3, 3, 4):
        model = make()
        fit(model, 2, 2, seed=seed)
        scales.append(model.covar_module.outputscale)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(scales[0], scales[1]) and not torch.equal(scales[0], scales[2])


@every_kernel
def test_saving_keeps_the_posterior(kernel: str, activation: str, base: str) -> None:
    options = {"kernel": kernel, "activation": activation, "base": base}
    model = make(input_transform=Normalize(2, bounds=BOUNDS), **options)
    fit(model, 2, 4)
    test = inputs(4, 2)
    restored = make(input_transform=Normalize(2, bounds=BOUNDS), **options)
    restored.load_state_dict(model.state_dict())
    restored.eval()
    with torch.no_grad():
        expected = model.posterior(test)
        for clone in (restored, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            posterior = clone.posterior(test)
            torch.testing.assert_close(posterior.mean, expected.mean, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(posterior.variance, expected.variance, rtol=1e-8, atol=1e-10)


def test_conditioning_and_candidates() -> None:
    model = make()
    fit(model, 4, 4)
    x = model.train_inputs[0]
    new = inputs(1, 2)
    with torch.no_grad():
        before = model.posterior(new).mixture_variance
        conditioned = model.condition_on_observations(new, target(new))
        assert conditioned.posterior(new).mixture_variance < before
    acquisition = qLogNoisyExpectedImprovement(
        model, x, SobolQMCNormalSampler(torch.Size([8]), seed=0), prune_baseline=False
    )
    candidates, _ = optimize_acqf(
        acquisition, BOUNDS, 1, num_restarts=1, raw_samples=8, options={"maxiter": 5}
    )
    assert candidates.shape == (1, 2)
    assert bool((candidates >= 0).all()) and bool((candidates <= 1).all())


def test_construct_inputs() -> None:
    x = inputs(6, 2)
    data = SupervisedDataset(x, target(x), feature_names=["a", "b"], outcome_names=["y"])
    arguments = DEQFullyBayesianSingleTaskGP.construct_inputs(data, kernel="deq-ntk", base="rbf")
    model = DEQFullyBayesianSingleTaskGP(**arguments, outcome_transform=Standardize(1))
    assert (model.pyro_model.kernel, model.pyro_model.base) == ("deq-ntk", "rbf")


def test_bad_input() -> None:
    x, y = inputs(6, 2), inputs(6, 2)
    with pytest.raises(ValueError, match="ModelListGP"):
        DEQFullyBayesianSingleTaskGP(x, y)
    with pytest.raises(ValueError, match="shape of train_Y"):
        DEQFullyBayesianSingleTaskGP(x, y[:, :1], y)
    with pytest.raises(InputDataError, match="NaN"):
        DEQFullyBayesianSingleTaskGP(x * math.nan, y[:, :1])
    with pytest.raises(ValueError, match="kernel must be"):
        make(kernel="rbf")
    with pytest.raises(ValueError, match="base of DEKerKernel must be 'affine', got 'matern'"):
        make(kernel="deker", base="matern")
    with pytest.warns(InputDataWarning, match="unit cube"):
        DEQFullyBayesianSingleTaskGP(7 * x, y[:, :1], outcome_transform=Standardize(1))
    with pytest.warns(InputDataWarning, match="not standardized"):
        DEQFullyBayesianSingleTaskGP(x, 10 + y[:, :1])


def test_outside_of_pyro_sample_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="fit_fully_bayesian_model_nuts"):
        make().pyro_model.sample()


def test_without_pyro_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    monkeypatch.setitem(sys.modules, "pyro", None)
    with pytest.raises(ImportError, match=r'pip install "gp_deq\[bayes\]"'):
        fit_fully_bayesian_model_nuts(model)
