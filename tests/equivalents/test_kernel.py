"""The high-dimensional equivalent as a GPyTorch kernel."""

from __future__ import annotations

import copy
import pickle
import unittest
import warnings

import gpytorch
import pytest
import torch
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase
from gpytorch.utils.warnings import NumericalWarning
from torch import Tensor

from gp_deq import DEQNNGPKernel, DEQNTKKernel
from gp_deq.equivalents import (
    EquivalentLinearOperator,
    HighDimensionalDEQKernel,
    equivalent_kernel,
    high_dimensional_coefficients,
)

pytestmark = pytest.mark.filterwarnings("ignore:The squared norms")


class Conformance(BaseKernelTestCase):
    """GPyTorch's kernel tests, with the scalars at unit level: they have no training set."""

    seed = 0

    def create_kernel_no_ard(self, **kwargs) -> Kernel:
        return _unit_level(HighDimensionalDEQKernel("relu", **kwargs))

    def create_kernel_ard(self, num_dims: int, **kwargs) -> Kernel:
        return _unit_level(HighDimensionalDEQKernel("relu", ard_num_dims=num_dims, **kwargs))


class TestConformance(Conformance, unittest.TestCase):
    pass


class TestConformanceTangentErf(Conformance, unittest.TestCase):
    def create_kernel_no_ard(self, **kwargs) -> Kernel:
        return _unit_level(HighDimensionalDEQKernel("erf", tangent=True, **kwargs))


def _unit_level(kernel: HighDimensionalDEQKernel) -> HighDimensionalDEQKernel:
    kernel.mean_square.fill_(1.0)
    return kernel


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kernel_at(weight: float, lengthscale: float, reference: Tensor, *args, **options):
    kernel = HighDimensionalDEQKernel(*args, reference=reference, **options).double()
    kernel.weight_variance, kernel.lengthscale = weight, lengthscale
    return kernel


@pytest.mark.parametrize("tangent", [False, True], ids=["covariance", "tangent"])
@pytest.mark.parametrize("activation", ["relu", "erf", "tanh", torch.nn.functional.softplus])
def test_formula(activation, tangent: bool) -> None:
    """Entry by entry, from the scalars."""
    x, other = points(20, 60), points(5, 60, seed=1)
    kernel = kernel_at(0.3, 1.3, x, activation, tangent, center=0.2)
    level = ((x - 0.2) / 1.3).square().mean().item()
    found = high_dimensional_coefficients(activation, 0.3, tau0=level**0.5)
    if tangent:
        first, second, third, whole = found.beta_1, found.beta_2, found.beta_3, found.kappa
    else:
        first, second, third, whole = found.alpha_1, found.alpha_2, found.alpha_3, found.gamma

    def entry(a: Tensor, b: Tensor) -> Tensor:
        a, b = (a - 0.2) / 1.3, (b - 0.2) / 1.3
        chi = (a @ a / 60 - level) * (b @ b / 60 - level)
        return first * (a @ b) / 60 + second * chi + third * ((a @ b) / 60) ** 2

    matrix = torch.stack([torch.stack([entry(a, b) for b in x]) for a in x])
    squares = ((x - 0.2) / 1.3).square().mean(-1).square()
    expected = matrix + torch.diag(whole**2 - level * first - third * squares)
    cross = torch.stack([torch.stack([entry(a, b) for b in other]) for a in x])
    assert torch.allclose(kernel(x).to_dense(), expected, rtol=1e-12, atol=1e-13)
    assert torch.allclose(kernel(x, other).to_dense(), cross, rtol=1e-12, atol=1e-13)
    assert torch.allclose(kernel(x, diag=True), expected.diagonal(), rtol=1e-12)
    assert torch.allclose(kernel(x[:5], other, diag=True), cross[:5].diagonal(), rtol=1e-12)


