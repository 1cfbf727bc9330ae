"""What a solver for blocks of pairs knows and returns."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from .pairwise import Block


class Side(NamedTuple):
    """What a solver knows of the inputs of one side of the matrix, each ``b x n x ...``."""

    x: Tensor
    injected: Tensor
    variance: Tensor
    root: Tensor
    features: Tensor

    def take(self, along: slice, rows: slice) -> Side:
        """A part of the batches and of the inputs."""
        return Side._make(value[along, rows] for value in self)


class Slopes(NamedTuple):
    """What the derivatives of the kernel of a block of pairs need besides its value ``K``.

    Args:
        injected: Derivative by the injected covariance at fixed variances.
        other: What the solver needs for the derivatives by its hyperparameters, if that is more.
    """

    injected: Tensor
    other: Tensor | None = None


class Gradients(NamedTuple):
    """Contributions of a block to gradients.

    Args:
        variance1: By the variances of the first inputs, or whatever the solver wants to sum up for
            them, ``b x n x num_slopes``.
        variance2: By those of the second.
        moments: From whose sum the solver makes the gradients by its hyperparameters,
            ``b x 1 x k``.
    """

    variance1: Tensor
    variance2: Tensor
    moments: Tensor


class BlockSolver(Protocol):
    """Solves for the kernel of blocks of pairs, and pulls gradients back through it."""

    side1: Side
    side2: Side

    @property
    def num_slopes(self) -> int:
        """Number of values of an input by which :meth:`pull_back` gives gradients."""

    def solve(self, block: Block) -> tuple[Tensor, Slopes]:
        """Kernel and slopes of a block of pairs."""

    def pull_back(
        self,
        block: Block,
        upstream: Tensor,
        weighted: Tensor,
        value: Tensor,
        slopes: Slopes,
        only_first: bool,
    ) -> Gradients:
        """Contributions of a block to gradients.

        Args:
            block: Its place.
            upstream: Gradient by the kernel.
            weighted: ``upstream * slopes.injected``.
            value: The kernel.
            slopes: As :meth:`solve` returned them.
            only_first: Whether ``variance1`` alone is needed; the others are then meaningless.
        """

    def finish(self, side: Side, total: Tensor, to: Tensor, weighted: Tensor) -> Tensor:
        """Gradients by the variances of a side, or by what else its inputs are known by.

        Args:
            side: The side.
            total: Sums of the contributions of :meth:`pull_back`, ``b x n x num_slopes``.
            to: Sums over the other side of ``weighted`` times its inputs, ``b x n x d``.
            weighted: Sums of ``weighted``, ``b x n x 1``.
        """

    def injected_gradient(self, side: Side, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """From what :meth:`finish` returns, gradients by the injected variances, and moments."""

    def hyperparameter_gradients(self, moments: Tensor) -> tuple[Tensor, ...]:
        """Gradients by the hyperparameters but the bias variance, from all moments together."""
