r"""The equilibrium angle of a homogeneous activation, as a polynomial fitted once."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..activations.angles import sine_excess_of_angle
from .chebyshev import chebyshev
from .pairwise import take

#: Nodes of the interpolation.
_NODES = 40
#: Terms of a polynomial that cost as much as a Newton step, measured on blocks in cache.
_TERMS_OF_A_STEP = 36
#: Newton steps that reach rounding from the leading terms at any weight variance.
STEPS_AT_NODES = 7


class AngleFit(NamedTuple):
    r"""The solution ``t`` of the equation that :func:`newton_step` solves, for all ``t0``.

    The angle is a function of ``t0`` alone, and smooth but for two places outside of ``[0, 1]``.
    One is :math:`t_0 = 1/c`, :math:`c^{-2} = 1 + \pi B/(2(1 - A))`, where :math:`\theta = \pi`: the
    square root :math:`Y = \sqrt{1 - T^2}` of :math:`T = c t_0` takes it away. The other is at
    about :math:`-(1 - A)`, beyond which :math:`t/t_0` falls like :math:`t_0^{-1/3}`: hence the
    rational variable :math:`T / (T + \frac32(1 - A)(1 + Y))`. Close to the critical weight
    variance the second dominates, and :math:`(1 + t_0/k)^{-1/4}`, :math:`k = \frac32(1 - A)`,
    takes it away better. The quotient ``t / T`` is a polynomial in this variable mapped to
    ``[-1, 1]``.

    Args:
        coefficients: Of the polynomial, lowest first, ``b x 1 x (degree + 1)``.
        reach: ``c``, ``b x 1 x 1``.
        crossover: :math:`\frac32(1 - A)`, ``b x 1 x 1``.
        middle: Middle of the range of the variable, ``b x 1 x 1``.
        half: Half of that range, ``b x 1 x 1``.
        near_critical: Which of the variables.
        steps: Newton steps that each pair still needs.
        error: Relative error of ``t`` before the last of them, or of the polynomial.
    """

    coefficients: Tensor
    reach: Tensor
    crossover: Tensor
    middle: Tensor
    half: Tensor
    near_critical: bool
    steps: int
    error: float

    def to(self, like: Tensor) -> AngleFit:
        """In the dtype and on the device of a tensor."""
        tensors = (value.to(like) for value in self[:5])
        return AngleFit._make((*tensors, *self[5:]))

    def evaluate(self, scaled: Tensor, along: slice) -> Tensor:
        """``t`` of :math:`T = c t_0`, for some of the batches."""
        coefficients = take(self.coefficients, along).split(1, -1)
        crossover, half = take(self.crossover, along), take(self.half, along)
        if self.near_critical:
            variable = scaled * (1 / (crossover * take(self.reach, along)))
            variable.add_(1).sqrt_().rsqrt_()
        else:
            variable = scaled.square().neg_().add_(1).sqrt_().add_(1).mul_(crossover).add_(scaled)
            torch.div(scaled, variable, out=variable)
        variable.sub_(take(self.middle, along)).mul_(1 / half)
        sine = variable * coefficients[-1]
        for coefficient in coefficients[-2:0:-1]:
            sine.add_(coefficient).mul_(variable)
        return sine.add_(coefficients[0]).mul_(scaled).clamp_(0.0, 1.0)


@lru_cache(maxsize=256)
def fit_angle(
    gaps: tuple[float, ...], bends: tuple[float, ...], epsilon: float, tolerance: float
) -> AngleFit:
    """Interpolates the solution, to the degree and with the Newton steps that cost least.

    Args:
        gaps: :math:`1 - A` of each batch.
        bends: :math:`B` of each batch.
        epsilon: Relative accuracy wanted: that of the dtype.
        tolerance: Largest last Newton step, should there be one.
    """
    nodes, transform, monomials = chebyshev(_NODES)
    gap = torch.tensor(gaps, dtype=torch.float64).reshape(-1, 1, 1)
    bend = torch.tensor(bends, dtype=torch.float64).reshape(-1, 1, 1)
    reach = (1 + math.pi / 2 * bend / gap).rsqrt()
    crossover = 1.5 * gap
    near_critical = bool(gaps) and bool((reach < 0.45).all())
    if near_critical:
        least, largest = (1 + 1 / crossover) ** -0.25, torch.ones_like(gap)
    else:
        top = (1 - reach.square()).sqrt() + 1
        least, largest = torch.zeros_like(gap), reach / (reach + crossover * top)
    middle, half = (least + largest) / 2, (largest - least) / 2
    variable = middle + half * nodes
    if near_critical:
        start = crossover * (variable**-4 - 1)
    else:
        # T/(1 + Y) is the tangent of half the angle whose sine is T
        start = 2 * (crossover * variable / (1 - variable)).atan()
        start = start.sin() / reach
    start = start.clamp(1e-12, 1.0)
    cubic = torch.where(bend > 0, 6 * gap * start.square() / bend, math.inf)
    solved = torch.minimum(start, (cubic.pow(1 / 3).clamp_max(math.pi) / 2).sin())
    for _ in range(STEPS_AT_NODES):
        solved, _ = newton_step(solved, start, gap, bend, precise=True)
    quotient = solved / (start * reach)
    series = quotient @ transform
    sizes = (series.abs() / quotient.amin(-1, keepdim=True)).flatten(0, -2)
    degree, steps, error = _cheapest(sizes, epsilon, tolerance)
    coefficients = series[..., : degree + 1] @ monomials[: degree + 1, : degree + 1]
    return AngleFit(coefficients, reach, crossover, middle, half, near_critical, steps, error)


def newton_step(
    sine: Tensor, sine0: Tensor, gap: Tensor, bend: Tensor, precise: bool
) -> tuple[Tensor, Tensor]:
    r"""One Newton step for :math:`(1 - A)(t^2 - t_0^2) + \tfrac B2 S(\theta) = 0`.

    Args:
        sine: :math:`t = \sin(\theta/2)`.
        sine0: ``t0``, that of the injected input.
        gap: :math:`1 - A`.
        bend: :math:`B`.
        precise: Whether to avoid the cancellation in S, which makes ``t`` accurate in relative
            terms.

    Returns:
        The new ``t`` and the step.
    """
    cosine = (1 - sine).mul_(sine + 1).sqrt_()
    theta = sine.asin().mul_(2)
    if precise:
        excess = sine_excess_of_angle(theta)
    else:
        excess = cosine.mul_(sine).mul_(2).sub_(theta)
        excess.addcmul_(theta * sine, sine, value=2)
    change = (sine - sine0).mul_(sine + sine0).mul_(gap).addcmul_(excess, bend, value=0.5)
    slope = theta.mul_(bend).add_(gap).mul_(sine).mul_(2)
    change.div_(slope.add_(torch.finfo(sine.dtype).tiny))
    updated = (sine - change).clamp_(0.0, 1.0)
    return updated, change


def _cheapest(sizes: Tensor, epsilon: float, tolerance: float) -> tuple[int, int, float]:
    """Degree, Newton steps and error of the cheapest way to the accuracy.

    Args:
        sizes: Relative sizes of the Chebyshev coefficients, ``b x nodes``.
        epsilon: The accuracy of the result.
        tolerance: That before the last Newton step.
    """
    if sizes.numel() == 0:
        return 1, 0, 0.0
    tails = sizes.amax(0).flip(0).cummax(0).values.flip(0).tolist()
    best = (math.inf, 1, 0, math.inf)
    # the coefficients carry a few roundings, and a Newton step squares a small error
    wanted = 4 * epsilon
    for steps in range(8):
        degree = next((k for k in range(1, len(tails) - 1) if tails[k + 1] <= wanted), None)
        if degree is not None:
            best = min(best, (degree + _TERMS_OF_A_STEP * steps, degree, steps, tails[degree + 1]))
        wanted = min(math.sqrt(wanted), tolerance / 2) if steps == 0 else math.sqrt(wanted)
    return best[1:]
