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
DEPTH = (
    (1, 4, 16),
    {1.0: (0.4, 0.9, 1.0), 2.0: (0.4, 0.7, 0.95)},
    {1.0: (0.4, 0.46, 0.47)},
    {1.0: 0.47},
)


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


def test_depth(tmp_path: Path) -> None:
    figure = plotting.depth_figure(*DEPTH)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["feed-forward, w = 1"].get_ydata()) == [0.4, 0.9, 1.0]
    assert "feed-forward, w = 2 (critical)" in lines
    assert set(lines["equilibrium, w = 1"].get_ydata()) == {0.47}
    same = {lines[f"{kind}, w = 1"].get_color() for kind in ("equilibrium", "feed-forward")}
    assert len(same) == 1  # colour means weight variance
    assert axes.get_xscale() == "log"
    _check_png(figure, tmp_path / "d.png", 720, 360)


def test_demo(tmp_path: Path) -> None:
    panels = {name: _predictions(seed=i) for i, name in enumerate("abc")}
    figure = plotting.demo_figure(panels, RELEVANCES, FEATURES, DEPTH, unit="y", title="title")
    assert len([axes for sub in figure.subfigs for axes in sub.axes]) == 5
    _check_png(figure, tmp_path / "demo.png", 1300, 800)


def test_speed(tmp_path: Path) -> None:
    bars = [
        plotting.Bar("reference", 1.0),
        plotting.Bar("met", 0.9, target=1.0),
        plotting.Bar("missed", 2.4, target=2.0),
    ]
    line = plotting.Series("reference", (500, 1000), (0.1, 0.4))
    lines = {("n", "time"): [line], ("n", "memory"): [line], ("depth", "time"): [line]}
    figure = plotting.speed_figure(bars, lines, title="where")
    axes = figure.axes[0]
    assert [patch.get_width() for patch in axes.patches] == [1.0, 0.9, 2.4]
    colors = {patch.get_facecolor() for patch in axes.patches}
    assert len(colors) == 3  # no target, met, missed
    assert [text.strip() for text in _texts(axes)] == ["1.00", "0.90", "2.40"]
    assert len(figure.axes) == 4
    assert figure.axes[1].get_xscale() == figure.axes[1].get_yscale() == "log"
    _check_png(figure, tmp_path / "s.png", 1400, 720)


def test_speed_without_lines(tmp_path: Path) -> None:
    figure = plotting.speed_figure([plotting.Bar("only", 1.0)], {})
    assert len(figure.axes) == 1
    plotting.save_figure(figure, tmp_path / "s.png")


def test_pyplot_is_not_touched() -> None:
    code = (
        "import sys, torch; from gp_deq import plotting;"
        "plotting.relevance_figure({'k': torch.ones(2) / 2}, ('a', 'b'));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_convergence(tmp_path: Path) -> None:
    x = (10, 100)
    near = plotting.Band("a", x, (0.8, 0.9), (0.7, 0.85), (0.9, 0.95))
    control = plotting.Band("a", x, (0.3, 0.4), (0.2, 0.35), (0.4, 0.45))
    error = plotting.Band("a", x, (0.5, 0.1), (0.4, 0.05), (0.6, 0.15))
    figure = plotting.convergence_figure(
        [near], [control], [error], {"RBF": 0.45, "linear": 0.9}, {"linear": 0.3}, title="t"
    )
    left, right = figure.axes
    assert list(left.lines[0].get_ydata()) == [0.8, 0.9]
    assert list(left.lines[1].get_ydata()) == [0.3, 0.4]
    assert list(right.lines[0].get_ydata()) == [0.5, 0.1]
    assert len(left.collections) == 2 and len(right.collections) == 1
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["with the DEKer kernel, a", "with RBF (control), a", "RBF", "linear"]
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == ["a", "linear", "slope −1/2"]
    assert (left.get_xscale(), right.get_yscale()) == ("log", "log")
    assert left.get_ylabel() == "centred kernel alignment"
    _check_png(figure, tmp_path / "c.png", 1040, 420)
    nowhere = near._replace(x=(), mean=(), low=(), high=())  # undefined at every width
    plotting.convergence_figure([nowhere], [nowhere], [error], {}, {})


def test_coincident(tmp_path: Path) -> None:
    settled = {1.0: (0.65, 0.6, 0.1), 2.0: (0.72, 0.7, 0.2)}
    updated = {1: (0.999, 0.99, 0.2), 3: (0.9, 0.8, 0.15)}
    figure = plotting.coincident_figure(
        (1e-3, 1e-2, 1.0), settled, {1.0: 0.65, 2.0: 0.72}, updated, 1.0
    )
    left, middle, right = figure.axes
    assert list(left.lines[0].get_xdata()) == [-1.0, -1e-2, -1e-3, 1e-3, 1e-2, 1.0]
    assert list(left.lines[0].get_ydata()) == [0.1, 0.6, 0.65, 0.65, 0.6, 0.1]
    assert list(left.lines[1].get_ydata()) == [0.65]  # the value of identical inputs
    labels = [text.get_text() for text in middle.get_legend().get_texts()]
    assert labels == ["T = 1", "T = 3", "fixed point"]
    assert list(right.lines[1].get_ydata()) == pytest.approx([0.1, 0.2, 0.85])
    slopes = [text.get_text() for text in right.get_legend().get_texts()]
    assert slopes == ["T = 1, slope 1", "T = 3, slope 1/4", "fixed point"]
    assert right.get_xscale() == right.get_yscale() == "log"
    _check_png(figure, tmp_path / "c.png", 1240, 410)
