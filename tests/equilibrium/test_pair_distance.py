"""Blocks of an equilibrium of any activation, against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gp_deq.activations import PairCovariance, get_activation
from gp_deq.equilibrium import (
    Layer,
    PairDistance,
    ReadOut,
    SolverMonitor,
    equilibrium,
    pair_matrix,
    tangent,
)

ACTIVATIONS = ["erf", "sin", "gelu", "tanh"]


def compare(name: str, trained: str | None, x1: Tensor, x2: Tensor, fraction: float) -> None:
    """Values and gradients to the rounding of the equation, ``1/(1 - fraction)``."""
    activation = get_activation(name)
    weight = torch.full((1, 1), fraction * activation.critical_weight_variance).double()
    bias = torch.full((1, 1), 0.3, dtype=torch.float64)

    def read_out(layer: Layer) -> ReadOut:
        return ReadOut(layer.dual) if trained is None else tangent(trained, layer)

    def reference(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        sigma = equilibrium(activation, weight, PairCovariance.from_inputs(x1, x2, bias))
        dual, slope = activation.dual_and_derivative(sigma)
        return read_out(Layer(dual.cov, slope, weight, sigma.cov, 1 / (1 - weight * slope))).value

    monitor = SolverMonitor()

    def make(*values: Tensor) -> PairDistance:
        return PairDistance(activation, read_out, trained is not None, monitor, *values)

    leaves = [x.requires_grad_() for x in (x1, x2, weight, bias)]
    found = pair_matrix(make, reference, x1, x2, (weight, bias))
    whole = reference(*leaves)
    assert monitor.report().converged
    scale = whole.detach().abs().max().item()
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-14 * scale / (1 - fraction))
    upstream = torch.randn_like(whole)
    expected = torch.autograd.grad((whole * upstream).sum(), leaves)
    actual = torch.autograd.grad((found * upstream).sum(), leaves)
    for one, other in zip(actual, expected, strict=True):
        assert (one - other).abs().max() <= 1e-9 * other.abs().max()


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("trained", [None, "all", "recurrent"])
@pytest.mark.parametrize("fraction", [0.05, 0.9])
def test_values_and_gradients(name: str, trained: str | None, fraction: float) -> None:
    torch.manual_seed(0)
    x1, x2 = torch.randn(6, 2, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    compare(name, trained, x1, x2, fraction)


@pytest.mark.parametrize("trained", [None, "all"])
def test_many_partners(trained: str | None) -> None:
    """A series' first points are then fitted for each input."""
    torch.manual_seed(0)
    x1, x2 = torch.randn(90, 2, dtype=torch.float64), torch.randn(100, 2, dtype=torch.float64)
    compare("tanh", trained, x1, x2, 0.9)


@pytest.mark.parametrize("trained", [None, "all"])
@pytest.mark.parametrize("name", ["erf", "tanh"])
def test_repeated_inputs_in_batches(name: str, trained: str | None) -> None:
    """Their variances are solved for once, and all of them get their gradients."""
    torch.manual_seed(0)
    x1 = torch.randn(3, 2, dtype=torch.float64).repeat(4, 1, 1)
    compare(name, trained, x1, torch.randn(4, 2, 2, dtype=torch.float64), 0.6)
