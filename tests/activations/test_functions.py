"""Derivatives of the custom functions, whichever of their arguments need one."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gp_deq.activations import PairCovariance
from gp_deq.activations.angles import angle, bent_distance, sine_excess, sine_excess_of_angle
from gp_deq.activations.pair_covariance import bounded
from gp_deq.activations.power_series import power_series, series_dual

torch.manual_seed(0)
X1, X2 = (torch.randn(count, 2, dtype=torch.float64) for count in (3, 2))
PAIR = PairCovariance.from_inputs(X1, X2, 0.3)
FIRST, SECOND = (torch.randn(count, 5, dtype=torch.float64) for count in (3, 2))


def differences(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    pair = PairCovariance.from_inputs(x1, x2, 0.3)
    return pair.sqdist, pair.vardiff


def bent(var1: Tensor, var2: Tensor, sqdist: Tensor) -> tuple[Tensor, Tensor]:
    return bent_distance(PairCovariance(var1, var2, sqdist, var1 - var2), 0.5, 0.25)


def distance(first: Tensor, second: Tensor, versine: Tensor) -> Tensor:
    return series_dual(first, second, versine).sqdist


FUNCTIONS: dict[str, tuple[Callable[..., Tensor | tuple[Tensor, ...]], tuple[Tensor, ...]]] = {
    "angle": (angle, (PAIR.versine,)),
    "sine_excess": (sine_excess, (PAIR.versine,)),
    "sine_excess_of_angle": (sine_excess_of_angle, (angle(PAIR.versine),)),
    "bounded": (lambda value: bounded(value, 0.0, 2.0).square(), (PAIR.versine,)),
    "bent_distance": (bent, tuple(PAIR)[:3]),
    "versine": (lambda *pair: PairCovariance(*pair).versine, tuple(PAIR)),
    "input_differences": (differences, (X1, X2)),
    "power_series": (power_series, (FIRST, SECOND, 1 - PAIR.versine)),
    "constant_series": (power_series, (FIRST[:, :1], SECOND[:, :1], 1 - PAIR.versine)),
    "series_distance": (distance, (FIRST, SECOND, PAIR.versine)),
}


SUBSETS = [
    (name, chosen)
    for name, (_, arguments) in FUNCTIONS.items()
    for count in range(1, len(arguments) + 1)
    for chosen in itertools.combinations(range(len(arguments)), count)
]


@pytest.mark.parametrize(("name", "chosen"), SUBSETS)
def test_any_arguments_may_need_a_derivative(name: str, chosen: tuple[int, ...]) -> None:
    """First and second order, also of each output alone."""
    function, arguments = FUNCTIONS[name]

    def of_chosen(*leaves: Tensor) -> Tensor | tuple[Tensor, ...]:
        given = list(arguments)
        for index, leaf in zip(chosen, leaves, strict=True):
            given[index] = leaf
        return function(*given)

    leaves = tuple(arguments[index].clone().requires_grad_() for index in chosen)
    outputs = of_chosen(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for index, output in enumerate(outputs):

        def one(*leaves: Tensor, index: int = index) -> Tensor:
            found = of_chosen(*leaves)
            return found[index] if isinstance(found, tuple) else found

        if output.requires_grad:
            assert gradcheck(one, leaves)
            assert gradgradcheck(one, leaves)
    assert gradcheck(of_chosen, leaves)
    assert gradgradcheck(of_chosen, leaves)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_graph_of_the_backward_pass_changes_nothing(name: str) -> None:
    function, arguments = FUNCTIONS[name]
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    found = []
    for create_graph in (False, True):
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        total = torch.stack([output.square().sum() for output in outputs]).sum()
        found.append(
            torch.autograd.grad(total, leaves, create_graph=create_graph, allow_unused=True)
        )
    for plain, with_graph in zip(*found, strict=True):
        torch.testing.assert_close(plain, with_graph, rtol=1e-12, atol=1e-13)
