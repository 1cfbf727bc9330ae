"""Figures: what they show is what they were given, and they need no display."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gp_deq import plotting

FEATURES = ("age", "bmi", "s5")
RELEVANCES = {"one": torch.tensor([0.2, 0.3, 0.5]), "two": torch.tensor([0.1, 0.1, 0.8])}


def _predictions(n: int = 20, seed: int = 0) -> plotting.Predictions:
    generator = torch.Generator().manual_seed(seed)
    target, mean = torch.randn(2, n, dtype=torch.float64, generator=generator)
    return plotting.Predictions(target, mean, torch.full_like(mean, 0.5))


def _texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def _check_png(figure: Figure, path: Path, width: int, height: int, limit: int = 400_000) -> None:
    plotting.save_figure(figure, path, dpi=100)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert size == (width, height)
    assert 5_000 < len(data) < limit


def test_predictions(tmp_path: Path) -> None:
    predictions = _predictions()
    figure = plotting.predictions_figure({"a": predictions, "b": predictions}, unit="kg")
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("a", "b")
    assert left.get_ylabel() == "kg"
    mean = left.lines[0].get_ydata()
    assert list(mean) == sorted(predictions.mean.tolist())
    inside, outside = (collection.get_offsets() for collection in left.collections[1:3])
    assert len(inside) + len(outside) == 20
    missed = ((predictions.target - predictions.mean).abs() > 1.96 * 0.5).sum().item()
    assert len(outside) == missed > 0
    assert f"{1 - missed / 20:.0%} inside 95 %" in _texts(left)[0]
    _check_png(figure, tmp_path / "p.png", 800, 340)


def test_relevances(tmp_path: Path) -> None:
    figure = plotting.relevance_figure(RELEVANCES, FEATURES)
    (axes,) = figure.axes
    heights = [patch.get_height() for patch in axes.patches]
    assert heights == pytest.approx([*RELEVANCES["one"].tolist(), *RELEVANCES["two"].tolist()])
    assert [label.get_text() for label in axes.get_xticklabels()] == list(FEATURES)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]
    centres = [patch.get_x() + patch.get_width() / 2 for patch in axes.patches]
    assert all(abs(centre - round(centre)) < 0.5 for centre in centres)  # groups do not mix
    _check_png(figure, tmp_path / "r.png", 600, 340)


def test_pyplot_is_not_touched() -> None:
    code = (
        "import sys, torch; from gp_deq import plotting;"
        "plotting.relevance_figure({'k': torch.ones(2) / 2}, ('a', 'b'));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
