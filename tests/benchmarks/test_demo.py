"""The demo: no collapse from the initial values, and what is drawn."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("botorch")
pytest.importorskip("joblib")
pytest.importorskip("pandas")

from gp_deq.benchmarks import demo
from gp_deq.datasets import Dataset, load_diabetes, train_test_split
from gp_deq.metrics import COLLAPSED_R2, predictive_metrics
from gp_deq.tables import make_model


@pytest.mark.parametrize("name", demo.KERNELS)
def test_starts_at_unit_prior_variance(name: str) -> None:
    split = train_test_split(load_diabetes())
    mll = make_model(demo.KERNELS[name](10), split.train_x, split.train_y)
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
        assert fit.metrics == predictive_metrics(fit.mean, fit.std, fit.target)
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
    assert fit.metrics.r2 < COLLAPSED_R2


def test_depth_is_measured(result: demo.DemoResult) -> None:
    assert {row.network for row in result.depth} == {"feed-forward", "injected", "equilibrium"}


def test_draw(result: demo.DemoResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from gp_deq.plotting import save_figure

    figure = demo.draw(result)
    above, below = figure.subfigs
    assert [axes.get_title() for axes in above.axes] == list(demo._DRAWN)
    relevances, depth = below.axes
    names = [text.get_text() for text in relevances.get_legend().get_texts()]
    assert names == [name for name in demo.KERNELS if not name.startswith("InfiniteWidthBNN")]
    assert depth.get_xlabel() == "depth"
    save_figure(figure, tmp_path / "demo.png", dpi=100)
    data = (tmp_path / "demo.png").read_bytes()
    size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert size == (1300, 800) and len(data) < 400_000
