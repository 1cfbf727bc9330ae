"""What GPyTorch expects of every kernel: shapes, batches, indexing, priors, copies, dtypes."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import unittest

import gpytorch
import pytest
import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.priors import GammaPrior, LogNormalPrior, UniformPrior
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase
from torch import Size, Tensor

from gp_deq import DEKerKernel, DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel
from gp_deq.activations import Activation, Erf, Hermite, LeakyReLU

CLASSES = [DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel]
EQUILIBRIUM = [DEQNNGPKernel, DEQNTKKernel]
HYPERPARAMETERS = ("lengthscale", "weight_variance", "bias_variance")
every_class = pytest.mark.parametrize("cls", CLASSES)
any_class = pytest.mark.parametrize("cls", [*CLASSES, DEKerKernel])
relu_and_erf = pytest.mark.parametrize("activation", ["relu", "erf"])


# ------------------------------------------------------------------------------------------
# GPyTorch's own suite
# ------------------------------------------------------------------------------------------


class Conformance(BaseKernelTestCase):
    """GPyTorch's kernel tests, those with ARD among them."""

    seed = 0
    cls: type[Kernel]
    activation = "relu"

    def create_kernel_no_ard(self, **kwargs) -> Kernel:
        return self.cls(self.activation, **kwargs)

    def create_kernel_ard(self, num_dims: int, **kwargs) -> Kernel:
        return self.cls(self.activation, ard_num_dims=num_dims, **kwargs)


class TestDEQNNGP(Conformance, unittest.TestCase):
    cls = DEQNNGPKernel


class TestDEQNNGPErf(Conformance, unittest.TestCase):
    cls, activation = DEQNNGPKernel, "erf"


class TestDEQNTK(Conformance, unittest.TestCase):
    cls = DEQNTKKernel


class TestDEQNTKErf(Conformance, unittest.TestCase):
    cls, activation = DEQNTKKernel, "erf"


class TestNNGP(Conformance, unittest.TestCase):
    cls = NNGPKernel


class TestNTK(Conformance, unittest.TestCase):
    cls = NTKKernel


# ------------------------------------------------------------------------------------------
# Helpers
# ------------------------------------------------------------------------------------------


