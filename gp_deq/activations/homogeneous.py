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

import torch
from torch import Tensor

from .angles import angle, bent_distance, sine_excess
from .detailed_pair import dual_in_detail, substitute
from .pair_covariance import DetailedPair, PairCovariance, safe_sqrt


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
    if isinstance(pair, DetailedPair):
        return _dual_in_detail(pair, linear_part, angular_part)
    sqdist, theta = bent_distance(pair, linear_part, angular_part)
    var1, var2, vardiff = (linear_part * term for term in (pair.var1, pair.var2, pair.vardiff))
    dual = PairCovariance(var1, var2, sqdist, vardiff)
    return dual, (theta * -angular_part).add_(linear_part)


def homogeneous_derivative(pair: PairCovariance, linear_part: float, angular_part: float) -> Tensor:
    r"""``P``, whose cusp :math:`|\theta|` at coincident inputs has the derivative zero there."""
    if isinstance(pair, DetailedPair):
        return _dual_in_detail(pair, linear_part, angular_part)[1]
    return linear_part - angular_part * angle(pair.versine)


def _dual_in_detail(
    pair: DetailedPair, linear_part: float, angular_part: float
) -> tuple[PairCovariance, Tensor]:
    r"""The same from the covariance, and from an angle that is accurate near :math:`\pi` too.

    The correlation :math:`r_G` of the activations has :math:`1 - r_G = 1 - \cos\theta -
    \frac BA S(\theta)`.
    """
    versine = pair.versine
    theta = angle(versine)
    scale = safe_sqrt(pair.var1) * safe_sqrt(pair.var2)
    with torch.no_grad():
        exact = torch.where(scale > 0, torch.atan2(pair.gram.sqrt(), pair.cov), theta)
    theta = substitute(exact, theta)
    bend = angular_part * sine_excess(versine)
    var1, var2, vardiff = (linear_part * term for term in (pair.var1, pair.var2, pair.vardiff))
    sqdist = linear_part * pair.sqdist - 2 * scale * bend
    with torch.no_grad():
        rest = versine - bend / linear_part
        gram = (linear_part * scale).square() * rest * (2 - rest)
    dual = PairCovariance(var1, var2, sqdist, vardiff)
    value = linear_part * pair.cov + scale * bend
    return dual_in_detail(dual, value, gram), linear_part - angular_part * theta


def homogeneous_variance_slopes(pair: PairCovariance, angular_part: float) -> tuple[Tensor, Tensor]:
    r""":math:`\frac B2 \sqrt{v_2/v_1} \sin\theta` and its mirror image, zero at a zero variance."""
    sine = angular_part / 2 * angle(pair.versine).sin()
    root1, root2 = safe_sqrt(pair.var1), safe_sqrt(pair.var2)
    slope1 = sine * root2 / root1.masked_fill(root1 == 0, math.inf)
    slope2 = sine * root1 / root2.masked_fill(root2 == 0, math.inf)
    return slope1, slope2
