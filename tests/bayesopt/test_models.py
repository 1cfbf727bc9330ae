"""DEQSingleTaskGP does all that BoTorch's SingleTaskGP does, and get_covar_module fits its kin."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import botorch
import pytest
import torch
from botorch.acquisition import LogExpectedImprovement, qKnowledgeGradient
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.multi_objective.logei import qLogExpectedHypervolumeImprovement
from botorch.exceptions.errors import BotorchTensorDimensionError, InputDataError
from botorch.exceptions.warnings import InputDataWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, MultiTaskGP, SingleTaskGP, SingleTaskVariationalGP
from botorch.models.model import Model
from botorch.models.transforms import Log, Normalize, Standardize
from botorch.optim import optimize_acqf
from botorch.optim.utils import sample_all_priors
from botorch.sampling import SobolQMCNormalSampler
from botorch.utils.datasets import SupervisedDataset
from botorch.utils.multi_objective.box_decompositions import NondominatedPartitioning
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.means import ZeroMean
from gpytorch.mlls import (
    ExactMarginalLogLikelihood,
    SumMarginalLogLikelihood,
    VariationalELBO,
)
from packaging.version import Version
from torch import Tensor

from gp_deq import DEQNNGPKernel
from gp_deq.bayesopt import DEQSingleTaskGP, get_covar_module
from gp_deq.bayesopt.covar_modules import Priors, build

KERNELS = [
    ("deq-nngp", "erf", "affine"),
    ("deq-nngp", "relu", "affine"),
    ("deq-ntk", "erf", "affine"),
    ("deq-ntk", "relu", "affine"),
    ("deker", "relu", "affine"),
    ("deq-nngp", "erf", "matern"),
    ("deq-nngp", "relu", "matern"),
    ("deq-ntk", "erf", "rbf"),
    ("deq-ntk", "relu", "matern"),
]
every_kernel = pytest.mark.parametrize("kernel, activation, base", KERNELS)
BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


def with_lengthscale(kernel: Kernel) -> Any:
    """The kernel that has the lengthscales: the network's own, or the one below."""
    while not kernel.has_lengthscale:
        kernel = kernel.base_kernel
    return kernel


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def target(x: Tensor) -> Tensor:
    return (4 * x[..., :1]).sin() + x[..., 1:2].square()


def outcomes(x: Tensor) -> Tensor:
    """Three outputs of different scales."""
    return torch.cat((target(x), 5 - 20 * x[..., :1].square(), x.prod(-1, keepdim=True)), -1)


def fitted(model: Model, maxiter: int = 20) -> Model:
    """Fitted a little; that the iterations run out is meant."""
    if isinstance(model, SingleTaskVariationalGP):
        mll = VariationalELBO(
            model.likelihood, model.model, num_data=len(model.model.train_inputs[0])
        )
    elif isinstance(model, ModelListGP):
        mll = SumMarginalLogLikelihood(model.likelihood, model)
    else:
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(reported with status|maximum number|ABNORMAL).*")
        fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": maxiter}})
    return model


