"""Identities that tie the kernels to each other, to closed forms and to BoTorch's kernel."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from botorch.models.kernels.infinite_width_bnn import InfiniteWidthBNNKernel
from gpytorch.kernels import Kernel
from oracles import ACTIVATIONS, TRAINED, Injected, finite, injected, mp
from torch import Tensor

from gp_deq import DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel

EPS = 2.0**-52
NAMES = ["relu", "leaky_relu", "erf", "sin", "gelu", "identity"]


def points(n: int = 6, d: int = 3, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64)


def build(cls: type[Kernel], w: float, bias: float, lengthscale: float = 1.0, **kwargs) -> Kernel:
    kernel = cls(**kwargs).double()
    kernel.lengthscale, kernel.weight_variance, kernel.bias_variance = map(
        exactly, (lengthscale, w, bias)
    )
    return kernel


def exactly(value: float) -> Tensor:
    """GPyTorch's own setters take a Python float through single precision."""
    return torch.tensor(value, dtype=torch.float64)


def dense(kernel: Kernel, x: Tensor, y: Tensor | None = None) -> Tensor:
    return kernel(x, y).to_dense().detach()


def mean_variance(matrix: Tensor) -> float:
    return matrix.diagonal().mean().item()


# ------------------------------------------------------------------------------------------
# Finite depth against the reference
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("injection", [False, True], ids=["feed-forward", "injected"])
@pytest.mark.parametrize("name", NAMES)
def test_finite_depth_values(name: str, injection: bool) -> None:
    """All depths of one to four layers, NNGP and the four NTKs, w beyond critical too."""
    x = torch.tensor([[0.5, -1.25, 0.75], [-0.25, 0.375, 1.125], [-1.0, 2.5, -1.5]]).double()
    x = torch.cat((x, x[:1] + torch.tensor([[1e-6, 0.0, 0.0]])))
    for depth in (1, 2, 4):
        for w in (0.5, 3.0):
            kernels: dict[str | None, Kernel] = {
                trained: build(
                    NTKKernel,
                    w,
                    0.25,
                    activation=name,
                    depth=depth,
                    input_injection=injection,
                    trained=trained,
                )
                for trained in TRAINED
            }
            kernels[None] = build(
                NNGPKernel, w, 0.25, activation=name, depth=depth, input_injection=injection
            )
            for trained, kernel in kernels.items():
                got = dense(kernel, x)
                w_exact, bias = kernel.weight_variance.item(), kernel.bias_variance.item()
                expected = torch.empty_like(got)
                for i in range(4):
                    for j in range(4):
                        s = injected(tuple(x[i].tolist()), tuple(x[j].tolist()))
                        value = finite(
                            ACTIVATIONS[name], w_exact, s, bias, depth, injection, trained
                        )
                        expected[i, j] = float(value)
                # relative errors add up over the layers: 64 eps for each
                room = 64 * depth * EPS * mean_variance(expected)
                assert (got - expected).abs().max() <= room, (depth, w, trained)


@pytest.mark.parametrize("name", NAMES)
def test_depth_one(name: str) -> None:
    """G of the injected input; the NTK by hand."""
    x = points()
    nngp = dense(build(NNGPKernel, 0.7, 0.3, activation=name, depth=1), x)
    injected_nngp = build(NNGPKernel, 0.7, 0.3, activation=name, depth=1, input_injection=True)
    assert torch.equal(nngp, dense(injected_nngp, x))  # Sigma_1 = b either way
    recurrent = build(NTKKernel, 0.7, 0.3, activation=name, depth=1, trained="recurrent")
    torch.testing.assert_close(dense(recurrent, x), nngp, rtol=1e-14, atol=1e-15)  # T_1 = 0
    b = x @ x.T / 3 + 0.3
    pre = build(NTKKernel, 0.7, 0.3, activation=name, depth=1, trained="preactivation")
    torch.testing.assert_close(dense(pre, x), b, rtol=1e-14, atol=1e-14)  # Theta_1 = Sigma_1


