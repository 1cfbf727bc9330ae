"""Scores of Gaussian predictions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["COLLAPSED_R2", "Metrics", "predictive_metrics"]

#: A model that explains less than this share of the test variance has taken its targets for noise.
COLLAPSED_R2 = 0.05


@dataclass(frozen=True)
class Metrics:
    """How well Gaussian predictions match the observed targets.

    Args:
        rmse: Root mean squared error of the means.
        nlpd: Mean negative log predictive density of the observed (noisy) targets, in nats.
        coverage: Share of the targets inside their central 95 % intervals.
        r2: One minus the squared error relative to that of the targets' own mean.
    """

    rmse: float
    nlpd: float
    coverage: float
    r2: float


def predictive_metrics(mean: Tensor, std: Tensor, target: Tensor) -> Metrics:
    """Score Gaussian predictions of observed targets.

    Args:
        mean: Predictive means, ``n``.
        std: Predictive standard deviations of the observations, noise included, ``n``.
        target: The observed targets, ``n``.

    Returns:
        The four scores, in the units of the arguments. Targets that are all equal have an ``r2``
        of minus infinity, or NaN if they are predicted exactly.

    Raises:
        ValueError: The shapes differ or are not those of a vector, or there is no target.

    Example:
        >>> import torch
        >>> mean, target = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 3.5])
        >>> predictive_metrics(mean, torch.ones(2), target).coverage
        0.5
    """
    if not mean.shape == std.shape == target.shape or target.ndim != 1 or not len(target):
        raise ValueError(
            "Means, standard deviations and targets must be vectors of one length, got "
            f"{tuple(mean.shape)}, {tuple(std.shape)} and {tuple(target.shape)}."
        )
    error = target - mean
    log_density = -0.5 * ((error / std).square() + math.log(2 * math.pi)) - std.log()
    half_width = math.sqrt(2) * torch.special.erfinv(torch.tensor(0.95, dtype=torch.float64)).item()
    return Metrics(
        rmse=error.square().mean().sqrt().item(),
        nlpd=-log_density.mean().item(),
        coverage=(error.abs() <= half_width * std).double().mean().item(),
        r2=1 - (error.square().sum() / (target - target.mean()).square().sum()).item(),
    )
