"""The comparison of Laplace and variational GPs, on few rows."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("joblib")
pytest.importorskip("pandas")

import laplace
from laplace import DATASETS, EXPERIMENT, MODELS, Comparison, Score, split, summarize

from gp_deq.benchmarks.runs import RunFile


def small() -> tuple[str, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(40, 2, dtype=torch.float64, generator=generator)
    return "poisson", X, torch.poisson((1 + X[:, 0]).exp(), generator=generator)


def test_splits_are_standardised_and_disjoint() -> None:
    data = split("breast cancer", 3)
    assert len(data.train_y) == 455 and len(data.test_y) == 114
    assert torch.allclose(data.train_x.std(0), torch.ones(30).double())
    assert torch.equal(data.test_x, split("breast cancer", 3).test_x)
    assert not torch.equal(data.test_x, split("breast cancer", 4).test_x)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More likely than a Poisson variable of the mean count; small numbers of points and steps."""
    monkeypatch.setitem(DATASETS, "small", small)  # type: ignore[misc]
    monkeypatch.setattr(laplace, "_STEPS", 150)
    data = split("small", 0)
    mean = data.train_y.mean()
    constant = torch.distributions.Poisson(mean).log_prob(data.test_y).mean()
    torch.manual_seed(0)
    scores, means = MODELS[name](data)
    assert scores.mean() > constant + 0.1
    assert (means - data.test_y).square().mean() < (data.test_y - mean).square().mean()


def test_resumes(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    config = Comparison(("breast cancer",), ("Laplace, RBF",), seeds=1)
    (score,) = EXPERIMENT.collect(config, path)
    first = path.read_text(encoding="utf-8")
    assert EXPERIMENT.collect(config, path) == [score] == RunFile(Score, path).read()
    assert path.read_text(encoding="utf-8") == first
    # predicting the share of the classes has -0.66
    assert score.log_score > -0.2 and score.error < 0.1 and summarize([score]).shape == (1, 5)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="no model 'RBF'; there are Laplace"):
        Comparison(models=("RBF",))
