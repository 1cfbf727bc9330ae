"""Networks over a base kernel: values, derivatives, limits, and every kind of base."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from botorch.models.kernels import CategoricalKernel
from gpytorch.kernels import (
    CosineKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    PolynomialKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from gpytorch.priors import GammaPrior
from oracles import ACTIVATIONS, Injected, deq, finite, mp
from torch import Size, Tensor

from gp_deq import DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel
from gp_deq.activations import PairCovariance
from gp_deq.equilibrium import SolverMonitor
from gp_deq.kernels import EquilibriumKernel, WeightedKernel, over_base

NAMES = ["relu", "leaky_relu", "erf", "sin", "gelu", "tanh", "sigmoid", "silu", "softplus", "elu"]
CLASSES = [DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel]
every_class = pytest.mark.parametrize("cls", CLASSES)

STATIONARY: dict[str, Callable[[], Kernel]] = {
    "rbf": lambda: ScaleKernel(RBFKernel(ard_num_dims=3)),
    "matern-1/2": lambda: MaternKernel(0.5),
    "matern-3/2": lambda: MaternKernel(1.5, ard_num_dims=3),
    "matern-5/2": lambda: ScaleKernel(ScaleKernel(MaternKernel(2.5))),
}
OTHERS: dict[str, Callable[[], Kernel]] = {
    "sum": lambda: RBFKernel() + ScaleKernel(MaternKernel(2.5, ard_num_dims=3)),
    "product": lambda: RBFKernel(active_dims=[0]) * MaternKernel(1.5, active_dims=[1, 2]),
    "rq": RQKernel,
    "periodic": PeriodicKernel,
    "cosine": lambda: CosineKernel(active_dims=[1]),
    "linear": lambda: LinearKernel(ard_num_dims=3),
    "polynomial": lambda: PolynomialKernel(power=2),
    "linear and matern": lambda: LinearKernel() + MaternKernel(2.5),
    "categorical": lambda: (
        CategoricalKernel(active_dims=[0], ard_num_dims=1) * MaternKernel(2.5, active_dims=[1, 2])
    ),
    "another network": lambda: DEQNNGPKernel("erf"),
}
BASES = STATIONARY | OTHERS
every_base = pytest.mark.parametrize("base", BASES)


def inputs(n: int = 15, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    # a few categories, and a pair that coincides
    x[:, 0] = x[:, 0].round()
    x[1] = x[0]
    return x


def made(cls: type[WeightedKernel], activation: str, base: Kernel, **kwargs: Any) -> WeightedKernel:
    """In double precision, with a weight variance of 0.9 of the critical one."""
    kernel = cls(activation, base_kernel=base, **kwargs).double()
    kernel.weight_variance = 0.9 * kernel.activation.critical_weight_variance
    kernel.bias_variance = 0.3
    return kernel


def by_definition(kernel: WeightedKernel, x1: Tensor, x2: Tensor) -> Tensor:
    """The kernel of the injected covariance, formed as the definition says."""
    base, bias = kernel.base_kernel, kernel.bias_variance
    var1, var2 = base(x1, diag=True).unsqueeze(-1), base(x2, diag=True).unsqueeze(-2)
    sqdist = (var1 + var2 - 2 * base(x1, x2).to_dense()).clamp_min(0.0)
    sqdist = sqdist.masked_fill(torch.cdist(x1, x2) == 0, 0.0)
    pair = PairCovariance.from_distance(var1 + bias, var2 + bias, sqdist)
    return kernel._pair(pair, SolverMonitor(), kernel.weight_variance, bias)


@pytest.fixture
def always_a_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a few pairs, and where angles would do."""
    monkeypatch.setattr(over_base, "FEWEST_PAIRS", 1)
    monkeypatch.setattr(over_base, "MOST_ANGLES", 0)


