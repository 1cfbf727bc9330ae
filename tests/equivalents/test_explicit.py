"""Designed networks: kernels against compositions of exact expectations, and as GPyTorch's."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import oracles
import pytest
import torch
from gpytorch.kernels import ScaleKernel
from oracles import mp
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from gp_deq import DEQNNGPKernel, DEQNTKKernel
from gp_deq.activations import Sine
from gp_deq.equivalents import (
    Centered,
    ExplicitKernel,
    ExplicitNetwork,
    high_dimensional_coefficients,
    match_explicit,
)

# a handful of inputs of few dimensions do not have equal norms, and need not
pytestmark = pytest.mark.filterwarnings("ignore:The squared norms of the inputs")


def points(n: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def deq(activation: str, weight: float = 0.2, lengthscale: float = 1.0, **kwargs) -> DEQNNGPKernel:
    kernel = DEQNNGPKernel(activation, **kwargs).double()
    kernel.weight_variance, kernel.lengthscale = weight, lengthscale
    return kernel


# ------------------------------------------------------------------------------------------
# Values
# ------------------------------------------------------------------------------------------


def leaky_composition(parameters: tuple[float, ...], tau0: float, b: list[float]) -> float:
    """Covariance after two layers of max(a u, b u) less its mean at the scale tau; 60 digits."""
    v1, v2, c = map(mp.mpf, b)
    level = mp.mpf(tau0) ** 2
    for i in (0, 2):
        # as a function of positive and negative inputs, whichever slope is the larger
        high, low = max(parameters[i : i + 2]), min(parameters[i : i + 2])
        f = oracles.LeakyReLU(low, high)
        constant = (f.p - f.n) * mp.sqrt(level / (2 * mp.pi))

        def centred(
            x: mp.mpf, y: mp.mpf, z: mp.mpf, f: oracles.LeakyReLU = f, m: mp.mpf = constant
        ) -> mp.mpf:
            means = (f.p - f.n) * (mp.sqrt(x) + mp.sqrt(y)) / mp.sqrt(2 * mp.pi)
            return f.G(x, y, z) - m * means + m**2

        v1, v2, c = centred(v1, v1, v1), centred(v2, v2, v2), centred(v1, v2, c)
        level = f.G(level, level, level) - constant**2
    return float(c)


def hard_tanh_covariance(parameters: tuple[float, ...], b: list[float]) -> float:
    """The inner expectation in closed form, of a normal variable that is cut off; the outer by
    quadrature between the kinks."""
    (a, c), (v1, v2, cov) = parameters, b
    slope, width = cov / v1, math.sqrt(max(v2 - cov**2 / v1, 1e-300))

    def inner(u: float) -> float:
        mean = slope * u
        low, high = (-c - mean) / width, (c - mean) / width
        inside = norm.cdf(high) - norm.cdf(low)
        edges = c * norm.sf(high) - c * norm.cdf(low)
        return mean * inside + width * (norm.pdf(low) - norm.pdf(high)) + edges

    ends = [-12 * math.sqrt(v1), -c, 0.0, c, 12 * math.sqrt(v1)]
    pieces = [
        quad(
            lambda u: min(max(u, -c), c) * inner(u) * norm.pdf(u, scale=math.sqrt(v1)),
            *ends[i : i + 2],
            epsabs=1e-12,
        )[0]
        for i in range(4)
    ]
    return a**2 * sum(pieces)


def injected(x: Tensor, center: Tensor | float, lengthscale: Tensor | float) -> np.ndarray:
    z = (x - center) / lengthscale
    return (z @ z.mT / x.shape[-1]).numpy()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_kernel_is_the_composition_of_its_layers(activation: str) -> None:
    x, center = points(4, 3), torch.tensor([0.5, -0.3, 0.2], dtype=torch.float64)
    source = deq(activation, ard_num_dims=3, center=center)
    source.lengthscale = torch.tensor([0.8, 1.5, 1.1], dtype=torch.float64)
    network = match_explicit(source, x)
    kernel = network.kernel()
    found = kernel(x).to_dense().detach()
    b = injected(x, center, source.lengthscale.detach())
    tau0 = math.sqrt(np.trace(b) / 4)
    # the centre and the lengthscales have entered tau0
    assert network.coefficients.tau.item() == pytest.approx(
        high_dimensional_coefficients(activation, 0.2, 1.0, tau0).tau.item(), rel=1e-12
    )
    for i, j in ((0, 1), (2, 3), (1, 3), (0, 0), (2, 2)):
        numbers = [b[i, i], b[j, j], b[i, j]]
        if activation == "relu":
            expected = leaky_composition(network.parameters, tau0, numbers)
            # two layers of closed forms, whose constants are doubles
            assert found[i, j].item() == pytest.approx(expected, rel=1e-11, abs=1e-12)
        else:
            expected = hard_tanh_covariance(network.parameters, numbers)
            # a series of kinks: the rest falls like degree^-3/2 on the diagonal, and faster off it
            rtol = 1e-3 if i == j else 1e-5
            assert found[i, j].item() == pytest.approx(expected, rel=rtol)
    torch.testing.assert_close(kernel(x, diag=True).detach(), found.diagonal(), rtol=1e-12, atol=0)
    other = kernel(x[:2], x[2:]).to_dense().detach()
    torch.testing.assert_close(other, found[:2, 2:], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_variance_is_that_of_the_equilibrium(activation: str) -> None:
    """An input of the mean norm has gamma^2."""
    network = match_explicit(deq(activation), 0.9)
    x = torch.tensor([[0.9, 0.9]], dtype=torch.float64)
    # the series of a hard tanh, as above
    rtol = 1e-3 if activation == "tanh" else 1e-9
    gamma = network.coefficients.gamma.item()
    assert network.kernel()(x, diag=True).item() == pytest.approx(gamma**2, rel=rtol)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_module_samples_the_kernel(activation: str) -> None:
    """Inner products of features at width N.

    Each is a mean of N products of standard deviation of about the kernel's diagonal times sqrt 2,
    and the first of two layers errs as much: 2 / sqrt(N) together, 0.031. Ten pairs stay within
    four of these.
    """
    width, center = 4096, torch.tensor([0.4, 0.0, -0.7], dtype=torch.float64)
    source = deq(activation, lengthscale=1.2, center=center)
    x = points(4, 3)
    network = match_explicit(source, x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = network.module(3, width)
    features = module(x)
    assert features.shape == (4, width)
    found, expected = (features @ features.mT).detach(), network.kernel()(x).to_dense().detach()
    error = (found - expected).abs().max() / expected.diagonal().max()
    assert error < 4 * 2 / math.sqrt(width)
    # and a wrong kernel would be told apart
    assert (expected - expected.diagonal().diag()).abs().max() > 0.3 * expected.diagonal().max()
    weights = [p for p in module.parameters() if p.requires_grad]
    assert tuple(weights[0].shape) == (width, 3)
    assert len(weights) == len(network.activations)


@pytest.mark.parametrize("activation, weight", [("relu", 0.2), ("relu", 0.6), ("tanh", 0.3)])
def test_is_close_to_the_equilibrium_in_high_dimension(activation: str, weight: float) -> None:
    """Gaussian inputs, d = 600 and n = 200: spectral norms of the differences.

    What is neglected is of the order d^-1/2, 0.04 of the largest eigenvalue. The network shares
    more of the expansion than its four numbers, so that it is closer than the matrix of them.
    """
    x = points(200, 600)
    source = deq(activation, weight)
    network = match_explicit(source, x)
    b = torch.as_tensor(injected(x, 0.0, 1.0))
    level = b.diagonal().mean()
    found = high_dimensional_coefficients(activation, weight, tau0=level.sqrt())
    mean = found.tau.item() / math.sqrt(2 * math.pi) if activation == "relu" else 0.0
    exact_kernel = DEQNNGPKernel(Centered(source.activation, mean)).double()
    exact_kernel.weight_variance, exact_kernel.lengthscale = weight, 1.0
    exact_kernel.bias_variance = 0.0
    with torch.no_grad():
        exact = exact_kernel(x).to_dense()
        explicit = network.kernel()(x).to_dense()
    chi = b.diagonal() - level
    square = b.square() - b.diagonal().square().diag()
    rest = found.gamma**2 - level * found.alpha_1
    matrix = found.alpha_1 * b + found.alpha_2 * chi.outer(chi) + found.alpha_3 * square
    matrix = matrix + rest * torch.eye(200, dtype=torch.float64)
    norm_, from_network, from_matrix = (
        torch.linalg.matrix_norm(m, 2).item() for m in (exact, explicit - exact, matrix - exact)
    )
    assert from_matrix < 0.04 * norm_
    # 1e-6, 1e-5 and, with the series of a hard tanh, 1e-3
    assert from_network < 0.002 * norm_
    assert from_network < from_matrix


# ------------------------------------------------------------------------------------------
# As a kernel of GPyTorch
# ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["relu", "tanh"])
def network(request: pytest.FixtureRequest) -> ExplicitNetwork:
    return match_explicit(deq(request.param, lengthscale=1.3, center=0.25), points(20, 4))


def test_copies(network: ExplicitNetwork) -> None:
    kernel, x = network.kernel(), points(5, 4, seed=1)
    expected = kernel(x).to_dense()
    for same in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert isinstance(same, ExplicitKernel)
        torch.testing.assert_close(same(x).to_dense(), expected, rtol=0, atol=0)
    other = ExplicitKernel(network.activations).double()
    other.load_state_dict(kernel.state_dict())
    torch.testing.assert_close(other(x).to_dense(), expected, rtol=0, atol=0)
    again = pickle.loads(pickle.dumps(network))
    torch.testing.assert_close(again.kernel()(x).to_dense(), expected, rtol=0, atol=0)
    module = network.module(4, 8)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(copied(x), module(x), rtol=0, atol=0)


def test_kernel_does_not_change_its_source(network: ExplicitNetwork) -> None:
    kernel, source = network.kernel(), network.source
    kernel.lengthscale = 7.0
    assert source.lengthscale.item() == pytest.approx(1.3)
    assert network.kernel().lengthscale.item() == pytest.approx(1.3)
    assert kernel.center.item() == 0.25
    assert kernel.bias_variance.item() < 1e-12
    assert not kernel.is_stationary


def test_matrix_is_positive_and_differentiable(network: ExplicitNetwork) -> None:
    kernel, x = network.kernel(), points(12, 4, seed=2)
    matrix = ScaleKernel(kernel).double()(x).to_dense()
    torch.testing.assert_close(matrix, matrix.mT, rtol=0, atol=1e-14)
    values = torch.linalg.eigvalsh(matrix)
    # rounding, and the tail of the series of a hard tanh
    assert values.min() > -1e-10 * values.max()
    matrix.sum().backward()
    assert kernel.raw_lengthscale.grad is not None
    assert bool(kernel.raw_lengthscale.grad.isfinite().all())
    assert kernel.raw_lengthscale.grad.abs().max() > 0

    def total(point: Tensor) -> Tensor:
        return kernel(point).to_dense()

    point = points(3, 4, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(total, (point,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_active_dims(activation: str) -> None:
    """Inputs are given whole; other columns, however large, count for nothing."""
    x, kept = points(6, 4), [2, 0]
    wide = x * torch.tensor([1.0, 30.0, 1.0, 30.0], dtype=torch.float64)
    for kwargs in ({}, {"ard_num_dims": 2, "center": [0.3, -0.2]}):
        network = match_explicit(deq(activation, active_dims=kept, **kwargs), wide)
        plain = match_explicit(deq(activation, **kwargs), x[:, kept])
        assert network.parameters == pytest.approx(plain.parameters, rel=1e-9)
        kernel = network.kernel()
        assert kernel.active_dims is not None
        assert kernel.active_dims.tolist() == kept
        torch.testing.assert_close(
            kernel(wide).to_dense(), plain.kernel()(x[:, kept]).to_dense(), rtol=1e-8, atol=1e-10
        )


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_single_precision(activation: str) -> None:
    source = DEQNNGPKernel(activation, center=0.1)
    source.weight_variance, source.lengthscale = 0.3, 1.1
    x = points(5, 3)
    network = match_explicit(source, x.float())
    assert network.residual < 1e-20
    found = network.kernel()(x.float()).to_dense()
    assert found.dtype == torch.float32
    wide = match_explicit(source.double(), x).kernel()(x).to_dense()
    torch.testing.assert_close(found.double(), wide, rtol=2e-4, atol=1e-5)


def test_module_in_single_precision() -> None:
    source = DEQNNGPKernel("relu", center=0.1)
    source.weight_variance = 0.3
    features = match_explicit(source, 1.0).module(3, 16)(points(5, 3).float())
    assert features.dtype == torch.float32
    assert features.shape == (5, 16)


def test_scale_by_number_or_by_inputs() -> None:
    x, source = points(30, 5), deq("relu", lengthscale=0.7)
    tau0 = (x / 0.7).square().mean().sqrt()
    by_inputs, by_number = match_explicit(source, x), match_explicit(source, tau0.item())
    assert by_inputs.parameters == pytest.approx(by_number.parameters, rel=1e-9)
    by_tensor = match_explicit(source, tau0)
    assert by_tensor.parameters == by_number.parameters
    # the bias of the source is left out
    source.bias_variance = 3.0
    assert match_explicit(source, x).parameters == by_inputs.parameters


# ------------------------------------------------------------------------------------------
# Matches that do not exist, and bad input
# ------------------------------------------------------------------------------------------


def test_families() -> None:
    assert match_explicit(deq("relu"), 1.0).family == "leaky-relu"
    assert match_explicit(deq("tanh"), 1.0).family == "hard-tanh"
    for activation, family in (("relu", "leaky-relu"), ("tanh", "hard-tanh")):
        auto = match_explicit(deq(activation), 1.0)
        chosen = match_explicit(deq(activation), 1.0, family)  # type: ignore[arg-type]
        assert chosen.parameters == auto.parameters
        assert auto.residual < 1e-20
        assert repr(auto).startswith(f"ExplicitNetwork({family}, (")


def test_two_layers_suffice_for_relu_up_to_a_weight_variance() -> None:
    """Which does not depend on the scale of the inputs, for ReLU is homogeneous."""
    for tau0 in (0.2, 3.0):
        assert match_explicit(deq("relu", 0.85), tau0).residual < 1e-20
        with pytest.raises(ValueError, match="residual of"):
            match_explicit(deq("relu", 0.86), tau0)


@pytest.mark.parametrize(
    "make, family",
    [
        (lambda: deq("tanh"), "leaky-relu"),
        (lambda: deq("relu"), "hard-tanh"),
        (lambda: deq("gelu"), "auto"),
        (lambda: deq("relu", 1.8), "auto"),
    ],
    ids=["tanh", "relu", "gelu", "strong relu"],
)
def test_no_match(make: Callable[[], DEQNNGPKernel], family: str) -> None:
    with pytest.raises(ValueError, match=r"residual of \d\.\de-0\d"):
        match_explicit(make(), 1.0, family)  # type: ignore[arg-type]


def test_no_match_beyond_the_range_of_a_hard_tanh() -> None:
    """A sine that turns over within the inputs has a larger tau^2 / g1 than pi/2 tau0^2."""
    with pytest.raises(ValueError, match=r"residual of"):
        match_explicit(DEQNNGPKernel(Sine()).double(), 3.0)


def test_unknown_family() -> None:
    with pytest.raises(ValueError, match=r'"auto", "hard-tanh" or "leaky-relu", not .step'):
        match_explicit(deq("relu"), 1.0, "step")  # type: ignore[arg-type]


def test_tangent_kernel_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="DEQNTKKernel"):
        match_explicit(DEQNTKKernel("relu"), 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("tau0", [0.0, -1.0, math.nan, math.inf])
def test_scale_that_is_not_positive(tau0: float) -> None:
    with pytest.raises(ValueError, match="tau0 must be positive"):
        match_explicit(deq("relu"), tau0)
