"""Derivatives of code that autograd and function transforms do not look into."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gp_deq.differentiation import opaque, pull_back


def stubborn(x: Tensor, y: Tensor) -> Tensor:
    """A function that asks for values, as a solver does; ``x.sin() * y.exp()`` for small x."""
    if float(x.detach().abs().max()) > 100:
        return x
    return x.sin() * y.exp()


def plain(x: Tensor, y: Tensor) -> Tensor:
    return x.sin() * y.exp()


def through(x: Tensor, y: Tensor) -> Tensor:
    return opaque(stubborn, x, y)


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, generator=generator, dtype=torch.float64)
    return x, torch.randn(3, generator=generator, dtype=torch.float64)


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(lambda x, y: f(x, y).sum(), argnums=(0, 1)),
    "jacrev": lambda f: torch.func.jacrev(f, argnums=(0, 1)),
    "jacfwd": lambda f: torch.func.jacfwd(f, argnums=(0, 1)),
    "hessian": lambda f: torch.func.hessian(lambda x, y: f(x, y).sum(), argnums=(0, 1)),
    "third": lambda f: torch.func.jacfwd(
        torch.func.hessian(lambda x, y: f(x, y).sum(), argnums=(0, 1))
    ),
    "vmap": lambda f: torch.func.vmap(f),
    "vmap, one side": lambda f: torch.func.vmap(f, in_dims=(0, None)),
    "vmap of a gradient": lambda f: torch.func.vmap(
        torch.func.grad(lambda x, y: f(x, y).sum()), in_dims=(0, None)
    ),
    "gradient of a vmap": lambda f: torch.func.grad(
        lambda x, y: torch.func.vmap(f)(x, y).prod(), argnums=1
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str) -> None:
    transform, arguments = TRANSFORMS[name], pair()
    torch.testing.assert_close(transform(through)(*arguments), transform(plain)(*arguments))


def test_without_a_transform_it_is_the_plain_call() -> None:
    x, y = (value.requires_grad_() for value in pair())
    assert torch.equal(through(x, y), plain(x, y))
    for one, other in zip(
        torch.autograd.grad(through(x, y).sum(), (x, y)),
        torch.autograd.grad(plain(x, y).sum(), (x, y)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_pull_back() -> None:
    """Gradients with respect to the arguments, whatever these depend on, and None left out."""
    x, y = (value.requires_grad_() for value in pair())
    z = x * y
    for differentiable in (True, False):
        with torch.set_grad_enabled(differentiable):
            (found,) = pull_back(
                lambda a, b, _: (a * b, torch.ones_like(a)), (z, y, None), (True, False, False)
            )
        torch.testing.assert_close(found, y)
        assert found.requires_grad is differentiable


def test_pull_back_of_a_constant() -> None:
    x, _ = pair()
    x.requires_grad_()
    (found,) = pull_back(lambda a: (torch.ones(2), torch.ones(2)), (x,), (True,))
    assert torch.equal(found, torch.zeros_like(x))
