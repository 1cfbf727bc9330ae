r"""The high-dimensional expansion of a DEQ kernel, with scalars for each input.

Between two inputs whose pre-activations have the variances :math:`\tau_i^2` and
:math:`\tau_j^2` and a small covariance :math:`\Sigma_{ij}`, Mehler's formula gives

.. math::
    G_{ij} = m_i m_j + s_i s_j \Sigma_{ij} + \tfrac12 h_i h_j \Sigma_{ij}^2 + \dots, \qquad
    m = \operatorname E\varphi - c, \quad s = \operatorname E\varphi', \quad
    h = \operatorname E\varphi'' \quad\text{at } \tau_i z .

Substitute :math:`\Sigma = wG + b` and write :math:`1/(1 - w s_i s_j) \approx u_i u_j` with
:math:`u_i = (1 - w s_i^2)^{-1/2}`, which is exact for equal norms and has an error of
second order in their difference otherwise:

.. math::
    G_{ij} \approx (um)_i (um)_j + (us)_i (us)_j\, b_{ij}
        + \tfrac12 (u^3h)_i (u^3h)_j\, b_{ij}^2 .

Likewise :math:`K = G + wPK` with :math:`P_{ij} \approx s_i s_j + h_i h_j\Sigma_{ij}`. At equal
norms these are the equivalents of Ling et al. (2024) [Ling2024]_. At unequal norms they are right
to a higher order than theirs, and their diagonal never exceeds that of the exact kernel, since the
omitted terms are not negative there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..activations import Activation
from ..interpolation import chebyshev, chebyshev_polynomials, count_for_strip
from .coefficients import equilibrium_scale, gaussian_moments

__all__ = ["InputScalars", "input_scalars"]

#: Squared norms below this share of the mean are set to it: the logarithm of zero is not finite,
#: and the moments lose digits at small variances. A zero input among 200-dimensional normal ones
#: then has entries that are wrong by 3e-5 (ReLU) and 5e-8 (erf, tanh) of a typical variance.
_SMALLEST = 1e-8


class InputScalars(NamedTuple):
    r"""Scalars of ``n`` inputs, whose products over a pair are the coefficients of the kernel.

    Args:
        mean: Factors of the constant term, ``n``.
        slope: Factors of the coefficient of :math:`b_{ij}`, ``n``.
        curvature: Factors of the coefficient of :math:`b_{ij}^2`, ``n``.
        diagonal: Values of the kernel for each input with itself, ``n``.
    """

    mean: Tensor
    slope: Tensor
    curvature: Tensor
    diagonal: Tensor


def input_scalars(
    activation: Activation, weight: Tensor, level: Tensor, injected: Tensor, tangent: bool
) -> InputScalars:
    r"""The scalars, interpolated from Chebyshev nodes in the logarithm of the injected variance.

    Args:
        activation: The activation, whose mean at the injected variance ``level`` is subtracted.
        weight: Weight variance, a scalar.
        level: Injected variance at which the mean of the activation is taken, a scalar.
        injected: Injected variances of the inputs, ``n``.
        tangent: Whether to compute the tangent kernel of the recurrent weights instead of the
            covariance.

    Returns:
        The scalars, differentiable with respect to ``weight``, ``level`` and ``injected``.
    """
    constant = gaussian_moments(activation, equilibrium_scale(activation, weight, level)).mean
    logs = (injected / level).clamp_min(_SMALLEST).log().double()
    ends = logs.detach().aminmax() if logs.numel() else (logs.new_zeros(()),) * 2
    # inputs of equal norms have an interval of length zero, on which no series is defined
    middle, half = (ends[0] + ends[1]) / 2, ((ends[1] - ends[0]) / 2).clamp_min(0.01)
    count = count_for_strip(half.item())
    nodes, transform, _ = (value.to(logs.device) for value in chebyshev(count))
    at_nodes = _scalars(
        activation, weight, level * (middle + half * nodes).exp().to(level), constant, tangent
    )
    series = transform.mT @ torch.stack(at_nodes, -1).double()
    total = chebyshev_polynomials(count, (logs - middle) / half) @ series
    return InputScalars(*total.to(injected.dtype).unbind(-1))


def _scalars(
    activation: Activation, weight: Tensor, injected: Tensor, constant: Tensor, tangent: bool
) -> InputScalars:
    tau = equilibrium_scale(activation, weight, injected, constant)
    moments = gaussian_moments(activation, tau)
    mean, slope, curvature = moments.mean - constant, moments.slope, moments.curvature
    diagonal = moments.variance + mean.square()
    gain = (1 - weight * slope.square()).rsqrt()
    if not tangent:
        return InputScalars(gain * mean, gain * slope, gain**3 * curvature / 2**0.5, diagonal)
    both = (0.5 + weight * slope.square()).sqrt()
    return InputScalars(
        gain**2 * mean,
        gain**2 * slope,
        gain**4 * curvature * both,
        diagonal / (1 - weight * moments.square_slope),
    )
