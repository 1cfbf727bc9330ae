"""The kernels in the models of GPyTorch and BoTorch, fitted to small data."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import gpytorch
import pytest
import torch
from botorch.acquisition import LogExpectedImprovement, qLogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, MultiTaskGP, SingleTaskGP
from botorch.optim import optimize_acqf
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import (
    InducingPointKernel,
    Kernel,
    MaternKernel,
    MultitaskKernel,
    RBFKernel,
    ScaleKernel,
)
from gpytorch.likelihoods import GaussianLikelihood, MultitaskGaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood, SumMarginalLogLikelihood, VariationalELBO
from gpytorch.models import ApproximateGP, ExactGP
from gpytorch.priors import GammaPrior, LogNormalPrior
from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy
from torch import Tensor

from gp_deq import DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel

CLASSES = [DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel]
every_class = pytest.mark.parametrize("cls", CLASSES)
relu_and_erf = pytest.mark.parametrize("activation", ["relu", "erf"])


def over_matern(
    activation: str,
    ard_num_dims: int | None = None,
    batch_shape: torch.Size | None = None,
    active_dims: list[int] | None = None,
    **kwargs: Any,
) -> DEQNNGPKernel:
    """DEQ-NNGP over a Matern kernel, with the arguments that the other kernels have."""
    base = MaternKernel(2.5, ard_num_dims=ard_num_dims, batch_shape=batch_shape)
    return DEQNNGPKernel(
        activation, base_kernel=base, batch_shape=batch_shape, active_dims=active_dims, **kwargs
    )


BOTH = [
    (DEQNNGPKernel, "relu"),
    (DEQNNGPKernel, "erf"),
    (DEQNTKKernel, "relu"),
    (over_matern, "relu"),
    (over_matern, "erf"),
]
main_kernels = pytest.mark.parametrize("cls, activation", BOTH)
affine_kernels = pytest.mark.parametrize("cls, activation", BOTH[:3])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def target(x: Tensor) -> Tensor:
    return (3 * x[..., 0]).sin() + x[..., 1].abs() - 0.6


def data(n: int, d: int = 2, noise: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(n, d, generator=generator, dtype=torch.float64) - 1
    return x, target(x) + noise * torch.randn(n, generator=generator, dtype=torch.float64)


def fitted(model: SingleTaskGP | MultiTaskGP, maxiter: int = 40) -> SingleTaskGP | MultiTaskGP:
    """Fitted, without the warning that the iterations ran out."""
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(MAXIT|maximum number of iterations|ABNORMAL).*")
        warnings.filterwarnings("ignore", ".*OptimizationWarning.*|.*status.*")
        fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": maxiter}})
    return model


def single_task(cls: type[Kernel], activation: str, x: Tensor, y: Tensor, **kwargs) -> SingleTaskGP:
    kernel = ScaleKernel(cls(activation, ard_num_dims=x.shape[-1], **kwargs))
    return SingleTaskGP(x, y.unsqueeze(-1), covar_module=kernel, outcome_transform=None)


class Exact(ExactGP):
    def __init__(self, x: Tensor, y: Tensor, kernel: Kernel) -> None:
        super().__init__(x, y, GaussianLikelihood())
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), kernel
        self.double()

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


def train(model: ExactGP, steps: int = 40, rate: float = 0.1) -> list[float]:
    model.train()
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -mll(model(*model.train_inputs), model.train_targets).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def relative_error(model: ExactGP | ApproximateGP, n: int = 60) -> float:
    """Root mean squared error on new points, relative to that of predicting the mean."""
    x, y = data(n, noise=0.0, seed=99)
    model.eval()
    with torch.no_grad():
        mean = model(x).mean
    return ((mean - y).square().mean() / y.var()).sqrt().item()


# ------------------------------------------------------------------------------------------
# Exact GPs
# ------------------------------------------------------------------------------------------


@every_class
@relu_and_erf
def test_fit_with_botorch(cls: type[Kernel], activation: str) -> None:
    x, y = data(30)
    model = single_task(cls, activation, x, y)
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    start = mll(model(x), model.train_targets).item()
    fitted(model)
    model.train()
    end = mll(model(x), model.train_targets).item()
    assert end > start + 0.1
    moved = [n for n, v in model.named_parameters() if not torch.equal(v.detach(), before[n])]
    for name in ("lengthscale", "weight_variance", "bias_variance"):
        assert any(parameter.endswith(f"raw_{name}") for parameter in moved)
    model.eval()
    assert relative_error(model) < 0.35
    assert model.covar_module.base_kernel.solver_report.converged
    assert model.likelihood.noise.item() < 0.1  # not "all noise"


@every_class
@relu_and_erf
def test_fit_with_adam(cls: type[Kernel], activation: str) -> None:
    x, y = data(30)
    model = Exact(x, y, ScaleKernel(cls(activation, ard_num_dims=2)))
    losses = train(model)
    assert losses[-1] < losses[0] - 0.2
    assert all(math.isfinite(loss) for loss in losses)
    assert relative_error(model) < 0.5


@pytest.mark.parametrize("activation", ["leaky_relu", "sin", "gelu", "tanh"])
def test_fit_of_other_activations(activation: str) -> None:
    x, y = data(20)
    model = Exact(x, y, ScaleKernel(DEQNNGPKernel(activation, ard_num_dims=2)))
    losses = train(model, 25)
    assert losses[-1] < losses[0] - 0.1
    assert relative_error(model) < 0.6


@main_kernels
def test_fit_in_single_precision(cls: type[Kernel], activation: str) -> None:
    x, y = (value.float() for value in data(25))
    model = Exact(x, y, ScaleKernel(cls(activation, ard_num_dims=2))).float()
    losses = train(model, 30)
    assert losses[-1] < losses[0] - 0.1 and math.isfinite(losses[-1])
    with torch.no_grad():
        posterior = model(x)
        assert bool(posterior.variance.isfinite().all()) and bool((posterior.variance > 0).all())


@affine_kernels
def test_fit_with_priors(cls: type[Kernel], activation: str) -> None:
    """BoTorch samples them when it tries again."""
    x, y = data(20)
    options = {
        "lengthscale_prior": LogNormalPrior(0.0, 1.0),
        "weight_variance_prior": LogNormalPrior(-1.0, 0.5),
        "bias_variance_prior": GammaPrior(2.0, 3.0),
    }
    model = fitted(single_task(cls, activation, x, y, **options), 25)
    assert relative_error(model) < 0.5
    base = model.covar_module.base_kernel
    base.sample_from_prior("lengthscale_prior")
    base.sample_from_prior("bias_variance_prior")
    assert base.lengthscale.shape == (1, 2)


@every_class
@relu_and_erf
def test_small_noise_needs_no_jitter(cls: type[Kernel], activation: str) -> None:
    """Noise 1e-6 in double precision: no NotPSDError and no jitter warning."""
    x = data(120)[0]
    x = torch.cat((x, x[:30] + 1e-4))
    model = Exact(x, target(x), ScaleKernel(cls(activation)))
    model.likelihood.noise_covar.register_constraint(
        "raw_noise", gpytorch.constraints.GreaterThan(1e-8)
    )
    model.likelihood.noise = 1e-6
    model.train()
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", gpytorch.utils.warnings.NumericalWarning)
        loss = -mll(model(x), model.train_targets)
        loss.backward()
        assert math.isfinite(loss.item())
        model.eval()
        with torch.no_grad():
            variance = model(x).variance
    assert bool((variance > -1e-7).all())
    assert relative_error(model) < 0.1


@main_kernels
def test_predictions_are_those_of_the_formulas(cls: type[Kernel], activation: str) -> None:
    x, y = data(12)
    test = data(5, seed=3)[0]
    kernel = ScaleKernel(cls(activation)).double()
    model = Exact(x, y, kernel)
    model.mean_module.constant.data.fill_(0.3)
    model.likelihood.noise = 0.1
    model.eval()
    with torch.no_grad():
        posterior = model(test)
        inner = kernel(x).to_dense() + model.likelihood.noise * torch.eye(12)
        cross, outer = kernel(test, x).to_dense(), kernel(test).to_dense()
        weights = torch.linalg.solve(inner, cross.mT).mT
        torch.testing.assert_close(posterior.mean, 0.3 + weights @ (y - 0.3))
        covariance = outer - weights @ cross.mT
        torch.testing.assert_close(posterior.covariance_matrix, covariance, rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------------------------------
# Large data: variational and inducing-point models
# ------------------------------------------------------------------------------------------


class Variational(ApproximateGP):
    def __init__(self, inducing: Tensor, kernel: Kernel) -> None:
        distribution = CholeskyVariationalDistribution(inducing.shape[-2])
        super().__init__(
            VariationalStrategy(self, inducing, distribution, learn_inducing_locations=True)
        )
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), kernel

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


@main_kernels
def test_svgp_with_minibatches(cls: type[Kernel], activation: str) -> None:
    x, y = data(160)
    model = Variational(x[:16].clone(), ScaleKernel(cls(activation, ard_num_dims=2))).double()
    likelihood = GaussianLikelihood().double()
    elbo = VariationalELBO(likelihood, model, num_data=len(x))
    parameters = [*model.parameters(), *likelihood.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    inducing = model.variational_strategy.inducing_points.detach().clone()

    def bound() -> float:
        with torch.no_grad():
            return elbo(model(x), y).item()

    model.train()
    start = bound()
    for _ in range(15):
        for batch in torch.randperm(len(x)).split(40):
            optimizer.zero_grad()
            loss = -elbo(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
    assert bound() > start + 0.3
    assert not torch.equal(model.variational_strategy.inducing_points.detach(), inducing)
    assert relative_error(model) < 0.6


@main_kernels
def test_inducing_point_kernel(cls: type[Kernel], activation: str) -> None:
    x, y = data(80)
    likelihood = GaussianLikelihood()
    base = ScaleKernel(cls(activation, ard_num_dims=2))
    kernel = InducingPointKernel(base, inducing_points=x[:15].clone(), likelihood=likelihood)
    model = Exact(x, y, kernel)
    model.likelihood = likelihood.double()
    losses = train(model, 25)
    assert losses[-1] < losses[0] - 0.2
    assert kernel.inducing_points.grad is not None
    assert bool(kernel.inducing_points.grad.isfinite().all())
    assert relative_error(model) < 0.5


# ------------------------------------------------------------------------------------------
# Several outputs
# ------------------------------------------------------------------------------------------


class Multitask(ExactGP):
    def __init__(self, x: Tensor, y: Tensor, kernel: Kernel) -> None:
        super().__init__(x, y, MultitaskGaussianLikelihood(num_tasks=2))
        self.mean_module = gpytorch.means.MultitaskMean(gpytorch.means.ConstantMean(), num_tasks=2)
        self.covar_module = MultitaskKernel(kernel, num_tasks=2, rank=1)
        self.double()

    def forward(self, x: Tensor) -> MultitaskMultivariateNormal:
        return MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))


@main_kernels
def test_multitask_kernel(cls: type[Kernel], activation: str) -> None:
    x, y = data(20)
    model = Multitask(x, torch.stack((y, -0.5 * y), -1), cls(activation, ard_num_dims=2))
    losses = train(model, 60)
    assert losses[-1] < losses[0] - 0.2
    test = data(30, seed=5)[0]
    with torch.no_grad():
        mean = model(test).mean
    assert mean.shape == (30, 2)
    error = (mean[:, 0] - target(test)).square().mean() / target(test).var()
    assert error.sqrt() < 0.5


@main_kernels
def test_multi_task_gp(cls: type[Kernel], activation: str) -> None:
    """BoTorch's: the last column is the task, so the kernel has active_dims."""
    x, y = data(24)
    task = (torch.arange(24) % 2).double()
    features = torch.cat((x, task.unsqueeze(-1)), -1)
    kernel = ScaleKernel(cls(activation, ard_num_dims=2, active_dims=[0, 1]))
    outcomes = torch.where(task > 0, -y, y).unsqueeze(-1)
    model = MultiTaskGP(
        features, outcomes, task_feature=-1, covar_module=kernel, outcome_transform=None
    )
    fitted(model, 20)
    test = data(30, seed=5)[0]
    with torch.no_grad():
        mean = model.posterior(test).mean
    assert mean.shape == (30, 2)
    error = (mean[:, 0] - target(test)).square().mean() / target(test).var()
    assert error.sqrt() < 0.6


