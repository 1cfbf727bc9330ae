"""The kernel of stochastic gradient updates: values, limits, derivatives, region, conformance."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import unittest

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.constraints import GreaterThan, Interval, Positive
from gpytorch.kernels import Kernel, LinearKernel, RBFKernel, ScaleKernel
from gpytorch.priors import GammaPrior, LogNormalPrior
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase
from oracles import LINKS, Injected, Real, deker, injected, mp
from torch import Size, Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from gp_deq import DEKerKernel, NNGPKernel, settings
from gp_deq.activations import ExponentialFamilyLink, PairCovariance, get_link
from gp_deq.activations.injected import injected_angle
from gp_deq.equilibrium import ConvergenceWarning, PairProfile, Recomputed, SolverMonitor
from gp_deq.kernels.deker.angle_fixed_point import above_critical
from gp_deq.kernels.deker.observed import observe
from gp_deq.kernels.deker.updates import update

LINK_NAMES = ["relu", "identity", "logistic", "tanh", "softplus-gaussian"]
STEPS = [1, 2, 5, 20, None]
HYPERPARAMETERS = ("lengthscale", "regularization", "feature_scale", "bias_variance")
DTYPES = [torch.float64, torch.float32]

every_link = pytest.mark.parametrize("link", LINK_NAMES)
finite_and_settled = pytest.mark.parametrize("steps", [3, None], ids=["T=3", "settled"])
both_features = pytest.mark.parametrize("features", ["relu", "linear"])
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])


def points(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def make(
    link: object = "relu",
    features: object = "relu",
    regularization: float | None = None,
    scale: float = 1.0,
    bias: float = 0.25,
    dtype: torch.dtype = torch.float64,
    **kwargs,
) -> DEKerKernel:
    kernel = DEKerKernel(link, features, **kwargs).to(dtype)
    kernel.lengthscale = torch.ones_like(kernel.lengthscale)
    kernel.feature_scale, kernel.bias_variance = scale, bias
    kernel.regularization = regularization or 1.4 * kernel.critical_regularization
    return kernel


def dense(kernel: Kernel, x: Tensor, y: Tensor | None = None) -> Tensor:
    return kernel(x, y).to_dense().detach()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def exact(kernel: DEKerKernel, p: list[float], q: list[float], **kwargs) -> Real:
    """The reference at the inputs and hyperparameters exactly as the kernel has them."""
    lengthscale = kernel.lengthscale.flatten().tolist()
    lengthscale = lengthscale * len(p) if len(lengthscale) == 1 else lengthscale
    b = injected(p, q, kernel.bias_variance.item(), lengthscale)
    link = {repr(get_link(name)): name for name in LINK_NAMES}[repr(kernel.link)]
    return deker(
        LINKS[link],
        kernel.features,
        b,
        kernel.regularization.item(),
        kernel.feature_scale.item(),
        kernel.num_steps,
        kernel.step_size,
        **kwargs,
    )


# ------------------------------------------------------------------------------------------
# Values
# ------------------------------------------------------------------------------------------

A, B, C = [0.5, -1.25, 0.75], [-0.25, 0.375, 1.125], [0.5 + 2.0**-20, -1.25, 0.75]
# 16 digits of a computation with 40, link and features "relu", bias_variance 0.25
CHECKS = [
    (1.0, 1.0, A, B, 0.02823961777050443, 0.0267594177851426),
    (1.0, 1.0, A, C, 0.2247514590228724, 0.1414013501980404),
    (1.0, 1.0, A, A, 0.2261224000103482, 0.1414013286219431),
    (1.5, 0.5, A, B, 0.00340173327307052, 0.003565048341579806),
    (1.5, 0.5, A, A, 0.02335396399761206, 0.01610110257166579),
]


@pytest.mark.parametrize("regularization, scale, x, y, three, settled", CHECKS)
def test_check_values(
    regularization: float, scale: float, x: list, y: list, three: float, settled: float
) -> None:
    first, second = torch.tensor([x]).double(), torch.tensor([y]).double()
    for steps, expected in ((3, three), (None, settled)):
        kernel = make(regularization=regularization, scale=scale, num_steps=steps)
        value = dense(kernel, first, second).item()
        assert abs(value / expected - 1) < 1e-13
    if x is y:
        sgd = make(regularization=regularization, scale=scale, coincident="sgd")
        expected = {1.0: 0.217683529447428, 1.5: 0.02309601881636109}[regularization]
        assert abs(dense(sgd, first, second).item() / expected - 1) < 1e-13


def test_one_update_from_another_covariance() -> None:
    """0.22444, as Monte Carlo confirms to 0.0004; with the means swapped it were 0.16251."""
    x = torch.tensor([[1.0, 0.3, -0.2], [2.0, 2.2, -1.0]], dtype=torch.float64) / 3**0.5
    one = torch.ones(1, 1, dtype=torch.float64)
    start = PairCovariance(one, 2.25 * one, (3.25 - 0.9) * one, -1.25 * one)
    b = PairCovariance.from_inputs(x[:1], x[1:], 0.0)
    features, _ = observe("relu", b)
    value = update(get_link("relu"), features, 1.0, one, start).cov.item()
    assert round(value, 5) == 0.22444


def repository(x: np.ndarray, steps: int, swapped: bool) -> np.ndarray:
    """RussellTsuchida/dek at lambda = a = 1, which pairs mu(x) with sigma(u) rho(v), swapped."""
    b = x @ x.T / x.shape[1]

    def moments(psi: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        root = np.sqrt(np.diag(psi))
        r = np.clip(psi / np.outer(root, root), -1, 1)
        np.fill_diagonal(r, 1.0)
        theta = np.arccos(r)
        product = np.outer(root, root) * (np.sin(theta) + (np.pi - theta) * r) / (2 * np.pi)
        return root, r, (np.pi - theta) / (2 * np.pi), product

    root, _, _, c = moments(b)
    mu, psi = root / np.sqrt(2 * np.pi), b
    for _ in range(steps):
        root, r, steps_up, product = moments(psi)
        outer = np.outer(mu, root)  # mu(x) E rho(u) sigma(v) has the root of the other input
        if swapped:
            outer = (mu * root)[:, None] + np.zeros_like(b)
        cross = (outer + outer.T) * (1 + r) / (2 * np.sqrt(2 * np.pi))
        psi = c * steps_up - cross + product
    return psi


def test_defect_of_the_published_code() -> None:
    """With its pairing of means the matrix is indefinite; ours has the right pairing."""
    x = np.random.default_rng(0).standard_normal((60, 5))
    least = {swapped: np.linalg.eigvalsh(repository(x, 5, swapped))[0] for swapped in (0, 1)}
    assert round(least[0], 4) == 0.0153
    assert round(least[1], 4) == -0.0777
    ours = dense(make(regularization=1.0, bias=0.0, num_steps=5), torch.from_numpy(x))
    # acos loses half of the digits on the diagonal of the comparison only
    assert np.abs(ours.numpy() - repository(x, 5, False)).max() < 1e-12
    assert round(torch.linalg.eigvalsh(ours)[0].item(), 4) == 0.0153


BASE = [0.75, -0.5, 0.25, 0.5]
NEAR = [[0.75, -0.5, 0.25, 0.5 + distance] for distance in (1e-3, 0.03)]
OTHERS = [[-v for v in BASE], [-3 * v for v in BASE], [0.0] * 4, [0.3, 2.0, -9.0, 4.0]]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("step_size", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("link", ["relu", "identity"])
def test_values(link: str, step_size: float, steps: int | None) -> None:
    """Error of 1e-12 of the variances.

    Rounding the scaled inputs, by eps, changes angles of 1e-3 by 2e-13 of themselves, and no update
    makes that relative change larger. The identity's fixed point multiplies the error of its
    squared coefficient by 1/(1 - (critical/lambda)^2): twice that of a sum of 552 terms, whose
    roundings add up to sqrt(552)/2 = 12 eps (10 is the largest seen).
    """
    x = torch.tensor([BASE, *NEAR, *OTHERS], dtype=torch.float64)
    probe = DEKerKernel(link, step_size=step_size)
    for factor, features in itertools.product((1 + 1e-6, 1.3, 100.0), ("relu", "linear")):
        regularization = factor * probe.critical_regularization
        kernel = make(link, features, regularization, 0.7, num_steps=steps, step_size=step_size)
        got = dense(kernel, x)
        variances = got.diagonal()
        tolerance = 1e-12
        if link == "identity" and steps is None:
            tolerance = max(tolerance, 24 * 2.0**-52 / (1 - factor**-2))
        for i, j in itertools.combinations_with_replacement(range(len(x)), 2):
            expected = exact(kernel, x[i].tolist(), x[j].tolist())
            error = abs(mp.mpf(got[i, j].item()) - expected)
            bound = tolerance * math.sqrt(variances[i] * variances[j])
            assert error <= bound, (factor, features, i, j, float(error / bound))


@both_features
@pytest.mark.parametrize("steps", [1, 5, None])
def test_values_in_single_precision(features: str, steps: int | None) -> None:
    """The inputs are those of float32; rounding the scaled ones changes an angle of .03 by 2e-6."""
    x = torch.tensor([BASE, NEAR[1], *OTHERS], dtype=torch.float32)
    for factor in (1 + 1e-5, 1.3, 100.0):
        regularization = factor * DEKerKernel().critical_regularization
        kernel = make("relu", features, regularization, dtype=torch.float32, num_steps=steps)
        got = dense(kernel, x)
        variances = got.diagonal().double()
        for i, j in itertools.combinations_with_replacement(range(len(x)), 2):
            expected = exact(kernel, x[i].tolist(), x[j].tolist())
            bound = 4e-6 * math.sqrt(variances[i] * variances[j])
            assert abs(got[i, j].item() - expected) <= bound


@pytest.mark.parametrize(
    "link, steps", [("tanh", 1), ("tanh", 3), ("tanh", None), ("logistic", 1), ("logistic", 3)]
)
def test_values_of_series(link: str, steps: int | None) -> None:
    """Small variances, where the series at the default degree is exact to rounding."""
    kernel = make(link, "relu", scale=0.5, num_steps=steps, step_size=0.75)
    x = 0.5 * torch.tensor([A, B, C], dtype=torch.float64)
    got = dense(kernel, x)
    pairs = [(0, 1), (0, 2)] if steps == 1 else [(0, 1)]
    for i, j in pairs:
        expected = exact(kernel, x[i].tolist(), x[j].tolist())
        assert abs(got[i, j].item() - expected) < 1e-13


def test_small_angles_of_different_norms() -> None:
    """Nearly parallel inputs: the angle keeps its digits where squared distances have lost them."""
    x = torch.tensor([[1.0, 1.0, 0.0], [3.0, 3.0, 2.0**-28]], dtype=torch.float64)
    for factor in (1.0, -1.0):
        pair = PairCovariance.from_inputs(x[:1], factor * x[1:], torch.zeros(1, 1).double())
        theta, _ = injected_angle(x[:1], factor * x[1:], torch.zeros(1, 1).double(), pair)
        true = mp.atan(mp.mpf(2.0**-28) / (3 * mp.sqrt(2)))
        true = true if factor > 0 else mp.pi - true
        assert abs(theta.item() - true) < 4e-16 * true
        if factor > 0:
            assert abs(pair.versine.item() - (1 - mp.cos(true))) > 0.01 * (1 - mp.cos(true))


@pytest.mark.parametrize("steps", [3, 10, None])
def test_parallel_inputs_are_positive_semi_definite(steps: int | None) -> None:
    """Parallel up to rounding, which ten updates make into angles of order one."""
    scale = torch.linspace(0.1, 3.0, 40, dtype=torch.float64)[:, None]
    x = scale * torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(dense(make(bias=0.0, num_steps=steps), x))
    assert eigenvalues[0] >= -1e-14 * eigenvalues[-1]


@both_features
@finite_and_settled
def test_one_dimension_without_bias(features: str, steps: int | None) -> None:
    """All inputs are parallel or antipodal, exactly: the matrix has rank two."""
    x = torch.tensor([0.3, 0.7, 1.1, -0.4, -2.3], dtype=torch.float64)
    kernel = make(features=features, bias=0.0, num_steps=steps)
    matrix = dense(kernel, x) / (x[:, None] * x).abs()
    for one, other in ((0, 1), (1, 2), (3, 4)):
        close(matrix[one], matrix[other], 1e-14)


def test_one_dimension_with_bias() -> None:
    x = torch.tensor([[0.3], [0.3 + 1e-3], [-2.0]], dtype=torch.float64)
    kernel = make(bias=1e-6, num_steps=5)
    got = dense(kernel, x)
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        expected = exact(kernel, x[i].tolist(), x[j].tolist())
        assert abs(got[i, j].item() - expected) < 1e-12 * got.diagonal().max().item()


@pytest.mark.parametrize("step_size", [0.5, 1.0, 1.5])
@both_dtypes
def test_distance_to_critical(step_size: float, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    probe = DEKerKernel(step_size=step_size)
    for factor in (1 + 1e-6, 1.01, 3.0):
        value = torch.tensor(factor * probe.critical_regularization, dtype=dtype)
        expected = mp.mpf(value.item()) ** 2 * (2 - mp.mpf(step_size)) / step_size - mp.mpf(0.5)
        assert abs(above_critical(value, step_size).item() / float(expected) - 1) < 4 * eps


# ------------------------------------------------------------------------------------------
# Special cases
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["relu", "identity", "tanh"])
@both_features
def test_without_features_it_is_the_nngp_kernel(link: str, features: str) -> None:
    x, y = points(6, 3), points(4, 3, seed=1)
    for depth, bias in ((1, 0.3), (4, 0.0)):
        kernel = make(link, features, 1.0 + 1e-5, 0.0, bias, num_steps=depth)
        if link == "relu":
            kernel.regularization = 1.0
        reference = NNGPKernel(link, depth=depth).double()
        reference.lengthscale = 1.0
        reference.weight_variance = kernel.regularization.item() ** -2
        reference.bias_variance = 0.0
        if depth == 1:
            reference.bias_variance = bias
        factor = kernel.regularization.item() ** -2
        close(dense(kernel, x, y), factor * dense(reference, x, y), 1e-13)
    assert make(link, features, scale=0.0)(x).to_dense().abs().max() < 1e-14


@pytest.mark.parametrize("step_size", [0.5, 1.0, 1.5])
@both_features
def test_identity_link_in_closed_form(features: str, step_size: float) -> None:
    """psi = a^2 c/(L - 1) for L = lambda^2 (2 - h)/h: the means meet E sigma = 0."""
    kernel = make("identity", features, None, 0.7, step_size=step_size)
    x = points(7, 3)
    b = (x @ x.mT / 3 + kernel.bias_variance).detach()
    if features == "relu":
        root = b.diagonal().sqrt()
        r = (b / torch.outer(root, root)).clamp(-1, 1)
        b = torch.outer(root, root) * ((1 - r * r).sqrt() + (math.pi - r.acos()) * r) / 2 / math.pi
    inertia = kernel.regularization.detach() ** 2 * (2 - step_size) / step_size
    close(dense(kernel, x), kernel.feature_scale.detach() ** 2 * b / (inertia - 1), 1e-8)
    off = ~torch.eye(7, dtype=torch.bool)
    close(
        dense(kernel, x)[off],
        (kernel.feature_scale.detach() ** 2 * b / (inertia - 1))[off],
        1e-12,
    )


@every_link
@both_features
def test_updates_converge_to_the_fixed_point(link: str, features: str) -> None:
    """Also from a start that is far away, which the step size alone makes different."""
    x, y = 0.5 * points(4, 2), 0.5 * points(3, 2, seed=1)
    kernel = make(link, features, step_size=0.75)
    kernel.regularization = 2.0 * kernel.critical_regularization
    settled = dense(kernel, x, y)
    kernel.num_steps = 60
    close(dense(kernel, x, y), settled, 1e-9)


@both_features
def test_both_forms_of_rectified_updates_agree(features: str) -> None:
    """As an angle, and as a covariance through the link's own expectations."""
    kernel = make(features=features, num_steps=4, step_size=0.8)
    x, y = points(6, 3), points(5, 3, seed=1)
    scale = kernel.lengthscale.detach() * 3**0.5
    psi = PairCovariance.from_inputs(x / scale, y / scale, kernel.bias_variance.detach())
    observed = observe(features, psi)[0].scaled(kernel.feature_scale.detach())
    for _ in range(4):
        psi = update(kernel.link, observed, 0.8, kernel.regularization.detach(), psi)
    close(dense(kernel, x, y), psi.cov, 1e-13)