# ------------------------------------------------------------------------------------------
# Depth -> infinity
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fraction"), [*itertools.product(NAMES, (0.2, 0.6, 0.9)), ("tanh", 0.2)]
)
def test_injected_depth_converges_to_the_equilibrium(name: str, fraction: float) -> None:
    """NNGP: one more layer brings the covariance closer by the factor rho = w/critical at least.

    The map G contracts in the size of the network's root mean square distance at rate
    sqrt(w) Lip: after L layers what is left of the distance to the equilibrium is at most
    rho^(L/2) of the first.  In covariances it is rho^L for the diagonal of homogeneous activations
    and close to that generally; asked here is the proved rho^(L/2), and of ReLU the exact one.
    """
    critical = build(DEQNNGPKernel, 0.1, 0.3, activation=name).activation.critical_weight_variance
    w, bias = fraction * critical, 0.3
    x = points()
    limit = dense(build(DEQNNGPKernel, w, bias, activation=name), x)
    first = mean_variance(limit)
    errors = []
    for depth in (1, 2, 4, 8, 16, 32) if name == "tanh" else (1, 2, 4, 8, 16, 32, 64):
        kernel = build(NNGPKernel, w, bias, activation=name, depth=depth, input_injection=True)
        error = (dense(kernel, x) - limit).abs().max().item()
        # phi(u_L) - phi(u) in root mean square, times the norms of both: 2 sqrt(k11 k22) at most
        room = 4 * fraction ** (depth / 2) * first * 4 + 128 * EPS / (1 - fraction) * first
        assert error <= room
        errors.append(error)
    assert errors[-1] < 1e-11 * first or fraction == 0.9
    if name == "relu":  # v_L = b (1 + A + ... + A^(L-1)), A = w/2: the diagonal's error is A^L v
        kernel = build(NNGPKernel, w, bias, activation=name, depth=8, input_injection=True)
        got = dense(kernel, x).diagonal() / limit.diagonal()
        torch.testing.assert_close(
            1 - got, torch.full_like(got, fraction**8), rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize(("name", "trained"), [*itertools.product(NAMES, TRAINED), ("tanh", "all")])
def test_injected_ntk_converges_to_the_equilibrium(name: str, trained: str) -> None:
    """Theta_(L+1) = Sigma + wP Theta_L: geometric at rate w/critical, times L from Sigma's own."""
    critical = build(DEQNNGPKernel, 0.1, 0.3, activation=name).activation.critical_weight_variance
    fraction, bias, x = 0.5, 0.3, points()
    w = fraction * critical
    limit = dense(build(DEQNTKKernel, w, bias, activation=name, trained=trained), x)
    mean = mean_variance(limit)
    for depth in (4, 16, 40) if name == "tanh" else (4, 16, 80):
        kernel = build(
            NTKKernel, w, bias, activation=name, depth=depth, input_injection=True, trained=trained
        )
        error = (dense(kernel, x) - limit).abs().max().item()
        # the covariances converge like fraction^(L/2) at worst (previous test), and the sources
        # they feed into the recursion add up to L terms of that size times the gain 1/(1 - 1/2)^2
        room = 16 * depth * fraction ** (depth / 2) * limit.diagonal().max().item()
        assert error <= room + 512 * EPS * mean
    assert error <= 1e-9 * mean


# ------------------------------------------------------------------------------------------
# BoTorch
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3, 7])
@pytest.mark.parametrize(("w", "b"), [(math.log(2), math.log(2)), (2.0, 0.1), (10.0, 5.0)])
def test_infinite_width_bnn_is_an_affine_twin(depth: int, w: float, b: float) -> None:
    """w NNGP(L, lengthscale w^-1/2, w, b) + b equals InfiniteWidthBNNKernel(L) to its clamp.

    It limits every cosine to 1 - 1e-7.  Here no pair of inputs gets that close in any layer
    (checked on the last), so the two agree to rounding off the diagonal; on the diagonal the clamp
    takes 1e-7 v (1 - 1/2) of the covariance of each layer: below 3e-7 of the variance.
    """
    x = points(8, 4, 1.5, seed=1)
    theirs = InfiniteWidthBNNKernel(depth=depth).double()
    theirs.weight_var, theirs.bias_var = exactly(w), exactly(b)
    ours = build(NNGPKernel, w, b, lengthscale=w**-0.5, depth=depth)
    got, expected = w * dense(ours, x) + b, theirs(x).to_dense().detach()
    scale = (expected.diagonal()[:, None] * expected.diagonal()).sqrt()
    assert ((got - expected).abs() <= 3e-7 * scale).all()
    off = ~torch.eye(8, dtype=torch.bool)
    cosines = (got / scale)[off]
    assert cosines.max() < 1 - 1e-6  # cosines only grow with depth: none was clamped before
    # depth layers of a dozen roundings each; acos loses eps/sqrt(1 - r^2) < 1000 eps
    assert ((got - expected).abs() / scale)[off].max() <= depth * 1e-12


# ------------------------------------------------------------------------------------------
# Closed forms
# ------------------------------------------------------------------------------------------


def test_identity_activation() -> None:
    """A linear network: Sigma = b/(1 - w), P = 1."""
    x, w, bias = points(), 0.75, 0.3
    kernel = build(DEQNNGPKernel, w, bias, activation="identity")
    w, bias = kernel.weight_variance.item(), kernel.bias_variance.item()
    b = x @ x.T / 3 + bias
    sigma, gain = b / (1 - w), 1 / (1 - w)
    expected = {
        "all": sigma + gain * sigma,
        "hidden": gain * sigma,
        "recurrent": gain * sigma,
        "preactivation": gain * sigma,
    }
    # cancellation in x @ x.T itself: a few eps of the mean variance
    room = 64 * EPS * gain * mean_variance(sigma)
    assert (dense(kernel, x) - sigma).abs().max() <= room
    for trained, value in expected.items():
        got = dense(build(DEQNTKKernel, w, bias, activation="identity", trained=trained), x)
        assert (got - value).abs().max() <= 2 * gain * room


