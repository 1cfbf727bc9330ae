"""Kernel GLMs: against an independent convex solver, finite differences and the plain iteration."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from copy import deepcopy

import mpmath as mp
import numpy as np
import pytest
import torch
from families import FAMILIES, targets
from gpytorch.kernels import Kernel, LinearKernel, MaternKernel, RBFKernel
from gpytorch.priors import LogNormalPrior
from linear_operator.utils.errors import NotPSDError
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.utils.checkpoint import checkpoint

from gp_deq import DEQNNGPKernel, settings
from gp_deq.equilibrium import ConvergenceWarning
from gp_deq.implicit_layers import (
    Bernoulli,
    ExponentialFamily,
    KernelGLM,
    Poisson,
    SignedBernoulli,
)


def exactly(fn: Callable[[mp.mpf], mp.mpf]) -> Callable[[np.ndarray], np.ndarray]:
    """With 40 digits, where a formula cancels."""

    def wrapped(f: float) -> float:
        with mp.workdps(40):
            return float(fn(mp.mpf(f)))

    return np.vectorize(wrapped, otypes=[float])


#: A, A' and A'' in numpy, written down anew.
ORACLES = {
    "Gaussian()": (lambda f: f**2 / 2, lambda f: f, np.ones_like),
    "Bernoulli()": (lambda f: np.logaddexp(0, f), expit, lambda f: expit(f) * expit(-f)),
    "SignedBernoulli()": (
        lambda f: np.logaddexp(f, -f),
        np.tanh,
        lambda f: 4 * expit(2 * f) * expit(-2 * f),
    ),
    "Binomial(7)": (
        lambda f: 7 * np.logaddexp(0, f),
        lambda f: 7 * expit(f),
        lambda f: 7 * expit(f) * expit(-f),
    ),
    "Poisson()": (np.exp, np.exp, np.exp),
    "ContinuousBernoulli()": (
        exactly(lambda f: mp.log(mp.expm1(f) / f)),
        exactly(lambda f: 1 / (1 - mp.exp(-f)) - 1 / f),
        exactly(lambda f: 1 / f**2 - 1 / (4 * mp.sinh(f / 2) ** 2)),
    ),
}


def inputs(n: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, dtype=torch.float64, generator=generator)


def minimiser(family: ExponentialFamily, K: np.ndarray, y: np.ndarray, lam: float) -> np.ndarray:
    """f, found over the coordinates in which the prior is white, by a trust-region method."""
    partition, mean, variance = ORACLES[repr(family)]
    values, vectors = np.linalg.eigh(K)
    root = vectors * np.sqrt(np.clip(values, 0, None))  # K = root root'

    def value(v: np.ndarray) -> tuple[float, np.ndarray]:
        f = root @ v
        slope = root.T @ (mean(f) - y) + lam * v
        return float((partition(f) - y * f).sum() + lam / 2 * v @ v), slope

    def hessian(v: np.ndarray) -> np.ndarray:
        return root.T @ (variance(root @ v)[:, None] * root) + lam * np.eye(len(v))

    start = np.full(len(y), 1e-2)
    with np.errstate(over="ignore", invalid="ignore"):
        found = minimize(
            value, start, jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-9}
        ).x
    for _ in range(3):  # to rounding
        found = found - np.linalg.solve(hessian(found), value(found)[1])
    return root @ found


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@pytest.mark.parametrize("lam", [0.01, 0.5, 30.0])
@pytest.mark.parametrize("kernel", [RBFKernel, DEQNNGPKernel])
def test_equals_the_minimiser(family: ExponentialFamily, lam: float, kernel: type) -> None:
    """Also where the plain iteration diverges: at 0.01 and 0.5 for most families."""
    X = inputs()
    Y = targets(family, X)
    glm = KernelGLM(kernel().double(), family, lam).double()
    K = glm.kernel(X).to_dense().detach().numpy()
    expected = minimiser(family, K, Y.numpy(), lam)
    found = glm.natural_parameters(X, Y).detach().numpy()
    # rounding of 1/lambda-fold sums, 1e-13 at most; the issue of exactness is 1e-10
    assert np.abs(found - expected).max() < 1e-10 * (1 + np.abs(expected).max())
    report = glm.solver_report
    assert report is not None and report.converged and report.iterations < 20


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_is_an_equilibrium_of_its_weights(family: ExponentialFamily) -> None:
    X, X_new = inputs(), inputs(5, seed=3)
    Y = targets(family, X)
    glm = KernelGLM(MaternKernel().double(), family, 0.3).double()
    z = glm(X, Y)
    W1, W2, W3, W4 = glm.weights(X, X_new)
    assert torch.allclose(family.mean(W1 @ z + W2 @ Y), z, atol=1e-11)
    assert torch.allclose(family.mean(W3 @ z + W4 @ Y), glm(X, Y, X_new), atol=1e-11)
    assert torch.equal(glm.weights(X).W3, W1)


def test_gaussian_is_kernel_ridge_regression() -> None:
    X, X_new = inputs(), inputs(4, seed=2)
    Y = X[:, 0].cos()
    glm = KernelGLM(RBFKernel().double(), "gaussian", 0.1).double()
    K = glm.kernel(X).to_dense()
    expected = glm.kernel(X_new, X).to_dense() @ torch.linalg.solve(
        K + 0.1 * torch.eye(20).double(), Y
    )
    assert torch.allclose(glm(X, Y, X_new), expected, atol=1e-12)


def test_plain_iteration_agrees_where_it_contracts_and_warns_where_it_does_not() -> None:
    X = inputs()
    family = SignedBernoulli()
    Y = targets(family, X)
    kernel = RBFKernel().double()
    norm = torch.linalg.matrix_norm(kernel(X).to_dense(), 2).item()
    newton, plain = (
        KernelGLM(kernel, family, 1.2 * norm, solver=solver).double()  # type: ignore[arg-type]
        for solver in ("newton", "plain")
    )
    # the plain iteration stops at steps of 1e-9; its rate is up to 1 / 1.2
    assert torch.allclose(newton(X, Y), plain(X, Y), atol=1e-8)
    plain.regularization = 0.01 * norm
    with pytest.warns(ConvergenceWarning, match=r"residual .* should be below 1. Use solver="):
        plain(X, Y)
    newton.regularization = 0.01 * norm
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newton(X, Y)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_gradcheck(family: ExponentialFamily) -> None:
    """With respect to inputs, targets, regularization and lengthscale, twice."""
    X, X_new = inputs(6).requires_grad_(), inputs(3, seed=4).requires_grad_()
    Y = targets(family, X.detach())
    glm = KernelGLM(RBFKernel().double(), family, 0.2).double()

    def means(X: Tensor, X_new: Tensor, raw: Tensor, lengthscale: Tensor) -> Tensor:
        parameters = {"raw_regularization": raw, "kernel.raw_lengthscale": lengthscale}
        return torch.func.functional_call(glm, parameters, (X, Y, X_new))

    raw = glm.raw_regularization.detach().requires_grad_()
    lengthscale = glm.kernel.raw_lengthscale.detach().requires_grad_()
    arguments = (X, X_new, raw, lengthscale)
    assert torch.autograd.gradcheck(means, arguments)
    assert torch.autograd.gradgradcheck(means, arguments)
    if family.name in ("gaussian", "continuous-bernoulli"):
        noisy = (0.2 + 0.6 * Y.sigmoid()).requires_grad_()
        assert torch.autograd.gradcheck(lambda y: glm(X.detach(), y), (noisy,))


def test_batches_of_inputs() -> None:
    X = torch.stack([inputs(6), inputs(6, seed=1)]).requires_grad_()
    Y = targets(Bernoulli(), X[0].detach())
    glm = KernelGLM(RBFKernel().double(), "bernoulli", 0.3).double()
    together = glm(X, Y, X[:, :2])
    for i in range(2):
        assert torch.allclose(together[i], glm(X[i], Y, X[i, :2]), atol=1e-12)
    assert torch.autograd.gradcheck(lambda X: glm(X, Y), (X,))


def test_batches_are_independent_problems() -> None:
    X = inputs(8)
    family = Poisson()
    Y = targets(family, X, 3, 2)
    glm = KernelGLM(DEQNNGPKernel().double(), family, 0.5).double()
    together = glm(X, Y)
    assert together.shape == (3, 2, 8)
    for i in range(3):
        for j in range(2):
            assert torch.allclose(together[i, j], glm(X, Y[i, j]), rtol=1e-12, atol=1e-12)
    batched = KernelGLM(RBFKernel(batch_shape=torch.Size([2])).double(), family, 0.5).double()
    batched.kernel.lengthscale = torch.tensor([0.4, 2.0]).double().reshape(2, 1, 1)
    assert batched(X, Y, X[:3]).shape == (3, 2, 3)
    for i in range(2):
        alone = KernelGLM(batched.kernel[i], family, 0.5)
        assert torch.allclose(batched(X, Y)[:, i], alone(X, Y[:, i]), atol=1e-12)


@pytest.mark.parametrize("n", [0, 1])
def test_none_or_one(n: int) -> None:
    X = inputs(n)
    glm = KernelGLM(RBFKernel().double(), "bernoulli").double()
    Y = torch.ones(n).double()
    assert glm(X, Y).shape == (n,)
    assert glm(X, Y, inputs(0)).shape == (0,)
    if n:
        # f + sigmoid(f) = 1 for K = lambda = 1
        f = glm.natural_parameters(X, Y)
        assert (f + f.sigmoid()).item() == pytest.approx(1.0, abs=1e-14)
    else:
        assert torch.equal(glm(X, Y, inputs(2)), torch.full((2,), 0.5).double())


@pytest.mark.parametrize("lam", [1e-12, 1e-8, 1e-4, 1e8])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_extreme_regularization(family: ExponentialFamily, lam: float) -> None:
    """Converges without a warning, to what 60 digits say where they are needed."""
    X = inputs(30)
    Y = targets(family, X)
    glm = KernelGLM(RBFKernel().double(), family, lam).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = glm(X, Y)
    if lam > 1:
        assert (z - family.mean(torch.zeros(()).double())).abs().max() < 1e-5
    else:
        # the gradient of the objective vanishes to the rounding of z
        slope = glm.kernel(X).to_dense() @ (z - Y) + lam * torch.linalg.lstsq(
            torch.eye(30).double(), glm.natural_parameters(X, Y)[:, None]
        ).solution.squeeze(-1)
        assert slope.abs().max() < 1e-9 * (1 + Y.abs().max())


def test_float32() -> None:
    X = inputs()
    family = Poisson()
    Y = targets(family, X)
    glm = KernelGLM(DEQNNGPKernel(), family, 0.5)
    found = glm(X.float(), Y.float())
    assert found.dtype == torch.float32
    # a matrix of condition 1e3, rounding 6e-8
    assert torch.allclose(found.double(), glm.double()(X, Y), rtol=1e-3)


@pytest.mark.parametrize("counts", [3e3, 1e12])
@pytest.mark.parametrize("n", [5, 300])
def test_float32_counts_agree_or_warn(counts: float, n: int) -> None:
    """Where the matrix has lost the digits, there is a warning, and no silent wrong answer."""
    X = inputs(n)
    Y = (counts * (0.3 + torch.rand(n, generator=torch.Generator().manual_seed(0)))).round()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = KernelGLM(DEQNNGPKernel().double(), "poisson", 1.0).natural_parameters(
            X, Y.double()
        )
    glm = KernelGLM(DEQNNGPKernel(), "poisson", 1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = glm.natural_parameters(X.float(), Y.float())
        except NotPSDError as error:
            assert "Use float64" in str(error)
            return
    assert caught or (found - exact).abs().max() < 0.02 * exact.abs().max()


def test_large_counts() -> None:
    """From f = 0 the first Newton step would go to 1e6, where exp is infinite."""
    X = inputs(5)
    Y = torch.tensor([1e6, 2e6, 5e5, 1e6, 3e6], dtype=torch.float64)
    glm = KernelGLM(RBFKernel().double(), "poisson", 1e-3).double()
    assert torch.allclose(glm(X, Y), Y, rtol=1e-4)


@pytest.mark.parametrize("kernel", [RBFKernel, DEQNNGPKernel])
@pytest.mark.parametrize("solver", ["newton", "plain"])
def test_autocast(kernel: type, solver: str) -> None:
    """Values and gradients are those of float32, also of inputs that come in half precision."""
    X = inputs(10).float()
    Y = targets(Bernoulli(), X)
    glm = KernelGLM(kernel(), "bernoulli", 10.0, solver=solver)  # type: ignore[arg-type]

    def evaluate(enabled: bool, X: Tensor = X) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found = glm(X, Y, X[:3])
            weights = glm.weights(X)
        gradients = torch.autograd.grad(found.sum(), list(glm.parameters()))
        return [found.detach(), *weights, *gradients]

    for found, expected in zip(evaluate(True), evaluate(False), strict=True):
        torch.testing.assert_close(found, expected)
    half = X.bfloat16()
    for found, expected in zip(evaluate(True, half), evaluate(False, half.float()), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("solver", ["newton", "plain"])
def test_checkpointing_and_batched_gradients(solver: str) -> None:
    X = inputs(6)
    Y = targets(Bernoulli(), X)
    glm = KernelGLM(RBFKernel().double(), "bernoulli", 10.0, solver=solver)  # type: ignore[arg-type]

    def means(X: Tensor) -> Tensor:
        return glm(X, Y)

    def gradients(fn: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = X.clone().requires_grad_()
        (first,) = torch.autograd.grad(fn(leaf).square().sum(), leaf, create_graph=True)
        return [first, *torch.autograd.grad(first.square().sum(), leaf)]

    again = gradients(lambda X: checkpoint(means, X, use_reentrant=False))
    for one, two in zip(again, gradients(means), strict=True):
        assert torch.equal(one, two)
    torch.testing.assert_close(jacobian(means, X, vectorize=True), jacobian(means, X))


def test_hyperparameters() -> None:
    prior = LogNormalPrior(0.0, 1.0)
    glm = KernelGLM(RBFKernel(), "poisson", 0.25, regularization_prior=prior)
    assert glm.regularization.item() == pytest.approx(0.25, rel=1e-6)
    assert [name for name, *_ in glm.named_priors()] == ["regularization_prior"]
    names = {name for name, _ in glm.named_parameters()}
    assert names == {"raw_regularization", "kernel.raw_lengthscale"}
    X, Y = inputs().float(), targets(Poisson(), inputs()).float()
    plain = KernelGLM(RBFKernel(), "poisson", 0.25)
    fresh = KernelGLM(RBFKernel(), "poisson")
    fresh.load_state_dict(plain.state_dict())
    for other in (plain, fresh, deepcopy(glm), pickle.loads(pickle.dumps(plain))):
        assert torch.equal(other(X, Y), glm(X, Y))


class _Indefinite(Kernel):
    has_lengthscale = False

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Tensor:
        if diag:
            return torch.zeros(*x1.shape[:-1], dtype=x1.dtype)
        return torch.cdist(x1, x2)


class _Lopsided(_Indefinite):
    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Tensor:
        return torch.ones(x1.shape[-2], x2.shape[-2], dtype=x1.dtype).tril()


def test_bad_input() -> None:
    X = inputs(4)
    Y = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="regularization must be a positive number, got -1"):
        KernelGLM(RBFKernel(), regularization=-1.0)
    with pytest.raises(ValueError, match="regularization must be a positive number, got nan"):
        KernelGLM(RBFKernel(), regularization=math.nan)
    with pytest.raises(ValueError, match="solver must be"):
        KernelGLM(RBFKernel(), solver="magic")  # type: ignore[arg-type]
    glm = KernelGLM(RBFKernel().double(), "bernoulli").double()
    with pytest.raises(ValueError, match="Targets of Bernoulli"):
        glm(X, Y + 1)
    with pytest.raises(ValueError, match=r"X is to be \.\.\. x n x d"):
        glm(X, Y[:3])
    with pytest.raises(ValueError, match=r"X_new is to be \.\.\. x m x 2"):
        glm(X, Y, X[:, :1])
    with pytest.raises(ValueError, match="one dtype"):
        glm(X, Y.float())
    with pytest.raises(ValueError, match="NaN or infinite"):
        glm(X * math.nan, Y)
    with pytest.raises(ValueError, match="X_new and X are to have one dtype"):
        glm(X, Y, X.float())
    with pytest.raises(ValueError, match="X_new has NaN"):
        glm(X, Y, X / 0)
    with pytest.raises(ValueError, match="leading dimensions"):
        glm(X.expand(3, 4, 2), Y.expand(2, 4))
    with pytest.raises(ValueError, match="one number"):
        glm.regularization = torch.ones(2)
    with pytest.raises(NotPSDError, match="not positive semi-definite"):
        KernelGLM(_Indefinite(), "bernoulli").double()(X, Y)
    with pytest.raises(ValueError, match="not symmetric"):
        KernelGLM(_Lopsided(), "bernoulli").double()(X, Y)


def test_no_silent_failure() -> None:
    X = inputs()
    glm = KernelGLM(RBFKernel().double(), "poisson", 1e-3).double()
    with (
        settings.max_solver_iterations(2),
        pytest.warns(ConvergenceWarning, match=r"KernelGLM \(Poisson\(\), solver 'newton'\)"),
    ):
        glm(X, targets(Poisson(), X))
    assert glm.solver_report is not None and not glm.solver_report.converged


def test_singular_kernel() -> None:
    """A linear kernel of rank two, and repeated inputs."""
    X = torch.cat([inputs(5), inputs(5)])
    Y = targets(Bernoulli(), X)
    nothing = KernelGLM(LinearKernel().double(), "bernoulli")(0 * X, Y)
    assert torch.allclose(nothing, torch.full_like(Y, 0.5))
    glm = KernelGLM(LinearKernel().double(), "bernoulli", 0.1).double()
    K = glm.kernel(X).to_dense().detach().numpy()
    expected = minimiser(Bernoulli(), K, Y.numpy(), 0.1)
    assert np.abs(glm.natural_parameters(X, Y).detach().numpy() - expected).max() < 1e-10