@both_features
@pytest.mark.parametrize(
    "regularization, rectified, linear",
    [
        (0.75, 0.60658, 0.92538),
        (1.0, 0.64957, 0.83470),
        (1.5, 0.69714, 0.80556),
        (2.0, 0.72055, 0.79808),
        (4.0, 0.75523, 0.79177),
    ],
)
def test_correlation_of_close_inputs(
    features: str, regularization: float, rectified: float, linear: float
) -> None:
    """It depends on the regularization alone."""
    expected = rectified if features == "relu" else linear
    for scale, bias in ((0.3, 0.0), (2.0, 1.0)):
        x = points(3, 2)
        kernel = make(features=features, regularization=regularization, scale=scale, bias=bias)
        limit, nugget = dense(kernel, x).diagonal(), kernel.nugget(x).detach()
        assert ((limit / (limit + nugget) - expected).abs() < 6e-6).all()


@pytest.mark.parametrize("features", ["relu", "linear", "kernel"])
def test_coincident_inputs(features: str) -> None:
    given = RBFKernel() if features == "kernel" else features
    limit = make("relu", copy.deepcopy(given), 0.9)
    sgd = make("relu", copy.deepcopy(given), 0.9, coincident="sgd")
    x = points(5, 2)
    y = torch.cat((x[3:], points(2, 2, seed=1)))
    same = (x[:, None] == y).all(-1)
    nugget = limit.nugget(x).detach()
    assert bool((nugget > 0).all())
    close(sgd.nugget(x).detach(), nugget)
    close(dense(sgd, x, y), dense(limit, x, y) + same * nugget[:, None])
    close(dense(sgd, x), dense(limit, x) + nugget.diag())
    close(sgd(x, diag=True).detach(), dense(sgd, x).diagonal())
    close(
        sgd(x, y.expand(4, 2)[[0, 1, 2, 3, 0]], diag=True).detach()[3:],
        dense(sgd, x, y)[[3, 4], [3, 0]],
    )
    # the limit of x' -> x
    near = dense(limit, x, x + 1e-9).diagonal()
    close(near, dense(limit, x).diagonal(), 1e-7)
    limit.num_steps = sgd.num_steps = 3
    close(dense(sgd, x), dense(limit, x))
    assert bool((limit.nugget(x) == 0).all())