def points(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def spread(kernel: Kernel, seed: int = 1) -> Kernel:
    """Gives each entry of each hyperparameter a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in kernel.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = parameter.data + 0.7 * noise.to(parameter)
    return kernel


def build(cls: type[Kernel], activation: object = "relu", **kwargs) -> Kernel:
    return spread(cls(activation, **kwargs).double())


def dense(kernel: Kernel, x: Tensor, y: Tensor | None = None) -> Tensor:
    return kernel(x, y).to_dense().detach()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def centers(dims: int) -> Tensor:
    return torch.linspace(-0.5, 0.8, dims, dtype=torch.float64)


# ------------------------------------------------------------------------------------------
# Indexing and expanding, with active_dims and a center for each dimension
# ------------------------------------------------------------------------------------------


@every_class
@relu_and_erf
def test_getitem_with_active_dims_and_center(cls: type[Kernel], activation: str) -> None:
    x = points(3, 2, 5, 4)
    active = [3, 1]
    kernel = build(
        cls,
        activation,
        ard_num_dims=2,
        batch_shape=Size([3, 2]),
        active_dims=active,
        center=centers(2),
    )
    whole = dense(kernel, x)
    for i, j in itertools.product(range(3), range(2)):
        part = kernel[i, j]
        assert part.batch_shape == Size([])
        assert part.active_dims.tolist() == active
        assert part.center.shape == Size([1, 2])
        assert part.raw_lengthscale.shape == Size([1, 2])
        close(dense(part, x[i, j]), whole[i, j])
    close(dense(kernel[1], x[1]), whole[1])
    close(dense(kernel[1:, 0], x[1:, 0]), whole[1:, 0])
    assert kernel.active_dims.tolist() == active  # the original is as before
    close(dense(kernel, x), whole)


@any_class
def test_expand_batch_with_active_dims_and_center(cls: type[Kernel]) -> None:
    x = points(3, 2, 5, 4)
    kernel = build(
        cls, ard_num_dims=3, batch_shape=Size([2]), active_dims=[0, 2, 3], center=centers(3)
    )
    before = dense(kernel, x)
    expanded = kernel.expand_batch(Size([3, 2]))
    assert expanded.batch_shape == Size([3, 2])
    assert expanded.raw_lengthscale.shape == Size([3, 2, 1, 3])
    assert expanded.center.shape == Size([3, 2, 1, 3])
    assert expanded.active_dims.tolist() == [0, 2, 3]
    close(dense(expanded, x), before)
    close(dense(expanded[2, 1], x[2, 1]), before[2, 1])
    assert kernel.batch_shape == Size([2])
    close(dense(kernel.expand_batch(3, 2), x), before)


@any_class
def test_lazy_kernel_is_indexed_by_batch_and_by_row(cls: type[Kernel]) -> None:
    x = points(2, 6, 3)
    kernel = build(
        cls, batch_shape=Size([2]), ard_num_dims=2, active_dims=[2, 0], center=centers(2)
    )
    whole = dense(kernel, x)
    close(kernel(x)[0].to_dense().detach(), whole[0])
    close(kernel(x)[1, :4, 2:].to_dense().detach(), whole[1, :4, 2:])
    close(kernel(x)[..., 1:3, :].to_dense().detach(), whole[..., 1:3, :])
    close(kernel(x)[:, 2, 3].detach(), whole[:, 2, 3])
    close(kernel(x).diagonal(dim1=-1, dim2=-2).detach(), whole.diagonal(dim1=-1, dim2=-2))
    close(kernel(x).mT.to_dense().detach(), whole.mT)


@any_class
@pytest.mark.parametrize("active", [[1], torch.tensor([2, 0]), (0, 1, 3)], ids=str)
def test_active_dims_select_what_center_and_lengthscale_count(
    cls: type[Kernel], active: object
) -> None:
    x = points(6, 4)
    chosen = torch.as_tensor(active)
    dims = len(chosen)
    kernel = build(cls, ard_num_dims=dims, active_dims=active, center=centers(dims))
    plain = build(cls, ard_num_dims=dims, center=centers(dims))
    assert torch.equal(dense(kernel, x), dense(plain, x[:, chosen]))


# ------------------------------------------------------------------------------------------
# Batches
# ------------------------------------------------------------------------------------------

SHAPES = [((), (3,)), ((3,), ()), ((3,), (3,)), ((2, 1), (3,)), ((3,), (2, 1)), ((2, 1), (1, 3))]


@every_class
@relu_and_erf
@pytest.mark.parametrize("kernel_batch, input_batch", SHAPES, ids=str)
def test_batches_broadcast_as_a_loop(
    cls: type[Kernel], activation: str, kernel_batch: tuple, input_batch: tuple
) -> None:
    """Batches of inputs against batches of hyperparameters, in both orders and both mixed."""
    kernel = build(cls, activation, ard_num_dims=2, batch_shape=Size(kernel_batch), center=0.3)
    x1, x2 = points(*input_batch, 4, 2), points(*input_batch, 3, 2, seed=5)
    batch = torch.broadcast_shapes(kernel_batch, input_batch)
    # forward is what ScaleKernel and others call
    full, square = kernel.forward(x1, x2), kernel.forward(x1, x1)
    diagonal = kernel.forward(x1, x1, diag=True)
    pairs = kernel.forward(x1[..., :3, :], x2, diag=True)
    assert full.shape == (*batch, 4, 3)
    assert diagonal.shape == (*batch, 4) and pairs.shape == (*batch, 3)
    big = kernel if kernel.batch_shape == batch else kernel.expand_batch(batch)
    x1, x2 = x1.expand(*batch, 4, 2), x2.expand(*batch, 3, 2)
    for index in itertools.product(*(range(size) for size in batch)):
        one = big[index]
        close(full[index], one.forward(x1[index], x2[index]))
        expected = one.forward(x1[index], x1[index])
        close(square[index], expected)
        close(diagonal[index], expected.diagonal())
        close(pairs[index], full[index].diagonal())
    close(kernel(x1, x2).to_dense(), full)


@any_class
def test_batches_of_only_one_input_broadcast(cls: type[Kernel]) -> None:
    """As an acquisition function calls it: candidates in batches, training inputs once."""
    kernel = build(cls)
    x1, x2 = points(5, 2, 3), points(4, 3, seed=2)
    full = kernel.forward(x1, x2)
    assert full.shape == (5, 2, 4)
    close(full, torch.stack([kernel.forward(x, x2) for x in x1]))
    close(kernel.forward(x2, x1), full.mT)


@every_class
@pytest.mark.parametrize("activation", ["relu", "erf", Hermite(torch.tanh, 12)], ids=str)
@pytest.mark.parametrize(
    "first, second, expected",
    [
        ((0, 2), (3, 2), (0, 3)),
        ((3, 2), (0, 2), (3, 0)),
        ((0, 2), (0, 2), (0, 0)),
        ((1, 2), (1, 2), (1, 1)),
        ((1, 2), (5, 2), (1, 5)),
        ((5, 2), (1, 2), (5, 1)),
        ((0, 4, 2), (0, 3, 2), (0, 4, 3)),
        ((2, 0, 4, 2), (2, 0, 4, 2), (2, 0, 4, 4)),
        ((2, 0, 2), (2, 3, 2), (2, 0, 3)),
    ],
    ids=str,
)
def test_empty_and_single(
    cls: type[Kernel], activation: object, first: tuple, second: tuple, expected: tuple
) -> None:
    kernel = build(cls, activation)
    x1, x2 = points(*first).requires_grad_(), points(*second, seed=3).requires_grad_()
    value = kernel.forward(x1, x2)
    assert value.shape == expected and value.dtype == torch.float64
    assert kernel.solver_report.converged
    value.sum().backward()
    for tensor in (x1, x2, *kernel.parameters()):
        assert tensor.grad is not None and tensor.grad.shape == tensor.shape
        assert bool(tensor.grad.isfinite().all())
    if first[:-1] == second[:-1]:
        assert kernel.forward(x1, x2, diag=True).shape == first[:-1]


@every_class
def test_single_input_is_an_entry_of_the_matrix(cls: type[Kernel]) -> None:
    kernel, x = build(cls, "erf"), points(6, 2)
    whole = dense(kernel, x)
    close(dense(kernel, x[2:3], x[4:5]), whole[2:3, 4:5])
    close(dense(kernel, x[2:3]), whole[2:3, 2:3])
    close(dense(kernel, x[:1], x), whole[:1])


@every_class
@relu_and_erf
def test_one_dimensional_inputs_may_be_vectors(cls: type[Kernel], activation: str) -> None:
    kernel, x = build(cls, activation), points(5)
    assert torch.equal(dense(kernel, x), dense(kernel, x.unsqueeze(-1)))


# ------------------------------------------------------------------------------------------
# Diagonals and symmetry
# ------------------------------------------------------------------------------------------


@every_class
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "erf", "sin", "gelu", "tanh"])
def test_diagonals(cls: type[Kernel], activation: str) -> None:
    """diag=True pairs x1 with x2, and equals the matrix's diagonal to a few eps."""
    kernel = build(cls, activation)
    x1, x2 = points(7, 3), points(7, 3, seed=4)
    square = dense(kernel, x1)
    diagonal = kernel(x1, diag=True).detach()
    torch.testing.assert_close(diagonal, square.diagonal(), rtol=2e-14, atol=0.0)
    pairs = kernel(x1, x2, diag=True).detach()
    scale = (square.diagonal() * dense(kernel, x2).diagonal()).sqrt()
    error = (pairs - dense(kernel, x1, x2).diagonal()).abs()
    assert bool((error <= 1e-13 * scale).all())
    assert bool((pairs - diagonal).abs().max() > 1e-2)  # x2 is not ignored


@every_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "erf", "sin", "gelu", "tanh"])
def test_symmetric_to_the_bit(cls: type[Kernel], activation: str, dtype: torch.dtype) -> None:
    for n in (3, 11, 61, 300):
        x = points(n, 3, seed=n, dtype=dtype)
        kernel = cls(activation).to(dtype)
        matrix = dense(kernel, x)
        assert torch.equal(matrix, matrix.mT), n
        batch = dense(kernel, torch.stack((x, 2 * x))) if n < 100 else matrix
        assert torch.equal(batch, batch.mT), n


