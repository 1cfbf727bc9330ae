"""Equilibrium layers: against kernel GLMs, dense linear algebra and finite differences."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from copy import deepcopy

import gpytorch
import pytest
import torch
from gpytorch.kernels import Kernel, RBFKernel
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.utils.checkpoint import checkpoint

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
from gp_deq.implicit_layers.well_posed import well_posed


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def residual(layer: DEQLayer | ConvDEQLayer, x: Tensor, z: Tensor) -> float:
    value = layer._layer(z, layer.injection(x), layer.recurrent_weight(x).value)
    return float((z - value).detach().abs().max())


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
    assert torch.equal(layer.recurrent_weight(Y).value, glm.weights(X).W1)
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
    assert torch.autograd.gradgradcheck(outputs, (x, *values))


def test_gradients_are_those_of_the_linear_solution() -> None:
    """z = W z + c has the adjoint (I - W')^-1."""
    layer = DEQLayer(3, 5, "identity", tolerance=1e-13).double()
    x = torch.randn(4, 3).double()
    layer(x).cos().sum().backward()
    W = layer.recurrent_weight(x).value.detach()
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
            loss = -layer.recurrent(layer(x)).square().mean().log()
            loss.backward()
            optimizer.step()
        z = layer(x).detach()
        assert residual(layer, x, z) < 1e-4 * (1 + z.norm().item())
    raw, held = layer.recurrent.weight.detach(), layer.recurrent_weight(x).value.detach()
    assert (raw - held).abs().max() > 0.1, "the bounds have had nothing to do"


def parts(matrix: Tensor) -> tuple[float, float, float]:
    """Largest eigenvalue of the symmetric part, norm of the skew part, and norm."""
    top = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[-1].item()
    skew = torch.linalg.matrix_norm((matrix - matrix.mT) / 2, 2).item()
    return top, skew, torch.linalg.matrix_norm(matrix, 2).item()


@pytest.mark.parametrize("shape", [(6, 6), (2, 2, 3, 3), (1, 1, 5, 5)])
@pytest.mark.parametrize("monotone", [True, False])
@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_well_posed_weights(shape: tuple[int, ...], monotone: bool, scale: float) -> None:
    """Within the bounds they are left alone; beyond, they come to lie on them."""
    lipschitz = 0.25
    weight = (scale * torch.randn(shape)).double()
    grid = None if len(shape) == 2 else (7, 4)

    def dense(weight: Tensor) -> Tensor:
        return weight if grid is None else circulant(weight, *grid)

    held = well_posed(weight, lipschitz, monotone, grid)
    top, skew, norm = (lipschitz * value for value in parts(dense(held.value)))
    before = [lipschitz * value for value in parts(dense(weight))]
    if monotone:
        assert max(top, 0) + skew < 0.95 + 1e-12 and skew < 0.475 + 1e-12
        inside = max(before[0], 0) + before[1] <= 0.95 and before[1] <= 0.475
        assert inside or max(top, 0) + skew > 0.95 - 1e-9 or skew > 0.475 - 1e-9
    else:
        inside = before[2] <= 0.95
        assert norm == pytest.approx(before[2] if inside else 0.95, rel=1e-10)
    assert inside == torch.equal(held.value, weight)
    if inside or scale > 100:
        assert inside == (scale == 0.01)
    small = (weight / scale).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: well_posed(w, 1.0, monotone, grid).value, small)


@pytest.mark.parametrize("symmetric", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_whatever_is_held_is_solved(symmetric: float, name: str) -> None:
    """Large skew parts, which a damped iteration by itself does not survive."""
    layer = DEQLayer(10, 50, name).double()
    skew = torch.randn(50, 50).double()
    with torch.no_grad():
        layer.recurrent.weight.copy_(20 * (skew - skew.T) / 50**0.5 - symmetric * skew @ skew.T)
    x = torch.randn(4, 10).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = layer(x)
        z.sum().backward()
    assert residual(layer, x, z) < 1e-8


def circulant(filters: Tensor, height: int, width: int) -> Tensor:
    """The matrix of a convolution on a torus: shifts of an image, added up."""
    channels, half = filters.shape[0], filters.shape[-1] // 2
    n = channels * height * width
    images = torch.eye(n).double().reshape(n, channels, height, width)
    value = torch.zeros_like(images)
    for i in range(filters.shape[-2]):
        for j in range(filters.shape[-1]):
            shifted = images.roll((half - i, half - j), (-2, -1))
            value = value + torch.einsum("oc,nchw->nohw", filters[:, :, i, j], shifted)
    return value.reshape(n, n).T


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8])
def test_scales(scale: float, dtype: torch.dtype) -> None:
    """Gradients of a scaled loss are scaled; relu without a bias is homogeneous."""
    layer = DEQLayer(3, 20, "relu", bias=False).to(dtype)
    x = torch.randn(5, 3, dtype=dtype)
    accuracy = 1e-3 if dtype == torch.float32 else 1e-8

    def gradient(factor: float) -> Tensor:
        layer.zero_grad()
        (factor * layer(x).sum()).backward()
        assert layer.recurrent.weight.grad is not None
        return layer.recurrent.weight.grad.clone()

    expected = gradient(1.0)
    error = (gradient(scale) / scale - expected).norm() / expected.norm()
    assert error < accuracy
    z = layer(x)
    assert ((layer(scale * x) / scale - z).norm() / z.norm()) < accuracy