@pytest.mark.parametrize("link", ["identity", "logistic", "tanh", "softplus-gaussian"])
def test_smooth_links_have_no_nugget(link: str) -> None:
    x = points(4, 2)
    kernel = make(link)
    assert bool((kernel.nugget(x) == 0).all())
    near = dense(kernel, x, x + 1e-9).diagonal()
    close(near, dense(kernel, x).diagonal(), 1e-7)


def heaviside(eta: Tensor) -> Tensor:
    return (eta > 0).to(eta)


def test_a_link_that_jumps() -> None:
    """The rectified link by its series: coincidence repels, and the root below it is found.

    The squared coefficients of the jump fall like k**-3/2, so that the series cut at degree 128 has
    lost 2.2 percent of E rho rho where inputs coincide.
    """
    link = ExponentialFamilyLink(torch.relu, heaviside, critical_regularization=0.5**0.5)
    x = points(4, 2)
    limit, sgd = make(link, "linear", 1.0), make(link, "linear", 1.0, coincident="sgd")
    nugget, diagonal = limit.nugget(x).detach(), dense(limit, x).diagonal()
    assert limit.solver_report.converged
    assert ((diagonal / (diagonal + nugget) - 0.8347).abs() < 0.05).all()
    close(dense(sgd, x), dense(limit, x) + nugget.diag())
    close(dense(limit, x, x + 1e-9).diagonal(), diagonal, 1e-7)
    exactly = make("relu", "linear", 1.0)
    off = ~torch.eye(4, dtype=torch.bool)
    scale = dense(exactly, x).abs().max()
    assert ((dense(limit, x) - dense(exactly, x))[off].abs() < 0.02 * scale).all()


