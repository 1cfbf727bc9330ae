"""Activations of three methods: the others follow by automatic differentiation or homogeneity."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gp_deq import DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel
from gp_deq.activations import (
    GELU,
    Activation,
    Erf,
    LeakyReLU,
    PairCovariance,
    Sine,
    get_activation,
)

CLOSED: dict[str, Activation] = {"erf": Erf(), "gelu": GELU(), "sin": Sine()}


class Plain(Activation):
    """The three abstract methods of another activation, and nothing else of it."""

    smooth = True

    def __init__(self, activation: Activation) -> None:
        self.activation = activation

    @property
    def lipschitz(self) -> float:
        return self.activation.lipschitz

    def expectations(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor, accuracy: float | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.activation.expectations(features1, features2, sqdist)

    def diagonal(self, variance: Tensor) -> Tensor:
        return self.activation.diagonal(variance)


class AbsoluteValue(Activation):
    """G of the absolute value as textbooks have it."""

    homogeneous = True

    @property
    def lipschitz(self) -> float:
        return 1.0

    def expectations(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor, accuracy: float | None = None
    ) -> tuple[Tensor, Tensor]:
        var1, var2 = features1, features2.mT
        scale = (var1 * var2).sqrt()
        correlation = ((var1 + var2 - sqdist) / (2 * scale)).clamp(-1, 1)
        arc, root = correlation.asin(), (1 - correlation.square()).sqrt()
        return 2 / math.pi * scale * (root + correlation * arc), 2 / math.pi * arc

    def diagonal(self, variance: Tensor) -> Tensor:
        return variance


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Variances and squared distances, three pairs of which are coincident but for rounding."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (6, 5))
    y[:3] = x[:3]
    pair = PairCovariance.from_inputs(x, y, 0.3)
    sqdist = pair.sqdist.clone()
    for index, error in enumerate((-1.0, 1.0, -4.0)):
        assert sqdist[index, index] == 0
        sqdist[index, index] = error * 2.0**-52 * pair.var1[index, 0]
    return pair.var1, pair.var2.mT, sqdist


@pytest.mark.parametrize("name", CLOSED)
def test_slopes_by_automatic_differentiation(name: str) -> None:
    """Equal to the closed forms but for rounding, also at squared distances slightly below zero."""
    closed, plain, given = CLOSED[name], Plain(CLOSED[name]), pairs()
    results = [
        torch.stack(
            [
                *activation.variance_slopes(*given),
                activation.curvature(*given),
                *activation.derivative_variance_slopes(*given),
            ]
        )
        for activation in (plain, closed)
    ]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)
    variance = given[0]
    for method in ("derivative_diagonal", "diagonal_slope"):
        for shape in ((6, 1), (1, 6), (2, 3)):
            value = variance.reshape(shape)
            found, expected = getattr(plain, method)(value), getattr(closed, method)(value)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


class Shifted(Plain):
    """The identity and a constant: G = c + 1 and P = 1."""

    def expectations(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor, accuracy: float | None = None
    ) -> tuple[Tensor, Tensor]:
        return (features1 + features2.mT - sqdist) / 2 + 1, torch.ones_like(sqdist)


def test_slopes_of_a_constant() -> None:
    shifted, given = Shifted(get_activation("identity")), pairs()
    assert not shifted.curvature(*given).any()
    for slope in (*shifted.variance_slopes(*given), *shifted.derivative_variance_slopes(*given)):
        assert slope.shape == given[2].shape and not slope.any()


@pytest.mark.parametrize("name", CLOSED)
def test_slope_of_the_diagonal_has_a_derivative(name: str) -> None:
    slopes = []
    for activation in (Plain(CLOSED[name]), CLOSED[name]):
        variance = pairs()[0].clone().requires_grad_()
        slopes += torch.autograd.grad(activation.diagonal_slope(variance).sum(), variance)
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cls", [DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel])
@pytest.mark.parametrize("name", CLOSED)
def test_kernels_of_three_methods(cls: type[NNGPKernel], name: str) -> None:
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for activation in (Plain(CLOSED[name]), name):
        kernel = cls(activation).double()
        kernel.weight_variance, kernel.bias_variance = 0.4, 0.2
        leaf = x.clone().requires_grad_()
        value = kernel.forward(leaf, leaf)
        results.append(
            [value, *torch.autograd.grad(value.cos().sum(), [leaf, *kernel.parameters()])]
        )
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [*CLOSED, "tanh", "softplus", "relu", "identity"])
def test_negative_squared_distances_count_as_zero(name: str) -> None:
    """All expectations and derivatives at minus a few roundings are those at zero."""
    activation = get_activation(name)
    variance = torch.tensor([[0.4], [2.0]], dtype=torch.float64)
    features = activation.features(variance)
    found = []
    for error in (0.0, -8.0):
        sqdist = variance + variance.mT - 2 * (variance * variance.mT).sqrt()
        sqdist = sqdist.fill_diagonal_(0.0) + error * 2.0**-52 * torch.eye(2) * variance
        sqdist.requires_grad_()
        value, slope = activation.expectations(features, features, sqdist)
        terms = [value, slope, *activation.variance_slopes(features, features, sqdist)]
        for term in (value, slope):
            terms += torch.autograd.grad(
                term.sum(), sqdist, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        if activation.smooth:
            terms += [activation.curvature(features, features, sqdist)]
            terms += activation.derivative_variance_slopes(features, features, sqdist)
        found.append(torch.stack([term.detach().diagonal() for term in terms]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)


def test_parts_of_homogeneous_activations() -> None:
    """From G at unit variances, for any slopes on both sides of zero."""
    absolute = AbsoluteValue()
    assert absolute.linear_part == 1.0 == absolute.critical_weight_variance
    assert absolute.angular_part == pytest.approx(2 / math.pi, rel=1e-15)
    for slope in (0.0, 0.01, -0.6, 1.0):
        closed = LeakyReLU(slope)
        plain = Plain(closed)
        plain.homogeneous = True
        assert plain.linear_part == closed.linear_part
        assert plain.critical_weight_variance == closed.critical_weight_variance
        assert plain.angular_part == pytest.approx(closed.angular_part, rel=1e-15)
    with pytest.raises(AttributeError, match="Erf is not homogeneous and has no linear_part"):
        Erf().linear_part  # noqa: B018


def test_slopes_of_homogeneous_activations() -> None:
    """They are those of the closed form, also at the cusp, where the formula given has none."""
    given = pairs()
    found, expected = (
        torch.stack(
            [
                *activation.variance_slopes(*given),
                activation.curvature(*given),
                *activation.derivative_variance_slopes(*given),
            ]
        )
        for activation in (AbsoluteValue(), LeakyReLU(-1.0))
    )
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("cls", [NNGPKernel, NTKKernel, DEQNNGPKernel, DEQNTKKernel])
def test_homogeneous_activation_of_three_methods(cls: type[NNGPKernel]) -> None:
    """It equals the leaky ReLU of slope -1."""
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for activation in (AbsoluteValue(), LeakyReLU(-1.0)):
        kernel = cls(activation).double()
        kernel.weight_variance, kernel.bias_variance = 0.6, 0.2
        leaf = x.clone().requires_grad_()
        value = kernel.forward(leaf, leaf)
        results.append(
            [value, *torch.autograd.grad(value.cos().sum(), [leaf, *kernel.parameters()])]
        )
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_squared_distances_of_homogeneous_activations_keep_their_digits() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pair = PairCovariance.from_inputs(x, x + 1e-9, 0.1)
    found, expected = AbsoluteValue().dual(pair), LeakyReLU(-1.0).dual(pair)
    for term, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(term, wanted, rtol=1e-14, atol=0)