def test_float32_and_state() -> None:
    layer = DEQLayer(2, 6, "tanh")
    x = torch.randn(5, 2)
    z = layer(x)
    assert z.dtype == torch.float32 and residual(layer, x, z) < 1e-5
    other = DEQLayer(2, 6, "tanh")
    other.load_state_dict(layer.state_dict())
    for copy in (other, deepcopy(layer)):
        assert torch.equal(copy(x), z)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), z)
    assert set(layer.state_dict()) == {"recurrent.weight", "injection.weight", "injection.bias"}


def make_layer(kind: str) -> tuple[DEQLayer | ConvDEQLayer, Tensor]:
    if kind == "dense":
        return DEQLayer(3, 4), torch.randn(5, 3)
    return ConvDEQLayer(2, 3, 3), torch.randn(2, 2, 4, 4)


@pytest.mark.parametrize("kind", ["dense", "convolution"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast(kind: str, half: torch.dtype) -> None:
    """The layer stays in float32, also between others that do not."""
    layer, x = make_layer(kind)

    def evaluate(x: Tensor, autocast: bool, backward: bool) -> list[Tensor]:
        x = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=half, enabled=autocast):
            z = layer(x)
        with torch.autocast("cpu", dtype=half, enabled=backward):
            z.square().sum().backward()
        gradients = [x.grad, *(p.grad for p in layer.parameters())]
        layer.zero_grad()
        return [z.detach(), *(g for g in gradients if g is not None)]

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        plain = evaluate(x, False, False)
        for found, expected in zip(evaluate(x, True, False), plain, strict=True):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected)
        assert layer.solver_report is not None and layer.solver_report.iterations < 30
        # a backward pass inside autocast, which torch advises against, rounds products to bfloat16,
        # but its solve is that of float32
        for found, expected in zip(evaluate(x, True, True), plain, strict=True):
            assert (found - expected).norm() < 4 * torch.finfo(half).eps * expected.norm()
        assert layer.adjoint_report is not None and layer.adjoint_report.iterations < 30
        rounded = x.to(half)
        with torch.autocast("cpu", dtype=half):
            torch.testing.assert_close(layer(rounded), layer(rounded.float()))


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_checkpointed(kind: str) -> None:
    """First and second derivatives of a layer that is computed anew in the backward pass."""
    layer, x = make_layer(kind)
    layer = layer.double()

    def derivatives(fn: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = x.double().requires_grad_()
        (first,) = torch.autograd.grad(fn(leaf).square().sum(), leaf, create_graph=True)
        return [first, *torch.autograd.grad(first.square().sum(), [leaf, *layer.parameters()])]

    found = derivatives(lambda x: checkpoint(layer, x, use_reentrant=False))
    for one, two in zip(found, derivatives(layer), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_batched_gradients(kind: str) -> None:
    """All rows of a Jacobian or a Hessian at once, and gradients of them."""
    layer, x = make_layer(kind)
    layer, x = layer.double(), x[:2].double()

    def loss(x: Tensor) -> Tensor:
        return layer(x).square().sum()

    for derivative, fn in ((jacobian, layer), (hessian, loss)):
        leaf = x.clone().requires_grad_()
        one, two = (
            derivative(fn, leaf, create_graph=True, vectorize=vectorize)
            for vectorize in (False, True)
        )
        torch.testing.assert_close(one, two)
        slopes = [torch.autograd.grad(J.square().sum(), leaf)[0] for J in (one, two)]
        torch.testing.assert_close(*slopes)


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
    with pytest.raises(ValueError, match="one kernel, not a batch"):
        batch = RBFKernel(batch_shape=torch.Size([2]))
        DEQLayer.from_kernel_glm(KernelGLM(batch), torch.randn(3, 1))
    with pytest.raises(ValueError, match="Raise kernel_size"):
        wide = RBFKernel()
        wide.lengthscale = 2.0
        ConvDEQLayer.from_kernel_glm(KernelGLM(wide, regularization=0.1), 3)
    with pytest.raises(ValueError, match="out_features must be at least 1"):
        DEQLayer(3, 0)
    with pytest.raises(ValueError, match="parameters of DEQLayer are not finite"):
        broken = DEQLayer(1, 1)
        broken.recurrent.weight.data.fill_(math.nan)
        broken(torch.ones(1, 1))
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
