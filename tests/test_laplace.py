"""Laplace GPs: against scikit-learn, exact GPs, high-precision integrals and finite differences."""

from __future__ import annotations

import math
import pickle
import warnings
from copy import deepcopy

import gpytorch
import numpy as np
import pytest
import torch
from families import FAMILIES, targets
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean
from gpytorch.priors import LogNormalPrior
from linear_operator.utils.errors import NanError, NotPSDError
from scipy.special import erf
from sklearn.gaussian_process import GaussianProcessClassifier, _gpc
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from torch import Tensor

from gp_deq import DEKerKernel, DEQNNGPKernel, DEQNTKKernel, settings
from gp_deq.bayesopt import get_covar_module
from gp_deq.equilibrium import ConvergenceWarning
from gp_deq.implicit_layers import (
    Bernoulli,
    ExponentialFamily,
    Poisson,
)
from gp_deq.laplace import LaplaceGP, log_predictive


def inputs(n: int = 25, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, dtype=torch.float64, generator=generator)


def scaled(kernel: Kernel, outputscale: float = 2.0) -> ScaleKernel:
    wrapped = ScaleKernel(kernel).double()
    wrapped.outputscale = torch.tensor(outputscale).double()
    return wrapped


@pytest.mark.parametrize("outputscale", [0.5, 30.0])
def test_agrees_with_scikit_learn(outputscale: float) -> None:
    """Whose Newton iteration stops at changes of the evidence of 1e-10."""
    X, X_new = inputs(40), inputs(9, seed=2)
    y = targets(Bernoulli(), X)
    kernel = scaled(RBFKernel(), outputscale)
    kernel.base_kernel.lengthscale = 0.8
    peer = GaussianProcessClassifier(
        ConstantKernel(kernel.outputscale.item()) * RBF(kernel.base_kernel.lengthscale.item()),
        optimizer=None,
    ).fit(X.numpy(), y.numpy())
    posterior = LaplaceGP(kernel, "bernoulli").posterior(X, y)
    assert posterior.log_evidence.item() == pytest.approx(
        peer.log_marginal_likelihood_value_, abs=1e-6
    )
    mean, variance = peer.latent_mean_and_variance(X_new.numpy())
    found = posterior.latent(X_new)
    assert np.abs(found.mean.detach().numpy() - mean).max() < 1e-6
    assert np.abs(found.variance.detach().numpy() - variance).max() < 1e-6
    # theirs is a sum of five error functions for the integral (Williams and Barber 1998), which
    # from our latent moments gives their probabilities
    probability = peer.predict_proba(X_new.numpy())[:, 1]
    assert np.abs(posterior.predict(X_new).mean.detach().numpy() - probability).max() < 2e-3
    scales, weights = (column.ravel()[:, None] for column in (_gpc.LAMBDAS, _gpc.COEFS))
    ours, spread = (moment.detach().numpy() for moment in found)
    alpha = 1 / (2 * spread)
    gamma = scales * ours
    integrals = (
        np.sqrt(np.pi / alpha)
        * erf(gamma * np.sqrt(alpha / (alpha + scales**2)))
        / (2 * np.sqrt(spread * 2 * np.pi))
    )
    theirs = (weights * integrals).sum(0) + 0.5 * weights.sum()
    assert np.abs(theirs - probability).max() < 1e-6


