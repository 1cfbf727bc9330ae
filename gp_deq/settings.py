"""Settings of the solver, as context managers in GPyTorch's style.

Example:
    >>> import gp_deq
    >>> with gp_deq.settings.max_solver_iterations(20):
    ...     gp_deq.settings.max_solver_iterations.value()
    20
"""

from __future__ import annotations

from types import TracebackType
from typing import ClassVar, Generic, TypeVar

import torch

__all__ = ["max_solver_iterations", "solver_tolerance", "warn_not_converged"]

T = TypeVar("T")


class _Setting(Generic[T]):
    """A value that holds inside a ``with`` block and is restored after it."""

    _value: T

    def __init__(self, value: T) -> None:
        self._new = value
        self._stack: list[T] = []

    @classmethod
    def value(cls) -> T:
        """Value in force."""
        return cls._value

    def __enter__(self) -> None:
        cls = type(self)
        self._stack.append(cls._value)
        cls._value = self._new

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        type(self)._value = self._stack.pop()


class max_solver_iterations(_Setting[int]):
    """Largest number of Newton steps for an equilibrium. Default 60.

    At worst a safeguarded Newton step halves the bracket, so that 60 steps reach the last of the 53
    bits of double precision. A handful is normal.

    Args:
        value: Number of steps, at least 1.

    Raises:
        ValueError: The number is not a positive integer.
    """

    _value = 60

    def __init__(self, value: int) -> None:
        if int(value) != value or value < 1:
            raise ValueError(
                f"max_solver_iterations takes an integer of at least 1, not {value!r}."
            )
        super().__init__(int(value))


class warn_not_converged(_Setting[bool]):
    """Whether a solve that misses its tolerance warns (``ConvergenceWarning``). Default True.

    Args:
        value: Whether to warn.
    """

    _value = True

    def __init__(self, value: bool = True) -> None:
        super().__init__(bool(value))


class solver_tolerance:
    """Newton step at which an equilibrium is accepted, relative to the variances of the pair.

    Newton's method converges quadratically, so the remaining error is of the order of the square of
    the step. The defaults, 1e-9 in float64 and 1e-4 in float32, have squares below rounding.

    Args:
        float_value: Tolerance in float32; unchanged if None.
        double_value: Tolerance in float64; unchanged if None.

    Raises:
        ValueError: A tolerance is not positive.
    """

    _values: ClassVar[dict[torch.dtype, float]] = {torch.float32: 1e-4, torch.float64: 1e-9}

    def __init__(self, float_value: float | None = None, double_value: float | None = None) -> None:
        new = {torch.float32: float_value, torch.float64: double_value}
        self._new = {dtype: value for dtype, value in new.items() if value is not None}
        for value in self._new.values():
            if not value > 0:
                raise ValueError(f"solver_tolerance takes positive numbers, not {value!r}.")
        self._stack: list[dict[torch.dtype, float]] = []

    @classmethod
    def value(cls, dtype: torch.dtype) -> float:
        """Tolerance in force for a dtype; float64's for those that have none."""
        return cls._values.get(dtype, cls._values[torch.float64])

    def __enter__(self) -> None:
        cls = type(self)
        self._stack.append(cls._values)
        cls._values = {**cls._values, **self._new}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        type(self)._values = self._stack.pop()
