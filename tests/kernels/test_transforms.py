"""Kernels under checkpointing, batched gradients, function transforms and the compiler.

Docs: the page "Function transforms" says what works; each line of its table is a test here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from gpytorch.models import ExactGP
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gp_deq import DEKerKernel, DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel

KERNELS: dict[str, Callable[[], Kernel]] = {
    "DEQ-NNGP relu": lambda: DEQNNGPKernel("relu", ard_num_dims=2),
    "DEQ-NNGP erf": lambda: DEQNNGPKernel("erf"),
    "DEQ-NNGP tanh": lambda: DEQNNGPKernel("tanh"),
    "DEQ-NTK relu": lambda: DEQNTKKernel("relu"),
    "DEQ-NTK gelu": lambda: DEQNTKKernel("gelu"),
    "NNGP": lambda: NNGPKernel(),
    "NTK": lambda: NTKKernel("erf"),
    "DEKer relu": lambda: DEKerKernel(),
    "DEKer tanh": lambda: DEKerKernel("tanh"),
    "DEKer, three updates": lambda: DEKerKernel(num_steps=3),
}
every_kernel = pytest.mark.parametrize("name", KERNELS)


def points(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def build(name: str) -> Kernel:
    return KERNELS[name]().double()


@every_kernel
def test_checkpoint(name: str) -> None:
    kernel, x = build(name), points(6, 2).requires_grad_()
    leaves = [x, *kernel.parameters()]
    expected = torch.autograd.grad(kernel.forward(x, x).square().sum(), leaves)
    value = checkpoint(lambda x: kernel.forward(x, x).square().sum(), x, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(value, leaves), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=0)


class Model(ExactGP):
    def __init__(self, x: Tensor, kernel: Kernel) -> None:
        super().__init__(x, x.sum(-1), GaussianLikelihood())
        self.mean_module, self.covar_module = ZeroMean(), ScaleKernel(kernel)

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


@every_kernel
def test_batched_gradients_of_a_posterior_mean(name: str) -> None:
    model = Model(points(6, 2), build(name)).double().eval()

    def mean(x: Tensor) -> Tensor:
        return model(x).mean

    new = points(3, 2, seed=1)
    jacobian = torch.autograd.functional.jacobian
    loop = jacobian(mean, new)
    torch.testing.assert_close(jacobian(mean, new, vectorize=True), loop, rtol=1e-9, atol=1e-12)
    leaf = new.clone().requires_grad_()
    rows = torch.eye(3, dtype=torch.float64)
    (batched,) = torch.autograd.grad(mean(leaf), leaf, rows, is_grads_batched=True)
    torch.testing.assert_close(batched, loop, rtol=1e-9, atol=1e-12)


@every_kernel
def test_batched_second_derivatives(name: str) -> None:
    kernel, z = build(name), points(3, 2, seed=1)

    def total(x: Tensor) -> Tensor:
        return kernel.forward(x, z).square().sum()

    x = points(2, 2)
    loop = torch.autograd.functional.hessian(total, x)
    batched = torch.autograd.functional.hessian(total, x, vectorize=True)
    torch.testing.assert_close(batched, loop, rtol=1e-9, atol=1e-12)


@every_kernel
def test_function_transforms(name: str) -> None:
    """Each is what autograd gives."""
    kernel, z = build(name), points(3, 2, seed=1)

    def value(x: Tensor) -> Tensor:
        return kernel.forward(x, z)

    def total(x: Tensor) -> Tensor:
        return value(x).square().sum()

    x = points(2, 2)
    jacobian = torch.autograd.functional.jacobian(value, x)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(value)(x), jacobian, rtol=1e-9, atol=1e-12)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(x), gradient, rtol=1e-9, atol=1e-12)
    hessian = torch.autograd.functional.hessian(total, x)
    torch.testing.assert_close(torch.func.hessian(total)(x), hessian, rtol=1e-9, atol=1e-12)


@every_kernel
@pytest.mark.parametrize("diag", [False, True])
def test_vmap(name: str, diag: bool) -> None:
    kernel, x, z = build(name), points(4, 3, 2), points(3, 2, seed=1)
    mapped = torch.func.vmap(lambda x: kernel.forward(x, z, diag=diag))(x)
    torch.testing.assert_close(mapped, kernel.forward(x, z.expand_as(x), diag=diag))
    symmetric = torch.func.vmap(lambda x: kernel.forward(x, x, diag=diag))(x)
    torch.testing.assert_close(symmetric, kernel.forward(x, x, diag=diag))


@every_kernel
def test_per_sample_gradients(name: str) -> None:
    """vmap of the gradient with respect to hyperparameters, by functional_call."""
    kernel, x = build(name), points(3, 4, 2)
    parameters = {name: value.detach() for name, value in kernel.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        with torch.nn.utils.stateless._reparametrize_module(kernel, parameters):
            return kernel.forward(x, x).square().sum()

    mapped = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index in range(3):
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        expected = torch.autograd.grad(loss(leaves, x[index]), list(leaves.values()))
        for one, other in zip(mapped.values(), expected, strict=True):
            torch.testing.assert_close(one[index], other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["DEQ-NNGP relu", "DEQ-NNGP erf", "DEQ-NTK relu", "DEKer relu"])
def test_compile(name: str) -> None:
    """With a break of the graph, as for GPyTorch's own kernels; also the gradient."""
    kernel, x = build(name), points(20, 2).requires_grad_()
    leaves = [x, *kernel.parameters()]
    logging.getLogger("torch._dynamo").setLevel(logging.CRITICAL)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: kernel.forward(x, x) * 2, backend="eager")
    expected = kernel.forward(x, x) * 2
    found = compiled(x)
    assert torch.equal(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.sum(), leaves),
        torch.autograd.grad(expected.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    torch._dynamo.reset()


def test_matern_is_the_measure() -> None:
    """GPyTorch's kernel of the same smoothness has no forward mode and no vmap: this may change."""
    kernel = MaternKernel().double()
    x, z = points(2, 2), points(3, 2, seed=1)
    assert torch.func.jacrev(lambda x: kernel.forward(x, z))(x).shape == (2, 3, 2, 2)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jacfwd(lambda x: kernel.forward(x, z))(x)