def varied(model: DEQSingleTaskGP) -> DEQSingleTaskGP:
    """With other hyperparameters for each output."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.rand_like(parameter)
    return model


def moments(model: Model, x: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        posterior = model.posterior(x, **kwargs)
        return posterior.mean, posterior.variance


def assert_same_posterior(one: Model, other: Model, x: Tensor, tol: float = 1e-10) -> None:
    for value, expected in zip(moments(one, x), moments(other, x), strict=True):
        torch.testing.assert_close(value, expected, rtol=tol, atol=tol)


def assert_inside(candidates: Tensor, q: int) -> None:
    assert candidates.shape == (q, 2)
    assert bool((candidates >= BOUNDS[0]).all()) and bool((candidates <= BOUNDS[1]).all())


# ------------------------------------------------------------------------------------------
# Fits
# ------------------------------------------------------------------------------------------


@every_kernel
def test_a_fit_explains_a_smooth_function(kernel: str, activation: str, base: str) -> None:
    x, test = inputs(20, 2), inputs(100, 2)
    model = fitted(
        DEQSingleTaskGP(x, target(x), kernel=kernel, activation=activation, base=base), 40
    )
    mean, variance = moments(model, test)
    error = (mean - target(test)).square().mean() / target(test).var()
    assert error < 0.2
    assert bool((variance > 0).all())
    network = model.covar_module.base_kernel
    assert network.solver_report.converged
    assert with_lengthscale(network).lengthscale.dtype == torch.float64


def test_inputs_and_outcomes_of_any_scale_with_transforms() -> None:
    x, test = inputs(20, 2), inputs(60, 2)
    shift, scale = torch.tensor([5.0, -300.0]).double(), torch.tensor([0.1, 200.0]).double()
    plain = DEQSingleTaskGP(x, target(x), input_transform=Normalize(2, bounds=BOUNDS))
    model = DEQSingleTaskGP(
        x * scale + shift,
        1e4 + 1e3 * target(x),
        input_transform=Normalize(2, bounds=BOUNDS * scale + shift),
    )
    mean, variance = moments(plain, test)
    scaled_mean, scaled_variance = moments(model, test * scale + shift)
    torch.testing.assert_close(scaled_mean, 1e4 + 1e3 * mean, rtol=1e-8, atol=0)
    torch.testing.assert_close(scaled_variance, 1e6 * variance, rtol=1e-6, atol=1e-6)


def test_outcome_transforms_are_those_of_botorch() -> None:
    x = inputs(12, 2)
    assert isinstance(DEQSingleTaskGP(x, target(x)).outcome_transform, Standardize)
    standardised = (target(x) - target(x).mean()) / target(x).std()
    assert not hasattr(
        DEQSingleTaskGP(x, standardised, outcome_transform=None), "outcome_transform"
    )
    y = target(x).exp()
    log = DEQSingleTaskGP(x, y, outcome_transform=Log())
    torch.testing.assert_close(log.train_targets, y.log().squeeze(-1))
    with torch.no_grad():
        assert bool((log.posterior(x).rsample(torch.Size([2])) > 0).all())


def test_noise_given_or_inferred() -> None:
    x = inputs(12, 2)
    inferred = DEQSingleTaskGP(x, outcomes(x))
    assert inferred.likelihood.noise.shape == (3, 1)
    prior = inferred.likelihood.noise_covar.noise_prior
    assert (prior.loc.item(), prior.scale.item()) == (-4.0, 1.0)
    exact = DEQSingleTaskGP(x, target(x), torch.full((12, 1), 1e-6).double())
    assert isinstance(exact.likelihood, FixedNoiseGaussianLikelihood)
    mean, variance = moments(exact, x)
    torch.testing.assert_close(mean, target(x), rtol=0, atol=2e-3)
    assert bool((variance < 2e-6).all())


def test_likelihood_and_mean_of_ones_own() -> None:
    x = inputs(10, 2)
    model = DEQSingleTaskGP(x, target(x), likelihood=GaussianLikelihood(), mean_module=ZeroMean())
    assert isinstance(model.mean_module, ZeroMean)
    assert moments(model, x)[0].shape == (10, 1)


@pytest.mark.parametrize("base", ["matern", "rbf", "affine"])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_single_precision_warns_and_fits(base: str, activation: str) -> None:
    x = inputs(15, 2).float()
    with pytest.warns(InputDataWarning, match="float32"):
        model = DEQSingleTaskGP(x, target(x), activation=activation, base=base)
    fitted(model)
    mean, variance = moments(model, x)
    assert mean.dtype == torch.float32
    assert bool(mean.isfinite().all()) and bool((variance > 0).all())


def trend(x: Tensor) -> Tensor:
    """Rises in all inputs, with its maximum inside the cube, at 0.85."""
    return 2 * x.mean(-1, keepdim=True) - 4 * (x - 0.6).square().mean(-1, keepdim=True)


def share_at_bounds(base: str) -> float:
    """Of the coordinates that LogEI proposes from 40 points."""
    x = torch.quasirandom.SobolEngine(20, seed=0, scramble=True).draw(40, dtype=torch.float64)
    model = fitted(DEQSingleTaskGP(x, trend(x), base=base, activation="relu"), 60)
    bounds = torch.stack((torch.zeros(20), torch.ones(20))).double()
    candidate, _ = optimize_acqf(
        LogExpectedImprovement(model, trend(x).max()),
        bounds,
        1,
        num_restarts=4,
        raw_samples=128,
        options={"maxiter": 100},
    )
    return float(((candidate - 0.5).abs() > 0.5 - 1e-3).double().mean())


def test_fewer_coordinates_at_the_bounds_over_a_stationary_kernel() -> None:
    """Mean and deviation of affine ReLU grow towards the corners; the others' do not."""
    shares = {base: share_at_bounds(base) for base in ("matern", "rbf", "affine")}
    assert shares["affine"] > 0.6
    assert max(shares["matern"], shares["rbf"]) < 0.5 * shares["affine"], shares


