"""Kernel matrices put together from blocks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gp_deq.equilibrium import PairMap, Recomputed, pair_matrix


def function(x1: Tensor, x2: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Not symmetric to the bit, and with a derivative with respect to everything."""
    product = (x1 * scale) @ (x2 * scale).mT
    return (product + bias).exp() / (
        1 + x1.square().sum(-1, True) + x2.square().sum(-1)[..., None, :]
    )


class Handmade(PairMap):
    """``scale exp(x x') r(x) r(x')`` for one-dimensional inputs, its roots being of one input."""

    def __init__(self, scale: Tensor) -> None:
        self.shared = (scale,)

    def inputs(self, x1: Tensor, x2: Tensor | None) -> tuple[tuple, tuple]:
        sides = [(x, (1 + x.square()).sqrt(), None) for x in (x1, x2) if x is not None]
        return sides[0], sides[-1]

    def forward(
        self, one: Sequence, two: Sequence, shared: Sequence, pairs: Sequence = ()
    ) -> tuple[Tensor, tuple]:
        value = (one[0] * two[0].mT).exp() * one[1] * two[1].mT * shared[0]
        return value, ()


def make(*values: Tensor) -> Recomputed:
    return Recomputed(function, values)


def hyperparameters(*batch: int) -> list[Tensor]:
    return [(0.5 + torch.rand(*batch, 1, 1).double()).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("edge", [1, 2, 3, 5, 256])
@pytest.mark.parametrize(
    ("shape1", "shape2"),
    [
        ((7, 2), (4, 2)),
        ((3, 5, 2), (4, 2)),
        ((2, 1, 5, 2), (3, 4, 2)),
        ((7, 2), None),
        ((2, 7, 2), None),
        ((0, 2), (4, 2)),
        ((3, 0, 2), None),
        ((0, 3, 2), (4, 2)),
    ],
)
def test_any_edge(edge: int, shape1: tuple, shape2: tuple | None) -> None:
    """Values and gradients are those of the whole matrix at once."""
    torch.manual_seed(0)
    x1 = torch.randn(shape1, dtype=torch.float64, requires_grad=True)
    x2 = None if shape2 is None else torch.randn(shape2, dtype=torch.float64, requires_grad=True)
    values = hyperparameters()
    whole = function(x1, x1 if x2 is None else x2, *values)
    found = pair_matrix(make, function, x1, x2, values, edge)
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=0)
    if x2 is None:
        assert torch.equal(found, found.mT)
    upstream = torch.randn_like(whole)
    leaves = [x for x in (x1, x2, *values) if x is not None]
    # a matrix that is symmetric takes its upper triangle for both
    expected = torch.autograd.grad((whole * upstream).sum(), leaves)
    actual = torch.autograd.grad((found * upstream).sum(), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("edge", [2, 256])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)], ids=str)
def test_batches_of_hyperparameters(edge: int, batch: tuple) -> None:
    torch.manual_seed(0)
    x1, x2 = (torch.randn(n, 2, dtype=torch.float64, requires_grad=True) for n in (5, 4))
    values = hyperparameters(*batch)
    whole, found = function(x1, x2, *values), pair_matrix(make, function, x1, x2, values, edge)
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=0)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), [x1, x2, *values]),
        torch.autograd.grad(whole.square().sum(), [x1, x2, *values]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("edge", [2, 256])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_pass_through_what_is_known_of_an_input(edge: int, symmetric: bool) -> None:
    """The first order through its graph, the second through the reference."""

    def reference(x1: Tensor, x2: Tensor, scale: Tensor) -> Tensor:
        one, two = ((1 + x.square()).sqrt() for x in (x1, x2))
        return (x1 * x2.mT).exp() * one * two.mT * scale

    torch.manual_seed(0)
    x1 = torch.randn(5, 1, dtype=torch.float64, requires_grad=True)
    x2 = None if symmetric else torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(1, 1, dtype=torch.float64, requires_grad=True)
    found = pair_matrix(Handmade, reference, x1, x2, [scale], edge)
    whole = reference(x1, x1 if x2 is None else x2, scale)
    leaves = [x for x in (x1, x2, scale) if x is not None]
    upstream = torch.randn_like(whole)
    first = [
        torch.autograd.grad((k * upstream).sum(), leaves, retain_graph=True) for k in (found, whole)
    ]
    for one, other in zip(*first, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    second = []
    for matrix in (found, whole):
        gradients = torch.autograd.grad((matrix * upstream).sum(), leaves, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves))
    for one, other in zip(*second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_only_what_is_needed_is_computed() -> None:
    """An acquisition function asks for the gradient with respect to its test points alone."""
    asked = []

    class Watched(Recomputed):
        def vjp(self, *arguments):
            asked.append(arguments[-2])
            return super().vjp(*arguments)

    x1 = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    x2 = torch.randn(4, 2, dtype=torch.float64)
    values = [value.detach() for value in hyperparameters()]
    found = pair_matrix(lambda *given: Watched(function, given), function, x1, x2, values)
    (gradient,) = torch.autograd.grad(found.sum(), x1)
    (expected,) = torch.autograd.grad(function(x1, x2, *values).sum(), x1)
    torch.testing.assert_close(gradient, expected)
    assert [needs.only_one for needs in asked] == [True]


def test_a_map_that_would_lose_digits_leaves_the_work_to_the_reference() -> None:
    class Unable(Recomputed):
        def inputs(self, x1: Tensor, x2: Tensor | None) -> None:
            return None

    x1, x2 = torch.randn(3, 2).double(), torch.randn(4, 2).double()
    values = hyperparameters()
    wrong = pair_matrix(
        lambda *given: Unable(lambda *_: torch.zeros(0), given), function, x1, x2, values
    )
    torch.testing.assert_close(wrong, function(x1, x2, *values))
