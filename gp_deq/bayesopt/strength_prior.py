"""A prior on how strong the feedback of an equilibrium is."""

from __future__ import annotations

from typing import ClassVar

import torch
from gpytorch.priors import Prior
from torch import Tensor
from torch.distributions import Beta, Distribution, constraints
from torch.nn import Module

_SCALAR = torch.Size()


class StrengthPrior(Prior):
    r"""A Beta distribution of the share :math:`s = (\theta / \mathtt{critical})^{\mathtt{power}}`.

    The share is that of the strongest feedback for which there is an equilibrium: power 1 for
    ``weight_variance``, -2 for ``regularization``. Its density, :math:`s^{a-1} (1 - s)^{a-1}` but
    for a constant, vanishes at both ends for :math:`a > 1`; without it the likelihood of few
    observations often has no maximum short of the critical value, and a fit goes on towards it for
    most of its evaluations.

    Args:
        concentration: :math:`a`, above 1 for a density that vanishes at the ends.
        critical: The critical value of the hyperparameter :math:`\theta`, above 0.
        power: See above; not 0.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.positive
    has_rsample = True

    def __init__(self, concentration: float, critical: float, power: float = 1.0) -> None:
        Module.__init__(self)
        Distribution.__init__(self)
        self.register_buffer("concentration", torch.tensor(float(concentration)))
        self.register_buffer("critical", torch.tensor(float(critical)))
        self.power = power

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
            x: Value, on that side of the critical one where there is an equilibrium.
        """
        share = self.share(x)
        return self.share_log_prob(share) + (abs(self.power) * share / x).log()

    def rsample(self, sample_shape: torch.Size = _SCALAR) -> Tensor:
        """Random values of the hyperparameter.

        Args:
            sample_shape: Their shape.
        """
        share = Beta(self.concentration, self.concentration).rsample(sample_shape)
        return self.critical * share ** (1 / self.power)