@every_class
def test_a_copy_of_the_inputs_changes_rounding_only(cls: type[Kernel]) -> None:
    kernel, x = build(cls, "erf"), points(300, 2)
    same = dense(kernel, x)
    shifted = dense(kernel, torch.cat((x, x[:1])), x)[:-1]
    close(same, shifted, 1e-12)


# ------------------------------------------------------------------------------------------
# Saving and copying
# ------------------------------------------------------------------------------------------

ACTIVATION_ARGUMENTS = ["relu", "tanh", Erf(), LeakyReLU(0.2), Hermite(torch.tanh, 16), torch.tanh]


def with_priors(cls: type[Kernel], activation: object = "relu", **kwargs) -> Kernel:
    return cls(
        activation,
        lengthscale_prior=LogNormalPrior(0.0, 1.0),
        weight_variance_prior=UniformPrior(0.05, 0.7),
        bias_variance_prior=GammaPrior(2.0, 3.0),
        **kwargs,
    ).double()


@every_class
@pytest.mark.parametrize(
    "activation", ACTIVATION_ARGUMENTS, ids=["name", "series", "Erf", "LeakyReLU", "Hermite", "fn"]
)
def test_pickle_and_deepcopy(cls: type[Kernel], activation: object) -> None:
    kernel = ScaleKernel(spread(with_priors(cls, activation, ard_num_dims=2, center=0.25))).double()
    x = points(4, 2).requires_grad_()
    before = kernel(x).to_dense()
    before.sum().backward()
    for copied in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert torch.equal(dense(copied, x.detach()), before.detach())
        assert isinstance(copied.base_kernel.activation, Activation)
        names = [name for name, *_ in copied.base_kernel.named_priors()]
        assert names == [name for name, *_ in kernel.base_kernel.named_priors()]
        assert len(names) == 3
        for _, module, prior, closure, setter in copied.base_kernel.named_priors():
            assert closure(module) is not None
            setter(module, prior.mean.reshape(1, 1))
        changed = dense(copied, x.detach())
        assert not torch.allclose(changed, before.detach())
        assert torch.equal(dense(kernel, x.detach()), before.detach())