@finite_and_settled
@pytest.mark.parametrize("link", ["relu", "identity"])
def test_a_linear_kernel_as_features(link: str, steps: int | None) -> None:
    features = LinearKernel().double()
    features.variance = torch.tensor(1 / 3, dtype=torch.float64)
    x, y = points(5, 3), points(4, 3, seed=1)
    kernel = make(link, features, bias=0.0, num_steps=steps)
    plain = make(link, "linear", bias=0.0, num_steps=steps)
    close(dense(kernel, x, y), dense(plain, x, y), 1e-12)
    close(dense(kernel, x), dense(plain, x), 1e-7 if steps else 1e-12)


@finite_and_settled
def test_features_of_a_kernel(steps: int | None) -> None:
    features = RBFKernel().double()
    kernel = make("relu", features, 1.2, num_steps=steps)
    x = torch.tensor([A, B], dtype=torch.float64)
    c = mp.mpf(dense(features, x)[0, 1].item())
    for i, j in ((0, 1), (0, 0)):
        moments = Injected(mp.mpf(1), mp.mpf(1), c if i != j else mp.mpf(1))
        expected = exact(kernel, x[i].tolist(), x[j].tolist(), moments=moments)
        assert abs(dense(kernel, x)[i, j].item() - expected) < 1e-13


# ------------------------------------------------------------------------------------------
# Positive definiteness
# ------------------------------------------------------------------------------------------


@every_link
@finite_and_settled
def test_positive_semi_definite(link: str, steps: int | None) -> None:
    x = points(500, 3)
    degree = {"tanh": 64, "logistic": 64, "softplus-gaussian": 64}.get(link)
    if degree:
        named = get_link(link)
        critical = named.critical_regularization
        link = ExponentialFamilyLink(
            named.sigma.fn, named.rho.fn, degree=degree, critical_regularization=critical
        )
    for coincident in ("continuous", "sgd"):
        kernel = make(link, num_steps=steps, coincident=coincident)
        eigenvalues = torch.linalg.eigvalsh(dense(kernel, x))
        assert eigenvalues[0] >= -1e-12 * eigenvalues[-1]


@both_features
def test_near_duplicates_are_positive_semi_definite(features: str) -> None:
    x = points(60, 3)
    shifts = [x, x, x + 1e-6 * points(60, 3, seed=1), x + 1e-3 * points(60, 3, seed=2)]
    for coincident, steps in itertools.product(("continuous", "sgd"), (1, 5, None)):
        kernel = make("relu", features, 0.75, num_steps=steps, coincident=coincident)
        eigenvalues = torch.linalg.eigvalsh(dense(kernel, torch.cat(shifts)))
        assert eigenvalues[0] >= -1e-14 * len(eigenvalues) * eigenvalues[-1]


# ------------------------------------------------------------------------------------------
# Derivatives
# ------------------------------------------------------------------------------------------

TANH = ExponentialFamilyLink(torch.tanh, torch.ones_like, degree=16, critical_regularization=1.0)
SOFT = ExponentialFamilyLink(get_link("softplus-gaussian").sigma.fn, torch.sigmoid, degree=12)


