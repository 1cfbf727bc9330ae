"""A prior on the strength of the feedback of an equilibrium."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

import torch
from gpytorch.priors import Prior
from torch import Tensor
from torch.distributions import Beta, Distribution, constraints
from torch.nn import Module

_SCALAR = torch.Size()


class StrengthPrior(Prior):
    r"""A Beta distribution of the share :math:`s = (\theta / \mathtt{critical})^{\mathtt{power}}`.

    It is the strength of the feedback relative to the largest for which there is an equilibrium:
    the power is 1 for ``weight_variance`` and -2 for ``regularization``. The density, proportional
    to :math:`s^{a-1} (1 - s)^{a-1}`, vanishes at both ends for :math:`a > 1`. Without this prior
    the likelihood of few observations often has no maximum below the critical value, and a fit
    spends evaluations on the way there.

    Args:
        concentration: Concentration :math:`a` of both ends, positive; 1 for a uniform share.
        critical: Critical value of the hyperparameter :math:`\theta`, positive.
        power: Power of the hyperparameter in the share, not 0.

    Raises:
        ValueError: An argument is outside its range.

    Example:
        >>> from gp_deq import DEQNNGPKernel
        >>> from gp_deq.bayesopt import StrengthPrior
        >>> DEQNNGPKernel("relu", weight_variance_prior=StrengthPrior(2.0, critical=2.0))
        DEQNNGPKernel(
          (raw_lengthscale_constraint): AboveRounding(1.000E-04)
          (raw_bias_variance_constraint): NonNegative(0.000E+00)
          (raw_weight_variance_constraint): BelowCritical(1.578E-30, 2.000E+00)
          (weight_variance_prior): StrengthPrior(concentration=2, critical=2, power=1)
        )
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, concentration: float, critical: float, power: float = 1.0) -> None:
        Module.__init__(self)
        Distribution.__init__(self)
        if not (concentration > 0 and critical > 0 and power != 0):
            raise ValueError(
                "A StrengthPrior needs a positive concentration and critical value and a power "
                f"other than 0, got {concentration}, {critical} and {power}."
            )
        self.register_buffer("concentration", torch.tensor(float(concentration)))
        self.register_buffer("critical", torch.tensor(float(critical)))
        self.power = power

    def __repr__(self) -> str:
        return (
            f"StrengthPrior(concentration={float(self.concentration):g}, "
            f"critical={float(self.critical):g}, power={self.power:g})"
        )

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Values of the hyperparameter for which there is an equilibrium."""
        if self.power > 0:
            return constraints.interval(torch.zeros_like(self.critical), self.critical)
        return constraints.greater_than(self.critical)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StrengthPrior:
        """The same distribution for each of several independent values.

        Args:
            batch_shape: Shape of the values.

        Returns:
            A copy with this batch shape.
        """
        expanded = deepcopy(self)
        expanded._batch_shape = torch.Size(batch_shape)
        return expanded

    def share(self, value: Tensor) -> Tensor:
        """The share of a value of the hyperparameter."""
        return (value / self.critical) ** self.power

    def share_log_prob(self, share: Tensor) -> Tensor:
        """Logarithm of the density of a share."""
        concentration = self.concentration.to(share)
        return Beta(concentration, concentration).log_prob(share)

    def log_prob(self, x: Tensor) -> Tensor:
        """Logarithm of the density of a value of the hyperparameter.

        Args:
            x: Value in the :attr:`support`.

        Returns:
            The logarithms, in the shape of ``x``.

        Raises:
            ValueError: The value is outside of the :attr:`support`.
        """
        share = self.share(x)
        return self.share_log_prob(share) + (abs(self.power) * share / x).log()

    def rsample(self, sample_shape: torch.Size = _SCALAR) -> Tensor:
        """Random values of the hyperparameter.

        Args:
            sample_shape: Shape of the samples, before the batch shape of the distribution.

        Returns:
            The values, one for each of the distribution's.
        """
        share = Beta(self.concentration, self.concentration)
        return self.critical * share.rsample(sample_shape + self.batch_shape) ** (1 / self.power)
