"""Squared distances that the backward pass hands to an activation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gp_deq import DEQNNGPKernel
from gp_deq.activations import GELU, Erf, Sine


@pytest.mark.parametrize("base", [Erf, Sine, GELU])
def test_squared_distances_of_the_backward_pass(base: type) -> None:
    """Zero where inputs coincide, never less, and those of the inputs to rounding."""
    seen: list[Tensor] = []

    class Recorded(base):  # type: ignore[misc, valid-type]
        def variance_slopes(self, features1: Tensor, features2: Tensor, sqdist: Tensor):
            seen.append(sqdist)
            return super().variance_slopes(features1, features2, sqdist)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    x = torch.cat((x, x, x + 1e-9)).requires_grad_()
    kernel = DEQNNGPKernel(Recorded()).double()
    kernel.lengthscale, kernel.bias_variance = 0.7, 3.0
    kernel(x).to_dense().sum().backward()
    sqdist = seen[0].squeeze(0)
    z = (x / (kernel.lengthscale * math.sqrt(3))).detach()
    injected = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()
    share = kernel.weight_variance.item() / kernel.activation.critical_weight_variance
    assert bool((sqdist.diagonal() == 0).all())
    assert bool((sqdist[:30, 30:60].diagonal() == 0).all())
    rounding = 1 + 64 * torch.finfo(torch.float64).eps
    assert bool((sqdist * rounding >= injected).all())
    assert bool((sqdist <= injected / (1 - share) * rounding).all())
