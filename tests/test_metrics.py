"""Scores of Gaussian predictions against computation by hand and against PyTorch."""

import math

import pytest
import torch

from gp_deq.metrics import predictive_metrics


def test_metrics_by_hand() -> None:
    mean = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    std = torch.tensor([1.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    target = torch.tensor([1.0, 1.0, 0.0, 4.0], dtype=torch.float64)
    metrics = predictive_metrics(mean, std, target)
    # errors 1, 0, -2, 1; standardised 1, 0, -1, 2
    assert metrics.rmse == pytest.approx(math.sqrt(6 / 4))
    densities = [
        -0.5 * z**2 - math.log(s) - 0.5 * math.log(2 * math.pi)
        for z, s in ((1, 1), (0, 1), (-1, 2), (2, 0.5))
    ]
    assert metrics.nlpd == pytest.approx(-sum(densities) / 4)
    assert metrics.coverage == 0.75  # |z| = 2 lies just outside 1.96
    assert metrics.r2 == pytest.approx(1 - 6 / 9)


def test_density_agrees_with_torch_in_other_units() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, target = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    std = torch.rand(50, generator=generator, dtype=torch.float64) + 0.1
    reference = -torch.distributions.Normal(mean, std).log_prob(target).mean().item()
    assert predictive_metrics(mean, std, target).nlpd == pytest.approx(reference)
    scaled = predictive_metrics(10 * mean, 10 * std, 10 * target)
    assert scaled.nlpd == pytest.approx(reference + math.log(10))


def test_targets_that_are_all_equal_have_no_variance_to_explain() -> None:
    target = torch.ones(3)
    assert predictive_metrics(torch.zeros(3), torch.ones(3), target).r2 == -math.inf
    assert math.isnan(predictive_metrics(target, torch.ones(3), target).r2)


@pytest.mark.parametrize("shapes", [((3,), (3,), (2,)), ((3, 1), (3, 1), (3, 1)), ((0,),) * 3])
def test_shapes_that_would_broadcast_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="vectors of one length"):
        predictive_metrics(*(torch.ones(shape) for shape in shapes))
