"""Finite networks in equilibrium, sampled, against the kernels of the infinite one.

The network: u = sqrt(w/N) W phi(u) + U x/sqrt(d) + sqrt(bias_variance) beta and the output
f = V phi(u)/sqrt(N), all weights standard normal, iterated to its fixed point.

A draw is one sample: its units share W.  The mean over draws must be within five standard errors
of the kernel, estimated from the draws.  At width N a tied network's averages also have a bias of
O(1/N), a few times 1e-3 here; the standard error, O(1/sqrt(N draws)), is larger, so that nothing
is allowed for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, vjp

from gp_deq import DEQNNGPKernel, DEQNTKKernel

torch_phi: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "erf": torch.erf,
    "tanh": torch.tanh,
}
WEIGHT = {"relu": 0.5, "erf": 0.4, "tanh": 0.5}  # critical: 2, pi/4, 1
BIAS = 0.25
X = torch.tensor(
    [[0.5, -1.25, 0.75], [-0.25, 0.375, 1.125], [-1.0, 2.5, -1.5]], dtype=torch.float64
)
TRAINED = ("all", "hidden", "recurrent", "preactivation")


class Network(NamedTuple):
    """The weights of one draw; V reads out."""

    W: Tensor
    U: Tensor
    beta: Tensor
    V: Tensor


def draw(width: int, seed: int) -> Network:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Network(normal(width, width), normal(width, X.shape[1]), normal(width), normal(width))


def layer(net: Network, u: Tensor, x: Tensor, name: str) -> Tensor:
    """The right-hand side of the equilibrium for one input."""
    recurrent = math.sqrt(WEIGHT[name] / len(u)) * (net.W @ torch_phi[name](u))
    return recurrent + net.U @ x / math.sqrt(len(x)) + math.sqrt(BIAS) * net.beta


def read_out(net: Network, u: Tensor, name: str) -> Tensor:
    return net.V @ torch_phi[name](u) / math.sqrt(len(u))


def equilibria(net: Network, name: str) -> Tensor:
    """Fixed points of all inputs, N x n: plain iteration until nothing moves."""
    width, n = net.W.shape[0], len(X)
    injected = net.U @ X.T / math.sqrt(X.shape[1]) + math.sqrt(BIAS) * net.beta[:, None]
    u, scale = torch.zeros(width, n, dtype=torch.float64), math.sqrt(WEIGHT[name] / width)
    for _ in range(500):
        new = scale * (net.W @ torch_phi[name](u)) + injected
        change = (new - u).abs().max()
        u = new
        if change < 1e-8:
            return u
    raise AssertionError("the finite network did not reach its equilibrium")


def kernel_matrix(name: str, trained: str | None = None) -> Tensor:
    kernel = DEQNNGPKernel(activation=name) if trained is None else None
    kernel = kernel or DEQNTKKernel(activation=name, trained=trained)
    kernel = kernel.double()
    kernel.lengthscale, kernel.weight_variance, kernel.bias_variance = 1.0, WEIGHT[name], BIAS
    return kernel(X).to_dense().detach()


def assert_agrees(samples: Tensor, expected: Tensor) -> None:
    """Mean of `samples` (draws x n x n) within 5 standard errors."""
    error = samples.mean(0) - expected
    standard = samples.std(0) / math.sqrt(len(samples))
    root = expected.diagonal().sqrt()
    scale = root[:, None] * root
    # the comparison has power: standard errors of a few per cent at most
    assert (standard < 0.05 * scale).all()
    assert (error.abs() <= 5 * standard).all(), (error / standard).tolist()


@pytest.mark.parametrize("name", ["relu", "erf", "tanh"])
def test_covariance_of_finite_networks(name: str) -> None:
    """phi(u).phi(u')/N over draws of width 1000; u.u'/N is the pre-activations' covariance."""
    width, draws, w = 1000, 16, WEIGHT[name]
    states = [equilibria(draw(width, 100 + seed), name) for seed in range(draws)]
    duals = torch.stack([torch_phi[name](u).T @ torch_phi[name](u) / width for u in states])
    sigmas = torch.stack([u.T @ u / width for u in states])
    dual = kernel_matrix(name)
    sigma = w * dual + X @ X.T / X.shape[1] + BIAS
    assert_agrees(duals, dual)
    assert_agrees(sigmas, sigma)


def sensitivities(net: Network, u: Tensor, x: Tensor, name: str) -> Tensor:
    """I - d layer/du at an equilibrium."""
    jacobian = jacrev(lambda state: layer(net, state, x, name), chunk_size=250)(u)
    return torch.eye(len(u), dtype=torch.float64) - jacobian


def tangent(net: Network, u: Tensor, x: Tensor, cotangent: Tensor, name: str) -> Network:
    """Gradients by the weights of layer(weights, u, x) against a solved cotangent."""
    _, pull = vjp(lambda weights: layer(weights, u, x, name), net)
    return pull(cotangent)[0]


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def tangent_parts(net: Network, states: Tensor, name: str) -> dict[str, Tensor]:
    """Tangent kernels of one draw, averaged over read-outs V and over units.

    With R = (I - J)^-1 and D = diag phi'(u) the output's cotangent is a = R^T D V/sqrt(N), so
    a . a' averages to tr(D R R'^T D')/N over V; a unit's is R^T e_k, and a . a' averages to
    tr(R R'^T)/N over k.  Every weight's gradient is a times what the weight multiplies.
    """
    n, width = len(X), len(states)
    slopes = torch.func.vmap(torch.func.grad(torch_phi[name]))(states.flatten()).view_as(states)
    inverses = [torch.linalg.inv(sensitivities(net, states[:, i], X[i], name)) for i in range(n)]
    scaled = [slopes[:, i, None] * inverses[i] for i in range(n)]
    phi = torch_phi[name](states)
    gram = phi.T @ phi / width
    shared = WEIGHT[name] * gram + X @ X.T / X.shape[1] + BIAS
    output, unit = (
        torch.stack([torch.stack([inner(a, b) for b in matrices]) for a in matrices]) / width
        for matrices in (scaled, inverses)
    )
    return {
        "all": gram + output * shared,
        "hidden": output * shared,
        "recurrent": gram + output * WEIGHT[name] * gram,
        "preactivation": unit * shared,
    }


def direct_parts(net: Network, states: Tensor, name: str, i: int, j: int) -> dict[str, Tensor]:
    """Gradients of this draw's own f by torch.func and the adjoint solve, multiplied out."""
    readouts, layers = [], []
    for k in (i, j):
        u, x = states[:, k], X[k]
        _, pull = vjp(lambda weights, state: read_out(weights, state, name), net, u)
        of_weights, of_state = pull(torch.ones((), dtype=torch.float64))
        adjoint = torch.linalg.solve(sensitivities(net, u, x, name).T, of_state)
        readouts.append(of_weights.V)
        layers.append(tangent(net, u, x, adjoint, name))
    a, b = layers
    last, recurrent = inner(*readouts), inner(a.W, b.W)
    rest = inner(a.U, b.U) + inner(a.beta, b.beta)
    return {
        "all": last + recurrent + rest,
        "hidden": recurrent + rest,
        "recurrent": last + recurrent,
    }


@pytest.mark.parametrize("name", ["relu", "erf", "tanh"])
def test_gradients_by_the_implicit_function_theorem(name: str) -> None:
    """The adjoint gradients are those of the network (finite differences), and multiply out."""
    width = 60
    net = draw(width, 3)
    states = equilibria(net, name)
    i, j = 0, 1
    u, x = states[:, i], X[i]
    _, pull = vjp(lambda state: read_out(net, state, name), u)
    (of_state,) = pull(torch.ones((), dtype=torch.float64))
    adjoint = torch.linalg.solve(sensitivities(net, u, x, name).T, of_state)
    gradient = tangent(net, u, x, adjoint, name).W
    # a central difference along one direction: 1e-5 squared, and 1e-10/1e-5 of the equilibria
    direction = draw(width, 4).W
    step = 1e-5
    shifted = [net._replace(W=net.W + sign * step * direction) for sign in (1, -1)]
    values = [read_out(other, equilibria(other, name)[:, i], name) for other in shifted]
    difference = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(inner(gradient, direction), difference, rtol=1e-3, atol=1e-3)

    # averaged over read-outs (N e_k for every k has the covariance of a normal V), the direct
    # products are the closed forms
    direct = {trained: torch.zeros(()).double() for trained in ("all", "hidden", "recurrent")}
    for k in range(width):
        unit = net._replace(V=torch.eye(width, dtype=torch.float64)[k] * math.sqrt(width))
        for trained, value in direct_parts(unit, states, name, i, j).items():
            direct[trained] += value / width
    closed = tangent_parts(net, states, name)
    for trained, value in direct.items():
        torch.testing.assert_close(value, closed[trained][i, j], rtol=1e-9, atol=1e-9)

    # a unit's own tangent kernel, averaged over the units
    total = torch.zeros(()).double()
    inverses = [torch.linalg.inv(sensitivities(net, states[:, k], X[k], name)) for k in (i, j)]
    for k in range(width):
        a, b = (tangent(net, states[:, m], X[m], inverses[m][k], name) for m in (i, j))
        total += sum(inner(p, q) for p, q in zip(a, b)) / width
    torch.testing.assert_close(total, closed["preactivation"][i, j], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["relu", "erf", "tanh"])
def test_empirical_tangent_kernels(name: str) -> None:
    """All four conventions: which weights' gradients count.

    "all" takes every gradient of f, "hidden" leaves out V's, "recurrent" takes those of V and W;
    "preactivation" is the tangent kernel of the units u_k themselves.
    """
    width, draws = 1000, 6
    samples = []
    for seed in range(draws):
        net = draw(width, 500 + seed)
        samples.append(tangent_parts(net, equilibria(net, name), name))
    means = []
    for trained in TRAINED:
        stacked = torch.stack([sample[trained] for sample in samples])
        means.append(stacked.mean(0)[0, 0])
        assert_agrees(stacked, kernel_matrix(name, trained))
    if name != "relu":  # (hidden and recurrent have the same diagonal for relu)
        # the conventions differ by far more than the room above: the test can tell them apart
        assert torch.pdist(torch.stack(means)[:, None]).min() > 0.1 * min(means)
