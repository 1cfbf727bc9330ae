"""Exponential families that the tests of several modules go through, and targets of them."""

import torch
from torch import Tensor

from gp_deq.activations import (
    Bernoulli,
    Binomial,
    ContinuousBernoulli,
    ExponentialFamily,
    Gaussian,
    Poisson,
    SignedBernoulli,
)

FAMILIES = [
    Gaussian(),
    Bernoulli(),
    SignedBernoulli(),
    Binomial(7),
    Poisson(),
    ContinuousBernoulli(),
]


def targets(family: ExponentialFamily, X: Tensor, *batch: int) -> Tensor:
    """Random targets of a smooth function of the first input, the same at every call.

    Args:
        family: Of the targets.
        X: Inputs, ``n x d``.
        *batch: Leading dimensions of independent draws.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return family.sample(2 * X[:, 0].sin() + 0.5, batch)
