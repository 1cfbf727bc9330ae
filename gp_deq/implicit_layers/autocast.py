"""Solvers keep their precision under ``torch.autocast``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")


def without_autocast(fn: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turns autocast off inside a function, and half-precision arguments into float32.

    So do torch's own operations that need the range or the precision of float32, such as softmax,
    norms and losses. An iteration in bfloat16 would stop at its rounding of 4e-3, far from the
    tolerance of a solver.

    Args:
        fn: A function with at least one tensor among its arguments, whose device counts.

    Returns:
        The same function, which outside of autocast does nothing else.
    """

    @wraps(fn)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given = [*args, *kwargs.values()]
        device = next((value.device.type for value in given if isinstance(value, Tensor)), None)
        if device is None or not torch.is_autocast_enabled(device):
            return fn(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            widened = {name: _widen(value) for name, value in kwargs.items()}
            return fn(*map(_widen, args), **widened)

    return wrapped


def _widen(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value
