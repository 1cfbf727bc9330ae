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

from gp_deq import DEQNNGPKernel, DEQNTKKernel, NNGPKernel
from gp_deq.activations import get_activation
from gp_deq.equivalents import (
    EquivalentLinearOperator,
    HighDimensionalDEQKernel,
    centered_kernel,
    equivalent_kernel,
    high_dimensional_coefficients,
)

pytestmark = pytest.mark.filterwarnings("ignore:The squared norms", "ignore:The inputs have")


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
def test_equal_norms(activation, tangent: bool) -> None:
    """The form of the theory, from its scalars."""
    x = torch.nn.functional.normalize(points(20, 60), dim=-1) * 11 + 0.2
    kernel = kernel_at(0.3, 1.3, x, activation, tangent, center=0.2)
    level = ((x - 0.2) / 1.3).square().mean().item()
    found = high_dimensional_coefficients(activation, 0.3, tau0=level**0.5)
    if tangent:
        first, third, whole = found.beta_1, found.beta_3, found.kappa
    else:
        first, third, whole = found.alpha_1, found.alpha_3, found.gamma
    b = (x - 0.2) @ (x - 0.2).T / 1.3**2 / 60
    expected = first * b + third * b**2
    expected.fill_diagonal_((whole**2).item())
    assert torch.allclose(kernel(x).to_dense(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("tangent", [False, True], ids=["covariance", "tangent"])
@pytest.mark.parametrize("activation", ["relu", "erf", "tanh", "gelu"])
def test_unequal_norms(activation: str, tangent: bool) -> None:
    """Against the exact kernel of nearly orthogonal inputs of different norms.

    The terms of first order in the correlations err in the second order of the differences of the
    activation's slopes, so that half the differences leave a quarter of the error; the mean slopes
    of ReLU and GELU are a half at every scale, and what errs there are the terms of second order.
    """
    wide, mean_form = _error_at(5.0, 7.0, activation, tangent)
    narrow, _ = _error_at(5.5, 6.5, activation, tangent)
    assert wide < 0.01 and wide < 0.5 * mean_form
    if activation in ("relu", "gelu"):
        assert max(wide, narrow) < 3e-4
    else:
        assert wide / narrow == pytest.approx(4, rel=0.2)


def _error_at(low: float, high: float, activation: str, tangent: bool) -> tuple[float, float]:
    """Largest errors off the diagonal of the kernel, and of the form with scalars of the mean."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(40, 20, generator=generator, dtype=torch.float64))[0].T
    x = torch.nn.functional.normalize(basis + 0.001 * basis.flip(0), dim=-1)
    x = x * torch.linspace(low, high, 20, dtype=torch.float64).unsqueeze(-1)
    cls = DEQNTKKernel if tangent else DEQNNGPKernel
    source = cls(activation, **({"trained": "recurrent"} if tangent else {})).double()
    source.weight_variance, source.lengthscale = 0.3, 1.0
    kernel = equivalent_kernel(source, x)
    exact, found = centered_kernel(source, x)(x).to_dense(), kernel(x).to_dense()
    # the exact diagonal, to the degree of tanh's series
    assert torch.allclose(found.diagonal(), exact.diagonal(), rtol=1e-9)
    b, means = x @ x.T / 40, kernel.coefficients()
    chi = b.diagonal() - b.diagonal().mean()
    first, second, third = (means.beta_1, means.beta_2, means.beta_3) if tangent else means[2:5]
    mean_form = first * b + second * torch.outer(chi, chi) + third * b**2
    off = ~torch.eye(20, dtype=torch.bool)
    errors = ((form - exact)[off].abs().max() for form in (found, mean_form))
    largest, mean_largest = (error / exact[off].abs().max() for error in errors)
    return largest.item(), mean_largest.item()


def test_label_free_form_need_not_be_positive() -> None:
    """Why the kernel has scalars of each input: with those of the mean norm it is no kernel.

    Long inputs get a negative nugget there, and with more inputs than products of coordinates
    nothing makes up for it.
    """
    x = points(400, 20)
    kernel = kernel_at(0.2, 1.0, x)
    found, level = kernel.coefficients(), kernel.level()
    b = x @ x.T / 20
    chi = b.diagonal() - level
    mean_form = found.alpha_1 * b + found.alpha_2 * torch.outer(chi, chi) + found.alpha_3 * b**2
    nugget = found.gamma**2 - level * found.alpha_1 - found.alpha_3 * b.diagonal() ** 2
    assert torch.linalg.eigvalsh((mean_form + nugget.diag()).detach())[0] < -0.05
    assert torch.linalg.eigvalsh(kernel(x).to_dense().detach())[0] > 0


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "sin", "identity"])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_positive_semi_definite(activation: str, size: float) -> None:
    norms = torch.logspace(-3, 1.5, 60, dtype=torch.float64).unsqueeze(-1)
    x = size * norms * points(60, 5)
    for share in (1e-6, 0.5, 0.99):
        weight = share * get_activation(activation).critical_weight_variance
        kernel = kernel_at(weight, 1.0, x, activation)
        values = torch.linalg.eigvalsh(kernel(x).to_dense().detach())
        # rounding of the largest eigenvalue, some tens of units
        assert values[0] > -1e-14 * values[-1] and values.isfinite().all()


def test_identical_inputs() -> None:
    """The kernel is a function of a pair, whatever else is in the matrix."""
    x = points(12, 30)
    x[7] = x[2]
    kernel = kernel_at(0.3, 1.0, x)
    whole = kernel(x).to_dense().detach()
    assert whole[2, 7] == pytest.approx(whole[2, 2].item(), rel=1e-14)
    assert torch.allclose(kernel(x, x[5:]).to_dense(), whole[:, 5:], rtol=1e-14)
    assert torch.allclose(kernel(x[:6], x[6:], diag=True), whole[:6, 6:].diagonal(), rtol=1e-13)
    assert torch.allclose(kernel(x[[2]], x[[7]], diag=True), whole[2, 2], rtol=1e-14)
    # with a gradient too
    z = x.clone().requires_grad_()
    for other in (z, z.clone(), x):
        assert torch.allclose(kernel(z, other).to_dense(), whole, rtol=1e-14)
    vectors = points(12, 3)
    assert torch.allclose(kernel(x) @ vectors, whole @ vectors, rtol=1e-12)
    negative_zero = torch.zeros(2, 30, dtype=torch.float64) * torch.tensor([[1.0], [-1.0]])
    found = kernel(negative_zero).to_dense()
    assert found[0, 1] == found[0, 0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize(
    "options", [{}, {"tangent": True}, {"ard_num_dims": 9}, {"active_dims": [1, 3, 4, 8]}], ids=str
)
def test_integer_inputs(options: dict, dtype: torch.dtype) -> None:
    """They are the same inputs as in floating point: `center` is not rounded to an integer."""
    x = torch.randint(0, 5, (12, 9), generator=torch.Generator().manual_seed(3)).to(dtype)
    found, expected = (
        kernel_at(0.3, 1.3, reference, "relu", center=0.5, **options)
        for reference in (x, x.double())
    )
    assert found.mean_square.equal(expected.mean_square)
    assert found(x).to_dense().equal(expected(x.double()).to_dense())
    assert found(x, x[:5]).to_dense().equal(expected(x.double(), x[:5].double()).to_dense())
    assert found(x, diag=True).equal(expected(x.double(), diag=True))
    single = found.float()
    assert single(x).to_dense().equal(single(x.float()).to_dense())


def test_large_integers_in_single_precision() -> None:
    """Two integers that are one float32 number are one input."""
    x = 2**24 + torch.tensor([[0, 0], [1, 0], [2, 0]])
    kernel = HighDimensionalDEQKernel("erf", reference=x)
    assert kernel(x).to_dense().equal(kernel(x.float()).to_dense())


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
        gpytorch.settings.fast_computations(True, True, True),
        gpytorch.settings.eval_cg_tolerance(1e-5),
    ):
        found = model(new)
        mean, variance = found.mean, found.variance
        kernel = model.covar_module
        noise = model.likelihood.noise * torch.eye(120, dtype=torch.float64)
        train = kernel(x).to_dense() + noise
        cross = kernel(new, x).to_dense()
        expected = cross @ torch.linalg.solve(train, y)
        reduction = (cross * torch.linalg.solve(train, cross.mT).mT).sum(-1)
    # residuals of 1e-5, and a condition number of about thirty
    tolerance = 1e-9 if by_cholesky else 1e-3
    assert torch.allclose(mean, expected, rtol=tolerance, atol=tolerance)
    assert torch.allclose(variance, kernel(new, diag=True) - reduction, rtol=tolerance)
    # inputs that require a gradient, as of an acquisition function
    found = model(new.clone().requires_grad_()).variance
    assert torch.allclose(found, kernel(new, diag=True) - reduction, rtol=1e-3)


# ------------------------------------------------------------------------------------------
# Bad input
# ------------------------------------------------------------------------------------------


def test_no_reference() -> None:
    with pytest.raises(RuntimeError, match="set_reference"):
        HighDimensionalDEQKernel()(points(5, 3).float()).to_dense()


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 5, 3)])
def test_shape_of_the_reference(shape: tuple) -> None:
    with pytest.raises(ValueError, match="n x d"):
        HighDimensionalDEQKernel(reference=torch.ones(shape))


def test_reference_without_numbers_or_at_the_center() -> None:
    with pytest.raises(ValueError, match="NaN"):
        HighDimensionalDEQKernel(reference=torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="at the center"):
        HighDimensionalDEQKernel(reference=torch.full((4, 3), 0.5), center=0.5)


def test_inputs_far_from_the_theory_are_told() -> None:
    x = points(200, 300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HighDimensionalDEQKernel(reference=x).double()(x).to_dense()
        HighDimensionalDEQKernel(reference=x + 0.5, center=0.5)
    spread = x * torch.logspace(-1, 0.5, 200, dtype=torch.float64).unsqueeze(-1)
    with pytest.warns(NumericalWarning, match=r"standard deviation of 1\.\d\d times"):
        HighDimensionalDEQKernel(reference=spread)
    with pytest.warns(NumericalWarning, match=r"root mean square of 0\.9\d"):
        HighDimensionalDEQKernel(reference=x + 5)
    kernel = HighDimensionalDEQKernel(reference=x).double()
    with pytest.warns(NumericalWarning, match=r"9\.0e\+02 times the mean squared norm"):
        kernel(30 * x).to_dense()


def test_no_bias() -> None:
    with pytest.raises(TypeError, match="no bias"):
        HighDimensionalDEQKernel(bias_variance_prior=gpytorch.priors.GammaPrior(1.0, 1.0))
    kernel = HighDimensionalDEQKernel()
    assert "raw_bias_variance" not in [n for n, p in kernel.named_parameters() if p.requires_grad]
    with pytest.raises(AttributeError, match="no bias"):
        kernel.bias_variance = 0.5


def test_equivalents_of_other_kernels() -> None:
    x = points(5, 3)
    with pytest.raises(TypeError, match="NNGPKernel"):
        equivalent_kernel(NNGPKernel().double(), x)
    with pytest.raises(ValueError, match=r"kernel\[0\]"):
        equivalent_kernel(DEQNNGPKernel(batch_shape=torch.Size([2])).double(), x)


def test_region() -> None:
    with pytest.raises(ValueError, match="weight_variance"):
        HighDimensionalDEQKernel("tanh").weight_variance = 1.0