@every_class
def test_state_dict_round_trip(cls: type[Kernel]) -> None:
    x = points(5, 3)
    kernel = build(cls, ard_num_dims=2, active_dims=[0, 2], center=centers(2))
    buffer = io.BytesIO()
    torch.save(kernel.state_dict(), buffer)
    buffer.seek(0)
    other = cls(ard_num_dims=2, active_dims=[1, 2], center=0.1 * centers(2)).double()
    assert not torch.allclose(dense(other, x), dense(kernel, x))
    other.load_state_dict(torch.load(buffer))
    assert torch.equal(dense(other, x), dense(kernel, x))
    keys = set(kernel.state_dict())
    dense(kernel, x)
    assert set(kernel.state_dict()) == keys
    assert {key for key in keys if key.startswith("raw_")} >= {
        f"raw_{name}" for name in HYPERPARAMETERS
    }


@every_class
@pytest.mark.parametrize("activation", ["relu", "erf", Hermite(torch.tanh, 16)], ids=repr)
def test_no_graph_is_kept(cls: type[Kernel], activation: object) -> None:
    """After forward and backward, nothing that hangs on the kernel has a graph or is a solution."""
    kernel = build(cls, activation)
    size = len(pickle.dumps(kernel))
    x = points(40, 2).requires_grad_()
    kernel(x).to_dense().square().sum().backward()

    def tensors(value: object, depth: int = 0) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        if depth > 4:
            return []
        if isinstance(value, dict):
            return [t for v in value.values() for t in tensors(v, depth + 1)]
        if isinstance(value, (list, tuple, set)):
            return [t for v in value for t in tensors(v, depth + 1)]
        return tensors(vars(value), depth + 1) if hasattr(value, "__dict__") else []

    for module in (kernel, kernel.activation):
        for tensor in tensors(vars(module)):
            assert tensor.grad_fn is None
            assert tensor.numel() < 40
    copy.deepcopy(kernel)
    kernel.zero_grad(set_to_none=True)
    assert len(pickle.dumps(kernel)) <= size + 256


@any_class
def test_deepcopy_after_an_evaluation_with_a_graph(cls: type[Kernel]) -> None:
    kernel, x = build(cls), points(4, 2)
    value = kernel(x).to_dense()
    copied = copy.deepcopy(kernel)
    value.sum().backward()  # the graph is alive still
    assert torch.equal(dense(copied, x), value.detach())
    assert all(parameter.grad is None for parameter in copied.parameters())


