"""The fixed point of a layer, as the reference solves for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gp_deq.activations import PairCovariance, get_activation
from gp_deq.equilibrium import SolverMonitor, contraction, equilibrium, equilibrium_variance
from gp_deq.equilibrium.fixed_point import attach_variance, solve_variance

ACTIVATIONS = ["relu", "leaky_relu", "erf", "sin", "gelu", "tanh"]
EPSILON = torch.finfo(torch.float64).eps


def given(name: str, fraction: float) -> tuple:
    torch.manual_seed(0)
    activation = get_activation(name)
    weight = torch.full((1, 1), fraction * activation.critical_weight_variance).double()
    x1, x2 = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    x2[0] = x1[1]
    return activation, weight, x1, x2


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("fraction", [0.01, 0.6, 0.99])
def test_the_equation_holds(name: str, fraction: float) -> None:
    """Each entry of ``Sigma - w G(Sigma) - b`` is rounding of its terms."""
    activation, weight, x1, x2 = given(name, fraction)
    injected = PairCovariance.from_inputs(x1, x2, 0.3)
    monitor = SolverMonitor()
    sigma = equilibrium(activation, weight, injected, monitor)
    assert monitor.report().converged
    dual = activation.dual(sigma)
    for solved, mapped, source in zip(sigma, dual, injected, strict=True):
        bound = 16 * EPSILON * (sigma.var1 + sigma.var2).expand(4, 5)
        residual = (solved - weight * mapped - source).abs()
        assert bool((residual <= bound.amax()).all())
    # the squared distance of coincident inputs is exactly zero
    assert sigma.sqdist[1, 0].item() == 0.0


@pytest.mark.parametrize("name", ["relu", "erf", "gelu"])
def test_derivatives(name: str) -> None:
    activation, weight, x1, x2 = given(name, 0.6)
    x2 = x2[1:]

    def function(weight: Tensor, x1: Tensor, x2: Tensor, bias: Tensor) -> Tensor:
        sigma = equilibrium(activation, weight, PairCovariance.from_inputs(x1, x2, bias))
        return torch.cat((sigma.cov, sigma.var1.expand_as(sigma.cov)))

    bias = torch.full((1, 1), 0.3, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (weight, x1, x2, bias)]
    assert gradcheck(function, leaves) and gradgradcheck(function, leaves)


@pytest.mark.parametrize("name", ["erf", "sin", "gelu", "tanh"])
def test_variances_with_derivatives_of_first_order(name: str) -> None:
    """What the block maps use is what the reference has."""
    activation, weight, x1, _ = given(name, 0.8)
    injected = (x1.square().sum(-1, keepdim=True) + 0.3).requires_grad_()
    weight.requires_grad_()
    reference = equilibrium_variance(activation, weight, injected, SolverMonitor())
    with torch.no_grad():
        solved = solve_variance(activation, weight, injected, SolverMonitor())
        diagonal = activation.diagonal_and_slope(solved)
    attached = attach_variance(solved, *diagonal, weight, injected)
    assert torch.equal(attached, reference)
    for one, other in zip(
        torch.autograd.grad(attached.square().sum(), (weight, injected)),
        torch.autograd.grad(reference.square().sum(), (weight, injected)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_contraction_keeps_its_digits() -> None:
    weight = torch.tensor([[2 - 2.0**-40]], dtype=torch.float64)
    assert contraction(get_activation("relu"), weight).item() == 2.0**-41