def test_structure_is_kept() -> None:
    x = points(40, 60)
    kernel = ScaleKernel(kernel_at(0.3, 1.0, x)).double()
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    prior = gpytorch.distributions.MultivariateNormal(x.new_zeros(40), kernel(x))
    covariance = likelihood(prior).lazy_covariance_matrix
    assert isinstance(covariance.evaluate_kernel(), EquivalentLinearOperator)


def test_dimension_wise_lengthscales() -> None:
    x = points(20, 30)
    shared = kernel_at(0.3, 1.3, x)
    ard = kernel_at(0.3, 1.3, x, ard_num_dims=30)
    assert torch.allclose(shared(x).to_dense(), ard(x).to_dense(), rtol=1e-12)
    ard.lengthscale = torch.arange(1, 31, dtype=torch.float64) / 10
    scaled = kernel_at(0.3, 1.0, x / ard.lengthscale)
    expected = scaled(x / ard.lengthscale).to_dense()
    assert torch.allclose(ard(x).to_dense(), expected, rtol=1e-12)


def test_batches_are_stacked_kernels() -> None:
    x = points(10, 30)
    batch = HighDimensionalDEQKernel(batch_shape=torch.Size([2]), reference=x).double()
    batch.weight_variance = torch.tensor([0.2, 1.1]).reshape(2, 1, 1)
    batch.lengthscale = torch.tensor([0.7, 1.5], dtype=torch.float64).reshape(2, 1, 1)
    found = batch(x).to_dense()
    for i in range(2):
        single = kernel_at(batch.weight_variance[i].item(), batch.lengthscale[i].item(), x)
        assert torch.allclose(found[i], single(x).to_dense(), rtol=1e-12)
        assert torch.allclose(batch[i](x).to_dense(), found[i], rtol=1e-12)
    inputs = torch.stack([x, 2 * x, x + 1])
    single = kernel_at(0.3, 1.0, x)
    expected = torch.stack([single(one).to_dense() for one in inputs])
    assert torch.allclose(single(inputs).to_dense(), expected, rtol=1e-12)
    assert single(x[:0]).to_dense().shape == (0, 0) and single(x[:1]).to_dense().shape == (1, 1)


def test_active_dims() -> None:
    x = points(10, 40)
    kernel = kernel_at(0.3, 1.0, x, active_dims=range(5, 30))
    expected = kernel_at(0.3, 1.0, x[:, 5:30])(x[:, 5:30]).to_dense()
    assert torch.allclose(kernel(x).to_dense(), expected, rtol=1e-14)