# ------------------------------------------------------------------------------------------
# Precision
# ------------------------------------------------------------------------------------------


@every_class
@pytest.mark.parametrize("activation", ["relu", "erf", "tanh"])
def test_dtype_moves(cls: type[Kernel], activation: str) -> None:
    x = points(6, 2)
    kernel = cls(activation, ard_num_dims=2, center=0.25)
    assert kernel.dtype == torch.float32
    narrow = dense(kernel, x.float())
    assert narrow.dtype == torch.float32
    wide = dense(kernel.double(), x)
    assert wide.dtype == torch.float64 and kernel.dtype == torch.float64
    torch.testing.assert_close(narrow.double(), wide, rtol=2e-4, atol=1e-5)
    again = dense(kernel.float(), x.float())
    assert again.dtype == torch.float32
    assert torch.equal(again, narrow)
    kernel.double()
    kernel(x).to_dense().sum().backward()
    assert all(parameter.grad.dtype == torch.float64 for parameter in kernel.parameters())


@any_class
def test_center_keeps_its_digits(cls: type[Kernel]) -> None:
    """0.1 in double precision, although the kernel is made in single."""
    kernel = cls(center=0.1).double()
    x = points(3, 1)
    plain = cls().double()
    assert torch.equal(dense(kernel, x), dense(plain, x - 0.1))


# ------------------------------------------------------------------------------------------
# Hyperparameters and priors
# ------------------------------------------------------------------------------------------


@every_class
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_hyperparameters(cls: type[Kernel], batch: tuple) -> None:
    kernel = cls(batch_shape=Size(batch)).double()
    for name in ("weight_variance", "bias_variance"):
        raw = getattr(kernel, f"raw_{name}")
        assert isinstance(raw, torch.nn.Parameter) and raw.shape == (*batch, 1, 1)
        assert getattr(kernel, name).shape == (*batch, 1, 1)
        assert isinstance(kernel.constraint_for_parameter_name(f"raw_{name}"), Interval)
        for value in (0.7, torch.tensor(0.6), 0.1 + torch.rand(*batch, 1, 1) / 2):
            setattr(kernel, name, value)
            expected = torch.as_tensor(value).double().expand(*batch, 1, 1)
            torch.testing.assert_close(getattr(kernel, name), expected, rtol=1e-7, atol=0.0)
            kernel.initialize(**{name: value})
            torch.testing.assert_close(getattr(kernel, name), expected, rtol=1e-7, atol=0.0)
    assert kernel.has_lengthscale and not kernel.is_stationary
    assert not ScaleKernel(kernel).is_stationary


@pytest.mark.parametrize("cls", EQUILIBRIUM)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "erf", "sin", "gelu", "tanh"])
def test_weight_variance_starts_inside_its_region(cls: type[Kernel], activation: str) -> None:
    kernel = cls(activation)
    critical = kernel.activation.critical_weight_variance
    assert 0 < kernel.weight_variance.item() < critical
    torch.testing.assert_close(kernel.weight_variance.item(), critical / 2, rtol=1e-5, atol=0.0)
    kernel.weight_variance = 0.999 * critical
    assert abs(kernel.weight_variance.item() / critical - 0.999) < 1e-6


@every_class
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_priors(cls: type[Kernel], batch: tuple) -> None:
    torch.manual_seed(0)
    kernel = with_priors(cls, batch_shape=Size(batch))
    priors = {name: (module, prior) for name, module, prior, _, _ in kernel.named_priors()}
    assert set(priors) == {f"{name}_prior" for name in HYPERPARAMETERS}
    for name in HYPERPARAMETERS:
        before = getattr(kernel, name).detach().clone()
        kernel.sample_from_prior(f"{name}_prior")
        after = getattr(kernel, name).detach()
        assert after.shape == before.shape
        assert not torch.equal(after, before)
    for _, module, prior, closure, setter in kernel.named_priors():
        assert module is kernel
        value = prior.mean.expand(*batch, 1, 1).double()
        setter(kernel, value)
        torch.testing.assert_close(closure(kernel), value, rtol=1e-6, atol=0.0)
        assert bool(prior.log_prob(closure(kernel)).isfinite().all())


