r"""Shallow explicit networks with the high-dimensional kernel of an equilibrium.

The kernel of an explicit network with centred activations has the same high-dimensional expansion
as that of an equilibrium. With :math:`\tilde\alpha = (1, 0, 0, 1)` and :math:`\tau_0` at its input,
a layer maps

.. math::
    \tilde\alpha_1 \leftarrow g_1\tilde\alpha_1, \quad
    \tilde\alpha_2 \leftarrow g_1\tilde\alpha_2 + \tfrac14 g_2\tilde\alpha_4^2, \quad
    \tilde\alpha_3 \leftarrow g_1\tilde\alpha_3 + \tfrac12 g_2\tilde\alpha_1^2, \quad
    \tilde\alpha_4 \leftarrow \tfrac12 g_4\tilde\alpha_4, \quad
    \tau^2 \leftarrow \operatorname E\sigma^2(\tau z)

with the old values on the right. A network is therefore equivalent to an equilibrium if its
:math:`\tilde\alpha_1`, :math:`\tilde\alpha_2`, :math:`\tilde\alpha_3` and :math:`\tau^2 -
\tau_0^2\tilde\alpha_1` are those of the equilibrium [Ling2024]_.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, least_squares
from scipy.special import erf

__all__ = ["Design", "Layer", "Target", "hard_tanh_design", "leaky_relu_design", "propagate"]


class Target(NamedTuple):
    """High-dimensional coefficients of a network, for the covariance of its input.

    Args:
        alpha_1: Coefficient of the covariance.
        alpha_2: Coefficient of the products of deviations of squared norms.
        alpha_3: Coefficient of the elementwise square of the covariance.
        variance: Variance of an output.
        tau0: Root of the variance of an input.
    """

    alpha_1: float
    alpha_2: float
    alpha_3: float
    variance: float
    tau0: float


class Layer(NamedTuple):
    r"""Gaussian expectations of a layer's centred activation, as in `gaussian_moments`.

    Args:
        g1: Square of the mean derivative, :math:`(\operatorname E\sigma')^2`.
        g2: Square of the mean second derivative, :math:`(\operatorname E\sigma'')^2`.
        g4: Mean second derivative of the square, :math:`\operatorname E(\sigma^2)''`.
        variance: Mean square, :math:`\operatorname E\sigma^2`.
    """

    g1: float
    g2: float
    g4: float
    variance: float


class Design(NamedTuple):
    """The best network of a family for given coefficients.

    Args:
        family: Family of the network, "hard-tanh" or "leaky-relu".
        parameters: Parameters ``(a, c)`` of ``a clip(u, -c, c)``, or ``(a1, b1, a2, b2)`` of
            ``max(a u, b u)`` in two layers.
        residual: Sum of squares of the four equations' errors, relative to the largest
            coefficient.
    """

    family: str
    parameters: tuple[float, ...]
    residual: float


def propagate(layers: list[Layer], tau0: float) -> Target:
    """High-dimensional coefficients of a network.

    Args:
        layers: Layers of the network, the first layer first.
        tau0: Root of the variance of an input.

    Returns:
        The coefficients, and the variance of an output.
    """
    a1, a2, a3, a4, variance = 1.0, 0.0, 0.0, 1.0, tau0**2
    for g1, g2, g4, output in layers:
        variance = output
        a1, a2, a3, a4 = (
            g1 * a1,
            g1 * a2 + g2 * a4**2 / 4,
            g1 * a3 + g2 * a1**2 / 2,
            g4 * a4 / 2,
        )
    return Target(a1, a2, a3, variance, tau0)


def _hard_tanh(a: float, c: float, tau: float) -> Layer:
    """Expectations of ``a clip(u, -c, c)``."""
    inside = erf(c / (math.sqrt(2) * tau))
    edge = c * tau * math.sqrt(2 / math.pi) * math.exp(-(c**2) / (2 * tau**2))
    variance = a**2 * (tau**2 * inside + c**2 * (1 - inside) - edge)
    # E (sigma^2)'' = 2 E sigma'^2 + 2 E sigma sigma'', where sigma'' is two point masses at +-c
    return Layer((a * inside) ** 2, 0.0, 2 * a**2 * inside - 2 * a**2 * edge / tau**2, variance)


def _leaky_relu(a: float, b: float, tau: float) -> Layer:
    """Expectations of ``max(a u, b u)`` less its mean."""
    k = (a**2 + b**2) * (math.pi - 1) + 2 * a * b
    return Layer(
        (a + b) ** 2 / 4,
        (a - b) ** 2 / (2 * math.pi * tau**2),
        k / math.pi,
        tau**2 * k / (2 * math.pi),
    )


def _errors(found: Target, target: Target) -> np.ndarray:
    """Errors of the four equations, relative to the largest coefficient."""
    unit = target.tau0**2
    return np.array(
        [
            found.alpha_1 - target.alpha_1,
            (found.alpha_2 - target.alpha_2) * unit,
            (found.alpha_3 - target.alpha_3) * unit,
            (found.variance - target.variance) / unit - (found.alpha_1 - target.alpha_1),
        ]
    ) / max(target.alpha_1, target.variance / unit)


def hard_tanh_design(target: Target) -> Design:
    r"""One layer of ``a clip(u, -c, c)``, for odd activations.

    :math:`\tau^2/g_1` depends on ``c`` alone and falls from :math:`\tau_0^2\pi/2` to
    :math:`\tau_0^2`; then ``a`` follows from :math:`g_1`.

    Args:
        target: Coefficients that the network is to have.

    Returns:
        The best design, whose residual says whether it is a match.
    """
    tau0, ratio = target.tau0, target.variance / target.alpha_1

    def excess(c: float) -> float:
        g1, _, _, variance = _hard_tanh(1.0, c, tau0)
        return variance / g1 - ratio

    # at the ends the ratio is its limit, to 5e-4 and to rounding
    low, high = 1e-3 * tau0, 8 * tau0
    if excess(low) <= 0:
        c = low
    elif excess(high) >= 0:
        c = high
    else:
        c = brentq(excess, low, high, xtol=1e-15 * tau0, rtol=1e-15)
    a = math.sqrt(target.alpha_1 / _hard_tanh(1.0, c, tau0).g1)
    errors = _errors(propagate([_hard_tanh(a, c, tau0)], tau0), target)
    return Design("hard-tanh", (a, c), float(errors @ errors))


def leaky_relu_design(target: Target) -> Design:
    r"""Two layers of ``max(a u, b u)`` less its mean.

    With the half sums :math:`s_i` and half differences :math:`d_i` of the two slopes,
    :math:`q = 1 - 2/\pi`, and :math:`x = s_2^2d_1^2`, :math:`y = s_1^2d_2^2`,
    :math:`r = qx/\alpha_1`, the recursion is

    .. math::
        \alpha_1 = s_1^2s_2^2, \quad 2\pi\tau_0^2\alpha_2 = x + (1 + r)y
        = (\tau^2/\tau_0^2 - \alpha_1)/q, \quad \pi\tau_0^2\alpha_3 = x + y/(1 + r) .

    Only the product :math:`s_1s_2` is determined, so the two are taken to be equal. The second
    equation determines both :math:`\alpha_2` and :math:`\tau^2`, and at no depth can such layers
    match an activation for which these contradict each other. If they agree, ``x`` is a root of a
    cubic polynomial.

    Args:
        target: Coefficients that the network is to have.

    Returns:
        The matching design, the one with the smaller :math:`d_1` if there are two; without a match,
        the best design with the right :math:`\alpha_1`.
    """
    unit, q = target.tau0**2, 1 - 2 / math.pi
    second = 2 * math.pi * unit * target.alpha_2
    third = math.pi * unit * target.alpha_3
    growth = q / target.alpha_1  # r = growth * x
    cubic = np.polymul([1.0, -third], np.polymul([growth, 1.0], [growth, 1.0]))
    roots = np.roots(np.polyadd(cubic, [-1.0, second]))
    starts = [[x, (second - x) / (1 + growth * x)] for x in roots.real.clip(1e-12, second)]

    def slopes(x: float, y: float) -> tuple[float, float, float, float]:
        size = target.alpha_1**0.25
        d1, d2 = math.sqrt(x) / size, math.sqrt(y) / size
        return size + d1, size - d1, size + d2, size - d2

    def errors(point: np.ndarray) -> np.ndarray:
        a1, b1, a2, b2 = slopes(*point)
        first = _leaky_relu(a1, b1, target.tau0)
        layers = [first, _leaky_relu(a2, b2, math.sqrt(first.variance))]
        return _errors(propagate(layers, target.tau0), target)

    # The polynomial's roots are right to rounding only where they are simple, so the designs are
    # polished to it: scipy takes no tolerance below eps = 2e-16, and 1e-24 is a relative error of
    # 1e-12. Roots that are not real or not positive give starts for designs without a match.
    tolerances = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    found = [least_squares(errors, start, bounds=(0, np.inf), **tolerances) for start in starts]
    best = min(
        found, key=lambda fit: (fit.cost > 1e-24, fit.cost if fit.cost > 1e-24 else fit.x[0])
    )
    return Design("leaky-relu", slopes(*best.x), 2 * float(best.cost))
