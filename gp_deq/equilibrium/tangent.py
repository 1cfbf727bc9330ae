"""Tangent kernels of an equilibrium, as functions of what they are made of."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Tangent(NamedTuple):
    """A kernel of a pair and its partial derivatives.

    Args:
        value: The kernel.
        dual: Its derivative by ``G``; None for zero.
        slope: By ``P``.
        cov: By the covariance of the pre-activations; None for zero.
        weight: By the weight variance.
    """

    value: Tensor
    dual: Tensor | None
    slope: Tensor
    cov: Tensor | None
    weight: Tensor

    def by_cov(self, slope: Tensor, curvature: Tensor) -> Tensor:
        """Its derivative by the covariance, on which ``G`` and ``P`` depend too.

        Args:
            slope: ``P``.
            curvature: Derivative of ``P`` by the covariance.
        """
        total = self.slope * curvature
        if self.cov is not None:
            total.add_(self.cov)
        return total if self.dual is None else total.addcmul_(self.dual, slope)


def tangent(
    trained: str, dual: Tensor, slope: Tensor, cov: Tensor, weight: Tensor, inverse: Tensor
) -> Tangent:
    r"""The kernels of :class:`~gp_deq.kernels.DEQNTKKernel`, which lists them.

    Args:
        trained: "all", "hidden", "recurrent" or "preactivation".
        dual: :math:`G`.
        slope: :math:`P`.
        cov: Covariance of the pre-activations.
        weight: :math:`w`.
        inverse: :math:`1/(1 - wP)`, whose derivatives by P and by w are its square times w and P.
    """
    if trained == "recurrent":
        value = dual * inverse
        bend = value * inverse
        return Tangent(value, inverse, weight * bend, None, slope * bend)
    if trained == "preactivation":
        value = cov * inverse
        bend = value * inverse
        return Tangent(value, None, weight * bend, inverse, slope * bend)
    by_cov = slope * inverse
    value = by_cov * cov
    bend = cov * inverse.square()
    return Tangent(
        value + dual if trained == "all" else value,
        dual.new_ones(()) if trained == "all" else None,
        bend,
        by_cov,
        bend * slope.square(),
    )
