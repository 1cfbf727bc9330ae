"""What a layer of infinite width does to the covariance of its pre-activations."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .pair_covariance import PairCovariance


class Activation(ABC):
    r"""An activation function :math:`\varphi`, known by its Gaussian expectations.

    For :math:`(u, v) \sim \mathcal N(0, \Sigma)` with variances :math:`v_1, v_2`, covariance
    :math:`c` and squared distance :math:`m = v_1 + v_2 - 2c`:

    .. math::
        G = \operatorname{E} \varphi(u)\varphi(v), \qquad
        P = \operatorname{E} \varphi'(u)\varphi'(v) = \partial G / \partial c, \qquad
        \tfrac12 \operatorname{E} \varphi''(u) \varphi(v) = \partial G / \partial v_1,

    the equalities being Price's theorem. A subclass gives :meth:`expectations`,
    :meth:`diagonal`, :meth:`derivative_diagonal` and its :attr:`lipschitz` constant; it overrides
    :meth:`dual` where squared distances have a form without cancellation.
    """

    #: Whether :math:`\varphi(tu) = t\varphi(u)` for all :math:`t > 0`.
    homogeneous: bool = False
    #: Whether the expectations of an input cost no more than a few operations.
    closed_form: bool = True
    #: Whether ``P`` is smooth and :meth:`curvature` and :meth:`derivative_variance_slopes` give its
    #: derivatives; tangent kernels at equilibrium are then several times faster.
    smooth: bool = False

    #: Whether :meth:`dual` and :meth:`derivative_dual` take and return a
    #: :class:`~gp_deq.activations.pair_covariance.DetailedPair`, so that no digits are lost between
    #: inputs of large or very different variance.
    detailed: bool = False

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
        \sqrt{w g(v) + b}` then contracts. Homogeneous activations have a larger, exact value.
        """
        return self.lipschitz**-2

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
            sqdist: Squared distances of the pre-activations, ``... x n x m``.
            accuracy: Error allowed in ``G``, relative to the largest; its square root in ``P``,
                which multiplies small steps. None for rounding. Closed forms have no use for it.

        Returns:
            ``G`` and ``P``, each ``... x n x m``.
        """

    @abstractmethod
    def variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Derivatives of ``G`` by ``var1`` and by ``var2`` at fixed covariance."""

    def curvature(self, features1: Tensor, features2: Tensor, sqdist: Tensor) -> Tensor:
        r"""Derivative of ``P`` by the covariance, :math:`\operatorname{E}\varphi''(u)\varphi''(v)`.

        Args:
            features1: :meth:`features` of the first inputs, ``... x n x f``.
            features2: :meth:`features` of the second inputs, ``... x m x f``.
            sqdist: Squared distances of the pre-activations, ``... x n x m``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define curvature.")

    def derivative_variance_slopes(
        self, features1: Tensor, features2: Tensor, sqdist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Derivatives of ``P`` by ``var1`` and by ``var2`` at fixed covariance."""
        raise NotImplementedError(
            f"{type(self).__name__} does not define derivative_variance_slopes."
        )

    @abstractmethod
    def diagonal(self, variance: Tensor) -> Tensor:
        r"""Variance after the activation, :math:`g(v) = \operatorname{E}\varphi(\sqrt v z)^2`."""

    @abstractmethod
    def derivative_diagonal(self, variance: Tensor) -> Tensor:
        r""":math:`\operatorname{E}\varphi'(\sqrt v z)^2`."""

    @abstractmethod
    def diagonal_slope(self, variance: Tensor) -> Tensor:
        r""":math:`g'(v) = \operatorname{E}[\varphi'^2 + \varphi\varphi''](\sqrt v z)`."""

    def diagonal_and_slope(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`diagonal` and :meth:`diagonal_slope`, for activations that find both at once."""
        return self.diagonal(variance), self.diagonal_slope(variance)

    def diagonal_difference(self, var1: Tensor, var2: Tensor, vardiff: Tensor) -> Tensor:
        """``diagonal(var1) - diagonal(var2)``.

        The default subtracts; closed forms keep the relative precision of ``vardiff``.
        """
        return self.diagonal(var1) - self.diagonal(var2)

    def features(self, variance: Tensor) -> Tensor:
        """What :meth:`expectations` needs to know of an input: by default its variance.

        Args:
            variance: ``... x n x 1``.
        """
        return variance

    def dual(self, pair: PairCovariance) -> PairCovariance:
        """Covariance of the activations of a pair.

        The default subtracts, and so leaves squared distances with an absolute error of some units
        in the last place of the variances.
        """
        value, _ = self.expectations(*self._pair_features(pair), pair.sqdist)
        var1, var2 = self.diagonal(pair.var1), self.diagonal(pair.var2)
        sqdist = (var1 + var2 - 2 * value).clamp_min(0.0)
        return PairCovariance(var1, var2, sqdist, var1 - var2)

    def derivative_dual(self, pair: PairCovariance) -> Tensor:
        """``P`` of all pairs, ``... x n x m``."""
        return self.expectations(*self._pair_features(pair), pair.sqdist)[1]

    def dual_and_derivative(self, pair: PairCovariance) -> tuple[PairCovariance, Tensor]:
        """:meth:`dual` and :meth:`derivative_dual`, for activations that find both at once."""
        return self.dual(pair), self.derivative_dual(pair)

    def variance_slope(self, pair: PairCovariance) -> Tensor:
        """Derivative of ``G`` by ``var1`` at fixed covariance, ``... x n x m``."""
        return self.variance_slopes(*self._pair_features(pair), pair.sqdist)[0]

    def loss(self, var1: Tensor, var2: Tensor, cov: Tensor, tangent: bool) -> Tensor:
        r"""Error of the kernel of a pair without details, in units in the last place; an estimate.

        A squared distance m made of coordinates is exact, but :math:`2c = v_1 + v_2 - m` errs by a
        rounding error of the sum. So does the determinant :math:`v_1 v_2 - c^2`, by that sum times
        the smaller of m and 2c, or times the difference of the variances. Here these enter ``G``,
        of the order of one, and ``P``, of the order of :math:`D^{-1/2}`, as they do for the error
        function.

        Args:
            var1: Variances of the injected inputs, ``... x n x 1``.
            var2: ``... x 1 x m``.
            cov: Their covariances, ``... x n x m``.
            tangent: Whether the kernel depends on ``P``.
        """
        by_value, by_slope = self._losses(var1, var2, cov)
        return torch.maximum(by_value, by_slope) if tangent else by_value

    @staticmethod
    def _losses(var1: Tensor, var2: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
        """Errors of ``G`` and of ``P``, the latter in relative terms."""
        total, size = var1 + var2, cov.abs()
        spread = torch.minimum((total - 2 * cov).clamp_min(0.0) + (var1 - var2).abs(), 2 * size)
        spread = total * spread
        det = 1 + 2 * total + 4 * (var1 * var2 - size.square()).clamp_min(0.0)
        by_slope = spread / det
        by_value = 2 * det.sqrt() * (total + size * by_slope) / (det + 4 * size.square())
        return by_value, by_slope

    def _pair_features(self, pair: PairCovariance) -> tuple[Tensor, Tensor]:
        return self.features(pair.var1), self.features(pair.var2.mT)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