@pytest.mark.parametrize("options", [{}, {"ard_num_dims": 8}, {"tangent": True}])
def test_gradients(options: dict) -> None:
    """Of hyperparameters and inputs, by finite differences."""
    x = points(6, 8)
    kernel = kernel_at(0.3, 1.2, x, "erf", **options)
    names = ["raw_weight_variance", "raw_lengthscale"]
    start = {name: getattr(kernel, name).detach().clone().requires_grad_() for name in names}

    def matrix(x: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(
            _Dense(kernel), {f"kernel.{k}": v for k, v in state.items()}, x
        )

    assert torch.autograd.gradcheck(matrix, (x.requires_grad_(), *start.values()))


class _Dense(torch.nn.Module):
    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel.forward(x, x).to_dense()


def test_copies_and_states() -> None:
    x = points(10, 30)
    kernel = kernel_at(0.3, 1.2, x, ard_num_dims=30)
    expected = kernel(x).to_dense()
    for other in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert other(x).to_dense().equal(expected)
    fresh = HighDimensionalDEQKernel(ard_num_dims=30).double()
    fresh.load_state_dict(kernel.state_dict())
    assert fresh(x).to_dense().equal(expected)


def test_single_precision() -> None:
    x = points(50, 200)
    kernel = kernel_at(0.3, 1.2, x)
    expected = kernel(x).to_dense()
    found = kernel_at(0.3, 1.2, x).float()(x.float()).to_dense()
    assert found.dtype == torch.float32
    # the largest entry, some roundings of it
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_hyperparameters_of_a_deq_kernel() -> None:
    x = points(20, 50)
    covariance = DEQNNGPKernel("erf", 0.3, ard_num_dims=50).double()
    covariance.weight_variance = 0.4
    covariance.lengthscale = torch.linspace(0.5, 2.0, 50, dtype=torch.float64)
    found = equivalent_kernel(covariance, x)
    assert not found.tangent and found.weight_variance.item() == pytest.approx(0.4, rel=1e-14)
    assert found.lengthscale.equal(covariance.lengthscale)
    assert (found.center == 0.3).all()
    assert equivalent_kernel(DEQNTKKernel("erf", trained="recurrent"), x.float()).tangent
    with pytest.raises(ValueError, match="recurrent"):
        equivalent_kernel(DEQNTKKernel("erf"), x.float())


@pytest.mark.parametrize("by_cholesky", [True, False], ids=["Cholesky", "conjugate gradients"])
def test_posterior(by_cholesky: bool) -> None:
    """Mean and variance of an exact GP against dense linear algebra."""
    x, y, new = points(120, 150), points(120, seed=1), points(7, 150, seed=2)

    class Model(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = ScaleKernel(kernel_at(0.3, 1.0, x))

        def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
            return gpytorch.distributions.MultivariateNormal(
                self.mean_module(x), self.covar_module(x)
            )

    model = Model().double().eval()
    model.likelihood.noise = 0.05
    size = 800 if by_cholesky else 1
    with (
        torch.no_grad(),
        gpytorch.settings.max_cholesky_size(size),
        gpytorch.settings.min_preconditioning_size(1),
        gpytorch.settings.eval_cg_tolerance(1e-10),
    ):
        found = model(new)
        mean, variance = found.mean, found.variance
        kernel = model.covar_module
        train = kernel(x).to_dense() + 0.05 * torch.eye(120, dtype=torch.float64)
        cross = kernel(new, x).to_dense()
        expected = cross @ torch.linalg.solve(train, y)
        reduction = (cross * torch.linalg.solve(train, cross.mT).mT).sum(-1)
    assert torch.allclose(mean, expected, rtol=1e-6, atol=1e-8)
    assert torch.allclose(variance, kernel(new, diag=True) - reduction, rtol=1e-6)


# ------------------------------------------------------------------------------------------
# Bad input
# ------------------------------------------------------------------------------------------


def test_no_reference() -> None:
    with pytest.raises(RuntimeError, match="set_reference"):
        HighDimensionalDEQKernel()(points(5, 3).float()).to_dense()


@pytest.mark.parametrize(
    "reference", [torch.zeros(3), torch.zeros(0, 3), torch.full((2, 2), torch.nan)]
)
def test_bad_reference(reference: Tensor) -> None:
    with pytest.raises(ValueError, match="n x d and finite"):
        HighDimensionalDEQKernel(reference=reference)


def test_reference_at_the_center() -> None:
    kernel = HighDimensionalDEQKernel(reference=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="tau0 must be positive"):
        kernel(torch.ones(2, 3)).to_dense()


def test_unequal_norms_are_told() -> None:
    x = points(200, 300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HighDimensionalDEQKernel(reference=x)
    with pytest.warns(NumericalWarning, match=r"standard deviation of 0\.\d\d times"):
        HighDimensionalDEQKernel(reference=x * torch.linspace(0.5, 1.5, 200).unsqueeze(-1))


def test_no_bias() -> None:
    with pytest.raises(TypeError, match="no bias"):
        HighDimensionalDEQKernel(bias_variance_prior=gpytorch.priors.GammaPrior(1.0, 1.0))
    kernel = HighDimensionalDEQKernel()
    assert "raw_bias_variance" not in [n for n, p in kernel.named_parameters() if p.requires_grad]


def test_region() -> None:
    with pytest.raises(ValueError, match="weight_variance"):
        HighDimensionalDEQKernel("tanh").weight_variance = 1.0
