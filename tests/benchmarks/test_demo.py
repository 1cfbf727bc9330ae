"""The demo: scores against hand computation, no collapse from the initial values."""

import math

import pytest
import torch

pytest.importorskip("botorch")

from gp_deq.benchmarks import demo
from gp_deq.datasets import Dataset, load_diabetes, train_test_split


def test_metrics_by_hand() -> None:
    mean = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    std = torch.tensor([1.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    target = torch.tensor([1.0, 1.0, 0.0, 4.0], dtype=torch.float64)
    metrics = demo.predictive_metrics(mean, std, target)
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
    assert demo.predictive_metrics(mean, std, target).nlpd == pytest.approx(reference)
    scaled = demo.predictive_metrics(10 * mean, 10 * std, 10 * target)
    assert scaled.nlpd == pytest.approx(reference + math.log(10))


@pytest.mark.parametrize("name", demo.KERNELS)
def test_starts_at_unit_prior_variance(name: str) -> None:
    split = train_test_split(load_diabetes())
    mll = demo.make_model(demo.KERNELS[name](10), split.train_x, split.train_y)
    prior = mll.model.covar_module(split.train_x, diag=True)
    assert prior.mean().item() == pytest.approx(1.0)
    assert mll.likelihood.noise.item() == pytest.approx(0.1)
    assert prior.dtype == torch.float64


@pytest.fixture(scope="module")
def result() -> demo.DemoResult:
    return demo.run_demo(seeds=(0,))


def test_no_kernel_collapses_on_diabetes(result: demo.DemoResult) -> None:
    assert result.kernels == list(demo.KERNELS)
    for fit in result.fits:
        # A linear model reaches 0.45 here, the noise alone 0.
        assert fit.metrics.r2 > 0.35, fit.kernel
        assert not fit.collapsed
        assert 0.85 <= fit.metrics.coverage <= 1.0, fit.kernel
        assert fit.mean.shape == fit.std.shape == fit.target.shape == (88,)
        assert fit.mean.std() > 0.3 * fit.target.std(), fit.kernel
        assert fit.fit_seconds > 0


def test_predictions_are_in_original_units(result: demo.DemoResult) -> None:
    split = train_test_split(load_diabetes())
    for fit in result.fits:
        torch.testing.assert_close(fit.target, split.y_mean + split.y_std * split.test_y)
        assert fit.metrics == demo.predictive_metrics(fit.mean, fit.std, fit.target)
        assert 40 < fit.metrics.rmse < 70, fit.kernel


def test_ard_kernels_report_relevances(result: demo.DemoResult) -> None:
    for fit in result.fits:
        if fit.kernel.startswith("InfiniteWidthBNN"):
            assert fit.relevance is None
        else:
            assert fit.relevance is not None and fit.relevance.shape == (10,)
            assert fit.relevance.sum().item() == pytest.approx(1.0)
            # Body mass index and s5 (triglycerides) carry this data set, s2 and s4 do not.
            assert fit.relevance[[2, 8]].min() > fit.relevance[[5, 7]].max(), fit.kernel


def test_a_collapsed_fit_says_so() -> None:
    generator = torch.Generator().manual_seed(1)
    data = Dataset(
        name="noise",
        X=torch.randn(60, 2, dtype=torch.float64, generator=generator),
        y=torch.randn(60, dtype=torch.float64, generator=generator),
        feature_names=("a", "b"),
    )
    fit = demo.fit_and_evaluate("RBF", demo.KERNELS["RBF"](2), train_test_split(data))
    assert fit.collapsed
    assert fit.metrics.r2 < demo.COLLAPSED_R2


def test_depth_curves_collapse_and_do_not(result: demo.DemoResult) -> None:
    depth = result.depth
    for values in depth.feed_forward.values():
        assert list(values) == sorted(values)
        assert values[-1] > 0.9999
    for weight, values in depth.injected.items():
        assert values[-1] == pytest.approx(depth.equilibrium[weight], abs=1e-12)
        assert depth.equilibrium[weight] < 0.9
