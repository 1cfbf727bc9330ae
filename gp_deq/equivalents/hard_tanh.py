"""The clipped identity as an activation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..activations import Hermite

__all__ = ["HardTanh"]


class HardTanh(Hermite):
    r""":math:`\varphi(u) = a \min(\max(u, -c), c)`, by Hermite coefficients in closed form.

    The coefficient of degree 1 is :math:`a\sqrt q \operatorname{erf}(c/\sqrt{2q})`. The second
    derivative of the activation is a pair of point masses at :math:`\pm c`, so that partial
    integration gives, for odd :math:`k \ge 3` and :math:`t = c/\sqrt q` with the standard normal
    density :math:`p`,

    .. math::
        a_k(q) = -\frac{2a\sqrt q\, p(t)\, h_{k-2}(t)}{\sqrt{k(k-1)}} .

    Coefficients of even degree are zero. The sum of squares beyond degree ``K`` falls like
    :math:`K^{-3/2}`.

    Args:
        a: Slope between the ends.
        c: Pre-activation at which it is clipped, positive.
        degree: Largest degree ``K``. The default, 256, loses 2e-5 of the variance at :math:`t =
            1.2` and 3e-4 at 0.3, and far less of covariances.

    Example:
        >>> HardTanh(2.0, 1.5)(torch.tensor([-3.0, 0.5]))
        tensor([-3.,  1.])
    """

    def __init__(self, a: float, c: float, degree: int = 256) -> None:
        self.a, self.c = float(a), float(c)
        super().__init__(self._clip, degree, abs(self.a))

    def _clip(self, u: Tensor) -> Tensor:
        return self.a * u.clamp(-self.c, self.c)

    def _integrate(self, root: Tensor) -> tuple[Tensor, Tensor]:
        wide = root.double()
        safe = wide.masked_fill(wide == 0, 1.0)  # replaced below, without NaN in the gradient
        t = self.c / safe
        # p(t) h_k(t) by the recurrence of the normalised Hermite polynomials
        density = (-t.square() / 2).exp() / math.sqrt(2 * math.pi)
        columns = [density, t * density]
        for k in range(2, self.degree + 2):
            value = t * columns[-1] - math.sqrt(k - 1) * columns[-2]
            columns.append(value / math.sqrt(k))
        zero = torch.zeros_like(wide)
        slope = [self.a * torch.erf(t / math.sqrt(2)), zero]
        slope += [
            zero if k % 2 else -2 * self.a * columns[k - 1] / math.sqrt(k)
            for k in range(2, self.degree + 3)
        ]
        slopes = torch.cat(slope, -1)[..., : self.degree + 2]
        slopes = torch.where(
            wide == 0, self.a * (torch.arange(self.degree + 2, device=root.device) == 0), slopes
        )
        divisor = torch.arange(1, self.degree + 1, dtype=torch.float64, device=root.device).sqrt()
        value = torch.cat([zero, wide * slopes[..., : self.degree] / divisor], -1)
        return value.to(root.dtype), slopes.to(root.dtype)

    def __repr__(self) -> str:
        return f"HardTanh({self.a:.6g}, {self.c:.6g})"
