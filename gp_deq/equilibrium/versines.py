"""Correlations of a stationary base kernel, as functions of a squared distance."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Versines(Protocol):
    """How the versines of a base kernel follow from squared distances of scaled inputs."""

    def versine(self, sqdist: Tensor) -> Tensor:
        """The versine."""

    def slope(self, sqdist: Tensor, versine: Tensor) -> Tensor:
        """Its derivative by half the squared distance; zero where that is infinite.

        Args:
            sqdist: Squared distances.
            versine: Their versines.
        """
