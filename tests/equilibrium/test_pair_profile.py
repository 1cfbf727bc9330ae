"""Kernels that are a function of the angle of the injected inputs, as a series in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gp_deq.equilibrium import PairProfile, Shape, pair_matrix

EPSILON = torch.finfo(torch.float64).eps
SMOOTH, CUSP = Shape(0, False, 0.4), Shape(0, True, 0.4)


def smooth(theta: Tensor, size: Tensor) -> Tensor:
    """A dot-product kernel on the sphere."""
    return (size * theta.cos()).exp()


def cusp(theta: Tensor, size: Tensor) -> Tensor:
    """An exponential kernel on the sphere."""
    return (-size * theta).exp()


def whole(profile, x1: Tensor, x2: Tensor, size: Tensor, bias: Tensor) -> Tensor:
    """The kernel by its definition; the angle by an arc cosine, away from coincident inputs."""
    roots = [(x.square().sum(-1, keepdim=True) + bias).sqrt() for x in (x1, x2)]
    scale = roots[0] * roots[1].mT
    return scale * profile(((x1 @ x2.mT + bias) / scale).acos(), size)


def leaves(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x1 = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    x2 = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    values = [torch.full((1, 1), value, dtype=torch.float64) for value in (0.7, 0.3)]
    return [x.requires_grad_() for x in (x1, x2, *values)]


@pytest.mark.parametrize(("profile", "shape"), [(smooth, SMOOTH), (cusp, CUSP)])
def test_values_and_gradients(profile, shape: Shape) -> None:
    """To a few roundings of the sum of the coefficients; slopes to their accuracy, 1e-11."""
    x1, x2, size, bias = given = leaves()

    def make(size: Tensor, bias: Tensor) -> PairProfile:
        return PairProfile(profile, shape, (size,), bias)

    def reference(x1: Tensor, x2: Tensor, *values: Tensor) -> Tensor:
        return whole(profile, x1, x2, *values)

    found = pair_matrix(make, reference, x1, x2, (size, bias))
    expected = reference(*given)
    torch.testing.assert_close(found, expected, rtol=0, atol=64 * EPSILON * expected.max().item())
    upstream = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * upstream).sum(), given),
        torch.autograd.grad((expected * upstream).sum(), given),
        strict=True,
    ):
        assert (one - other).abs().max() <= 1e-9 * other.abs().max()


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, 1e-12])
def test_near_a_cusp(distance: float) -> None:
    """``1 - K / scale`` is a small angle, to the rounding of the series at one.

    An arc cosine would lose half of the digits there, 1e-8.
    """
    size = bias = torch.ones(1, 1, dtype=torch.float64)
    x1 = torch.tensor([[0.5]], dtype=torch.float64)
    x2 = x1 + distance
    pairs = PairProfile(cusp, CUSP, (size,), bias)

    def unused(*_: Tensor) -> Tensor:
        raise AssertionError("the series has converged")

    found = pair_matrix(lambda *_: pairs, unused, x1, x2, (size, bias))
    scale = ((x1.square() + 1) * (x2.square() + 1)).sqrt()
    angle = torch.atan2(x2 - x1, x1 * x2 + 1)
    torch.testing.assert_close(1 - found / scale, -torch.expm1(-angle), rtol=0, atol=64 * EPSILON)


def test_identical_inputs() -> None:
    """Their value is another one than the limit, and its gradient is that of this value."""
    x1, _, size, bias = leaves()
    twice = (2 * size).exp()

    def make(size: Tensor, bias: Tensor) -> PairProfile:
        return PairProfile(smooth, SMOOTH, (size,), bias, (2 * size).exp())

    found = pair_matrix(make, lambda *_: torch.zeros(0), x1, None, (size, bias))
    variance = x1.square().sum(-1) + bias.squeeze()
    torch.testing.assert_close(found.diagonal(), variance * twice.squeeze())
    (gradient,) = torch.autograd.grad(found.diagonal().sum(), size)
    torch.testing.assert_close(gradient.squeeze(), (2 * variance * twice).sum())


def test_a_profile_that_no_series_has() -> None:
    """A kink inside: the map says so, and the reference is computed."""
    x1, _, size, bias = leaves()

    def kinked(theta: Tensor, size: Tensor) -> Tensor:
        return size * (theta - 1).abs()

    pairs = PairProfile(kinked, SMOOTH, (size,), bias)
    assert pairs.inputs(x1.unsqueeze(0), None) is None
