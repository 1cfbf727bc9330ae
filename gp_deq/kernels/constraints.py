"""Constraints that keep hyperparameters where the fixed point exists, at any raw value."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from gpytorch.constraints import GreaterThan, Interval, Positive
from torch import Tensor

#: Relative distance that a weight variance keeps from its critical value, four units in the last
#: place of float32: however far an optimiser pushes the raw parameter, and in both precisions.
MARGIN = 2.0**-21


class BelowCritical(Interval):
    """The open interval from zero to a critical value.

    A plain ``Interval(0, critical)`` returns ``critical`` itself once its sigmoid saturates, at a
    raw value of 17 in float32 and 38 in float64; fits on real data do get there. This one ends
    short of it by a relative 5e-7, and short of zero by a relative 1e-30.

    Args:
        critical: Upper end, not attained.
        initial_value: Initial value; half of ``critical`` if None.
    """

    def __init__(self, critical: float, initial_value: float | None = None) -> None:
        super().__init__(critical * 2.0**-100, critical * (1 - MARGIN), initial_value=initial_value)


class AboveCritical(GreaterThan):
    """More than a critical value, with a softplus transform.

    Like :class:`BelowCritical` it keeps a relative distance of 5e-7 from the critical value at any
    raw value, where ``GreaterThan(critical)`` returns ``critical`` itself or less.

    Args:
        critical: Lower end, not attained.
        initial_value: Initial value; the square root of two times ``critical`` if None.
    """

    def __init__(self, critical: float, initial_value: float | None = None) -> None:
        lower = max(critical * (1 + MARGIN), 2.0**-100)
        default = math.sqrt(2) * critical if critical > 0 else 1.0
        super().__init__(lower, initial_value=default if initial_value is None else initial_value)


class AboveRounding(GreaterThan):
    """At least 1e-4, with a softplus transform: for lengthscales.

    The kernels of this package grow like ``lengthscale**-2`` without end. A line search tries raw
    values that a plain ``Positive()`` takes to lengthscales of 1e-8 and less, where the rounding
    error of the kernel matrix exceeds the noise and its Cholesky decomposition fails, which BoTorch
    does not retry; of 60 fits of real data with 120 points each, two to four ended so. At 1e-4 and
    standardised inputs the rounding error of the matrix, about 1e8 times 2e-16, is below a noise
    of 1e-4 by far. Inputs of much smaller units need a constraint of their own.
    """

    _RAW_BOUND = -800.0

    def __init__(self) -> None:
        super().__init__(1e-4)

    def inverse_transform(self, transformed_tensor: Tensor) -> Tensor:
        """Raw value of a parameter, finite for the bound itself."""
        return torch.clamp_min(super().inverse_transform(transformed_tensor), self._RAW_BOUND)


class NonNegative(GreaterThan):
    """Zero or more, with a softplus transform, where exactly zero can be set.

    The raw value of zero is finite, and the softplus and its derivative vanish there in both
    precisions: a parameter set to zero stays zero while a model is fitted.
    """

    _RAW_ZERO = -800.0

    def __init__(self, initial_value: float | None = None) -> None:
        super().__init__(0.0, initial_value=initial_value)

    def transform(self, tensor: Tensor) -> Tensor:
        """Parameter of a raw value; zero where it would be a denormal number."""
        value = super().transform(tensor)
        return value.masked_fill(value < torch.finfo(value.dtype).tiny, 0.0)

    def inverse_transform(self, transformed_tensor: Tensor) -> Tensor:
        """Raw value of a parameter."""
        return torch.clamp_min(super().inverse_transform(transformed_tensor), self._RAW_ZERO)


class Region(NamedTuple):
    """The values that a hyperparameter may have.

    Args:
        lower: Lower end.
        upper: Upper end.
        closed: Whether the ends belong to it.
        constraint: The constraint that keeps to it by default.
        note: The region in words, for messages.
    """

    lower: float
    upper: float
    closed: bool
    constraint: Interval
    note: str

    @classmethod
    def of(cls, constraint: Interval) -> Region:
        """The values that a constraint admits."""
        lower, upper = float(constraint.lower_bound.min()), float(constraint.upper_bound.max())
        return cls(lower, upper, True, constraint, "as its constraint says")

    @classmethod
    def positive(cls) -> Region:
        """All positive numbers."""
        return cls(0.0, math.inf, False, Positive(), "positive")

    @classmethod
    def not_negative(cls, initial_value: float | None = None) -> Region:
        """Zero and all positive numbers.

        Args:
            initial_value: Initial value.
        """
        return cls(0.0, math.inf, True, NonNegative(initial_value), "not negative")

    @classmethod
    def below_critical(cls, critical: float, owner: object) -> Region:
        """The numbers between zero and a critical value.

        Args:
            critical: Upper end, not attained.
            owner: The activation that has this critical value.
        """
        note = f"below the critical value of {owner!r}"
        return cls(0.0, critical, False, BelowCritical(critical), note)

    @classmethod
    def above_critical(cls, critical: float, owner: object, initial_value: float) -> Region:
        """The numbers above a critical value.

        Args:
            critical: Lower end, not attained.
            owner: The link that has this critical value.
            initial_value: Initial value.
        """
        note = f"above the critical value of {owner!r}"
        return cls(critical, math.inf, False, AboveCritical(critical, initial_value), note)

    def includes(self, value: Tensor) -> bool:
        """Whether all values lie in the region."""
        if self.closed:
            inside = (value >= self.lower) & (value <= self.upper)
        else:
            inside = (value > self.lower) & (value < self.upper)
        return bool((inside & value.isfinite()).all())

    def contains(self, constraint: Interval) -> bool:
        """Whether a constraint admits no other values; one that starts at zero attains it never."""
        lower, upper = float(constraint.lower_bound.min()), float(constraint.upper_bound.max())
        below = upper < self.upper if math.isfinite(self.upper) and not self.closed else True
        above = lower > self.lower if self.lower > 0 and not self.closed else lower >= self.lower
        return above and below

    def __str__(self) -> str:
        opening, closing = "[]" if self.closed else "()"
        return f"{opening}{self.lower:g}, {self.upper:g}{closing}"