def test_gaussian_targets_are_an_exact_gp() -> None:
    X, X_new = inputs(), inputs(5, seed=2)
    y = X[:, 0].cos()
    mean = ConstantMean().double()
    mean.constant = 0.7
    model = LaplaceGP(scaled(MaternKernel()), "gaussian", mean)
    posterior = model.posterior(X, y)
    K, eye = model.kernel(X).to_dense(), torch.eye(25).double()
    prior = torch.distributions.MultivariateNormal(torch.full((25,), 0.7).double(), K + eye)
    assert posterior.log_evidence.item() == pytest.approx(prior.log_prob(y).item(), abs=1e-10)
    cross = model.kernel(X_new, X).to_dense()
    weights = torch.linalg.solve(K + eye, torch.cat([(y - 0.7)[:, None], cross.T], 1))
    latent = posterior(X_new)
    assert torch.allclose(latent.mean, 0.7 + cross @ weights[:, 0], atol=1e-11)
    expected = model.kernel(X_new).to_dense() - cross @ weights[:, 1:]
    assert torch.allclose(latent.covariance_matrix, expected, atol=1e-11)
    assert torch.allclose(posterior.latent(X_new).variance, latent.variance, atol=1e-11)
    predictive = posterior.predict(X_new)
    assert torch.allclose(predictive.variance, latent.variance + 1, atol=1e-11)
    y_new = X_new[:, 1]
    expected = torch.distributions.Normal(predictive.mean, predictive.variance.sqrt())
    assert torch.allclose(posterior.log_prob(X_new, y_new), expected.log_prob(y_new), atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_evidence_from_its_definition(family: ExponentialFamily) -> None:
    """Value and curvature of the log joint density at the mode, by automatic differentiation."""
    X = inputs(12)
    y = targets(family, X)
    model = LaplaceGP(scaled(RBFKernel()), family)
    posterior = model.posterior(X, y)
    K = model.kernel(X).to_dense().detach() + 1e-12 * torch.eye(12).double()
    prior = torch.distributions.MultivariateNormal(torch.zeros(12).double(), K)

    def joint(f: Tensor) -> Tensor:
        return prior.log_prob(f) + family.log_prob(y, f).sum()

    mode = posterior.mode.detach()
    hessian = torch.autograd.functional.hessian(joint, mode)
    expected = joint(mode) + 6 * math.log(2 * math.pi) - torch.logdet(-hessian) / 2
    # the inverse of K has a condition of 1e5
    assert posterior.log_evidence.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@pytest.mark.parametrize("kernel", [RBFKernel, DEQNNGPKernel])
def test_gradient_of_the_evidence(family: ExponentialFamily, kernel: type) -> None:
    """Finite differences with respect to all hyperparameters, the mean and the inputs."""
    X = inputs(8).requires_grad_()
    y = targets(family, X.detach())
    model = LaplaceGP(scaled(kernel()), family, ConstantMean().double())
    names = [name for name, _ in model.named_parameters()]
    values = [value.detach().clone().requires_grad_() for value in model.parameters()]

    class Evidence(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, X: Tensor) -> Tensor:
            return self.model.log_evidence(X, y)

    evidence = Evidence()

    def value(X: Tensor, *values: Tensor) -> Tensor:
        state = {f"model.{name}": v for name, v in zip(names, values, strict=True)}
        return torch.func.functional_call(evidence, state, (X,))

    assert torch.autograd.gradcheck(value, (X, *values))
    if kernel is RBFKernel:
        assert torch.autograd.gradgradcheck(value, (X, *values))


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@pytest.mark.parametrize("outputscale", [0.3, 100.0])
def test_predictive_moments_and_densities(family: ExponentialFamily, outputscale: float) -> None:
    """Against sums over a grid so fine that any rule is exact."""
    X, X_new = inputs(6), torch.cat([inputs(2, seed=4), 5 + inputs(1)])
    y, y_new = targets(family, X), targets(family, X_new)
    posterior = LaplaceGP(scaled(RBFKernel(), outputscale), family).posterior(X, y)
    latent, found = posterior.latent(X_new), posterior.predict(X_new)
    densities = posterior.log_prob(X_new, y_new)
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    weights = (-z.square() / 2).exp() / math.sqrt(2 * math.pi) * (z[1] - z[0])
    for i in range(3):
        f = latent.mean[i] + latent.variance[i].sqrt() * z
        if outputscale * (family.name == "poisson") < 50:  # else the mean is 1e20
            mean = weights @ family.mean(f)
            square = weights @ (family.variance(f) + family.mean(f).square())
            assert found.mean[i].item() == pytest.approx(mean.item(), rel=1e-9)
            variance = (square - mean.square()).item()
            assert found.variance[i].item() == pytest.approx(variance, rel=1e-6)
        expected = (weights @ family.log_prob(y_new[i], f).exp()).log()
        assert densities[i].item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize(
    "kernel", [RBFKernel, DEQNNGPKernel, DEQNTKKernel, DEKerKernel], ids=lambda k: k.__name__
)
@pytest.mark.parametrize("name", ["bernoulli", "poisson"])
def test_fit_raises_the_evidence_and_predicts(kernel: type, name: str) -> None:
    X, X_new = inputs(80), inputs(200, seed=5)
    model = LaplaceGP(scaled(kernel(ard_num_dims=2)), name, ConstantMean().double())
    truth = 3 * torch.sin(1.5 * inputs(80)[:, 0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = model.family.sample(truth)
        y_new = model.family.sample(3 * torch.sin(1.5 * X_new[:, 0]))
    before = model.log_evidence(X, y).item()
    posterior = model.fit(X, y)
    assert posterior.log_evidence.item() > before + 1
    assert not posterior.log_evidence.requires_grad
    # the gradient vanishes where L-BFGS stops; its tolerance is 1e-5 and a change of 2e-9
    (-model.log_evidence()).backward()
    assert all(p.grad.abs().max() < 0.05 for p in model.parameters() if p.grad is not None)
    score = posterior.log_prob(X_new, y_new).mean().item()
    constant = LaplaceGP(scaled(RBFKernel(), 1e-6), name, ConstantMean().double())
    constant.kernel.requires_grad_(False)
    assert score > constant.fit(X, y).log_prob(X_new, y_new).mean().item() + 0.1
    again = model.predict(X_new[:3]).mean
    # found from another start; matrices near the critical weight variance have entries of 1e5
    assert torch.allclose(again, posterior.predict(X_new[:3]).mean, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@pytest.mark.parametrize("std", [0.0, 0.3, 3.0, 100.0])
def test_densities_of_wide_and_narrow_latents(family: ExponentialFamily, std: float) -> None:
    """By sums over the products of a fine grid, in logarithms; also counts of 1e8."""
    y = targets(family, inputs(1)).repeat(3)
    mean = torch.tensor([-1.0, 0.5, 4.0], dtype=torch.float64)
    if family.name == "poisson" and std < 10:
        y, mean = torch.tensor([0.0, 7.0, 1e8]).double(), mean.new_tensor([-1.0, 0.5, 18.5])
    variance = torch.full_like(mean, std**2)
    found = log_predictive(family, y, mean, variance)
    z = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    for i in range(3):
        if std == 0:
            expected = family.log_prob(y[i], mean[i])
        else:
            logs = family.log_prob(y[i], mean[i] + std * z) - z.square() / 2
            expected = logs.logsumexp(0) - math.log(2 * math.pi) / 2 + (z[1] - z[0]).log()
        accuracy = 1e-6 if std == 100 else 1e-9
        assert found[i].item() == pytest.approx(expected.item(), rel=accuracy, abs=accuracy)


def test_exact_gp_with_a_huge_prior() -> None:
    """Latent standard deviations of 1e4 and a closed form."""
    X, y = inputs(), 1e4 * inputs()[:, 0]
    posterior = LaplaceGP(scaled(RBFKernel(), 1e8), "gaussian").posterior(X, y)
    predicted = posterior.predict(X + 3)
    expected = torch.distributions.Normal(predicted.mean, predicted.variance.sqrt()).log_prob(y)
    assert torch.allclose(posterior.log_prob(X + 3, y), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [RBFKernel, DEQNNGPKernel])
def test_joint_samples_of_many_points(kernel: type, dtype: torch.dtype) -> None:
    """Nearly singular covariances, which GPyTorch factorises with a jitter."""
    X = inputs(150).to(dtype)
    model = LaplaceGP(ScaleKernel(kernel()).to(dtype), "bernoulli")
    posterior = model.posterior(X, targets(Bernoulli(), X))
    line = torch.linspace(-1, 1, 200, dtype=dtype).unsqueeze(-1).expand(200, 2)
    with torch.no_grad():
        drawn = posterior(line).rsample(torch.Size([3]))
    assert drawn.shape == (3, 200) and bool(drawn.isfinite().all())


def test_fitted_posteriors_keep_their_hyperparameters() -> None:
    X = inputs()
    y = targets(Bernoulli(), X)
    model = LaplaceGP(scaled(RBFKernel()), "bernoulli")
    posterior = model.fit(X, y)
    before = posterior.predict(X).mean
    model.kernel.base_kernel.lengthscale = 0.01
    assert torch.equal(posterior.predict(X).mean, before)
    assert not torch.allclose(model.predict(X).mean, before)
    converted = model.float().predict(X.float())
    assert converted.mean.dtype == torch.float32


def test_failed_fits_say_so() -> None:
    class Failing(RBFKernel):
        calls = 0

        def forward(self, *args: object, **kwargs: object) -> Tensor:
            self.calls += 1
            if self.calls > 2:
                raise self.error
            return super().forward(*args, **kwargs)

    X = inputs()
    y = targets(Bernoulli(), X)
    kernel = Failing().double()
    kernel.error = KeyError("no")  # type: ignore[assignment]
    model = LaplaceGP(kernel, "bernoulli")
    before = kernel.lengthscale.item()
    with pytest.raises(KeyError):
        model.fit(X, y)
    assert kernel.lengthscale.item() == before
    kernel.calls, kernel.error = 0, torch.linalg.LinAlgError("no")  # type: ignore[assignment]
    with pytest.raises(torch.linalg.LinAlgError), pytest.warns(UserWarning, match="stopped after"):
        model.fit(X, y)  # the posterior at the end fails too


def test_prior_counts() -> None:
    X = inputs()
    y = targets(Bernoulli(), X)
    free = LaplaceGP(scaled(RBFKernel()), "bernoulli")
    held = LaplaceGP(
        scaled(RBFKernel(lengthscale_prior=LogNormalPrior(math.log(0.3), 0.01))), "bernoulli"
    )
    free.fit(X, y)
    held.fit(X, y)
    assert held.kernel.base_kernel.lengthscale.item() == pytest.approx(0.3, rel=0.03)
    assert abs(free.kernel.base_kernel.lengthscale.item() - 0.3) > 0.1


def test_batches() -> None:
    """Two sets of targets with hyperparameters of their own are two models."""
    X = inputs(10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = Poisson().sample(X[:, 0].expand(2, -1))
    shape = torch.Size([2])
    kernel = ScaleKernel(RBFKernel(batch_shape=shape), batch_shape=shape).double()
    kernel.base_kernel.lengthscale = torch.tensor([0.5, 2.0]).double().reshape(2, 1, 1)
    model = LaplaceGP(kernel, "poisson")
    posterior = model.posterior(X, y)
    assert posterior.log_evidence.shape == (2,)
    predicted = posterior.predict(X[:3])
    assert predicted.mean.shape == (2, 3)
    for i in range(2):
        alone = LaplaceGP(kernel[i], "poisson").posterior(X, y[i])
        assert torch.allclose(alone.log_evidence, posterior.log_evidence[i], atol=1e-10)
        assert torch.allclose(alone.predict(X[:3]).variance, predicted.variance[i], atol=1e-10)
    assert posterior(X[:3]).batch_shape == (2,)
    fitted = model.fit(X, y)
    assert (fitted.log_evidence >= posterior.log_evidence.detach() - 1e-9).all()


def test_edges() -> None:
    X = inputs(4)
    y = torch.tensor([1.0, 0.0, 1.0, 1.0]).double()
    model = LaplaceGP(scaled(DEQNNGPKernel()), "bernoulli")
    posterior = model.posterior(X, y)
    assert posterior.predict(X[:0]).mean.shape == (0,)
    assert posterior.log_prob(X[:0], y[:0]).shape == (0,)
    none = model.posterior(X[:0], y[:0])
    assert none.log_evidence.item() == 0
    assert torch.allclose(none.predict(X).mean, torch.full((4,), 0.5).double())
    assert model.posterior(X[:1], y[:1]).predict(X[:1]).mean > 0.5
    # separated data, a large prior and float32
    sharp = LaplaceGP(ScaleKernel(RBFKernel()), "bernoulli")
    sharp.kernel.outputscale = 1e6
    signs = (X[:, 0] > 0).float()
    predicted = sharp.posterior(X.float(), signs).predict(X.float())
    assert predicted.mean.dtype == torch.float32 and predicted.mean.isfinite().all()
    assert torch.equal(predicted.mean.round(), signs)
    repeated = torch.cat([X, X])
    assert model.posterior(repeated, torch.cat([y, 1 - y])).log_evidence.isfinite()


@pytest.mark.parametrize("kernel", [RBFKernel, DEQNNGPKernel])
def test_autocast(kernel: type) -> None:
    """Everything is that of float32, the fit too."""
    X = inputs().float()
    y = targets(Bernoulli(), X)

    def evaluate(enabled: bool) -> list[Tensor]:
        model = LaplaceGP(ScaleKernel(kernel()), "bernoulli")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            evidence = model.posterior(X, y).log_evidence
            posterior = model.fit(X, y, max_iterations=100)
            found = [*posterior.predict(X[:3]), posterior.log_prob(X[:3], y[:3])]
            joint = posterior(X[:3])
        return [evidence, *found, joint.mean, joint.covariance_matrix]

    for found, expected in zip(evaluate(True), evaluate(False), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kernel", [DEQNNGPKernel, DEKerKernel])
def test_rates_without_meaning_are_announced(kernel: type) -> None:
    """One event in thirty: the evidence leads to variances of hundreds, a rate of 1e43."""
    x = torch.linspace(-2, 2, 30, dtype=torch.float64).unsqueeze(-1)
    y = torch.zeros(30, dtype=torch.float64)
    y[15] = 1
    free = LaplaceGP(ScaleKernel(kernel()).double(), "poisson", ConstantMean().double())
    with pytest.warns(UserWarning, match="1 events were observed and .* are expected"):
        free.fit(x, y)
    # and with the advice of the warning the rate comes out, and nothing is announced
    name = "deker" if kernel is DEKerKernel else "deq-nngp"
    bounded = get_covar_module(name, ard_num_dims=1).double()
    model = LaplaceGP(bounded, "poisson", ConstantMean().double())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rate = model.fit((x + 2) / 4, y).predict((x + 2) / 4).mean
    # the observed rate is 1/30; the prior lets it vary by a little
    assert bool((rate > 0.02).all() and (rate < 0.06).all())


def test_state() -> None:
    X = inputs()
    y = targets(Poisson(), X)
    model = LaplaceGP(scaled(DEQNNGPKernel()), "poisson", ConstantMean().double())
    model.fit(X, y)
    fresh = LaplaceGP(scaled(DEQNNGPKernel()), "poisson", ConstantMean().double())
    fresh.load_state_dict(model.state_dict())
    fresh.set_train_data(X, y)
    for other in (fresh, deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.log_evidence(), model.log_evidence())
        assert isinstance(other(X), gpytorch.distributions.MultivariateNormal)


class _Indefinite(Kernel):
    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Tensor:
        return x1.new_zeros(x1.shape[:-1]) if diag else torch.cdist(x1, x2)


def test_bad_input() -> None:
    X = inputs(4)
    y = torch.tensor([1.0, 0.0, 1.0, 1.0]).double()
    model = LaplaceGP(scaled(RBFKernel()), "bernoulli")
    with pytest.raises(ValueError, match="no data"):
        model.posterior()
    with pytest.raises(ValueError, match="Targets of Bernoulli"):
        model.fit(X, 2 * y)
    with pytest.raises(ValueError, match="X is to be"):
        model.log_evidence(X, y[:2])
    with pytest.raises(ValueError, match="NaN or infinite"):
        model.log_evidence(X / 0, y)
    with pytest.raises(ValueError, match="one dtype"):
        model.posterior(X, y).log_prob(X, y.float())
    with pytest.raises(NotPSDError, match="not positive semi-definite"):
        LaplaceGP(_Indefinite(), "bernoulli").fit(X, y)
    with pytest.raises(ValueError, match="Unknown family"):
        LaplaceGP(RBFKernel(), "probit")
    with pytest.raises(ValueError, match="both X and y, or neither"):
        model.posterior(X)
    posterior = model.posterior(X, y)
    for bad, message in ((X.float(), "one dtype"), (X / 0, "NaN"), (X[:, :1], "X_new is to be")):
        for method in (posterior, posterior.predict, posterior.latent):
            with pytest.raises(ValueError, match=message):
                method(bad)
    far = ConstantMean().double()
    far.constant = 800.0
    with pytest.raises(NanError, match=r"curvature of Poisson\(\) overflows"):
        LaplaceGP(scaled(RBFKernel()), "poisson", far).posterior(X, y)
    with pytest.warns(UserWarning, match="stopped after 1 iterations"):
        model.fit(X, y, max_iterations=1)
    with settings.max_solver_iterations(1), pytest.warns(ConvergenceWarning, match="the mode did"):
        LaplaceGP(scaled(RBFKernel()), "poisson").posterior(X, 50 * y)
