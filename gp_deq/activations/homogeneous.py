r"""Homogeneous activations: arc-cosine kernels [ChoSaul2009]_.

A function with :math:`\varphi(tu) = t\varphi(u)` for all :math:`t > 0` is :math:`a u` for
:math:`u > 0` and :math:`b u` for :math:`u < 0`. With :math:`\theta` the angle of a pair,
:math:`\cos\theta = c / \sqrt{v_1 v_2}`, and :math:`S(\theta) = \sin\theta - \theta\cos\theta`,

.. math::
    G = A c + B \sqrt{v_1 v_2}\, S(\theta), \qquad P = A - B \theta, \qquad
    A = \frac{a^2 + b^2}2, \quad B = \frac{(a - b)^2}{2\pi},

which follows from :math:`\varphi(u) = \frac{a+b}2 u + \frac{a-b}2 |u|`. A is called the linear part
and B the angular part.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from .angles import angle, bent_distance, sine_excess
from .pair_covariance import PairCovariance, safe_sqrt


def homogeneous_dual(
    pair: PairCovariance, linear_part: float, angular_part: float
) -> tuple[PairCovariance, Tensor]:
    r"""Covariance of the activations of a pair, and ``P``.

    The squared distance is :math:`A m - 2 B \sqrt{v_1 v_2}\,S`, to rounding in relative terms.

    Args:
        pair: Covariance of the pre-activations.
        linear_part: A.
        angular_part: B.
    """
    sqdist, theta = bent_distance(pair, linear_part, angular_part)
    var1, var2, vardiff = (linear_part * term for term in (pair.var1, pair.var2, pair.vardiff))

    @cache
    def bend() -> Tensor:
        scale = safe_sqrt(pair.var1) * safe_sqrt(pair.var2)
        return angular_part * scale * sine_excess(pair.versine)

    def gram() -> Tensor:
        # with the correlation r of the activations, 1 - r = 1 - cos(theta) - B/A S(theta)
        with torch.no_grad():
            scale = linear_part * (safe_sqrt(pair.var1) * safe_sqrt(pair.var2))
            rest = pair.versine * scale - bend()
            return rest * (2 * scale - rest)

    dual = pair.after_activation(
        var1, var2, sqdist, vardiff, lambda: linear_part * pair.cov + bend(), gram
    )
    return dual, (theta * -angular_part).add_(linear_part)


def homogeneous_derivative(pair: PairCovariance, linear_part: float, angular_part: float) -> Tensor:
    r"""``P``, whose cusp :math:`|\theta|` at coincident inputs has the derivative zero there."""
    _, theta = bent_distance(pair, linear_part, angular_part)
    return linear_part - angular_part * theta


def homogeneous_variance_slopes(pair: PairCovariance, angular_part: float) -> tuple[Tensor, Tensor]:
    r""":math:`\frac B2 \sqrt{v_2/v_1} \sin\theta` and its mirror image, zero at a zero variance."""
    sine = angular_part / 2 * angle(pair.versine).sin()
    root1, root2 = safe_sqrt(pair.var1), safe_sqrt(pair.var2)
    slope1 = sine * root2 / root1.masked_fill(root1 == 0, math.inf)
    slope2 = sine * root1 / root2.masked_fill(root2 == 0, math.inf)
    return slope1, slope2
