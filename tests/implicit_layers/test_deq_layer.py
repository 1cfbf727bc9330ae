"""Equilibrium layers: against kernel GLMs, dense linear algebra and finite differences."""

from __future__ import annotations

import math
import pickle
import warnings
from copy import deepcopy

import gpytorch
import pytest
import torch
from gpytorch.kernels import Kernel, RBFKernel
from torch import Tensor

from gp_deq import DEQNNGPKernel
from gp_deq.equilibrium import ConvergenceWarning
from gp_deq.implicit_layers import (
    Bernoulli,
    Binomial,
    ContinuousBernoulli,
    ConvDEQLayer,
    DEQLayer,
    ExponentialFamily,
    Gaussian,
    KernelGLM,
    SignedBernoulli,
)
from gp_deq.implicit_layers.well_posed import WellPosed, spectral_norm


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def residual(layer: DEQLayer | ConvDEQLayer, x: Tensor, z: Tensor) -> float:
    return float((z - layer.phi(layer.recurrent(z) + layer.injection(x))).detach().abs().max())


@pytest.mark.parametrize(
    "family",
    [Gaussian(), Bernoulli(), SignedBernoulli(), Binomial(7), ContinuousBernoulli()],
    ids=repr,
)
@pytest.mark.parametrize("share", [2.0, 1.0, 0.1, 0.02])
@pytest.mark.parametrize("kernel", [RBFKernel, DEQNNGPKernel])
def test_starts_as_a_kernel_glm(family: ExponentialFamily, share: float, kernel: type) -> None:
    """For regularizations down to a fiftieth of the norm, where the plain iteration diverges."""
    X = torch.linspace(-3, 3, 30, dtype=torch.float64).unsqueeze(-1)
    base = kernel().double()
    norm = torch.linalg.matrix_norm(base(X).to_dense().detach(), 2).item()
    glm = KernelGLM(base, family, share * norm)
    Y = family.sample(X[:, 0], (4,))
    layer = DEQLayer.from_kernel_glm(glm, X)
    z = layer(Y)
    # the residual of 1e-10, relative to vectors of size up to 40, amplified by at most 1
    assert torch.allclose(z, glm(X, Y), atol=5e-9)
    assert layer.solver_report is not None and layer.solver_report.converged
    assert torch.equal(layer.recurrent.weight, glm.weights(X).W1)
    (z.square().sum() / 2).backward()
    assert layer.adjoint_report is not None and layer.adjoint_report.converged
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("activation", ["tanh", "relu", "sin", "gelu", torch.nn.functional.elu])
def test_finds_the_equilibrium(activation: object) -> None:
    layer = DEQLayer(3, 10, activation).double()  # type: ignore[arg-type]
    x = torch.randn(7, 2, 3).double()
    z = layer(x)
    assert z.shape == (7, 2, 10) and residual(layer, x, z) < 1e-8
    assert torch.allclose(layer(x[3, 1]), z[3, 1], atol=1e-8)
    assert layer(x[:0]).shape == (0, 2, 10)


@pytest.mark.parametrize("activation", ["tanh", "sin"])
def test_gradients(activation: str) -> None:
    """Against finite differences, with respect to the input and all weights."""
    layer = DEQLayer(2, 4, activation, tolerance=1e-14).double()
    x = torch.randn(3, 2).double().requires_grad_()
    names = [name for name, _ in layer.named_parameters()]
    values = [value.detach().clone().requires_grad_() for value in layer.parameters()]

    def outputs(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, (x, *values))


def test_gradients_are_those_of_the_linear_solution() -> None:
    """z = W z + c has the adjoint (I - W')^-1."""
    layer = DEQLayer(3, 5, "identity", tolerance=1e-13).double()
    x = torch.randn(4, 3).double()
    layer(x).cos().sum().backward()
    W = layer.recurrent.weight.detach()
    injected = layer.injection(x).detach().requires_grad_()
    torch.linalg.solve(torch.eye(5).double() - W, injected.T).T.cos().sum().backward()
    assert injected.grad is not None and layer.injection.bias.grad is not None
    assert torch.allclose(layer.injection.bias.grad, injected.grad.sum(0), atol=1e-10)


@pytest.mark.parametrize("activation", ["tanh", "relu", "sin"])
@pytest.mark.parametrize("make", ["dense", "convolution"])
def test_stays_solvable_while_it_trains(activation: str, make: str) -> None:
    """Also against a loss that rewards large weights, at a large step."""
    layer: DEQLayer | ConvDEQLayer
    if make == "dense":
        layer, x = DEQLayer(4, 12, activation), torch.randn(16, 4)
    else:
        layer, x = ConvDEQLayer(1, 3, 3, activation), torch.randn(4, 1, 6, 6)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(30):
            optimizer.zero_grad()
            loss = -layer.recurrent(layer(x)).square().mean()
            loss.backward()
            optimizer.step()
        z = layer(x).detach()
        assert residual(layer, x, z) < 1e-4 * (1 + z.norm().item())
    raw = layer.recurrent.parametrizations["weight"].original
    assert spectral_norm(raw.detach()) > 1.2, "the control has had nothing to do"


@pytest.mark.parametrize("shape", [(6, 6), (2, 2, 3, 3)])
@pytest.mark.parametrize("monotone", [True, False])
def test_well_posed_weights(shape: tuple[int, ...], monotone: bool) -> None:
    """Within the bound they are left alone; beyond, they come to lie on it."""
    control = WellPosed(0.9, monotone)
    weight = torch.randn(shape).double()
    small = 0.01 * weight
    assert torch.equal(control(small), small)
    bounded = control(10 * weight)
    # filters of 3 x 3 are treated at the frequencies of 24 x 24 pixels
    matrix = bounded if len(shape) == 2 else circulant(bounded, 24)
    if monotone:
        top = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[-1].item()
    else:
        top = torch.linalg.matrix_norm(matrix, 2).item()
        assert spectral_norm(bounded).item() == pytest.approx(top, rel=1e-10)
    assert top == pytest.approx(0.9, rel=1e-10)
    assert torch.autograd.gradcheck(control, (weight.requires_grad_(),))


