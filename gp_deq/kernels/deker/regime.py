"""What the ways to compute the kernel have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ...activations import PairCovariance, safe_sqrt
from ...equilibrium import PairMap, PairProfile, Shape, SolverMonitor
from .observed import InjectedPair, UnitFeatures


class Evaluation(NamedTuple):
    r"""What the kernel is evaluated with, besides the inputs.

    Args:
        regularization: :math:`\lambda`, ``... x 1 x 1``.
        feature_scale: :math:`a`, ``... x 1 x 1``.
        identical: Whether coincident inputs have identical learned features.
        monitor: Collects the record of the solves.
    """

    regularization: Tensor
    feature_scale: Tensor
    identical: bool
    monitor: SolverMonitor


class Regime(ABC):
    """One way to compute the kernel: which it is depends on arguments of the constructor alone."""

    @abstractmethod
    def covariance(
        self, injected: InjectedPair, features: PairCovariance | None, at: Evaluation
    ) -> Tensor:
        r"""Covariances of the learned features, ``... x n x m``, with derivatives of any order.

        Args:
            injected: The pairs.
            features: Covariance of the observed features, of mean zero, where these are a GPyTorch
                kernel; else None.
            at: The hyperparameters and options.
        """

    def pair_map(self, bias_variance: Tensor, at: Evaluation) -> PairMap | None:
        """The same for blocks of pairs; None where :meth:`covariance` is to be recomputed.

        Args:
            bias_variance: ``b x 1 x 1``.
            at: As for :meth:`covariance`, the hyperparameters ``b x 1 x 1``.
        """
        return None


class AngleRegime(Regime):
    r"""The link "relu", and observed features that are homogeneous in the injected input.

    Then all variances are one gain times the injected ones, and the angle of a pair depends on that
    of the injected input alone: the kernel is :math:`\sqrt{b_{11} b_{22}}\, F(\theta_0)`.

    Args:
        features: The observed features.
        step_size: :math:`h`.
    """

    def __init__(self, features: UnitFeatures, step_size: float) -> None:
        self.features, self.step_size = features, step_size

    @abstractmethod
    def shape(self) -> Shape | None:
        """In which variable F is smooth; None where it has no series."""

    @abstractmethod
    def profile(self, angle0: Tensor, versine0: Tensor, at: Evaluation) -> Tensor:
        """F, of the shape of the angles.

        Args:
            angle0: Angles of the injected input.
            versine0: One minus their cosines.
            at: See :meth:`covariance`.
        """

    def identical(self, at: Evaluation) -> Tensor | None:
        """F of identical learned features, ``... x 1 x 1``; None where that is F at zero.

        Args:
            at: See :meth:`covariance`.
        """
        return None

    def covariance(
        self, injected: InjectedPair, features: PairCovariance | None, at: Evaluation
    ) -> Tensor:
        """See :meth:`Regime.covariance`."""
        pair, (angle0, versine0) = injected.cov, injected.angle()
        value = self.profile(angle0, versine0, at)
        same = self.identical(at) if at.identical else None
        if same is not None:
            value = torch.where(injected.coincident, same, value)
        return safe_sqrt(pair.var1) * safe_sqrt(pair.var2) * value

    def pair_map(self, bias_variance: Tensor, at: Evaluation) -> PairMap | None:
        """See :meth:`Regime.pair_map`."""
        shape = self.shape()
        if shape is None:
            return None

        def profile(theta: Tensor, regularization: Tensor, feature_scale: Tensor) -> Tensor:
            versine = 2 * (theta / 2).sin().square()
            given = at._replace(regularization=regularization, feature_scale=feature_scale)
            return self.profile(theta, versine, given)

        same = self.identical(at) if at.identical else None
        given = at.regularization, at.feature_scale
        return PairProfile(profile, shape, given, bias_variance, same)