def check(kernel: Kernel, *inputs: Tensor, second: bool = True, same: bool = False, **kw) -> None:
    names = [name for name, _ in kernel.named_parameters()]
    values = tuple(value.detach().clone().requires_grad_() for value in kernel.parameters())

    def function(*arguments: Tensor) -> Tensor:
        given, raw = arguments[: -len(names)], arguments[-len(names) :]
        pair = (given[0], given[0]) if same else given
        return functional_call(kernel, dict(zip(names, raw)), pair, kw)

    # forward is what the lazy tensor that __call__ returns evaluates
    forward = type(kernel).forward
    kernel.__class__ = type(type(kernel).__name__, (type(kernel),), {"__call__": forward})
    leaves = (*(x.clone().requires_grad_() for x in inputs), *values)
    assert gradcheck(function, leaves, eps=1e-6, atol=1e-7, rtol=1e-5, fast_mode=True)
    if second:
        assert gradgradcheck(function, leaves, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("steps", [1, 3, None])
@pytest.mark.parametrize("features", ["relu", "linear", "kernel"])
@pytest.mark.parametrize("link", ["relu", "identity", TANH, SOFT], ids=["relu", "id", "tanh", "sg"])
def test_derivatives(link: object, features: str, steps: int | None) -> None:
    given = RBFKernel() if features == "kernel" else features
    kernel = make(link, given, num_steps=steps, step_size=0.8)
    check(kernel, points(4, 2), points(3, 2, seed=1))


@finite_and_settled
@pytest.mark.parametrize("link", ["relu", TANH], ids=["relu", "tanh"])
def test_derivatives_of_batches_and_diagonals(link: object, steps: int | None) -> None:
    kernel = make(link, num_steps=steps, batch_shape=Size([2]), ard_num_dims=2, center=0.25)
    kernel.regularization = kernel.regularization * torch.tensor([1.0, 1.3]).reshape(2, 1, 1)
    check(kernel, points(1, 2, 2), points(2, 2, 2, seed=1))
    kernel = make(link, num_steps=steps, coincident="sgd")
    check(kernel, points(3, 2), points(3, 2, seed=1), diag=True)
    check(kernel, points(3, 2), diag=True, same=True)


@pytest.mark.parametrize("link", ["relu", TANH], ids=["relu", "tanh"])
@both_features
def test_derivatives_of_square_matrices(link: object, features: str) -> None:
    """At the fixed point the continuous kernel is differentiable, where inputs coincide too."""
    check(make(link, features), points(4, 2), same=True, second=False)


@both_dtypes
@pytest.mark.parametrize("features", ["relu", "linear", "kernel"])
@pytest.mark.parametrize("link", ["relu", TANH], ids=["relu", "tanh"])
@pytest.mark.parametrize("coincident", ["continuous", "sgd"])
def test_gradients_are_finite(
    coincident: str, link: object, features: str, dtype: torch.dtype
) -> None:
    """At duplicates, zeros, parallel, antipodal and close inputs, first and second."""
    base = torch.tensor([0.7, -0.4], dtype=dtype)
    step = torch.tensor([0.0, 4 * torch.finfo(dtype).eps], dtype=dtype)
    rows = [base, base, -base, 3 * base, -0.3 * base, 0 * base, 0 * base, base + step]
    for steps, bias in itertools.product((1, 4, None), (0.0, 0.3)):
        given = RBFKernel() if features == "kernel" else features
        kernel = make(link, given, bias=bias, dtype=dtype, num_steps=steps, coincident=coincident)
        for diag in (False, True):
            x = torch.stack(rows).requires_grad_()
            value = kernel.forward(x, x, diag=diag)
            assert bool(value.isfinite().all())
            leaves = [x, *kernel.parameters()]
            grads = torch.autograd.grad(value.sum(), leaves, create_graph=True, allow_unused=True)
            assert all(bool(grad.isfinite().all()) for grad in grads if grad is not None)


def test_the_cusp_has_no_part_in_gradients() -> None:
    """Of the rough kernel after updates, at identical inputs, the smooth part alone."""
    kernel, x = make(num_steps=3), points(1, 2)
    first = x.clone().requires_grad_()
    kernel.forward(first, x).sum().backward()
    both = x.clone().requires_grad_()
    kernel.forward(both, both, diag=True).sum().backward()
    close(2 * first.grad, both.grad)


# ------------------------------------------------------------------------------------------
# Region
# ------------------------------------------------------------------------------------------


@both_dtypes
@every_link
@pytest.mark.parametrize("step_size", [0.5, 1.0, 1.5])
def test_raw_values_stay_inside(link: str, step_size: float, dtype: torch.dtype) -> None:
    kernel = DEKerKernel(link, step_size=step_size).to(dtype)
    x = points(4, 2, dtype=dtype)
    for name, raw in itertools.product(("regularization", "feature_scale"), (-1e4, -100.0, 1e4)):
        kernel.initialize(**{f"raw_{name}": torch.tensor(raw, dtype=dtype)})
        value = kernel.regularization.double().item()
        assert value > kernel.critical_regularization
        assert kernel.feature_scale.item() >= 0
        if name == "regularization" and abs(raw) < 1e4 and step_size == 1.0:
            matrix = kernel.forward(x, x)
            matrix.sum().backward()
            assert bool(matrix.isfinite().all())
            assert all(p.grad is None or p.grad.isfinite().all() for p in kernel.parameters())
        kernel.initialize(**{f"raw_{name}": torch.tensor(0.5, dtype=dtype)})


@every_link
@both_features
@pytest.mark.parametrize("step_size", [0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 10, None])
def test_initial_values(link: str, features: str, step_size: float, steps: int | None) -> None:
    """An injected input of variance one keeps it; with a homogeneous link every one does."""
    kernel = DEKerKernel(link, features, steps, step_size, coincident="sgd").double()
    kernel.bias_variance, kernel.lengthscale = 0.0, 1.0
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    one, nine = kernel(x, diag=True).tolist()
    assert one == pytest.approx(1.0, rel=1e-6)  # the constraints are made in single precision
    if link in ("relu", "identity") and (steps is None or link == "relu"):
        assert nine == pytest.approx(9.0, rel=1e-6)
    named = kernel.link.critical_regularization * (step_size / (2 - step_size)) ** 0.5
    factor = kernel.regularization.item() / named
    assert factor == pytest.approx(2**0.5, rel=1e-6) if link in ("relu", "tanh") else factor > 1.4


def test_initial_values_of_degenerate_links() -> None:
    zero = ExponentialFamilyLink(torch.zeros_like, torch.zeros_like)
    constant = ExponentialFamilyLink(torch.zeros_like, torch.ones_like)
    for link in (zero, constant):
        kernel = DEKerKernel(link)
        for value in (kernel.regularization, kernel.feature_scale):
            assert math.isfinite(value.item()) and value.item() > 0


@both_features
@both_dtypes
def test_at_the_ends_of_the_region(features: str, dtype: torch.dtype) -> None:
    x = points(20, 3, dtype=dtype)
    for raw, steps in itertools.product((-1e4, 1e4), (2, None)):
        kernel = DEKerKernel(features=features, num_steps=steps).to(dtype)
        kernel.initialize(raw_regularization=torch.tensor(raw, dtype=dtype))
        matrix = kernel.forward(x, x)
        matrix.sum().backward()
        assert kernel.solver_report.converged
        assert bool(matrix.isfinite().all())
        assert all(bool(p.grad.isfinite().all()) for p in kernel.parameters())


def test_regularization_outside_its_region() -> None:
    kernel = make()
    before = kernel.regularization.item()
    for value in (0.0, -1.0, 0.5, 0.5**0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"regularization of DEKerKernel .*\(0\.707107, inf\)"):
            kernel.regularization = value
        assert kernel.regularization.item() == before
    # the critical value moves with the step size
    with pytest.raises(ValueError, match=r"\(0\.408248, inf\), got 0\.4"):
        make(step_size=0.5).regularization = 0.4
    make(step_size=0.5).regularization = 0.41
    with pytest.raises(ValueError, match=r"feature_scale of DEKerKernel .*got -1"):
        kernel.feature_scale = -1.0


@pytest.mark.parametrize("constraint", [Positive(), GreaterThan(0.7), Interval(0.1, 5.0)])
def test_constraint_that_leaves_the_region(constraint: Interval) -> None:
    with pytest.raises(ValueError, match=r"regularization_constraint .*\(0\.707107, inf\).*got"):
        DEKerKernel(regularization_constraint=constraint)
    DEKerKernel(regularization_constraint=GreaterThan(0.75))
    with pytest.raises(ValueError, match=r"feature_scale_constraint .*negative"):
        DEKerKernel(feature_scale_constraint=Interval(-1.0, 1.0))


# ------------------------------------------------------------------------------------------
# Bad input
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"step_size": 0.0}, ValueError, r"step_size must lie between 0 and 2, got 0\.0"),
        ({"step_size": 2}, ValueError, "step_size must lie between 0 and 2, got 2"),
        ({"step_size": float("nan")}, ValueError, "step_size .*got nan"),
        ({"step_size": "one"}, ValueError, "step_size .*got 'one'"),
        ({"num_steps": 0}, ValueError, "num_steps .*at least 1, or None .*got 0"),
        ({"num_steps": 2.0}, ValueError, r"num_steps .*got 2\.0"),
        ({"num_steps": True}, ValueError, "num_steps .*got True"),
        ({"num_steps": "3"}, ValueError, "num_steps .*got '3'"),
        ({"link": "rleu"}, ValueError, "Unknown link 'rleu'.*'relu'.*'softplus-gaussian'"),
        ({"link": 3}, TypeError, "A link is .*not 3"),
        ({"link": (torch.tanh, 1.0)}, TypeError, r"rho of a link .*not 1\.0"),
        ({"link": (torch.sum, torch.tanh)}, TypeError, "sigma of a link.*same shape"),
        ({"link": (torch.tanh, torch.log)}, ValueError, "rho of a link.*not finite"),
        ({"link": (torch.exp, torch.ones_like)}, ValueError, "sigma of bounded slope.*exp"),
        ({"features": "rbf"}, ValueError, "features must be 'relu', 'linear' or .*got 'rbf'"),
        ({"features": None}, ValueError, "features must .*got None"),
        ({"features": RBFKernel}, ValueError, "features must .*got <class"),
        ({"coincident": "limit"}, ValueError, "one of 'continuous', 'sgd', got 'limit'"),
        ({"coincident": None}, ValueError, "one of 'continuous', 'sgd', got None"),
        ({"regularization_prior": 1.0}, TypeError, "regularization_prior .*Prior, not float"),
        ({"feature_scale_prior": "gamma"}, TypeError, "feature_scale_prior .*Prior, not str"),
        ({"activation": "relu"}, TypeError, "activation"),
        (
            {"features": RBFKernel(batch_shape=Size([3])), "batch_shape": Size([2])},
            ValueError,
            r"batch_shape \(3,\); allowed are \(2,\)",
        ),
        ({"features": RBFKernel(batch_shape=Size([3]))}, ValueError, r"\(3,\); allowed are \(\)"),
    ],
)
def test_bad_arguments(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        DEKerKernel(**arguments)


@pytest.mark.parametrize(
    "name, value",
    [
        ("link", get_link("tanh")),
        ("step_size", 0.5),
        ("features", "linear"),
        ("features", RBFKernel()),
    ],
)
def test_arguments_that_choose_the_regime_are_not_assigned(name: str, value: object) -> None:
    """They raise, and the kernel stays as it was; the number of steps can be assigned."""
    x = points(4, 2)
    kernel = make()
    before, old = dense(kernel, x), getattr(kernel, name)
    with pytest.raises(AttributeError, match=f"{name} of a DEKerKernel .*construct"):
        setattr(kernel, name, value)
    assert getattr(kernel, name) is old
    close(dense(copy.deepcopy(kernel), x), before)
    kernel.num_steps = 3
    close(dense(kernel, x), dense(make(num_steps=3), x))


def test_a_kernel_of_features_is_not_replaced_by_a_name() -> None:
    kernel = make(features=RBFKernel(batch_shape=Size([2])).double(), batch_shape=Size([2]))
    with pytest.raises(AttributeError, match="features of a DEKerKernel"):
        kernel.features = "relu"
    x = points(4, 2)
    close(dense(kernel[1], x), dense(kernel, x)[1])


@pytest.mark.parametrize("diag", [False, True])
def test_bad_inputs(diag: bool) -> None:
    x = points(4, 2)
    with pytest.raises(ValueError, match="DEKerKernel got NaN or infinite inputs, in 1"):
        broken = x.clone()
        broken[1, 0] = float("nan")
        make().forward(x, broken, diag=diag)
    with pytest.raises(ValueError, match="3 and of 2 dimensions"):
        make().forward(points(4, 3), x, diag=diag)
    with pytest.raises(ValueError, match="NaN or infinite"):
        make().nugget(broken)


def test_not_converged() -> None:
    kernel, x = make(), points(5, 2)
    with settings.max_solver_iterations(1), pytest.warns(ConvergenceWarning) as record:
        dense(kernel, x)
    message = str(record[0].message)
    assert "DEKerKernel (ReLULink()) did not converge" in message
    assert all(name in message for name in HYPERPARAMETERS)
    assert not kernel.solver_report.converged
    dense(kernel, x)
    assert kernel.solver_report.converged and kernel.solver_report.iterations > 1


# ------------------------------------------------------------------------------------------
# What GPyTorch expects of every kernel
# ------------------------------------------------------------------------------------------


class Conformance(BaseKernelTestCase):
    seed = 0
    options: dict = {}  # noqa: RUF012

    def create_kernel_no_ard(self, **kwargs) -> Kernel:
        return DEKerKernel(**self.options, **kwargs)

    def create_kernel_ard(self, num_dims: int, **kwargs) -> Kernel:
        return DEKerKernel(ard_num_dims=num_dims, **self.options, **kwargs)


class TestSettled(Conformance, unittest.TestCase):
    pass


class TestUpdates(Conformance, unittest.TestCase):
    options = {"num_steps": 3, "features": "linear", "coincident": "sgd"}  # noqa: RUF012


class TestTanh(Conformance, unittest.TestCase):
    options = {"link": TANH}  # noqa: RUF012


def build(**kwargs) -> DEKerKernel:
    """Each entry of each hyperparameter has a value of its own."""
    kernel = DEKerKernel(**kwargs).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in kernel.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = parameter.data + 0.7 * noise
    return kernel


CASES: list[dict] = [
    {},
    {"num_steps": 3, "features": "linear"},
    {"link": TANH, "step_size": 0.7},
    {"link": "relu", "features": "kernel", "num_steps": 3},
    {"link": "relu", "features": "kernel", "coincident": "sgd"},
    {"link": TANH, "features": "kernel"},
]
every_case = pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))


