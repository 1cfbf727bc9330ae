"""The Gaussian expectations of an activation, by which it acts on covariances."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from .cancellation import LossEstimate
from .gradients import slopes, value_and_slope
from .homogeneous import homogeneous_derivative, homogeneous_dual, homogeneous_variance_slopes
from .pair_covariance import PairCovariance, bounded


class Activation(ABC):
    r"""An activation function :math:`\varphi`, known by its Gaussian expectations.

    For :math:`(u, v) \sim \mathcal N(0, \Sigma)` with variances :math:`v_1, v_2`, covariance
    :math:`c` and squared distance :math:`m = v_1 + v_2 - 2c`:

    .. math::
        G = \operatorname{E} \varphi(u)\varphi(v), \qquad
        P = \operatorname{E} \varphi'(u)\varphi'(v) = \partial G / \partial c, \qquad
        \tfrac12 \operatorname{E} \varphi''(u) \varphi(v) = \partial G / \partial v_1,

    the equalities being Price's theorem. A subclass gives its :attr:`lipschitz` constant,
    :meth:`expectations` and :meth:`diagonal`, in differentiable torch operations. All slopes follow
    by automatic differentiation; closed forms that override them are faster. A subclass overrides
    :meth:`dual` where squared distances have a form without cancellation.

    A homogeneous activation says so by :attr:`homogeneous`. Its :attr:`linear_part` and
    :attr:`angular_part` then determine all expectations, and its slopes and squared distances are
    those of the closed form, to rounding in relative terms.
    """

    #: Whether :math:`\varphi(tu) = t\varphi(u)` for all :math:`t > 0`.
    homogeneous: bool = False
    #: Whether the expectations of an input cost no more than a few operations.
    closed_form: bool = True
    #: Whether ``P`` is a smooth function of the covariance and the variances; tangent kernels at
    #: equilibrium are then several times faster.
    smooth: bool = False

    def __call__(self, u: Tensor) -> Tensor:
        r"""The function itself, :math:`\varphi(u)` elementwise.

        Finite networks need it, kernels do not, so that a subclass may leave it out.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not define __call__, the activation function itself."
        )

    @property
    @abstractmethod
    def lipschitz(self) -> float:
        r"""Least upper bound of :math:`|\varphi'|`, infinite where there is none."""

    @property
    def critical_weight_variance(self) -> float:
        r"""Weight variance below which every equilibrium exists and is unique.

        It is :math:`1/\operatorname{Lip}(\varphi)^2`: the map :math:`\sqrt v \mapsto
        \sqrt{w g(v) + b}` then contracts. For a homogeneous activation, where :math:`g(v) = A v`,
        it is exactly :math:`1/A`, which is larger.
        """
        if self.homogeneous:
            return 1 / self.linear_part if self.linear_part > 0 else math.inf
        return self.lipschitz**-2

    @cached_property
    def linear_part(self) -> float:
        """``A`` of a homogeneous activation, its :meth:`diagonal` at variance one."""
        self._require_homogeneous("linear_part")
        return float(self.diagonal(torch.ones(1, 1, dtype=torch.float64)))

    @cached_property
    def angular_part(self) -> float:
        """``B`` of a homogeneous activation, its ``G`` at unit variances and covariance zero."""
        self._require_homogeneous("angular_part")
        unit = self.features(torch.ones(1, 1, dtype=torch.float64))
        value, _ = self.expectations(unit, unit, torch.full((1, 1), 2.0, dtype=torch.float64))
        return float(value)

    @abstractmethod
    def expectations(
        self,
        features1: Tensor,
        features2: Tensor,
        sqdist: Tensor,
        accuracy: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The expectations ``G`` and ``P`` of all pairs.

        Args:
            features1: :meth:`features` of the first inputs, ``... x n x f``.
            features2: :meth:`features` of the second inputs, ``... x m x f``.
            sqdist: Squared distances of the pre-activations, ``... x n x m``. At coincident inputs
                rounding may make them negative, which counts as zero.
            accuracy: Error allowed in ``G``, relative to the largest; its square root in ``P``,
                which multiplies small steps. None for rounding. Closed forms have no use for it.

        Returns:
            ``G`` and ``P``, each ``... x n x m``.
        """

    @abstractmethod
    def diagonal(self, variance: Tensor) -> Tensor:
        r"""Variance after the activation, :math:`g(v) = \operatorname{E}\varphi(\sqrt v z)^2`."""

    def variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Derivatives of ``G`` with respect to ``var1`` and to ``var2`` at fixed covariance.

        Args:
            features1: :meth:`features` of the first inputs, ``... x n x f``.
            features2: :meth:`features` of the second inputs, ``... x m x f``.
            sqdist: Squared distances of the pre-activations, ``... x n x m``.

        Returns:
            Both ``... x n x m``; by default without a graph.
        """
        if self.homogeneous:
            var1, var2 = features1, features2.mT
            pair = PairCovariance.from_distance(var1, var2, sqdist)
            return homogeneous_variance_slopes(pair, self.angular_part)
        return self._slopes(0, features1, features2, sqdist)

    def curvature(self, features1: Tensor, features2: Tensor, sqdist: Tensor) -> Tensor:
        r"""Derivative of ``P`` with respect to the covariance.

        It is :math:`\operatorname{E}\varphi''(u)\varphi''(v)`. Arguments and shape are those of
        :meth:`variance_slopes`.
        """
        with torch.enable_grad():
            leaf = sqdist.detach().requires_grad_()
            inputs = features1.detach(), features2.detach()
            slope = self._expectations(*inputs, bounded(leaf, 0.0))[1]
        (by_sqdist,) = slopes(slope, leaf)
        return -2 * by_sqdist

    def derivative_variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Derivatives of ``P`` with respect to ``var1`` and to ``var2`` at fixed covariance.

        Arguments and shapes are those of :meth:`variance_slopes`.
        """
        return self._slopes(1, features1, features2, sqdist)

    def derivative_diagonal(self, variance: Tensor) -> Tensor:
        r""":math:`\operatorname{E}\varphi'(\sqrt v z)^2`, by default ``P`` of coincident inputs."""
        features = self.features(variance[..., None, None])
        sqdist = variance.new_zeros(*variance.shape, 1, 1)
        return self.expectations(features, features, sqdist)[1].reshape(variance.shape)

    def diagonal_slope(self, variance: Tensor) -> Tensor:
        r""":math:`g'(v) = \operatorname{E}[\varphi'^2 + \varphi\varphi''](\sqrt v z)`."""
        return value_and_slope(self.diagonal, variance)[1]

    def diagonal_and_slope(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`diagonal` and :meth:`diagonal_slope`, for activations that find both at once."""
        return self.diagonal(variance), self.diagonal_slope(variance)

    def diagonal_difference(self, var1: Tensor, var2: Tensor, vardiff: Tensor) -> Tensor:
        """``diagonal(var1) - diagonal(var2)``.

        The default subtracts; closed forms keep the relative precision of ``vardiff``.
        """
        if self.homogeneous:
            return self.linear_part * vardiff
        return self.diagonal(var1) - self.diagonal(var2)

    def features(self, variance: Tensor) -> Tensor:
        """All that :meth:`expectations` needs to know of an input, by default its variance.

        Args:
            variance: ``... x n x 1``.

        Returns:
            ``... x n x f``, the variance in its first column.
        """
        return variance

    def dual(self, pair: PairCovariance) -> PairCovariance:
        """Covariance of the activations of a pair.

        The default subtracts, and so leaves squared distances with an absolute error of some units
        in the last place of the variances; that of homogeneous activations does not.
        """
        if self.homogeneous:
            return self.dual_and_derivative(pair)[0]
        value, _ = self.expectations(*self._pair_features(pair), pair.sqdist)
        var1, var2 = self.diagonal(pair.var1), self.diagonal(pair.var2)
        sqdist = bounded(var1 + var2 - 2 * value, 0.0)
        return PairCovariance.from_distance(var1, var2, sqdist)

    def derivative_dual(self, pair: PairCovariance) -> Tensor:
        """``P`` of all pairs, ``... x n x m``."""
        if self.homogeneous:
            return homogeneous_derivative(pair, self.linear_part, self.angular_part)
        return self.expectations(*self._pair_features(pair), pair.sqdist)[1]

    def dual_and_derivative(self, pair: PairCovariance) -> tuple[PairCovariance, Tensor]:
        """:meth:`dual` and :meth:`derivative_dual`, for activations that find both at once."""
        if self.homogeneous:
            return homogeneous_dual(pair, self.linear_part, self.angular_part)
        return self.dual(pair), self.derivative_dual(pair)

    def variance_slope(self, pair: PairCovariance) -> Tensor:
        """Derivative of ``G`` with respect to ``var1`` at fixed covariance, ``... x n x m``."""
        return self.variance_slopes(*self._pair_features(pair), pair.sqdist)[0]

    def loss(self, tangent: bool) -> LossEstimate | None:
        """Estimates what squared distances alone lose; None if no pair loses too many digits.

        An activation that returns an estimate has a :meth:`dual` and a :meth:`derivative_dual` that
        take every kind of :class:`PairCovariance`, and return the same.

        Args:
            tangent: Whether the kernel depends on ``P``.
        """
        return None

    def _pair_features(self, pair: PairCovariance) -> tuple[Tensor, Tensor]:
        return self.features(pair.var1), self.features(pair.var2.mT)

    def _slopes(
        self, which: int, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Derivatives of ``G`` or of ``P`` with respect to the variances at fixed covariance.

        Each pair is a matrix of its own here, so that one backward pass finds those of all pairs.
        """
        shape = sqdist.shape
        var1, var2 = (
            variance.detach().expand(shape).reshape(-1, 1, 1).clone().requires_grad_()
            for variance in (features1[..., :1], features2[..., :1].mT)
        )
        with torch.enable_grad():
            # this value, and the derivatives of a squared distance at fixed covariance
            total = var1 + var2
            distance = bounded(sqdist.detach().reshape(-1, 1, 1) + (total - total.detach()), 0.0)
            features = self.features(var1), self.features(var2)
            value = self._expectations(*features, distance)[which]
        slope1, slope2 = slopes(value, var1, var2)
        return slope1.reshape(shape), slope2.reshape(shape)

    def _expectations(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """:meth:`expectations`, those of homogeneous activations with derivatives at the cusp."""
        if not self.homogeneous:
            return self.expectations(features1, features2, sqdist)
        var1, var2 = features1, features2.mT
        pair = PairCovariance.from_distance(var1, var2, sqdist)
        dual, slope = self.dual_and_derivative(pair)
        return dual.cov, slope

    def _require_homogeneous(self, name: str) -> None:
        if not self.homogeneous:
            raise AttributeError(f"{type(self).__name__} is not homogeneous and has no {name}.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
