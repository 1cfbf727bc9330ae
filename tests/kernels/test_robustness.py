"""The whole region that an optimiser or a user may visit: finite, converged, a covariance."""

from __future__ import annotations

import itertools
import math
import warnings

import gpytorch
import hypothesis
import pytest
import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from hypothesis import strategies as st
from torch import Tensor

from gp_deq import DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel, settings
from gp_deq.equilibrium import ConvergenceWarning

CLASSES = [DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel]
EQUILIBRIUM = [DEQNNGPKernel, DEQNTKKernel]
CLOSED_FORM = ["relu", "leaky_relu", "erf", "sin", "gelu", "identity"]
SERIES = ["tanh", "sigmoid", "softplus", "silu", "elu"]
TRAINED = ["all", "hidden", "recurrent", "preactivation"]
DTYPES = [torch.float64, torch.float32]
FRACTIONS = [1e-8, 0.5, 0.99, 0.9999]
BIASES = [0.0, 1e-12, 1e-6, 1.0, 1e6]
SCALES = [1e-8, 1e-4, 1.0, 1e4, 1e8]

every_class = pytest.mark.parametrize("cls", CLASSES)
equilibrium_class = pytest.mark.parametrize("cls", EQUILIBRIUM)
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])


def special_points(dtype: torch.dtype) -> Tensor:
    """Generic, duplicate, antipodal, zero, parallel and nearly coincident rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64).to(dtype)
    rows = [x, x[:1], -x[1:2], torch.zeros_like(x[:2]), 2 * x[:1], -3 * x[2:3]]
    return torch.cat([*rows, x[2:3] * (1 + 1e-6)])


def violation(matrix: Tensor) -> float:
    """By how much ``abs(k12)`` exceeds ``sqrt(k11 k22)``, relative to the mean of k11 and k22."""
    variance = matrix.diagonal(dim1=-1, dim2=-2).unsqueeze(-1)
    assert bool((variance >= 0).all())
    excess = matrix.abs() - variance.sqrt() * variance.mT.sqrt()
    mean = (variance + variance.mT) / 2
    return float((excess / mean.masked_fill(mean == 0, 1.0)).max())


def evaluate(kernel: Kernel, x: Tensor) -> Tensor:
    with torch.no_grad():
        return kernel(x).to_dense()


# ------------------------------------------------------------------------------------------
# Raw parameters
# ------------------------------------------------------------------------------------------


@equilibrium_class
@both_dtypes
@pytest.mark.parametrize("activation", [*CLOSED_FORM, "tanh", "softplus"])
def test_any_raw_value(cls: type[Kernel], dtype: torch.dtype, activation: str) -> None:
    """Strictly inside the region however far an optimiser pushes, finite and converged there."""
    x = special_points(dtype)
    critical = cls(activation).activation.critical_weight_variance
    for size in (100.0, 1e4):
        for signs in itertools.product((-1.0, 1.0), repeat=2):
            kernel = cls(activation).to(dtype)
            kernel.lengthscale = 1.0
            kernel.raw_weight_variance.data.fill_(signs[0] * size)
            kernel.raw_bias_variance.data.fill_(signs[1] * size)
            w = kernel.weight_variance
            assert 0 <= w.item() < critical
            assert bool((1 - w / critical > 0).all())
            assert 0 <= kernel.bias_variance.item() < math.inf
            matrix = evaluate(kernel, x)
            assert bool(matrix.isfinite().all()), signs
            assert kernel.solver_report.converged, (signs, kernel.solver_report)
            value = kernel.forward(x, x).sum()
            gradients = torch.autograd.grad(value, list(kernel.parameters()))
            assert all(bool(gradient.isfinite().all()) for gradient in gradients), signs


@every_class
@both_dtypes
@pytest.mark.parametrize("raw", [-1e4, -20.0, 20.0])
def test_any_raw_lengthscale(cls: type[Kernel], dtype: torch.dtype, raw: float) -> None:
    x = special_points(dtype)
    for activation in ("relu", "erf"):
        kernel = cls(activation).to(dtype)
        kernel.raw_lengthscale.data.fill_(raw)
        matrix = evaluate(kernel, x)
        assert bool(matrix.isfinite().all())
        assert kernel.solver_report.converged


@every_class
def test_lengthscale_is_bounded_below(cls: type[Kernel]) -> None:
    kernel = cls().double()
    kernel.lengthscale = 1e-4
    assert bool(kernel.raw_lengthscale.isfinite().all())
    assert kernel.lengthscale.item() == pytest.approx(1e-4, rel=1e-6)
    with pytest.raises(ValueError, match=r"lengthscale of .* must lie in \[0\.0001, inf\]"):
        kernel.lengthscale = 5e-5
    free = cls(lengthscale_constraint=Positive()).double()
    free.lengthscale = 1e-9
    assert free.lengthscale.item() == pytest.approx(1e-9, rel=1e-6)


@equilibrium_class
@both_dtypes
@pytest.mark.parametrize("activation", [*CLOSED_FORM, *SERIES])
def test_weight_variance_can_be_set_close_to_its_ends(
    cls: type[Kernel], dtype: torch.dtype, activation: str
) -> None:
    kernel = cls(activation).to(dtype)
    critical = kernel.activation.critical_weight_variance
    for fraction in (1e-8, 1e-4, 0.5, 0.99, 0.9999):
        kernel.weight_variance = fraction * critical
        assert kernel.weight_variance.item() < critical
        gap = 1 - kernel.weight_variance.item() / critical
        assert abs(gap - (1 - fraction)) <= 8 * torch.finfo(dtype).eps + 2.0**-21
        assert abs(kernel.weight_variance.item() / (fraction * critical) - 1) < 1e-5


# ------------------------------------------------------------------------------------------
# The region of hyperparameters and of inputs
# ------------------------------------------------------------------------------------------


def sweep(cls: type[Kernel], activation: str, dtype: torch.dtype, step: int, **options) -> None:
    kernel = cls(activation, **options).to(dtype)
    kernel.lengthscale = 1.0
    critical, eps = kernel.activation.critical_weight_variance, torch.finfo(dtype).eps
    failures = []
    # every step-th combination; all values of each with all of each other for step 1
    region = list(itertools.product(FRACTIONS, BIASES, SCALES))[::step]
    for fraction, bias, scale in region:
        kernel.weight_variance, kernel.bias_variance = fraction * critical, bias
        with settings.warn_not_converged(False):  # the report is collected below
            matrix = evaluate(kernel, scale * special_points(dtype))
        report, where = kernel.solver_report, f"w {fraction}, bias {bias}, scale {scale}: "
        if not bool(matrix.isfinite().all()):
            failures.append(where + "not finite")
            continue
        if not report.converged:
            failures.append(where + str(report))
        if not torch.equal(matrix, matrix.mT):
            failures.append(where + "not symmetric")
        tolerance = 256 * eps / (1 - fraction)
        # A variance of scale**2 is known to eps * scale**2, an angle then to eps * scale where the
        # variances differ much, and the phase of a sine to eps * scale**2; the value stays bounded.
        power = 2 if activation == "sin" else 1
        tolerance = max(tolerance, min(4 * eps * scale**power, 4.0))
        if activation in SERIES and scale > 1:
            continue  # beyond the degree of the series, see Hermite.truncation_error
        if cls in (NNGPKernel, NTKKernel) and fraction * scale < 1e-12 and bias == 0:
            continue  # after some layers, products of variances underflow
        excess = violation(matrix)
        if not excess <= tolerance:
            failures.append(where + f"excess {excess:.1e}, tolerance {tolerance:.1e}")
    assert not failures, "\n".join(failures)


@equilibrium_class
@both_dtypes
@pytest.mark.parametrize("activation", CLOSED_FORM)
def test_region_closed_form(cls: type[Kernel], dtype: torch.dtype, activation: str) -> None:
    sweep(cls, activation, dtype, 1)


@equilibrium_class
@both_dtypes
@pytest.mark.parametrize("activation", SERIES)
def test_region_series(cls: type[Kernel], dtype: torch.dtype, activation: str) -> None:
    sweep(cls, activation, dtype, 3 if cls is DEQNNGPKernel else 7)


@both_dtypes
@pytest.mark.parametrize("trained", TRAINED[1:])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_region_conventions(dtype: torch.dtype, trained: str, activation: str) -> None:
    sweep(DEQNTKKernel, activation, dtype, 3, trained=trained)


@both_dtypes
@pytest.mark.parametrize("cls", [NNGPKernel, NTKKernel])
@pytest.mark.parametrize("activation", [*CLOSED_FORM, "tanh"])
def test_region_finite_depth(cls: type[Kernel], dtype: torch.dtype, activation: str) -> None:
    sweep(cls, activation, dtype, 3)
    sweep(cls, activation, dtype, 7, depth=10, input_injection=True)


@equilibrium_class
@both_dtypes
@pytest.mark.parametrize("activation", [*CLOSED_FORM, "softplus"])
def test_gradients_are_finite_over_the_region(
    cls: type[Kernel], dtype: torch.dtype, activation: str
) -> None:
    kernel = cls(activation).to(dtype)
    kernel.lengthscale = 1.0
    critical = kernel.activation.critical_weight_variance
    for fraction, bias, scale in itertools.product((1e-8, 0.9999), (0.0, 1e-12, 1e6), SCALES):
        # gelu is not bounded: variances of 1e20 at equilibrium, whose squares float32 cannot hold
        overflow = dtype == torch.float32 and activation == "gelu" and fraction > 0.99
        if overflow and scale >= 1e8:
            continue
        kernel.weight_variance, kernel.bias_variance = fraction * critical, bias
        x = (scale * special_points(dtype)).requires_grad_()
        # as an objective that does not depend on the size of the kernel
        value = kernel.forward(x, x)
        upstream = 1 / value.detach().abs().max().clamp_min(torch.finfo(dtype).tiny)
        gradients = torch.autograd.grad((value * upstream).sum(), [x, *kernel.parameters()])
        assert all(bool(g.isfinite().all()) for g in gradients), (fraction, bias, scale)


def hyperparameters() -> st.SearchStrategy[tuple[float, float, float]]:
    fraction = st.one_of(st.floats(1e-6, 0.95), st.floats(0.95, 0.9999))
    bias = st.one_of(st.just(0.0), st.floats(-12, 6).map(lambda e: 10.0**e))
    lengthscale = st.floats(-3, 3).map(lambda e: 10.0**e)
    return st.tuples(fraction, bias, lengthscale)


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    values=hyperparameters(),
    kind=st.sampled_from([(DEQNNGPKernel, {}), *((DEQNTKKernel, {"trained": t}) for t in TRAINED)]),
    activation=st.sampled_from(["relu", "leaky_relu", "erf", "gelu", "identity"]),
    seed=st.integers(0, 10**6),
    near=st.floats(-9, 0),
    dtype=st.sampled_from(DTYPES),
)
def test_covariance_for_any_hyperparameters(
    values: tuple[float, float, float],
    kind: tuple[type[Kernel], dict[str, str]],
    activation: str,
    seed: int,
    near: float,
    dtype: torch.dtype,
) -> None:
    """Converged, symmetric to the bit, Cauchy-Schwarz, and positive semi-definite to rounding."""
    fraction, bias, lengthscale = values
    kernel = kind[0](activation, **kind[1]).to(dtype)
    kernel.weight_variance = fraction * kernel.activation.critical_weight_variance
    kernel.bias_variance, kernel.lengthscale = bias, lengthscale
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(dtype)
    x = torch.cat((x, x + 10.0**near * x.flip(0), torch.zeros_like(x[:1])))
    matrix = evaluate(kernel, x)
    assert kernel.solver_report.converged
    assert torch.equal(matrix, matrix.mT)
    tolerance = 256 * torch.finfo(dtype).eps / (1 - fraction)
    assert violation(matrix) <= tolerance
    eigenvalues = torch.linalg.eigvalsh(matrix.double())
    assert eigenvalues[0] >= -tolerance * len(x) * eigenvalues[-1]
    torch.testing.assert_close(
        kernel(x, diag=True).detach(), matrix.diagonal(), rtol=tolerance, atol=0.0
    )


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    fraction=st.floats(0.01, 0.99),
    bias=st.floats(-8, 2).map(lambda e: 10.0**e),
    scale=st.floats(-3, 1).map(lambda e: 10.0**e),
    activation=st.sampled_from(["sin", *SERIES]),
    dtype=st.sampled_from(DTYPES),
)
def test_covariance_of_other_activations(
    fraction: float, bias: float, scale: float, activation: str, dtype: torch.dtype
) -> None:
    kernel = DEQNNGPKernel(activation).to(dtype)
    kernel.weight_variance = fraction * kernel.activation.critical_weight_variance
    kernel.bias_variance = bias
    matrix = evaluate(kernel, scale * special_points(dtype))
    assert kernel.solver_report.converged
    assert torch.equal(matrix, matrix.mT)
    assert violation(matrix) <= 256 * torch.finfo(dtype).eps / (1 - fraction) * max(1, scale**2)


# ------------------------------------------------------------------------------------------
# A bias variance of zero
# ------------------------------------------------------------------------------------------


class ExactModel(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, kernel: Kernel) -> None:
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = ScaleKernel(kernel)

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@every_class
@both_dtypes
def test_bias_variance_of_zero_stays_zero_in_a_fit(cls: type[Kernel], dtype: torch.dtype) -> None:
    kernel = cls().to(dtype)
    kernel.bias_variance = 0.0
    assert kernel.bias_variance.item() == 0.0
    assert kernel.raw_bias_variance.isfinite().all()
    x = torch.linspace(-1, 1, 12, dtype=dtype).unsqueeze(-1) * torch.tensor([1.0, 0.5], dtype=dtype)
    model = ExactModel(x, x.sum(-1).abs(), kernel).to(dtype)
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = kernel.lengthscale.item()
    for _ in range(15):
        optimizer.zero_grad()
        loss = -mll(model(x), model.train_targets)
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
        optimizer.step()
    assert kernel.bias_variance.item() == 0.0
    assert kernel.lengthscale.item() != before
    state = cls().to(dtype)
    state.load_state_dict(kernel.state_dict())
    assert state.bias_variance.item() == 0.0


@every_class
@both_dtypes
def test_zero_bias_means_zero_at_the_center(cls: type[Kernel], dtype: torch.dtype) -> None:
    for activation in ("relu", "erf", "sin", "identity"):
        kernel = cls(activation, center=0.5).to(dtype)
        kernel.bias_variance = 0.0
        x = torch.tensor([[0.5, 0.5], [0.25, 1.0]], dtype=dtype)
        matrix = evaluate(kernel, x)
        assert matrix[0, 0] == 0 and matrix[1, 1] > 0
        assert abs(matrix[0, 1].item()) <= 8 * torch.finfo(dtype).eps * matrix[1, 1].item()


# ------------------------------------------------------------------------------------------
# Warnings and settings
# ------------------------------------------------------------------------------------------


def hard(cls: type[Kernel], activation: str) -> tuple[Kernel, Tensor]:
    kernel = cls(activation).double()
    kernel.weight_variance = 0.999 * kernel.activation.critical_weight_variance
    return kernel, special_points(torch.float64)


@equilibrium_class
@pytest.mark.parametrize("activation", ["erf", "softplus", "gelu"])
def test_warning_names_the_hyperparameters(cls: type[Kernel], activation: str) -> None:
    kernel, x = hard(cls, activation)
    with (
        settings.max_solver_iterations(1),
        pytest.warns(ConvergenceWarning, match="did not converge") as record,
    ):
        evaluate(kernel, x)
    assert len(record) == 1
    message = str(record[0].message)
    for part in (cls.__name__, "weight_variance", "bias_variance", "lengthscale", "tolerance"):
        assert part in message
    assert f"{kernel.weight_variance.item():g}" in message
    assert f"{kernel.bias_variance.item():g}" in message
    assert "max_solver_iterations" in message
    report = kernel.solver_report
    assert not report.converged and report.residual > 1e-9
    # with the default number of iterations all is well again
    evaluate(kernel, x)
    assert kernel.solver_report.converged


@equilibrium_class
def test_warning_can_be_silenced(cls: type[Kernel]) -> None:
    kernel, x = hard(cls, "erf")
    with settings.max_solver_iterations(1), settings.warn_not_converged(False):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            evaluate(kernel, x)
        assert not kernel.solver_report.converged
        with settings.warn_not_converged(True), pytest.warns(ConvergenceWarning):
            evaluate(kernel, x)


@equilibrium_class
def test_ranges_of_a_batch_are_named(cls: type[Kernel]) -> None:
    kernel = cls("erf", batch_shape=torch.Size([2])).double()
    kernel.weight_variance = torch.tensor([[[0.5]], [[0.78]]])
    with (
        settings.max_solver_iterations(1),
        pytest.warns(ConvergenceWarning, match=r"weight_variance 0\.5 to 0\.78"),
    ):
        evaluate(kernel, special_points(torch.float64))


def test_settings_are_restored() -> None:
    default = settings.max_solver_iterations.value()
    with settings.max_solver_iterations(7):
        assert settings.max_solver_iterations.value() == 7
        with settings.max_solver_iterations(3):
            assert settings.max_solver_iterations.value() == 3
        assert settings.max_solver_iterations.value() == 7
    assert settings.max_solver_iterations.value() == default
    with pytest.raises(RuntimeError), settings.max_solver_iterations(5):
        raise RuntimeError
    assert settings.max_solver_iterations.value() == default

    assert settings.warn_not_converged.value() is True
    with pytest.raises(KeyError), settings.warn_not_converged(False):
        assert settings.warn_not_converged.value() is False
        raise KeyError
    assert settings.warn_not_converged.value() is True


def test_a_setting_can_be_entered_twice() -> None:
    default = settings.max_solver_iterations.value()
    setting = settings.max_solver_iterations(4)
    with setting:
        with setting:
            assert settings.max_solver_iterations.value() == 4
        assert settings.max_solver_iterations.value() == 4
    assert settings.max_solver_iterations.value() == default


def test_tolerance_of_each_dtype() -> None:
    before = {dtype: settings.solver_tolerance.value(dtype) for dtype in DTYPES}
    with settings.solver_tolerance(float_value=1e-2):
        assert settings.solver_tolerance.value(torch.float32) == 1e-2
        assert settings.solver_tolerance.value(torch.float64) == before[torch.float64]
        with settings.solver_tolerance(double_value=1e-5):
            assert settings.solver_tolerance.value(torch.float32) == 1e-2
            assert settings.solver_tolerance.value(torch.float64) == 1e-5
    with pytest.raises(RuntimeError), settings.solver_tolerance(1e-3, 1e-3):
        raise RuntimeError
    assert {dtype: settings.solver_tolerance.value(dtype) for dtype in DTYPES} == before


@equilibrium_class
def test_settings_are_used(cls: type[Kernel]) -> None:
    """A looser tolerance takes fewer steps and a larger residual."""
    kernel, x = hard(cls, "erf")
    exact = evaluate(kernel, x)
    strict = kernel.solver_report
    with settings.solver_tolerance(double_value=1e-2):
        loose = evaluate(kernel, x)
    assert kernel.solver_report.converged
    assert kernel.solver_report.iterations < strict.iterations
    assert strict.residual <= 1e-9
    torch.testing.assert_close(loose, exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("value", [0, -3, 1.5])
def test_bad_iterations(value: float) -> None:
    with pytest.raises(ValueError, match="integer of at least 1"):
        settings.max_solver_iterations(value)


@pytest.mark.parametrize("value", [0.0, -1e-3, float("nan")])
def test_bad_tolerance(value: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        settings.solver_tolerance(double_value=value)