def circulant(filters: Tensor, size: int) -> Tensor:
    """The matrix of a convolution of images with circular padding, column by column."""
    channels, half = filters.shape[0], filters.shape[-1] // 2
    n = channels * size * size
    images = torch.eye(n).double().reshape(n, channels, size, size)
    padded = torch.nn.functional.pad(images, (half,) * 4, mode="circular")
    return torch.nn.functional.conv2d(padded, filters).reshape(n, n).T


def test_convolution_starts_as_a_kernel_glm() -> None:
    """The layer's matrix on a small image is that of the kernel, cut off beyond the filter."""
    kernel = RBFKernel().double()
    kernel.lengthscale = 0.7
    family = SignedBernoulli()
    glm = KernelGLM(kernel, family, 2.0)
    layer = ConvDEQLayer.from_kernel_glm(glm, 5)
    axis = torch.arange(6, dtype=torch.float64)
    X = torch.cartesian_prod(axis, axis)
    offsets = (X[:, None] - X).abs().amax(-1)

    class Cut(Kernel):
        is_stationary = True

        def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Tensor:
            near = (x1.unsqueeze(-2) - x2.unsqueeze(-3)).abs().amax(-1) <= 2
            return kernel(x1, x2).to_dense() * near

    assert int((offsets > 2).sum()) > 0
    Y = family.sample(X[:, 0].cos(), (3,))
    expected = KernelGLM(Cut(), family, 2.0)(X, Y)
    found = layer(Y.reshape(3, 1, 6, 6))
    assert torch.allclose(found.reshape(3, 36), expected, atol=1e-9)


def test_convolution_with_channels_and_circular_padding() -> None:
    layer = ConvDEQLayer(2, 3, 3, "relu", padding_mode="circular").double()
    x = torch.randn(2, 2, 5, 5).double()
    z = layer(x)
    assert z.shape == (2, 3, 5, 5) and residual(layer, x, z) < 1e-8
    # a shift of the image shifts the equilibrium
    assert torch.allclose(layer(x.roll(2, -1)), z.roll(2, -1), atol=1e-8)
    z.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    glm = KernelGLM(RBFKernel().double(), "gaussian", 5.0)
    two = ConvDEQLayer.from_kernel_glm(glm, 3, channels=2, bias=False)
    x = torch.randn(1, 2, 5, 5).double()
    one = ConvDEQLayer.from_kernel_glm(glm, 3)
    assert torch.allclose(two(x)[:, :1], one(x[:, :1]), atol=1e-9)


def test_float32_and_state() -> None:
    layer = DEQLayer(2, 6, "tanh")
    x = torch.randn(5, 2)
    z = layer(x)
    assert z.dtype == torch.float32 and residual(layer, x, z) < 1e-5
    other = DEQLayer(2, 6, "tanh")
    other.load_state_dict(layer.state_dict())
    for copy in (other, deepcopy(layer)):
        assert torch.equal(copy(x), z)
    state = pickle.loads(pickle.dumps(layer.state_dict()))
    assert set(state) == {
        "recurrent.parametrizations.weight.original",
        "injection.weight",
        "injection.bias",
    }


def test_no_silent_failure() -> None:
    layer = DEQLayer(2, 6, "tanh", max_iterations=2)
    with pytest.warns(ConvergenceWarning, match=r"DEQLayer did not converge in 2 .* residual"):
        layer(torch.randn(3, 2))


def test_bad_input() -> None:
    glm = KernelGLM(RBFKernel(), "poisson")
    with pytest.raises(ValueError, match="no Lipschitz constant"):
        DEQLayer.from_kernel_glm(glm, torch.randn(3, 1))
    with pytest.raises(ValueError, match="n x d"):
        DEQLayer.from_kernel_glm(KernelGLM(RBFKernel()), torch.randn(2, 3, 1))
    with pytest.raises(ValueError, match="stationary kernel"):
        ConvDEQLayer.from_kernel_glm(KernelGLM(DEQNNGPKernel()), 3)
    with pytest.raises(ValueError, match="odd"):
        ConvDEQLayer(1, 1, 4)
    with pytest.raises(ValueError, match="Unknown activation"):
        DEQLayer(1, 1, "step")
    with pytest.raises(ValueError, match="tolerance must be positive"):
        DEQLayer(1, 1, tolerance=0.0)
    with pytest.raises(ValueError, match="max_iterations"):
        DEQLayer(1, 1, max_iterations=0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        DEQLayer(1, 1)(torch.tensor([[math.inf]]))


class _Deep(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, likelihood: gpytorch.likelihoods.Likelihood) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(RBFKernel())
        self.features = DEQLayer(2, 3, "tanh")

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        z = self.features(x)
        return gpytorch.distributions.MultivariateNormal(self.mean_module(z), self.covar_module(z))


def test_deep_kernel_learning() -> None:
    """Marginal likelihood trains the layer, whose weights move and whose loss falls."""
    x = torch.randn(40, 2).double()
    y = (3 * (x[:, 0] * x[:, 1]).tanh()).double()
    y = (y - y.mean()) / y.std()
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = _Deep(x, y, likelihood).double()
    before = deepcopy(model.features.state_dict())
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = -mll(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    after = model.features.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    model.eval()
    with torch.no_grad():
        mean = model(torch.randn(5, 2).double()).mean
    assert mean.isfinite().all()
