"""An activation less a constant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..activations import (
    Activation,
    PairCovariance,
    gaussian_quadrature,
    panel_halvings,
    safe_sqrt,
    value_and_slope,
)

__all__ = ["Centered"]


class Centered(Activation):
    r""":math:`s\,(\varphi(u) - c)`, with the expectations of :math:`\varphi`.

    Args:
        activation: The activation :math:`\varphi`.
        constant: The constant :math:`c`.
        scale: The factor :math:`s`.

    Example:
        >>> from gp_deq.activations import ReLU
        >>> Centered(ReLU(), 0.4)(torch.tensor([-1.0, 1.0]))
        tensor([-0.4000,  0.6000])
    """

    def __init__(self, activation: Activation, constant: float, scale: float = 1.0) -> None:
        self.activation, self.constant, self.scale = activation, float(constant), float(scale)
        self.closed_form, self.smooth = activation.closed_form, activation.smooth

    def __call__(self, u: Tensor) -> Tensor:
        """See :meth:`~gp_deq.activations.Activation.__call__`."""
        return self.scale * (self.activation(u) - self.constant)

    @property
    def lipschitz(self) -> float:
        """Lipschitz constant of the activation, scaled."""
        return abs(self.scale) * self.activation.lipschitz

    @property
    def critical_weight_variance(self) -> float:
        """Critical value of the activation, scaled: the constant acts like a bias."""
        return self.activation.critical_weight_variance / self.scale**2

    def features(self, variance: Tensor) -> Tensor:
        """Quantities of one input that the activation needs, and the mean of the activation."""
        return torch.cat([self.activation.features(variance), self._mean(variance)], -1)

    def expectations(
        self,
        features1: Tensor,
        features2: Tensor,
        sqdist: Tensor,
        accuracy: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`~gp_deq.activations.Activation.expectations`."""
        value, slope = self.activation.expectations(
            features1[..., :-1], features2[..., :-1], sqdist, accuracy
        )
        means = features1[..., -1:] + features2[..., -1:].mT
        value = value - self.constant * means + self.constant**2
        return self.scale**2 * value, self.scale**2 * slope

    def dual(self, pair: PairCovariance) -> PairCovariance:
        """See :meth:`~gp_deq.activations.Activation.dual`; a constant leaves distances alone."""
        sqdist = self.scale**2 * self.activation.dual(pair).sqdist
        var1, var2 = self.diagonal(pair.var1), self.diagonal(pair.var2)
        return PairCovariance(var1, var2, sqdist, var1 - var2)

    def variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`~gp_deq.activations.Activation.variance_slopes`."""
        slope1, slope2 = self.activation.variance_slopes(
            features1[..., :-1], features2[..., :-1], sqdist
        )
        mean_slope1, mean_slope2 = (self._mean_slope(f[..., :1]) for f in (features1, features2))
        return (
            self.scale**2 * (slope1 - self.constant * mean_slope1),
            self.scale**2 * (slope2 - self.constant * mean_slope2.mT),
        )

    def curvature(self, features1: Tensor, features2: Tensor, sqdist: Tensor) -> Tensor:
        """See :meth:`~gp_deq.activations.Activation.curvature`."""
        features1, features2 = features1[..., :-1], features2[..., :-1]
        return self.scale**2 * self.activation.curvature(features1, features2, sqdist)

    def derivative_variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`~gp_deq.activations.Activation.derivative_variance_slopes`."""
        slope1, slope2 = self.activation.derivative_variance_slopes(
            features1[..., :-1], features2[..., :-1], sqdist
        )
        return self.scale**2 * slope1, self.scale**2 * slope2

    def diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`~gp_deq.activations.Activation.diagonal`."""
        value = self.activation.diagonal(variance)
        value = value - 2 * self.constant * self._mean(variance) + self.constant**2
        return self.scale**2 * value

    def derivative_diagonal(self, variance: Tensor) -> Tensor:
        """See :meth:`~gp_deq.activations.Activation.derivative_diagonal`."""
        return self.scale**2 * self.activation.derivative_diagonal(variance)

    def diagonal_slope(self, variance: Tensor) -> Tensor:
        """See :meth:`~gp_deq.activations.Activation.diagonal_slope`."""
        mean_term = 2 * self.constant * self._mean_slope(variance)
        return self.scale**2 * (self.activation.diagonal_slope(variance) - mean_term)

    def _mean(self, variance: Tensor) -> Tensor:
        root = safe_sqrt(variance.double())
        return _expectation(self.activation, root, 0).to(variance.dtype)

    def _mean_slope(self, variance: Tensor) -> Tensor:
        r"""Derivative of the mean with respect to the variance, by partial integration.

        It is :math:`\operatorname E[z\varphi'(\sqrt v z)]/2\sqrt v`. At zero it is the limit, and 0
        for an activation that is not smooth, where the limit at a kink is infinite.
        """
        exact = variance.double()
        if self.smooth:
            # the limit to about eps; rounding of the expectation is divided by twice sqrt(eps)
            exact = exact.clamp_min(torch.finfo(exact.dtype).eps)
        root = exact.masked_fill(exact == 0, torch.inf).sqrt()
        points = root.masked_fill(exact == 0, 0.0)
        slope = _expectation(lambda u: value_and_slope(self.activation, u)[1], points, 1)
        return (slope / (2 * root)).to(variance.dtype)

    def __repr__(self) -> str:
        return f"Centered({self.activation!r}, {self.constant:.6g}, {self.scale:.6g})"


def _expectation(fn: Callable[[Tensor], Tensor], root: Tensor, degree: int) -> Tensor:
    """Hermite coefficient of a function at each root of a variance, in the shape of the roots."""
    nodes, table = gaussian_quadrature(1, panel_halvings(root), root.device)
    points = root.reshape(-1, 1) * nodes
    column = table[:, degree]
    # the rule has 500 to 900 nodes: at most 30 MB at a time, whatever the number of inputs
    parts = [fn(rows) @ column for rows in points.split(4096)]
    return torch.cat(parts).reshape(root.shape)
