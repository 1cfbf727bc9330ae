"""Kernels of a layer at equilibrium, and their partial derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gp_deq.equilibrium import TRAINED, Layer, ReadOut, check_trained, tangent


def fields() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    dual, slope, cov = (torch.rand(3, 4, dtype=torch.float64) for _ in range(3))
    return dual, slope, torch.tensor([[0.7]], dtype=torch.float64), cov


def read(kind: str, dual: Tensor, slope: Tensor, weight: Tensor, cov: Tensor) -> ReadOut:
    layer = Layer(dual, slope, weight, cov, 1 / (1 - weight * slope))
    return ReadOut(layer.dual) if kind == "nngp" else tangent(kind, layer)


@pytest.mark.parametrize("kind", ["nngp", *TRAINED])
def test_values(kind: str) -> None:
    """The formulas of the class DEQNTKKernel."""
    dual, slope, weight, cov = fields()
    series = 1 / (1 - weight * slope)
    expected = {
        "nngp": dual,
        "all": dual + slope * cov * series,
        "hidden": slope * cov * series,
        "recurrent": dual * series,
        "preactivation": cov * series,
    }[kind]
    torch.testing.assert_close(read(kind, *fields()).value, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("kind", TRAINED)
def test_partial_derivatives(kind: str) -> None:
    leaves = [x.requires_grad_() for x in fields()]
    found = read(kind, *leaves)
    gradients = torch.autograd.grad(
        found.value.sum(), leaves, allow_unused=True, materialize_grads=True
    )
    partial = (found.by_dual, found.by_slope, found.by_weight, found.by_cov)
    for gradient, derivative in zip(gradients, partial, strict=True):
        expected = torch.zeros(3, 4, dtype=torch.float64)
        expected = expected if derivative is None else expected + derivative
        torch.testing.assert_close(
            gradient, expected.sum_to_size(gradient.shape), rtol=1e-14, atol=1e-15
        )


@pytest.mark.parametrize("kind", ["nngp", *TRAINED])
def test_derivative_along_the_covariance(kind: str) -> None:
    """``G`` and ``P`` are functions of the covariance, here ``sin`` and its derivative."""
    _, _, weight, cov = fields()
    cov.requires_grad_()
    slope, curvature = cov.cos(), -cov.sin()
    found = read(kind, cov.sin(), slope, weight, cov)
    (gradient,) = torch.autograd.grad(found.value.sum(), cov)
    # it writes in the partial derivatives' place
    found = read(kind, *(x.detach() for x in (cov.sin(), slope, weight, cov)))
    total = found.along_cov(slope.detach(), curvature.detach())
    torch.testing.assert_close(gradient, total, rtol=1e-14, atol=1e-15)


def test_unknown() -> None:
    with pytest.raises(ValueError, match=r"trained must be one of 'all', .*got 'some'"):
        check_trained("some")