@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("base", ["matern", "rbf"])
def test_the_input_that_matters_is_found_among_twenty(base: str, activation: str) -> None:
    x = torch.quasirandom.SobolEngine(20, seed=0, scramble=True).draw(60, dtype=torch.float64)
    y = (6 * x[:, 7:8]).sin()
    model = fitted(DEQSingleTaskGP(x, y, base=base, activation=activation), 100)
    lengthscale = with_lengthscale(model.covar_module).lengthscale.detach().flatten()
    others = lengthscale[torch.arange(20) != 7]
    assert 2 * lengthscale[7] < others.min()


# ------------------------------------------------------------------------------------------
# Several outputs, batches
# ------------------------------------------------------------------------------------------


@every_kernel
def test_outputs_have_hyperparameters_of_their_own(kernel: str, activation: str, base: str) -> None:
    x, test = inputs(15, 2), inputs(20, 2)
    model = fitted(DEQSingleTaskGP(x, outcomes(x), kernel=kernel, activation=activation, base=base))
    lengthscale = with_lengthscale(model.covar_module).lengthscale
    assert lengthscale.shape == (3, 1, 2)
    assert not torch.allclose(lengthscale[0], lengthscale[1])
    error = (moments(model, test)[0] - outcomes(test)).square().mean(0) / outcomes(test).var(0)
    assert bool((error < 0.2).all())


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("evaluated", [False, True])
@every_kernel
def test_subset_output_is_the_marginal(
    kernel: str, activation: str, base: str, evaluated: bool, batch: tuple[int, ...], known: bool
) -> None:
    x, test = inputs(*batch, 9, 2), inputs(5, 2)
    noise = 0.1 * torch.rand(*batch, 9, 3).double() if known else None
    model = varied(
        DEQSingleTaskGP(
            x,
            outcomes(x),
            noise,
            kernel=kernel,
            activation=activation,
            base=base,
            input_transform=Normalize(2, bounds=BOUNDS),
        )
    )
    if evaluated:
        moments(model, test)
    for indices in ([1], [2, 0], [0, 1, 2]):
        part = model.subset_output(indices)
        assert part.num_outputs == len(indices)
        shape = (*batch, len(indices)) if len(indices) > 1 else batch
        kernels = [k for k in part.covar_module.modules() if isinstance(k, Kernel)]
        assert [k.batch_shape for k in kernels] == [shape] * len(kernels)
        assert with_lengthscale(part.covar_module).lengthscale.shape == (*shape, 1, 2)
        for value, full in zip(moments(part, test), moments(model, test), strict=True):
            torch.testing.assert_close(value, full[..., indices], rtol=1e-10, atol=1e-10)
    fitted(model.subset_output([1]), 2)


@every_kernel
def test_batches_of_data_are_models_of_their_own(kernel: str, activation: str, base: str) -> None:
    x, test = inputs(2, 10, 2), inputs(6, 2)
    options = {"kernel": kernel, "activation": activation, "base": base}
    model = DEQSingleTaskGP(x, outcomes(x), **options)
    assert model.batch_shape == (2,)
    mean, variance = moments(model, test)
    for i in range(2):
        one_mean, one_variance = moments(DEQSingleTaskGP(x[i], outcomes(x[i]), **options), test)
        torch.testing.assert_close(mean[i], one_mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(variance[i], one_variance, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------
# More data
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True])
@every_kernel
def test_conditioning_is_the_model_of_all_data(
    kernel: str, activation: str, base: str, known: bool
) -> None:
    x, test = inputs(12, 2), inputs(7, 2)
    y = (outcomes(x) - outcomes(x).mean(0)) / outcomes(x).std(0)
    noise = 0.05 + 0.1 * torch.rand_like(y) if known else None
    options = {"kernel": kernel, "activation": activation, "base": base, "outcome_transform": None}
    part = varied(DEQSingleTaskGP(x[:8], y[:8], None if noise is None else noise[:8], **options))
    moments(part, test)
    given = {} if noise is None else {"noise": noise[8:]}
    conditioned = part.condition_on_observations(x[8:], y[8:], **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputDataWarning)
        full = DEQSingleTaskGP(x, y, noise, **options)
    state = part.state_dict()
    full.load_state_dict({n: v for n, v in state.items() if "noise_covar.noise" not in n}, False)
    if noise is not None:
        assert bool((full.likelihood.noise == noise.mT).all())
    assert_same_posterior(conditioned, full, test)