def with_kernel(case: dict, batch: tuple = ()) -> dict:
    if case.get("features") != "kernel":
        return case
    return {**case, "features": RBFKernel(batch_shape=Size(batch))}


@every_case
@pytest.mark.parametrize(
    "kernel_batch, input_batch", [((), (3,)), ((3,), ()), ((2, 1), (1, 3))], ids=str
)
def test_batches_broadcast_as_a_loop(case: dict, kernel_batch: tuple, input_batch: tuple) -> None:
    kernel = build(
        **with_kernel(case, kernel_batch),
        ard_num_dims=2,
        batch_shape=Size(kernel_batch),
        center=0.3,
    )
    x1, x2 = points(*input_batch, 4, 2), points(*input_batch, 3, 2, seed=5)
    batch = torch.broadcast_shapes(kernel_batch, input_batch)
    full, square = kernel.forward(x1, x2), kernel.forward(x1, x1)
    diagonal = kernel.forward(x1, x1, diag=True)
    pairs = kernel.forward(x1[..., :3, :], x2, diag=True)
    nugget = kernel.nugget(x1)
    assert full.shape == (*batch, 4, 3) and nugget.shape == (*batch, 4)
    assert diagonal.shape == (*batch, 4) and pairs.shape == (*batch, 3)
    big = kernel if kernel.batch_shape == batch else kernel.expand_batch(batch)
    x1, x2 = x1.expand(*batch, 4, 2), x2.expand(*batch, 3, 2)
    for index in itertools.product(*(range(size) for size in batch)):
        one = big[index]
        close(full[index], one.forward(x1[index], x2[index]))
        expected = one.forward(x1[index], x1[index])
        # a kernel of features that is computed from products is rough on its diagonal
        close(square[index], expected, 1e-6)
        close(diagonal[index], expected.diagonal())
        close(pairs[index], full[index].diagonal(), 1e-6 if "features" in case else 1e-12)
        close(nugget[index], one.nugget(x1[index]))


