"""Gaussian expectations: what one layer does to the covariance of a pair of inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .activation import Activation
from .erf import Erf
from .families import (
    Bernoulli,
    Binomial,
    ContinuousBernoulli,
    ExponentialFamily,
    Gaussian,
    Poisson,
    SignedBernoulli,
    get_family,
)
from .gelu import GELU
from .hermite import Hermite
from .link import ExponentialFamilyLink, get_link
from .pair_covariance import PairCovariance
from .piecewise_linear import Identity, LeakyReLU, ReLU
from .sine import Sine

__all__ = [
    "GELU",
    "Activation",
    "Bernoulli",
    "Binomial",
    "ContinuousBernoulli",
    "Erf",
    "ExponentialFamily",
    "ExponentialFamilyLink",
    "Gaussian",
    "Hermite",
    "Identity",
    "LeakyReLU",
    "PairCovariance",
    "Poisson",
    "ReLU",
    "SignedBernoulli",
    "Sine",
    "get_activation",
    "get_family",
    "get_link",
]

_CLOSED_FORM: dict[str, Callable[[], Activation]] = {
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "erf": Erf,
    "sin": Sine,
    "gelu": GELU,
    "identity": Identity,
}
# function and least upper bound of its slope, None where Hermite finds it
_BY_SERIES: dict[str, tuple[Callable[[Tensor], Tensor], float | None]] = {
    "tanh": (torch.tanh, 1.0),
    "sigmoid": (torch.sigmoid, 0.25),
    "silu": (torch.nn.functional.silu, None),
    "elu": (torch.nn.functional.elu, 1.0),
    "softplus": (torch.nn.functional.softplus, 1.0),
}


def get_activation(activation: str | Activation | Callable[[Tensor], Tensor]) -> Activation:
    """Activation of a given name or function.

    Args:
        activation: "relu", "leaky_relu", "erf", "sin", "gelu", "identity" (closed form); "tanh",
            "sigmoid", "silu", "elu", "softplus" or any elementwise torch function (through
            :class:`Hermite`); or an :class:`Activation`, returned as it is.

    Raises:
        ValueError: the name is not known.
        TypeError: neither a name, an :class:`Activation` nor a callable was given.

    Example:
        >>> get_activation("relu").critical_weight_variance
        2.0
        >>> get_activation(torch.tanh)
        Hermite(tanh, degree=128)
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        if activation in _CLOSED_FORM:
            return _CLOSED_FORM[activation]()
        if activation in _BY_SERIES:
            fn, lipschitz = _BY_SERIES[activation]
            return Hermite(fn, lipschitz=lipschitz)
        names = ", ".join(repr(name) for name in [*_CLOSED_FORM, *_BY_SERIES])
        raise ValueError(
            f"Unknown activation {activation!r}. Give one of {names}, an Activation, or an "
            "elementwise torch function."
        )
    if isinstance(activation, type):
        raise TypeError(f"Give an instance, {activation.__name__}(), not the class.")
    if callable(activation):
        return Hermite(activation)
    raise TypeError(f"An activation is a name, an Activation or a function, not {activation!r}.")