def test_conditioning_with_transforms() -> None:
    x = inputs(10, 2)
    model = DEQSingleTaskGP(x, outcomes(x), input_transform=Normalize(2, bounds=BOUNDS))
    moments(model, x)
    new = inputs(1, 2)
    conditioned = model.condition_on_observations(new, outcomes(new))
    before, after = moments(model, new), moments(conditioned, new)
    assert bool(((after[0] - outcomes(new)).abs() < (before[0] - outcomes(new)).abs()).all())
    assert bool((after[1] < before[1]).all())


@every_kernel
def test_fantasies(kernel: str, activation: str, base: str) -> None:
    x, new = inputs(8, 2), inputs(3, 2)
    model = DEQSingleTaskGP(x, outcomes(x), kernel=kernel, activation=activation, base=base)
    sampler = SobolQMCNormalSampler(torch.Size([4]), seed=0)
    fantasies = model.fantasize(new, sampler)
    mean, variance = moments(fantasies, new)
    assert mean.shape == (4, 3, 3)
    assert bool((variance < moments(model, new)[1]).all())
    assert mean.std(0).min() > 0


# ------------------------------------------------------------------------------------------
# Construction, saving
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("base", [None, "matern", "rbf", "affine"])
def test_construct_inputs(base: str | None, known: bool) -> None:
    x = inputs(6, 2)
    noise = torch.full((6, 3), 0.1).double() if known else None
    data = SupervisedDataset(
        x, outcomes(x), Yvar=noise, feature_names=["a", "b"], outcome_names=["r", "s", "t"]
    )
    plain = DEQSingleTaskGP(**DEQSingleTaskGP.construct_inputs(data))
    assert_same_posterior(plain, DEQSingleTaskGP(x, outcomes(x), noise), x)
    options = {"kernel": "deq-ntk", "activation": "relu", "base": base}
    model = DEQSingleTaskGP(**DEQSingleTaskGP.construct_inputs(data, **options))
    assert_same_posterior(model, DEQSingleTaskGP(x, outcomes(x), noise, **options), x)