@every_case
def test_indexing_with_active_dims(case: dict) -> None:
    x = points(3, 5, 4)
    kernel = build(
        **with_kernel(case, (3,)), batch_shape=Size([3]), ard_num_dims=2, active_dims=[3, 1]
    )
    whole = dense(kernel, x)
    part = kernel[1]
    assert part.batch_shape == Size([]) and part.active_dims.tolist() == [3, 1]
    close(dense(part, x[1]), whole[1])
    close(part.nugget(x[1]), kernel.nugget(x)[1])
    shared = build(**with_kernel(case), batch_shape=Size([3]))
    close(dense(shared[2], x[2]), dense(shared, x)[2])


@every_case
def test_copies(case: dict) -> None:
    arguments = with_kernel(case)
    kernel = ScaleKernel(
        build(
            **arguments,
            regularization_prior=LogNormalPrior(1.0, 0.1),
            feature_scale_prior=GammaPrior(2.0, 3.0),
            ard_num_dims=2,
        )
    ).double()
    x = points(4, 2).requires_grad_()
    before = kernel(x).to_dense()
    before.sum().backward()
    for copied in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert torch.equal(dense(copied, x.detach()), before.detach())
        for _, module, prior, closure, setter in copied.base_kernel.named_priors():
            assert closure(module) is not None
            setter(module, prior.mean.reshape(1, 1))
        assert not torch.allclose(dense(copied, x.detach()), before.detach())
    other = ScaleKernel(DEKerKernel(**with_kernel(case), ard_num_dims=2)).double()
    state = {name: value for name, value in kernel.state_dict().items() if "prior" not in name}
    other.load_state_dict(state, strict=False)
    assert torch.equal(dense(other, x.detach()), before.detach())


@every_case
@both_dtypes
def test_symmetric_to_the_bit(case: dict, dtype: torch.dtype) -> None:
    kernel = DEKerKernel(**with_kernel(case)).to(dtype)
    matrix = dense(kernel, points(61, 3, dtype=dtype))
    assert matrix.dtype == dtype and torch.equal(matrix, matrix.mT)


@every_case
def test_precisions_agree(case: dict) -> None:
    kernel = DEKerKernel(**with_kernel(case))
    x = points(6, 2)
    narrow = dense(kernel, x.float())
    torch.testing.assert_close(narrow.double(), dense(kernel.double(), x), rtol=1e-3, atol=1e-5)


def test_no_inputs() -> None:
    for case in CASES:
        kernel = build(**with_kernel(case))
        assert kernel.forward(points(0, 2), points(3, 2)).shape == (0, 3)
        assert kernel.forward(points(0, 2), points(0, 2)).shape == (0, 0)


def test_hyperparameters() -> None:
    kernel = DEKerKernel(batch_shape=Size([2])).double()
    assert isinstance(kernel.features, str) and not kernel.is_stationary and kernel.has_lengthscale
    for name in ("regularization", "feature_scale", "bias_variance"):
        assert getattr(kernel, f"raw_{name}").shape == (2, 1, 1)
        for value in (0.9, torch.tensor([0.8, 1.7]).reshape(2, 1, 1)):
            kernel.initialize(**{name: value})
            expected = torch.as_tensor(value).double().expand(2, 1, 1)
            torch.testing.assert_close(getattr(kernel, name), expected, rtol=1e-7, atol=0.0)
    fresh = DEKerKernel(features="linear")
    assert fresh.regularization.item() == pytest.approx(1.0, rel=1e-6)
    assert fresh.feature_scale.item() == pytest.approx(1.0, rel=1e-6)
    fresh.feature_scale = 0.0
    assert fresh.feature_scale.item() == 0.0


# ------------------------------------------------------------------------------------------
# A fit
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link, steps", [("relu", None), ("relu", 3), ("logistic", None)])
def test_fit_does_not_collapse_to_noise(link: str, steps: int | None) -> None:
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    x, y = torch.from_numpy(data.data), torch.from_numpy(data.target)
    x, y = (x - x.mean(0)) / x.std(0), ((y - y.mean()) / y.std())[:, None]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:150], order[150:300]
    kernel = ScaleKernel(DEKerKernel(link, num_steps=steps)).double()
    model = SingleTaskGP(x[train], y[train], covar_module=kernel, outcome_transform=None)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": 25}})
    with torch.no_grad():
        mean = model.posterior(x[test]).mean
    explained = 1 - (mean - y[test]).square().mean() / y[test].var()
    assert explained > 0.35  # a linear model explains 0.45 or so
    assert model.likelihood.noise.item() < 0.8


# ------------------------------------------------------------------------------------------
# The fast path against the reference
# ------------------------------------------------------------------------------------------


def fast_path_points(shape: str) -> tuple[Tensor, Tensor | None]:
    """Inputs, two of them identical, and other inputs unless the matrix is to be symmetric."""
    generator = torch.Generator().manual_seed(0)
    leading = {"batch": (2, 1, 9), "tiles": (300,)}.get(shape, (12,))
    x1 = torch.randn(*leading, 3, dtype=torch.float64, generator=generator)
    x1[..., 3, :] = x1[..., 5, :]
    if shape in ("square", "tiles"):
        return x1, None
    return x1, torch.randn(*leading[:-1], 7, 3, dtype=torch.float64, generator=generator)


def reference(kernel: DEKerKernel, x1: Tensor, x2: Tensor) -> Tensor:
    """The matrix as a function that PyTorch can differentiate any number of times."""
    values = [getattr(kernel, name) for name in kernel.hyperparameter_names]
    function = kernel._pair_function(SolverMonitor())
    return function(kernel._scale(x1), kernel._scale(x2), *values)