@pytest.mark.parametrize("share", [0.1, 0.9, 0.99])
@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("series", [False, True])
def test_values_of_many_digits(
    activation: str, share: float, series: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 eps/(1 - w/critical) of the variance, at correlations from 1 - 1e-12 to zero."""
    if series:
        monkeypatch.setattr(over_base, "MOST_ANGLES", 0)
    x = torch.cat((torch.zeros(1), torch.logspace(-6, 1, 119))).double().unsqueeze(-1)
    # the length of a double, as the oracle sees it
    for cls, trained in ((DEQNNGPKernel, None), (DEQNTKKernel, "all")):
        kernel = made(cls, activation, RBFKernel())
        kernel.base_kernel.lengthscale = 1.0
        kernel.weight_variance = share * kernel.activation.critical_weight_variance
        length = mp.mpf(kernel.base_kernel.lengthscale.item())
        w, beta = kernel.weight_variance.item(), mp.mpf(kernel.bias_variance.item())
        values = kernel(x).to_dense()[0]
        scale = values[0].item()
        for index in (0, 1, 17, 34, 60, 90, 105, 119):
            rho = mp.exp(-((mp.mpf(x[index].item()) / length) ** 2) / 2)
            expected = deq(
                ACTIVATIONS[activation], w, Injected(1 + beta, 1 + beta, rho + beta), trained
            )
            bound = 64 * torch.finfo(torch.float64).eps / (1 - share) * scale
            assert abs(values[index].item() - float(expected)) <= bound, (cls, index)


@pytest.mark.parametrize("injection", [False, True])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_finite_depth_of_many_digits(activation: str, injection: bool) -> None:
    x = torch.linspace(0, 3, 120, dtype=torch.float64).unsqueeze(-1)
    for cls, trained in ((NNGPKernel, None), (NTKKernel, "all")):
        kernel = made(cls, activation, MaternKernel(2.5), depth=3, input_injection=injection)
        w, bias = kernel.weight_variance.item(), kernel.bias_variance.item()
        values = kernel(x).to_dense()[0]
        for index in (0, 1, 40, 119):
            r = mp.sqrt(5) * mp.mpf(x[index].item()) / mp.mpf(kernel.base_kernel.lengthscale.item())
            rho = (1 + r + r**2 / 3) * mp.exp(-r)
            expected = finite(
                ACTIVATIONS[activation],
                w,
                Injected(mp.mpf(1), mp.mpf(1), rho),
                bias,
                3,
                injection,
                trained,
            )
            bound = 64 * torch.finfo(torch.float64).eps * values[0].item()
            assert abs(values[index].item() - float(expected)) <= bound


@every_class
@pytest.mark.parametrize("activation", NAMES)
def test_series_equals_the_definition(
    cls: type[WeightedKernel], activation: str, always_a_series: None
) -> None:
    """Over a base whose correlations go down to -1; the cosine's own rounding is the larger."""
    x = inputs()
    kernel = made(cls, activation, CosineKernel(active_dims=[1]))
    value = kernel(x).to_dense()
    expected = by_definition(kernel, x, x)
    # by difference, coincident inputs have rounding for a distance: a root of it for a cusp
    cusp = kernel.uses_slope and kernel.activation.homogeneous
    bound = 1e-6 if cusp else 1e-12
    assert (value - expected).abs().max() <= bound * expected.diagonal().mean()
    assert kernel.solver_report.method == "series" and kernel.solver_report.converged


@every_class
@every_base
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_every_base(cls: type[WeightedKernel], base: str, activation: str) -> None:
    kernel = made(cls, activation, BASES[base]())
    x = inputs()
    value = kernel(x).to_dense()
    expected = by_definition(kernel, x, x)
    cusp = kernel.uses_slope and kernel.activation.homogeneous
    assert (value - expected).abs().max() <= (1e-5 if cusp else 1e-11) * expected.diagonal().mean()
    assert torch.equal(value, value.mT)
    torch.testing.assert_close(kernel(x, diag=True), value.diagonal(), rtol=1e-10, atol=1e-12)
    assert torch.linalg.eigvalsh(value).min() >= -1e-10 * value.diagonal().mean()
    other = inputs(7, seed=1)
    cross = kernel(x, other).to_dense()
    torch.testing.assert_close(
        kernel(x[:7], other, diag=True), cross[:7].diagonal(), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("trained", ["all", "hidden", "recurrent", "preactivation"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_every_part_trained(trained: str, activation: str) -> None:
    x = inputs()
    kernel = made(DEQNTKKernel, activation, MaternKernel(2.5), trained=trained)
    expected = by_definition(kernel, x[1:], x[1:])
    error = (kernel(x[1:]).to_dense() - expected).abs().max()
    assert error <= 1e-6 * expected.diagonal().mean()


def gradients(kernel: Kernel, x1: Tensor, x2: Tensor, upstream: Tensor) -> list[Tensor]:
    x1, x2 = x1.clone().requires_grad_(), x2.clone().requires_grad_()
    value = (kernel(x1, x2).to_dense() * upstream).sum()
    parameters = [p for p in kernel.parameters() if p.requires_grad]
    return list(
        torch.autograd.grad(value, [x1, x2, *parameters], allow_unused=True, materialize_grads=True)
    )


@every_class
@every_base
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_gradients_of_the_series_are_those_of_the_general_path(
    cls: type[WeightedKernel], base: str, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the accuracy of the derivatives' series, 1e-12 over the square of 1 - w/critical."""
    kernel = made(cls, activation, BASES[base]())
    x1, x2 = inputs(), inputs(12, seed=1)
    upstream = torch.randn(15, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(over_base, "MOST_ANGLES", 0)
    monkeypatch.setattr(over_base, "FEWEST_PAIRS", 1)
    found = gradients(kernel, x1, x2, upstream)
    monkeypatch.setattr(over_base, "FEWEST_PAIRS", 10**9)
    expected = gradients(kernel, x1, x2, upstream)
    for ours, theirs in zip(found, expected, strict=True):
        assert bool(ours.isfinite().all())
        assert (ours - theirs).abs().max() <= 1e-8 * (theirs.abs().max() + 1e-2)


def test_gradients_by_angles_are_those_of_the_general_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cls in (DEQNNGPKernel, DEQNTKKernel):
        kernel = made(cls, "leaky_relu", ScaleKernel(MaternKernel(2.5, ard_num_dims=3)))
        upstream = torch.randn(15, 12, dtype=torch.float64)
        given = kernel, inputs(), inputs(12, seed=1), upstream
        found = gradients(*given)
        assert kernel.solver_report.method == "pairs"
        monkeypatch.setattr(over_base, "MOST_ANGLES", 0)
        monkeypatch.setattr(over_base, "FEWEST_PAIRS", 10**9)
        for ours, theirs in zip(found, gradients(*given), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
        monkeypatch.undo()


def test_a_variance_that_is_constant_at_these_inputs_alone(always_a_series: None) -> None:
    """A linear kernel on the unit circle: its derivatives by one input's variance are no sum."""
    angle = torch.linspace(0, 2, 9, dtype=torch.float64)
    x = torch.stack((angle.cos(), angle.sin()), -1)
    kernel = made(DEQNNGPKernel, "erf", LinearKernel(ard_num_dims=2))
    upstream = torch.randn(9, 9, dtype=torch.float64)
    found = gradients(kernel, x, x, upstream)
    assert kernel.solver_report.method == "series"
    affine = DEQNNGPKernel("erf", ard_num_dims=2).double()
    affine.lengthscale = (2 * kernel.base_kernel.variance.detach()).rsqrt()
    affine.weight_variance, affine.bias_variance = kernel.weight_variance.item(), 0.3
    expected = gradients(affine, x, x, upstream)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "cls, base",
    [
        (DEQNNGPKernel, "rbf"),
        (DEQNNGPKernel, "linear"),
        (DEQNNGPKernel, "product"),
        (NTKKernel, "matern-5/2"),
        (NTKKernel, "sum"),
    ],
)
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_second_derivatives(
    cls: type[WeightedKernel], activation: str, base: str, always_a_series: None
) -> None:
    kernel = made(cls, activation, BASES[base]())
    x1 = inputs(4)[2:].requires_grad_()
    x2 = inputs(4, seed=1)[2:].requires_grad_()
    names = [name for name, _ in kernel.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in kernel.parameters()]

    def function(x1: Tensor, x2: Tensor, *values: Tensor) -> Tensor:
        with gpytorch.settings.lazily_evaluate_kernels(False):
            given = dict(zip(names, values, strict=True))
            return torch.func.functional_call(kernel, given, (x1, x2)).to_dense()

    # the general path alone is exact enough for differences; the series' accuracy is tested above
    assert torch.autograd.gradcheck(function, (x1, x2, *values), atol=1e-5)
    assert torch.autograd.gradgradcheck(function, (x1, x2, *values), atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_no_weights_leave_one_layer_over_the_base(activation: str) -> None:
    x = inputs()
    kernel = made(DEQNNGPKernel, activation, MaternKernel(2.5))
    kernel.weight_variance = 1e-12
    layer = NNGPKernel(activation, depth=1, base_kernel=kernel.base_kernel).double()
    layer.bias_variance = 0.3
    torch.testing.assert_close(kernel(x).to_dense(), layer(x).to_dense(), rtol=1e-10, atol=1e-11)
    b = kernel.base_kernel(x).to_dense() + 0.3
    if activation == "erf":
        closed = 2 / math.pi * torch.asin(2 * b / (1 + 2 * 1.3))
    else:
        cos = (b / 1.3).clamp(-1, 1)
        theta = cos.acos()
        closed = 1.3 / (2 * math.pi) * (theta.sin() + (math.pi - theta) * cos)
    torch.testing.assert_close(layer(x).to_dense(), closed, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("activation", ["relu", "erf", "tanh"])
@pytest.mark.parametrize("classes", [(NNGPKernel, DEQNNGPKernel), (NTKKernel, DEQNTKKernel)])
def test_great_depth_is_the_equilibrium(
    activation: str, classes: tuple[type[WeightedKernel], type[WeightedKernel]]
) -> None:
    x, (shallow, deep) = inputs(), classes
    base = ScaleKernel(MaternKernel(2.5))
    finite_depth = made(shallow, activation, base, depth=60, input_injection=True)
    equilibrium = made(deep, activation, base)
    for kernel in (finite_depth, equilibrium):
        kernel.weight_variance = 0.5 * kernel.activation.critical_weight_variance
    torch.testing.assert_close(
        finite_depth(x).to_dense(), equilibrium(x).to_dense(), rtol=1e-9, atol=1e-10
    )


@every_class
@pytest.mark.parametrize("activation", ["relu", "erf", "tanh"])
def test_an_affine_base_gives_the_kernel_without_one(
    cls: type[WeightedKernel], activation: str
) -> None:
    x = inputs()
    kernel = made(cls, activation, LinearKernel(ard_num_dims=3))
    kernel.base_kernel.variance = torch.tensor([[0.3, 1.7, 0.6]])
    affine = cls(activation, ard_num_dims=3).double()
    affine.lengthscale = (3 * kernel.base_kernel.variance.detach()).rsqrt()
    affine.weight_variance = kernel.weight_variance.item()
    affine.bias_variance = kernel.bias_variance.item()
    expected = affine(x).to_dense()
    error = (kernel(x).to_dense() - expected).abs().max()
    assert error <= 64 * torch.finfo(torch.float64).eps / 0.1 * expected.diagonal().max()


@every_class
def test_stationary_over_a_stationary_base(cls: type[WeightedKernel]) -> None:
    x = inputs()
    kernel = made(cls, "erf", MaternKernel(2.5))
    assert kernel.is_stationary and not kernel.has_lengthscale
    assert not made(cls, "erf", LinearKernel()).is_stationary
    assert not cls("erf").is_stationary
    torch.testing.assert_close(kernel(x + 7.0).to_dense(), kernel(x).to_dense())
    variances = kernel(x, diag=True)
    assert (variances - variances[0]).abs().max() <= 1e-14


def correlation(base: Kernel, distance: float) -> Any:
    """That of a kernel of one input at lengthscale one, with many digits."""
    r = mp.mpf(distance)
    if isinstance(base, RBFKernel):
        return mp.exp(-(r**2) / 2)
    a = mp.sqrt(2 * mp.mpf(base.nu)) * r
    return mp.exp(-a) * {0.5: 1, 1.5: 1 + a, 2.5: 1 + a + a**2 / 3}[base.nu]


@pytest.mark.parametrize("distance", [1e-9, 1e-6, 1e-3, 0.1, 1.0])
def test_squared_distances_keep_their_digits(distance: float) -> None:
    """To a few roundings for RBF and Matern-1/2; for the others, 1 - rho to a rounding of a.

    There a is the scaled distance, while 1 - rho is at least a^2/12 below a = 1.
    """
    epsilon = torch.finfo(torch.float64).eps
    x = torch.tensor([[0.0], [distance]], dtype=torch.float64)
    for base in (RBFKernel(), MaternKernel(0.5), MaternKernel(1.5), MaternKernel(2.5)):
        base.double().lengthscale = 1.0
        length = base.lengthscale.item()
        rho = correlation(base, distance / length)
        exact = isinstance(base, RBFKernel) or base.nu == 0.5
        relative = 16 * epsilon * (1 if exact else max(1.0, 12 / distance))
        pairs = over_base.base_pairs(base, x, None)
        assert abs(pairs.sqdist[0, 1].item() / float(2 * (1 - rho)) - 1) <= relative
        assert pairs.sqdist[0, 0] == 0
        # (2 k + k) k, whose correlation is a square
        combined = over_base.base_pairs((ScaleKernel(base) + base) * base, x, None)
        scale = mp.mpf(combined.var1[0, 0].item())
        assert abs(combined.sqdist[0, 1].item() / float(2 * scale * (1 - rho**2)) - 1) <= relative
    linear = LinearKernel().double()
    exact = mp.mpf(linear.variance.item()) * mp.mpf(distance) ** 2
    shifted = over_base.base_pairs(linear, x, None)
    assert shifted.sqdist[0, 1].item() == pytest.approx(float(exact), rel=8 * epsilon)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("base", [*STATIONARY, "sum", "product"])
@pytest.mark.parametrize("activation", ["relu", "erf", "tanh"])
def test_known_bases_to_rounding(
    cls: type[WeightedKernel], base: str, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near duplicates too, tangent kernels of ReLU too: the squared distances have their digits."""
    x = inputs()
    x[2:5] = x[0] + torch.tensor([[1e-9], [1e-6], [1e-3]])
    kernel = made(cls, activation, BASES[base]())
    var1, var2, sqdist = over_base.base_pairs(kernel.base_kernel, x, None)
    bias = kernel.bias_variance
    pair = PairCovariance.from_distance(var1 + bias, var2.mT + bias, sqdist)
    expected = kernel._pair(pair, SolverMonitor(), kernel.weight_variance, bias)
    bound = 64 * torch.finfo(torch.float64).eps / 0.1 * expected.diagonal().mean()
    for most in (over_base.MOST_ANGLES, 0):
        monkeypatch.setattr(over_base, "MOST_ANGLES", most)
        assert (kernel(x).to_dense() - expected).abs().max() <= bound


@pytest.mark.parametrize("cls", [DEQNNGPKernel, DEQNTKKernel])
@pytest.mark.parametrize("base", ["rbf", "matern-5/2"])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_cholesky_of_near_duplicates(cls: type[WeightedKernel], base: str, activation: str) -> None:
    """With the noise that the base kernel itself needs there, relative to the variances."""
    x = torch.rand(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cat((x, x + 1e-7))
    kernel = made(cls, activation, STATIONARY[base]())
    noise = 1e-12 / (0.1 if cls is DEQNNGPKernel else 0.01)
    for matrix in (kernel.base_kernel(x).to_dense(), kernel(x).to_dense()):
        scale = matrix.diagonal().mean()
        torch.linalg.cholesky(matrix + noise * scale * torch.eye(120, dtype=torch.float64))


def test_active_dims_on_both_levels() -> None:
    x = inputs()
    base = ScaleKernel(MaternKernel(2.5, ard_num_dims=2, active_dims=[0, 2]))
    kernel = made(DEQNNGPKernel, "erf", base, active_dims=[2, 1, 0])
    flat = made(DEQNNGPKernel, "erf", MaternKernel(2.5, ard_num_dims=2))
    flat.base_kernel = ScaleKernel(MaternKernel(2.5, ard_num_dims=2)).double()
    torch.testing.assert_close(kernel(x).to_dense(), flat(x[:, [2, 0]]).to_dense())


@every_class
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_batches(cls: type[WeightedKernel], activation: str) -> None:
    x, shape = inputs(), Size([2])
    base = ScaleKernel(RBFKernel(ard_num_dims=3, batch_shape=shape), batch_shape=shape)
    kernel = made(cls, activation, base, batch_shape=shape)
    critical = kernel.activation.critical_weight_variance
    kernel.weight_variance = critical * torch.tensor([0.3, 0.9]).reshape(2, 1, 1)
    base.base_kernel.lengthscale = torch.rand(2, 1, 3) + 0.5
    base.outputscale = torch.tensor([0.4, 2.0])
    value = kernel(x).to_dense()
    assert kernel.batch_shape == shape and value.shape == (2, 15, 15)
    for index in range(2):
        torch.testing.assert_close(kernel[index](x).to_dense(), value[index])
        torch.testing.assert_close(kernel[index](x, diag=True), value[index].diagonal())
    assert kernel.expand_batch(3, 2)(x).to_dense().shape == (3, 2, 15, 15)
    torch.testing.assert_close(kernel(x.expand(2, 15, 3), diag=True), kernel(x, diag=True))


def test_copies_and_states() -> None:
    x = inputs()
    prior = GammaPrior(3.0, 6.0)
    base = ScaleKernel(MaternKernel(2.5, lengthscale_prior=prior), outputscale_prior=prior)
    kernel = made(DEQNTKKernel, "gelu", base, bias_variance_prior=prior)
    value = kernel(x).to_dense()
    for copied in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        torch.testing.assert_close(copied(x).to_dense(), value)
    other = copy.deepcopy(kernel)
    other.base_kernel.outputscale = 3.0
    assert not torch.allclose(other(x).to_dense(), value)
    other.load_state_dict(kernel.state_dict())
    torch.testing.assert_close(other(x).to_dense(), value)
    names = {name for name, *_ in kernel.named_priors()}
    assert names == {
        "bias_variance_prior",
        "base_kernel.outputscale_prior",
        "base_kernel.base_kernel.lengthscale_prior",
    }


def test_pyro_samples_both_levels() -> None:
    pytest.importorskip("pyro")
    prior = GammaPrior(3.0, 6.0)
    base = ScaleKernel(MaternKernel(2.5, lengthscale_prior=prior), outputscale_prior=prior)
    kernel = DEQNNGPKernel("erf", base_kernel=base, bias_variance_prior=prior).double()
    sampled = kernel.pyro_sample_from_prior()
    assert not torch.equal(sampled.bias_variance, kernel.bias_variance)
    assert not torch.equal(
        sampled.base_kernel.base_kernel.lengthscale, kernel.base_kernel.base_kernel.lengthscale
    )
    assert sampled(inputs()).to_dense().isfinite().all()


@every_class
def test_single_precision(cls: type[WeightedKernel]) -> None:
    x = inputs()
    for activation in ("relu", "erf"):
        kernel = made(cls, activation, ScaleKernel(MaternKernel(2.5)))
        expected = kernel(x).to_dense()
        value = kernel.float()(x.float()).to_dense()
        assert value.dtype == torch.float32
        bound = 64 * torch.finfo(torch.float32).eps / 0.1 * expected.diagonal().mean()
        assert (value - expected).abs().max() <= bound


@pytest.mark.parametrize("size", [0, 1])
def test_few_inputs(size: int) -> None:
    x = torch.zeros(size, 3, dtype=torch.float64)
    for base in (RBFKernel, PeriodicKernel, LinearKernel):
        kernel = made(DEQNNGPKernel, "erf", base() + MaternKernel(2.5))
        assert kernel(x).to_dense().shape == (size, size)
        assert kernel(x, diag=True).shape == (size,)
        assert kernel(x, inputs(4)).to_dense().shape == (size, 4)


def test_the_report_names_the_method() -> None:
    kernel = made(DEQNNGPKernel, "erf", MaternKernel(2.5))
    kernel(inputs(5)).to_dense()
    assert kernel.solver_report.method == "pairs"
    kernel(inputs(30)).to_dense()
    assert kernel.solver_report.method == "series"
    kernel.base_kernel = LinearKernel().double()
    kernel(inputs(30)).to_dense()
    assert kernel.solver_report.method == "pairs"


class _Constant(Kernel):
    """A user's kernel of one value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        shape = x1.shape[:-1] if diag else (*x1.shape[:-1], x2.shape[-2])
        return x1.new_full(shape, self.value)


def test_arguments_that_belong_to_the_base() -> None:
    for name, value in (
        ("ard_num_dims", 3),
        ("lengthscale_prior", GammaPrior(3.0, 6.0)),
        ("lengthscale_constraint", gpytorch.constraints.Positive()),
    ):
        with pytest.raises(ValueError, match=f"{name} belongs to the base kernel.*RBFKernel"):
            DEQNNGPKernel(base_kernel=RBFKernel(), **{name: value})
    for center in (0.5, torch.tensor([0.0, 1.0])):
        with pytest.raises(ValueError, match="center has no meaning"):
            DEQNNGPKernel(base_kernel=RBFKernel(), center=center)
    with pytest.raises(ValueError, match="center has no meaning"):
        DEQNNGPKernel("relu", 0.5, base_kernel=RBFKernel())
    DEQNNGPKernel(base_kernel=RBFKernel(), center=0.0)


def test_bases_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"must be a gpytorch\.kernels\.Kernel"):
        DEQNNGPKernel(base_kernel=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"batch_shape \(3,\).*give batch_shape=\(3,\) to both"):
        DEQNNGPKernel(base_kernel=RBFKernel(batch_shape=Size([3])))
    with pytest.raises(ValueError, match="bounded slope"):
        DEQNNGPKernel(torch.square, base_kernel=RBFKernel())
    x = inputs()
    for value in (-1.0, 0.0, math.nan):
        with pytest.raises(ValueError, match=r"variances that are positive.*_Constant"):
            made(DEQNNGPKernel, "erf", _Constant(value))(x).to_dense()
    assert made(DEQNNGPKernel, "erf", _Constant(2.0))(x).to_dense().std() < 1e-14
    with pytest.raises(ValueError, match=r"one value for each pair"):
        task = gpytorch.kernels.MultitaskKernel(RBFKernel(), num_tasks=2)
        made(DEQNNGPKernel, "erf", task)(x).to_dense()
    with pytest.raises(RuntimeError, match=r"ard_num_dims=2, but its inputs have 3"):
        made(DEQNNGPKernel, "erf", RBFKernel(ard_num_dims=2))(x).to_dense()


def test_an_equilibrium_is_needed_only_by_its_kernels() -> None:
    assert not isinstance(NNGPKernel(torch.square, base_kernel=RBFKernel()), EquilibriumKernel)