@every_kernel
def test_saving_keeps_the_posterior(kernel: str, activation: str, base: str) -> None:
    x, test = inputs(9, 2), inputs(5, 2)
    options = {"kernel": kernel, "activation": activation, "base": base}

    def make(x: Tensor) -> DEQSingleTaskGP:
        return DEQSingleTaskGP(x, outcomes(x), input_transform=Normalize(2), **options)

    model = varied(make(x))
    moments(model, test)
    restored = make(x)
    restored.load_state_dict(model.state_dict())
    for clone in (restored, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_posterior(clone, model, test, 1e-12)


# ------------------------------------------------------------------------------------------
# Acquisition
# ------------------------------------------------------------------------------------------


@every_kernel
def test_gradients_of_the_posterior(kernel: str, activation: str, base: str) -> None:
    x = inputs(6, 2)
    model = DEQSingleTaskGP(x, target(x), kernel=kernel, activation=activation, base=base)

    def posterior(points: Tensor) -> tuple[Tensor, Tensor]:
        moments = model.posterior(points)
        return moments.mean, moments.variance

    at_data = x.clone().requires_grad_()
    for value in posterior(at_data):
        (gradient,) = torch.autograd.grad(value.sum(), at_data, retain_graph=True)
        assert bool(gradient.isfinite().all())
    assert torch.autograd.gradcheck(posterior, inputs(3, 2).requires_grad_())


@every_kernel
def test_candidates(kernel: str, activation: str, base: str) -> None:
    x = inputs(8, 2)
    model = DEQSingleTaskGP(x, target(x), kernel=kernel, activation=activation, base=base)
    best = target(x).max()
    improvement = LogExpectedImprovement(model, best)
    noisy = qLogNoisyExpectedImprovement(model, x, SobolQMCNormalSampler(torch.Size([16]), seed=0))
    for acquisition, q in ((improvement, 1), (noisy, 2)):
        with torch.no_grad():
            random = acquisition(inputs(20, q, 2)).max()
        candidates, value = optimize_acqf(
            acquisition, BOUNDS, q, num_restarts=2, raw_samples=16, options={"maxiter": 15}
        )
        assert_inside(candidates, q)
        assert value >= random - 0.1


@every_kernel
def test_candidates_of_knowledge_gradient(kernel: str, activation: str, base: str) -> None:
    x = inputs(6, 2)
    model = DEQSingleTaskGP(x, target(x), kernel=kernel, activation=activation, base=base)
    acquisition = qKnowledgeGradient(model, num_fantasies=2)
    candidates, value = optimize_acqf(
        acquisition, BOUNDS, 1, num_restarts=1, raw_samples=4, options={"maxiter": 5}
    )
    assert_inside(candidates, 1)
    assert bool(value.isfinite())


@every_kernel
def test_candidates_of_several_objectives(kernel: str, activation: str, base: str) -> None:
    x = inputs(8, 2)
    y = outcomes(x)[:, :2]
    model = DEQSingleTaskGP(x, y, kernel=kernel, activation=activation, base=base)
    reference = y.min(0).values - 0.1
    acquisition = qLogExpectedHypervolumeImprovement(
        model,
        reference,
        NondominatedPartitioning(reference, y),
        SobolQMCNormalSampler(torch.Size([16]), seed=0),
    )
    candidates, value = optimize_acqf(
        acquisition, BOUNDS, 1, num_restarts=2, raw_samples=8, options={"maxiter": 10}
    )
    assert_inside(candidates, 1)
    assert bool(value.isfinite())


# ------------------------------------------------------------------------------------------
# Other models
# ------------------------------------------------------------------------------------------


def test_model_list() -> None:
    x = inputs(10, 2)
    models = [DEQSingleTaskGP(x, target(x), kernel=k, activation=a, base=b) for k, a, b in KERNELS]
    model = fitted(ModelListGP(*models), 3)
    mean, variance = moments(model, x)
    assert mean.shape == (10, len(KERNELS))
    for i, one in enumerate(models):
        torch.testing.assert_close(mean[:, [i]], moments(one, x)[0])
    assert_same_posterior(model.subset_output([2]), models[2], x)
    with torch.no_grad():
        assert bool((variance > 0).all())


@every_kernel
def test_multi_task_gp(kernel: str, activation: str, base: str) -> None:
    x, test = inputs(24, 2), inputs(40, 2)
    task = (torch.arange(24) % 2).double().unsqueeze(-1)
    y = torch.where(task > 0, -target(x), target(x))
    covar_module = get_covar_module(
        kernel, ard_num_dims=2, active_dims=[0, 1], activation=activation, base=base
    )
    model = MultiTaskGP(torch.cat((x, task), -1), y, task_feature=-1, covar_module=covar_module)
    mean, _ = moments(fitted(model, 100), test)
    assert mean.shape == (40, 2)
    assert (mean[:, :1] - target(test)).square().mean() / target(test).var() < 0.3


@every_kernel
def test_variational_gp(kernel: str, activation: str, base: str) -> None:
    x, test = inputs(40, 2), inputs(40, 2)
    y = (target(x) - target(x).mean()) / target(x).std()
    model = SingleTaskVariationalGP(
        x,
        y,
        inducing_points=12,
        covar_module=get_covar_module(kernel, ard_num_dims=2, activation=activation, base=base),
    ).double()
    fitted(model, 40)
    mean, _ = moments(model, test)
    truth = (target(test) - target(x).mean()) / target(x).std()
    assert (mean - truth).square().mean() < 0.2


# ------------------------------------------------------------------------------------------
# Bad input
# ------------------------------------------------------------------------------------------


def test_scaled_data_give_no_warning() -> None:
    x = inputs(10, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputDataWarning)
        DEQSingleTaskGP(x, target(x))
        DEQSingleTaskGP(1000 * x, target(x), input_transform=Normalize(2))


def test_inputs_outside_the_unit_cube_warn() -> None:
    x = inputs(10, 2)
    with pytest.warns(InputDataWarning, match="not contained to the unit cube"):
        DEQSingleTaskGP(5 * x, target(x))
    with pytest.warns(InputDataWarning, match="not standardized"):
        DEQSingleTaskGP(x, 100 + target(x), outcome_transform=None)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    x, y = inputs(6, 2), inputs(6, 1)
    spoiled_x, spoiled_y = x.clone(), y.clone()
    spoiled_x[2, 1] = spoiled_y[2] = bad
    with pytest.raises(InputDataError, match="NaN"):
        DEQSingleTaskGP(x, spoiled_y)
    with pytest.raises((InputDataError, ValueError), match="NaN"), warnings.catch_warnings():
        warnings.simplefilter("ignore", InputDataWarning)
        fitted(DEQSingleTaskGP(spoiled_x, y))


def test_other_bad_arguments() -> None:
    x, y = inputs(6, 2), inputs(6, 1)
    with pytest.raises(BotorchTensorDimensionError, match="output dimension"):
        DEQSingleTaskGP(x, y.squeeze(-1))
    with pytest.raises(InputDataError, match="same dtype"):
        DEQSingleTaskGP(x, y.float())
    with pytest.raises(InputDataError, match="negative variances"):
        DEQSingleTaskGP(x, y, -torch.ones_like(y))
    with pytest.raises(ValueError, match="kernel must be 'deq-nngp', 'deq-ntk', 'deker'"):
        DEQSingleTaskGP(x, y, kernel="rbf")
    with pytest.raises(ValueError, match="kernel must be"):
        DEQSingleTaskGP(x, y, kernel=get_covar_module(ard_num_dims=2))
    with pytest.raises(ValueError, match="activation"):
        DEQSingleTaskGP(x, y, activation="rleu")
    with pytest.raises(ValueError, match=r"base of DEQNNGPKernel must be .*got 'linear'"):
        DEQSingleTaskGP(x, y, base="linear")
    with pytest.raises(ValueError, match="base of DEKerKernel must be 'affine', got 'matern'"):
        DEQSingleTaskGP(x, y, kernel="deker", base="matern")


@every_kernel
@pytest.mark.parametrize("num_outputs", [1, 2])
def test_priors_can_be_sampled(kernel: str, activation: str, base: str, num_outputs: int) -> None:
    """As BoTorch does when it tries a fit again, and as GPyTorch does for Pyro."""
    x = inputs(5, 100)
    y = outcomes(x)[:, :num_outputs]
    model = DEQSingleTaskGP(x, y, kernel=kernel, activation=activation, base=base)
    lengthscale = with_lengthscale(model.covar_module).lengthscale.detach().clone()
    for _ in range(5):
        sample_all_priors(model)
    assert not torch.equal(with_lengthscale(model.covar_module).lengthscale, lengthscale)
    assert moments(model, x)[0].shape == (5, num_outputs)


@every_kernel
def test_samples_of_gpytorch_for_pyro(kernel: str, activation: str, base: str) -> None:
    pytest.importorskip("pyro")
    x = inputs(5, 2)
    model = DEQSingleTaskGP(x, target(x), kernel=kernel, activation=activation, base=base)
    sampled = model.pyro_sample_from_prior()
    name = "regularization" if kernel == "deker" else "weight_variance"
    before, after = (getattr(m.covar_module.base_kernel, name) for m in (model, sampled))
    assert before.shape == after.shape and not torch.equal(before, after)


def test_sampling_priors_goes_on_where_a_sample_lies_out_of_bounds() -> None:
    """BoTorch samples again after a RuntimeError that says so."""
    low = Priors("relu", lengthscale=(math.log(0.04), 0.5))  # one in six is below the bound, 0.025
    model = SingleTaskGP(
        inputs(5, 3),
        target(inputs(5, 3)),
        covar_module=build(DEQNNGPKernel, low, ard_num_dims=3),
    )
    base = model.covar_module.base_kernel
    with pytest.raises(RuntimeError, match="out of bounds of its current constraints"):
        base.lengthscale = 1e-3
    for _ in range(10):
        sample_all_priors(model)
        assert bool((base.lengthscale >= 2.5e-2).all())


@pytest.mark.skipif(
    Version(botorch.__version__) < Version("0.18"), reason="older releases let it pass"
)
def test_kernel_without_the_batch_shape_of_the_outputs() -> None:
    """BoTorch's own error, on the page of troubles; DEQSingleTaskGP has the shape right."""
    x = inputs(8, 2)
    model = SingleTaskGP(x, outcomes(x), covar_module=get_covar_module(ard_num_dims=2))
    with pytest.raises(RuntimeError, match=r"shape '\[3, 1\]' is invalid"):
        fitted(model)
    shape = torch.Size([3])
    fitted(
        SingleTaskGP(
            x,
            outcomes(x),
            covar_module=get_covar_module(ard_num_dims=2, batch_shape=shape),
        ),
        2,
    )


def test_a_few_hundred_points() -> None:
    x = inputs(200, 6)
    model = fitted(DEQSingleTaskGP(x, target(x)), 3)
    assert moments(model, inputs(10, 6))[0].shape == (10, 1)