def check_fast_path(
    kernel: DEKerKernel, shape: str, x1: Tensor, x2: Tensor | None, room: float
) -> None:
    """Values to rounding, derivatives to ``room``, as the reference has them."""
    if shape == "batch":
        kernel = kernel.expand_batch(2, 2)
        kernel.raw_regularization.data = kernel.raw_regularization.data.contiguous()
        kernel.raw_regularization.data[1, 0] += 0.5
    leaves = [x.requires_grad_() for x in (x1, x2) if x is not None] + [*kernel.parameters()]
    others = x1 if x2 is None else x2
    fast = kernel.forward(x1, others)
    assert kernel.solver_report.converged
    slow = reference(kernel, x1, others)
    assert (fast - slow).abs().max() <= 1e-13 * slow.detach().abs().max()
    generator = torch.Generator().manual_seed(0)
    upstream = torch.randn(fast.shape, dtype=torch.float64, generator=generator)
    found = torch.autograd.grad((fast * upstream).sum(), leaves)
    expected = torch.autograd.grad((slow * upstream).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= room * other.abs().max()
    if x2 is not None:
        # an acquisition function asks for this one alone
        alone = kernel.forward(x1, x2.detach())
        (gradient,) = torch.autograd.grad((alone * upstream).sum(), x1)
        assert (gradient - expected[0]).abs().max() <= room * expected[0].abs().max()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, None])
@both_features
@pytest.mark.parametrize("factor", [1.0001, 1.5, 50.0])
@pytest.mark.parametrize("shape", ["square", "rectangle", "batch", "tiles"])
def test_fast_path_and_reference(
    steps: int | None, features: str, factor: float, shape: str
) -> None:
    """Derivatives to the accuracy of the series of slopes, 1e-11."""
    coincident = "sgd" if shape == "square" else "continuous"
    kernel = DEKerKernel(
        features=features, num_steps=steps, ard_num_dims=3, coincident=coincident
    ).double()
    kernel.regularization = factor * kernel.critical_regularization
    kernel.bias_variance = 0.3
    check_fast_path(kernel, shape, *fast_path_points(shape), room=1e-8)


JUMP = (torch.relu, lambda eta: (eta > 0).to(eta))


@pytest.mark.parametrize(
    "link",
    ["tanh", "identity", "softplus-gaussian", JUMP],
    ids=["tanh", "identity", "softplus", "jump"],
)
@both_features
@pytest.mark.parametrize("shape", ["square", "rectangle", "batch", "tiles"])
def test_fast_path_of_series_and_reference(link: str | tuple, features: str, shape: str) -> None:
    """Derivatives to rounding of some hundred operations, near duplicates among the inputs."""
    coincident = "sgd" if shape == "square" else "continuous"
    kernel = DEKerKernel(
        link, features, step_size=0.7, ard_num_dims=3, coincident=coincident
    ).double()
    kernel.regularization = 1.6 * kernel.critical_regularization
    kernel.bias_variance = 0.0
    x1, x2 = fast_path_points(shape)
    x1[..., 4, :] = x1[..., 5, :] + 1e-4
    if shape == "square":
        x1 *= 10  # where a smooth rho looks like a jump, and identical features are nuggets
    check_fast_path(kernel, shape, x1, x2, room=1e-10)


@pytest.mark.parametrize(
    "link, options, expected",
    [
        ("relu", {}, PairProfile),
        ("relu", {"num_steps": 5}, PairProfile),
        ("relu", {"num_steps": 20}, Recomputed),
        ("tanh", {"num_steps": 2}, Recomputed),
    ],
)
def test_how_pairs_are_computed(link: str, options: dict, expected: type) -> None:
    """Roots of roots of an angle have no series, nor have updates of another link."""
    kernel = DEKerKernel(link, **options).double()
    values = [getattr(kernel, name) for name in kernel.hyperparameter_names]
    assert isinstance(kernel._pair_map(SolverMonitor(), *values), expected)
    x = points(5, 2)
    close(dense(kernel, x), reference(kernel, x, x).detach())


def test_nugget_of_a_smooth_rho() -> None:
    """Far out it looks like a jump: "sgd" is "continuous" and the nugget, however it is asked."""
    x = torch.tensor([[30.0, 0.0], [0.1, 0.1]], dtype=torch.float64)
    kernels = [
        DEKerKernel("softplus-gaussian", coincident=option).double()
        for option in ("sgd", "continuous")
    ]
    nugget = kernels[0].nugget(x)
    assert nugget[0] > 0.2 * kernels[0](x, diag=True)[0]
    assert nugget[1] == 0
    for diag in (False, True):
        sgd, continuous = (
            kernel.forward(x, x, diag=diag) if diag else kernel.forward(x, x).diagonal()
            for kernel in kernels
        )
        torch.testing.assert_close(sgd - continuous, nugget, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("link", ["tanh", "logistic", "softplus-gaussian"])
@both_features
@both_dtypes
def test_large_inputs_leave_small_ones_alone(link: str, features: str, dtype: torch.dtype) -> None:
    """Inputs of 1e-4 to 1e4 at once: converged, and the small ones as if they were alone.

    The equation has the condition number 1/(1 - (critical/lambda)^2), relative to variances.
    """
    for seed in range(15):
        generator = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float) -> float:
            share = torch.rand((), generator=generator, dtype=torch.float64).item()  # noqa: B023
            return low * (high / low) ** share

        factor = 1 + uniform(1e-3, 3.0)
        critical = get_link(link).critical_regularization
        kernel = make(link, features, factor * critical, uniform(0.05, 5.0), dtype=dtype)
        kernel.lengthscale, kernel.bias_variance = uniform(1e-2, 1e3), uniform(1e-10, 1e5)
        sizes = torch.tensor(sorted(uniform(1e-4, 1e4) for _ in range(40)))
        x = (sizes[:, None] * torch.randn(40, 2, generator=generator)).to(dtype)
        together = dense(kernel, x)[:20, :20]
        assert kernel.solver_report.converged
        alone = dense(kernel, x[:20])
        variances = alone.diagonal()
        bound = 64 * torch.finfo(dtype).eps / (1 - factor**-2)
        mean = (variances[:, None] + variances) / 2
        assert bool(((together - alone).abs() <= bound * mean).all())


def test_an_unbounded_rho_may_leave_no_fixed_point() -> None:
    """The link of probit regression grows too fast: a warning, and not silent nonsense."""

    def sigma(u: Tensor) -> Tensor:
        log_density = -u.square() / 2 - math.log(2 * math.pi) / 2
        return (log_density - torch.special.log_ndtr(-u)).exp()

    link = ExponentialFamilyLink(sigma, lambda u: sigma(u) + sigma(-u), critical_regularization=1.0)
    kernel = DEKerKernel(link=link).double()
    kernel.regularization, kernel.feature_scale = 1.2, 3.0
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        kernel.forward(*2 * [torch.randn(4, 2, dtype=torch.float64)])
    assert not kernel.solver_report.converged
