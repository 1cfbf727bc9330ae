"""Names, functions and modules of torch that stand for an activation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gp_deq import DEQNNGPKernel
from gp_deq.activations import (
    GELU,
    Erf,
    Hermite,
    Identity,
    LeakyReLU,
    ReLU,
    Sine,
    get_activation,
)

CLOSED = [
    ("ReLU", ReLU),
    ("RELU", ReLU),
    ("LeakyReLU", LeakyReLU),
    ("leakyrelu", LeakyReLU),
    ("Leaky_ReLU", LeakyReLU),
    ("Erf", Erf),
    ("Sin", Sine),
    ("Sine", Sine),
    ("GELU", GELU),
    ("Identity", Identity),
    (nn.ReLU(), ReLU),
    (nn.ReLU(inplace=True), ReLU),
    (nn.LeakyReLU(), LeakyReLU),
    (nn.GELU(), GELU),
    (nn.Identity(), Identity),
    (torch.relu, ReLU),
    (nn.functional.relu, ReLU),
    (nn.functional.leaky_relu, LeakyReLU),
    (nn.functional.gelu, GELU),
    (torch.erf, Erf),
    (torch.sin, Sine),
]
U = torch.linspace(-3, 3, 25, dtype=torch.float64)


@pytest.mark.parametrize(("given", "expected"), CLOSED, ids=[str(given) for given, _ in CLOSED])
def test_closed_forms(given: str | Callable[[Tensor], Tensor], expected: type) -> None:
    activation = get_activation(given)
    assert type(activation) is expected
    if callable(given):
        torch.testing.assert_close(activation(U), given(U.clone()))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Tanh", "tanh"),
        ("SiLU", "silu"),
        ("ELU", "elu"),
        ("Sigmoid", "sigmoid"),
        ("Softplus", "softplus"),
        (nn.Tanh(), "tanh"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.SiLU(), "silu"),
        (nn.ELU(), "elu"),
        (nn.Softplus(), "softplus"),
    ],
    ids=str,
)
def test_series(given: str | nn.Module, name: str) -> None:
    """The same function, and the same bound of its slope."""
    activation, expected = get_activation(given), get_activation(name)
    assert isinstance(activation, Hermite) and isinstance(expected, Hermite)
    assert activation.fn is expected.fn
    assert activation.critical_weight_variance == expected.critical_weight_variance


def test_slopes_of_leaky_modules() -> None:
    assert get_activation(nn.LeakyReLU(0.3)).critical_weight_variance == 2 / (1 + 0.3**2)
    assert get_activation(nn.PReLU(init=0.25)).critical_weight_variance == 2 / (1 + 0.25**2)
    with pytest.raises(TypeError, match="slope for each channel"):
        get_activation(nn.PReLU(3))


class Doubled(nn.ReLU):
    def forward(self, u: Tensor) -> Tensor:
        return 2 * super().forward(u)


@pytest.mark.parametrize(
    "module",
    [nn.GELU("tanh"), nn.ELU(0.5), nn.Softplus(beta=2), nn.Mish(), Doubled()],
    ids=["gelu-tanh", "elu", "softplus", "mish", "derived"],
)
def test_modules_with_parameters_of_their_own(module: nn.Module) -> None:
    """By their series, as any other function."""
    activation = get_activation(module)
    assert isinstance(activation, Hermite)
    torch.testing.assert_close(activation(U), module(U))


def test_kernels_take_modules() -> None:
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for given, name in (("ReLU", "relu"), (nn.ReLU(), "relu"), ("Tanh", "tanh")):
        values = [DEQNNGPKernel(kind).double().forward(x, x) for kind in (given, name)]
        torch.testing.assert_close(*values, rtol=0, atol=0)


def test_unknown() -> None:
    with pytest.raises(ValueError, match=r"Unknown activation 'ReLU7'\. Give one of 'relu'"):
        get_activation("ReLU7")
    with pytest.raises(TypeError, match=r"Give an instance, ReLU\(\), not the class"):
        get_activation(nn.ReLU)
