"""Kernels of an equilibrium, as functions of one layer there."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

#: Parts of a network that may be trained, each with a tangent kernel of its own.
TRAINED = ("all", "hidden", "recurrent", "preactivation")


class Layer(NamedTuple):
    r"""A layer at equilibrium: one entry for each pair of inputs, ``... x n x m``.

    The kernel of the covariance alone needs no more than ``dual``; for it the last two may be None.

    Args:
        dual: :math:`G = \operatorname E\varphi(u)\varphi(v)`.
        slope: :math:`P = \operatorname E\varphi'(u)\varphi'(v)`.
        weight: Weight variance :math:`w`, ``... x 1 x 1``.
        cov: Covariance :math:`\Sigma` of the pre-activations.
        inverse: :math:`1/(1 - wP)`, whose derivatives with respect to P and w are its square times
            w and P.
    """

    dual: Tensor
    slope: Tensor
    weight: Tensor
    cov: Tensor | None = None
    inverse: Tensor | None = None


class ReadOut(NamedTuple):
    """A kernel and its partial derivatives with respect to the fields of a :class:`Layer`.

    Without derivatives the kernel is ``dual`` itself.

    Args:
        value: The kernel.
        by_dual: Derivative with respect to ``dual``; None for zero.
        by_slope: Derivative with respect to ``slope``, on which ``inverse`` depends too.
        by_cov: Derivative with respect to ``cov``; None for zero.
        by_weight: Derivative with respect to ``weight``, on which ``inverse`` depends too.
    """

    value: Tensor
    by_dual: Tensor | None = None
    by_slope: Tensor | None = None
    by_cov: Tensor | None = None
    by_weight: Tensor | None = None

    def along_cov(self, slope: Tensor, curvature: Tensor | None) -> Tensor:
        """Derivative with respect to the covariance, on which ``G`` and ``P`` depend too.

        Args:
            slope: ``P``, the derivative of ``G``.
            curvature: Derivative of ``P``, for a kernel that depends on it.
        """
        if self.by_slope is None or curvature is None:
            return slope
        total = self.by_slope * curvature
        if self.by_cov is not None:
            total.add_(self.by_cov)
        return total if self.by_dual is None else total.addcmul_(self.by_dual, slope)


def tangent(trained: str, layer: Layer) -> ReadOut:
    """The kernels of :class:`~gp_deq.kernels.DEQNTKKernel`, which lists them.

    Args:
        trained: One of :data:`TRAINED`.
        layer: The layer at equilibrium.
    """
    dual, slope, weight, cov, inverse = layer
    assert cov is not None and inverse is not None
    if trained == "recurrent":
        value = dual * inverse
        bend = value * inverse
        return ReadOut(value, inverse, weight * bend, None, slope * bend)
    if trained == "preactivation":
        value = cov * inverse
        bend = value * inverse
        return ReadOut(value, None, weight * bend, inverse, slope * bend)
    by_cov = slope * inverse
    value = by_cov * cov
    bend = cov * inverse.square()
    return ReadOut(
        value + dual if trained == "all" else value,
        dual.new_ones(()) if trained == "all" else None,
        bend,
        by_cov,
        bend * slope.square(),
    )


def check_trained(trained: str) -> str:
    """``trained``, if it is one of :data:`TRAINED`.

    Raises:
        ValueError: It is not.
    """
    if trained not in TRAINED:
        raise ValueError(
            f"trained must be one of {', '.join(map(repr, TRAINED))}, got {trained!r}."
        )
    return trained