@affine_kernels
def test_two_outputs_by_batch_shape(cls: type[Kernel], activation: str) -> None:
    x, y = data(20)
    outcomes = torch.stack((y, 1 - 2 * y), -1)
    shape = torch.Size([2])
    kernel = ScaleKernel(cls(activation, ard_num_dims=2, batch_shape=shape), batch_shape=shape)
    model = SingleTaskGP(x, outcomes, covar_module=kernel)
    fitted(model, 20)
    base = model.covar_module.base_kernel
    assert base.lengthscale.shape == (2, 1, 2)
    test = data(30, seed=5)[0]
    with torch.no_grad():
        mean = model.posterior(test).mean
    assert mean.shape == (30, 2)
    truth = target(test)
    for k, expected in enumerate((truth, 1 - 2 * truth)):
        assert ((mean[:, k] - expected).square().mean() / expected.var()).sqrt() < 0.5
    # each output is the model of its own
    one = Exact(x, outcomes[:, 0], ScaleKernel(base[0]).double())
    full = base(x).to_dense()[0]
    torch.testing.assert_close(one.covar_module.base_kernel(x).to_dense(), full)


def test_model_list() -> None:
    x, y = data(15)
    models = [single_task(DEQNNGPKernel, name, x, y) for name in ("relu", "erf")]
    model = ModelListGP(*models)
    mll = SumMarginalLogLikelihood(model.likelihood, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": 15}})
    with torch.no_grad():
        posterior = model.posterior(data(7, seed=5)[0])
    assert posterior.mean.shape == (7, 2)
    assert bool((posterior.variance > 0).all())


# ------------------------------------------------------------------------------------------
# Sums and products
# ------------------------------------------------------------------------------------------


@main_kernels
@pytest.mark.parametrize("combine", ["sum", "product"])
def test_sum_and_product_with_rbf(cls: type[Kernel], activation: str, combine: str) -> None:
    x, y = data(20)
    first, second = ScaleKernel(cls(activation, ard_num_dims=2)), ScaleKernel(RBFKernel())
    model = Exact(x, y, first + second if combine == "sum" else first * second)
    losses = train(model, 25)
    assert losses[-1] < losses[0] - 0.1
    assert relative_error(model) < 0.5


def test_additive_over_dimensions() -> None:
    x, y = data(25)
    parts = [ScaleKernel(DEQNNGPKernel("erf", active_dims=[j])) for j in range(2)]
    model = Exact(x, y, parts[0] + parts[1])
    losses = train(model, 60)
    assert losses[-1] < losses[0] - 0.2
    assert relative_error(model) < 0.3


# ------------------------------------------------------------------------------------------
# Bayesian optimisation
# ------------------------------------------------------------------------------------------


@every_class
@relu_and_erf
def test_posterior_gradient_at_a_training_point(cls: type[Kernel], activation: str) -> None:
    x, y = data(10)
    model = single_task(cls, activation, x, y)
    model.eval()
    for dtype in (torch.float64, torch.float32):
        model.to(dtype)
        model.train_inputs = (x.to(dtype),)
        model.train_targets = y.to(dtype)
        model.prediction_strategy = None
        for point in (x[:1], x[:1] + 1e-7, torch.zeros(1, 2)):
            at = point.to(dtype).clone().requires_grad_()
            posterior = model.posterior(at)
            value = posterior.mean.sum() + posterior.variance.sum()
            (gradient,) = torch.autograd.grad(value, at)
            assert bool(gradient.isfinite().all())


@main_kernels
def test_acquisition(cls: type[Kernel], activation: str) -> None:
    x, y = data(14)
    model = fitted(single_task(cls, activation, x, y, center=0.0), 20)
    acquisition = LogExpectedImprovement(model, best_f=y.max())
    bounds = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    start = torch.rand(6, 1, 2, dtype=torch.float64) * 2 - 1
    candidate, value = optimize_acqf(
        acquisition,
        bounds,
        q=1,
        num_restarts=2,
        raw_samples=8,
        options={"maxiter": 10},
    )
    assert candidate.shape == (1, 2)
    assert bool((candidate >= bounds[0]).all()) and bool((candidate <= bounds[1]).all())
    with torch.no_grad():
        assert value.item() >= acquisition(start).max().item() - 1.0
    joint = qLogExpectedImprovement(model, best_f=y.max())
    points = start.reshape(3, 2, 2).requires_grad_()
    joint(points).sum().backward()
    assert bool(points.grad.isfinite().all()) and bool((points.grad != 0).any())


@main_kernels
def test_batches_of_candidates_agree_with_a_loop(cls: type[Kernel], activation: str) -> None:
    x, y = data(10)
    model = single_task(cls, activation, x, y)
    model.eval()
    candidates = data(12, seed=8)[0].reshape(4, 3, 2)
    with torch.no_grad():
        together = model.posterior(candidates)
        for i, one in enumerate(candidates):
            alone = model.posterior(one)
            torch.testing.assert_close(together.mean[i], alone.mean, rtol=1e-8, atol=1e-10)
            torch.testing.assert_close(together.variance[i], alone.variance, rtol=1e-6, atol=1e-9)


@main_kernels
def test_conditioning_and_fantasies(cls: type[Kernel], activation: str) -> None:
    x, y = data(12)
    model = single_task(cls, activation, x[:8], y[:8])
    model.eval()
    test = data(5, seed=3)[0]
    with torch.no_grad():
        model.posterior(test)  # fills the caches that conditioning updates
        updated = model.condition_on_observations(x[8:], y[8:].unsqueeze(-1))
        whole = single_task(cls, activation, x, y)
        whole.load_state_dict(model.state_dict())
        whole.eval()
        actual, expected = updated.posterior(test), whole.posterior(test)
        torch.testing.assert_close(actual.mean, expected.mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(actual.variance, expected.variance, rtol=1e-5, atol=1e-7)
        sampler = gp_sampler(3)
        fantasy = model.fantasize(x[8:10], sampler=sampler)
        posterior = fantasy.posterior(test)
    assert posterior.mean.shape == (3, 5, 1)
    assert bool((posterior.variance < model.posterior(test).variance + 1e-9).all())


def gp_sampler(count: int):
    from botorch.sampling import SobolQMCNormalSampler

    return SobolQMCNormalSampler(sample_shape=torch.Size([count]), seed=0)


@main_kernels
def test_a_fitted_model_can_be_saved(cls: type[Kernel], activation: str) -> None:
    x, y = data(12)
    model = fitted(single_task(cls, activation, x, y), 10)
    other = single_task(cls, activation, x, y)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    test = data(5, seed=3)[0]
    with torch.no_grad():
        assert torch.equal(model.posterior(test).mean, other.posterior(test).mean)
        clone = copy.deepcopy(model)
        assert torch.equal(model.posterior(test).mean, clone.posterior(test).mean)


@main_kernels
def test_samples(cls: type[Kernel], activation: str) -> None:
    x, y = data(12)
    model = single_task(cls, activation, x, y)
    model.likelihood.noise = 1e-3
    model.eval()
    test = data(6, seed=3)[0]
    with torch.no_grad():
        posterior = model.posterior(test)
        samples = posterior.rsample(torch.Size([4000])).squeeze(-1)
    error = (samples.mean(0) - posterior.mean.squeeze(-1)).abs()
    assert bool((error <= 5 * (posterior.variance.squeeze(-1) / 4000).sqrt()).all())
