"""The prior on weight variance and regularization, against SciPy's Beta distribution."""

import pickle

import pytest
import torch
from scipy import integrate, stats

from gp_deq.bayesopt import get_covar_module
from gp_deq.bayesopt.strength_prior import StrengthPrior


@pytest.mark.parametrize(
    ("power", "ends"), [(1.0, (0.0, 1.7)), (-2.0, (1.7, float("inf")))], ids=["weight", "penalty"]
)
def test_density(power: float, ends: tuple[float, float]) -> None:
    """It integrates to one, and its distribution function is the Beta's at the share."""
    prior = StrengthPrior(2.5, 1.7, power).double()

    def density(value: float) -> float:
        return float(prior.log_prob(torch.tensor(value, dtype=torch.float64)).exp())

    assert integrate.quad(density, *ends)[0] == pytest.approx(1, abs=1e-6)
    middle = 1.7 * 0.3 ** (1 / power)
    below = stats.beta(2.5, 2.5).cdf(0.3)
    expected = below if power > 0 else 1 - below
    assert integrate.quad(density, ends[0], middle)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("power", [1.0, -2.0])
def test_samples(power: float) -> None:
    torch.manual_seed(0)
    prior = StrengthPrior(2.0, 0.8, power).double()
    values = prior.rsample(torch.Size([2000]))
    assert bool((values < 0.8 if power > 0 else values > 0.8).all())
    # rejects one in a thousand right samplers, and this seed is not one of those
    assert stats.kstest(prior.share(values).numpy(), stats.beta(2, 2).cdf).pvalue > 1e-3


def test_dtype_and_pickle() -> None:
    prior = StrengthPrior(2.0, 0.8)
    value = torch.tensor([0.1, 0.5])
    assert prior.log_prob(value).dtype == torch.float32
    restored = pickle.loads(pickle.dumps(prior.double()))
    assert torch.equal(restored.log_prob(value.double()), prior.log_prob(value.double()))


@pytest.mark.parametrize("kernel", ["deq-nngp", "deq-ntk", "deker"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_any_raw_value(kernel: str, dtype: torch.dtype) -> None:
    """Where an optimiser may go, both precisions."""
    base = get_covar_module(kernel).to(dtype).base_kernel
    name = "regularization" if kernel == "deker" else "weight_variance"
    raw = getattr(base, f"raw_{name}")
    for value in (-1e3, -50.0, 0.0, 50.0, 1e3):
        raw.data.fill_(value)
        raw.grad = None
        log_prob = getattr(base, f"{name}_prior").log_prob(getattr(base, name)).sum()
        log_prob.backward()
        assert bool(log_prob.isfinite() and raw.grad.isfinite().all())
