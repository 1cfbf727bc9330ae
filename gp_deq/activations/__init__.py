"""Gaussian expectations: what one layer does to the covariance of a pair of inputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.nn import functional

from .activation import Activation
from .angles import angle as angle
from .angles import sine_excess as sine_excess
from .angles import sine_excess_of_angle as sine_excess_of_angle
from .cancellation import LossEstimate as LossEstimate
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
from .gradients import value_and_slope as value_and_slope
from .gram_pair import GramPair as GramPair
from .gram_pair import scaled_in_parts as scaled_in_parts
from .hermite import Hermite
from .hermite import gaussian_quadrature as gaussian_quadrature
from .hermite import panel_halvings as panel_halvings
from .injected import exact_angle as exact_angle
from .injected import injected_angle as injected_angle
from .link import ExponentialFamilyLink, get_link
from .link import product_dual as product_dual
from .pair_covariance import PairCovariance
from .pair_covariance import bounded as bounded
from .pair_covariance import safe_sqrt as safe_sqrt
from .pair_covariance import squared_distance as squared_distance
from .piecewise_linear import Identity, LeakyReLU, ReLU
from .power_series import coefficient_gradients as coefficient_gradients
from .power_series import power_series as power_series
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
    "silu": (functional.silu, None),
    "elu": (functional.elu, 1.0),
    "softplus": (functional.softplus, 1.0),
}
# modules of torch that bear the name of an activation, and their parameters where they are equal
_MODULES: dict[type[torch.nn.Module], dict[str, object]] = {
    torch.nn.ReLU: {},
    torch.nn.Identity: {},
    torch.nn.GELU: {"approximate": "none"},
    torch.nn.Tanh: {},
    torch.nn.Sigmoid: {},
    torch.nn.SiLU: {},
    torch.nn.ELU: {"alpha": 1.0},
    torch.nn.Softplus: {"beta": 1.0, "threshold": 20.0},
}
_NAMES = [*_CLOSED_FORM, *_BY_SERIES]
# names of torch and of this package that differ from the above by more than case and underscores
_SYNONYMS = {"sine": "sin"}
# functions of torch that have a closed form
_FUNCTIONS: dict[Callable[[Tensor], Tensor], str] = {
    torch.relu: "relu",
    functional.relu: "relu",
    functional.leaky_relu: "leaky_relu",
    functional.gelu: "gelu",
    torch.erf: "erf",
    torch.special.erf: "erf",
    torch.sin: "sin",
}


def get_activation(activation: str | Activation | Callable[[Tensor], Tensor]) -> Activation:
    """Activation of a given name, function or module.

    Args:
        activation: "relu", "leaky_relu", "erf", "sin", "gelu", "identity" (closed form), "tanh",
            "sigmoid", "silu", "elu", "softplus" (through :class:`Hermite`), in any case and with or
            without the underscore, so that the names of torch's modules are understood; a module or
            function of torch, in closed form where there is one; any other elementwise torch
            function (through :class:`Hermite`); or an :class:`Activation`, returned as it is. The
            slope of a ``torch.nn.PReLU`` is taken as it is now.

    Raises:
        ValueError: the name is not known.
        TypeError: neither a name, an :class:`Activation` nor a callable was given, or a module with
            a slope for each channel.

    Example:
        >>> get_activation("relu").critical_weight_variance
        2.0
        >>> get_activation(torch.nn.LeakyReLU(0.2))
        LeakyReLU(negative_slope=0.2)
        >>> get_activation(torch.tanh)
        Hermite(tanh, degree=128)
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        return _named(activation)
    if isinstance(activation, type):
        raise TypeError(f"Give an instance, {activation.__name__}(), not the class.")
    if isinstance(activation, torch.nn.Module):
        return _of_module(activation)
    if callable(activation):
        name = _FUNCTIONS.get(activation) if isinstance(activation, Hashable) else None
        return Hermite(activation) if name is None else _named(name)
    raise TypeError(f"An activation is a name, an Activation or a function, not {activation!r}.")


def _named(given: str) -> Activation:
    plain = _plain(given)
    name = next((name for name in _NAMES if _plain(name) == _SYNONYMS.get(plain, plain)), None)
    if name is None:
        names = ", ".join(map(repr, _NAMES))
        raise ValueError(
            f"Unknown activation {given!r}. Give one of {names}, an Activation, or an "
            "elementwise torch function."
        )
    if name in _CLOSED_FORM:
        return _CLOSED_FORM[name]()
    fn, lipschitz = _BY_SERIES[name]
    return Hermite(fn, lipschitz=lipschitz)


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


def _of_module(module: torch.nn.Module) -> Activation:
    """The activation of a module, by name where its parameters are those of the named one."""
    # the classes themselves: those derived from them may compute something else
    kind = type(module)
    if isinstance(module, torch.nn.LeakyReLU) and kind is torch.nn.LeakyReLU:
        return LeakyReLU(module.negative_slope)
    if isinstance(module, torch.nn.PReLU) and kind is torch.nn.PReLU:
        if module.num_parameters != 1:
            raise TypeError("A PReLU with a slope for each channel is not one activation.")
        return LeakyReLU(module.weight.item())
    standard = _MODULES.get(kind)
    if standard is None or any(getattr(module, name) != value for name, value in standard.items()):
        return Hermite(module)
    return _named(kind.__name__)