@pytest.mark.parametrize("power", [-20, -3, 5, 20])
@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
@pytest.mark.parametrize("kind", ["nngp", *TRAINED])
def test_homogeneity(kind: str, name: str, power: int) -> None:
    """k(ax, ax') = a^2 k(x, x') without bias; also in each argument: k(ax, x') = a k(x, x')."""
    x, a = points(), 2.0**power
    if kind == "nngp":
        kernel = build(DEQNNGPKernel, 1.5, 0.0, activation=name)
    else:
        kernel = build(DEQNTKKernel, 1.5, 0.0, activation=name, trained=kind)
    one = dense(kernel, x)
    scale = (one.diagonal()[:, None] * one.diagonal()).sqrt()
    # scaling by a power of two is exact; what an intermediate exponent could change is rounding
    assert ((dense(kernel, a * x) / a**2 - one).abs() <= 16 * EPS * scale).all()
    room = 64 * EPS / (1 - 1.5 / 2) * scale
    assert ((dense(kernel, a * x, x) / a - one).abs() <= room).all()


@pytest.mark.parametrize("name", NAMES)
def test_vanishing_weight_variance(name: str) -> None:
    """w -> 0: Sigma = b, so G(b) and G(b) + P(b) b; corrections are O(w)."""
    x, bias, w = points(), 0.3, 1e-9
    phi = ACTIVATIONS[name]
    nngp = dense(build(DEQNNGPKernel, w, bias, activation=name), x)
    ntk = dense(build(DEQNTKKernel, w, bias, activation=name), x)
    for i in range(3):
        for j in range(i, 6):
            s: Injected = injected(tuple(x[i].tolist()), tuple(x[j].tolist()), bias)
            G, P = phi.G(*s), phi.P(*s)
            # |dG/dw| <= G + ..., |dk/dw| <= 10 Lip^4 v at w = 0 with room
            room = 10 * w * float(phi.lipschitz) ** 4 * float(max(s.b11, s.b22)) + 1e-14
            assert abs(nngp[i, j].item() - G) <= room
            assert abs(ntk[i, j].item() - (G + P * s.b12)) <= room + 1e-14 * float(s.b11 + s.b22)


# ------------------------------------------------------------------------------------------
# The collapse that an equilibrium does not have
# ------------------------------------------------------------------------------------------


def correlations(matrix: Tensor) -> Tensor:
    root = matrix.diagonal().sqrt()
    off = ~torch.eye(len(matrix), dtype=torch.bool)
    return (matrix / root[:, None] / root)[off]


def test_depth_collapse() -> None:
    """Feed-forward correlations tend to one with depth; the equilibrium's do not.

    For ReLU at w = 2 without bias 1 - r ~ 9 pi^2/(2 l^2); the ratio is .984 at l = 2000.
    """
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.8, 0.6], [0.0, -1.0]]).double()
    smallest = []
    for depth in (3, 30, 300):
        kernel = build(NNGPKernel, 2.0, 0.0, depth=depth)
        gaps = 1 - correlations(dense(kernel, x))
        smallest.append(gaps.max().item())
    assert smallest[0] > 0.1 and smallest[1] < 0.05 and smallest[2] < 5e-4
    # the last one against the asymptotic law, which it approaches from below like 1 - O(log l/l)
    assert 0.85 < smallest[2] / (9 * math.pi**2 / (2 * 300**2)) < 1
    for fraction in (0.5, 0.9, 0.99):
        equilibrium = correlations(dense(build(DEQNNGPKernel, 2 * fraction, 0.0), x))
        # r* < 1 for every w: above the crossover the angle is (3 (1-A) pi th0^2/(2 A))^(1/3)
        assert equilibrium.max() < 0.999
    injected_twin = build(NNGPKernel, 1.0, 0.0, depth=300, input_injection=True)
    torch.testing.assert_close(
        dense(injected_twin, x), dense(build(DEQNNGPKernel, 1.0, 0.0), x), rtol=1e-12, atol=1e-13
    )


def test_feed_forward_forgets_below_critical() -> None:
    """w < 2 with a bias: the limit is a constant kernel, distances fall like (w/2)^l."""
    x, w, bias = points(), 1.0, 0.4
    distances = []
    for depth in (20, 21, 22):
        k = dense(build(NNGPKernel, w, bias, depth=depth), x)
        d = k.diagonal()[:, None] + k.diagonal() - 2 * k
        distances.append(d.max().item())
    # at depth 20 angles are below 1e-3: the factor is w/2 (1 - O(angle))
    for before, after in itertools.pairwise(distances):
        assert after / before == pytest.approx(w / 2, rel=1e-2)
    assert k.mean().item() == pytest.approx(float(mp.mpf(bias) / (1 - mp.mpf(w) / 2) / 2), rel=1e-4)