@every_class
def test_priors_enter_the_marginal_likelihood(cls: type[Kernel]) -> None:
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x, y = points(8, 2), points(8)

    def loss(kernel: Kernel) -> Tensor:
        class Model(gpytorch.models.ExactGP):
            def __init__(self) -> None:
                super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
                self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel

            def forward(self, inputs: Tensor) -> gpytorch.distributions.MultivariateNormal:
                return gpytorch.distributions.MultivariateNormal(
                    self.mean_module(inputs), self.covar_module(inputs)
                )

        model = Model().double()
        return ExactMarginalLogLikelihood(model.likelihood, model)(model(x), y)

    kernel, plain = with_priors(cls), cls().double()
    kernel.weight_variance = plain.weight_variance = 0.5
    expected = sum(
        prior.log_prob(closure(module)).sum()
        for _, module, prior, closure, _ in kernel.named_priors()
    )
    torch.testing.assert_close(loss(kernel) - loss(plain), expected / 8)


@every_class
@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_constraints_are_used(cls: type[Kernel], name: str) -> None:
    kernel = cls(**{f"{name}_constraint": Interval(0.2, 0.4)}).double()
    for raw in (-50.0, 0.0, 50.0):
        kernel.initialize(**{f"raw_{name}": torch.tensor(raw)})
        assert 0.2 - 1e-7 <= getattr(kernel, name).item() <= 0.4 + 1e-7
    kernel.initialize(**{f"raw_{name}": torch.tensor(0.0)})
    torch.testing.assert_close(getattr(kernel, name).item(), 0.3, rtol=1e-6, atol=0.0)


@every_class
@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_all_kernels_can_be_frozen(cls: type[Kernel], name: str) -> None:
    """A parameter without gradient gets none, the others keep theirs."""
    kernel, x = build(cls), points(4, 2)
    free = {other: dict(kernel.named_parameters())[f"raw_{other}"] for other in HYPERPARAMETERS}
    kernel(x).to_dense().square().sum().backward()
    expected = {other: raw.grad.clone() for other, raw in free.items()}
    kernel.zero_grad(set_to_none=True)
    free[name].requires_grad_(False)
    kernel(x).to_dense().square().sum().backward()
    for other, raw in free.items():
        if other == name:
            assert raw.grad is None
        else:
            close(raw.grad, expected[other])


# ------------------------------------------------------------------------------------------
# Report, composition
# ------------------------------------------------------------------------------------------


@every_class
def test_solver_report(cls: type[Kernel]) -> None:
    kernel = build(cls, "erf")
    assert kernel.solver_report.iterations == 0
    dense(kernel, points(5, 2))
    report = kernel.solver_report
    assert report.converged is True
    assert isinstance(report.iterations, int) and isinstance(report.residual, float)
    assert 0 <= report.residual < 1e-8
    assert (report.iterations > 0) == (cls in EQUILIBRIUM)


@any_class
def test_scale_kernel_and_forward_agree(cls: type[Kernel]) -> None:
    """ScaleKernel calls forward directly, which therefore centres and validates."""
    base = build(cls, center=0.4, ard_num_dims=2, active_dims=[1, 0])
    scaled = ScaleKernel(base).double()
    scaled.outputscale = 2.5
    x, y = points(4, 2), points(3, 2, seed=8)
    close(dense(scaled, x, y), 2.5 * dense(base, x[:, [0, 1]], y[:, [0, 1]]), 1e-6)
    close(scaled(x, diag=True).detach(), dense(scaled, x).diagonal())
    with pytest.raises(ValueError, match="NaN or infinite"):
        dense(scaled, x * float("nan"))


@any_class
@pytest.mark.parametrize("combine", ["sum", "product"])
def test_sums_and_products(cls: type[Kernel], combine: str) -> None:
    x = points(5, 3)
    first, second = build(cls, active_dims=[0, 1]), gpytorch.kernels.RBFKernel(active_dims=[2])
    second = second.double()
    both = first + second if combine == "sum" else first * second
    a, b = dense(first, x), dense(second, x)
    close(dense(both, x), a + b if combine == "sum" else a * b)
    close(both(x, diag=True).detach(), dense(both, x).diagonal())
    both(x).to_dense().sum().backward()
    assert all(parameter.grad is not None for parameter in both.parameters())
