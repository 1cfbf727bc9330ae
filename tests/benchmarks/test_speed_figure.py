"""The figure of the benchmark of speed shows what it was given."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from gp_deq.benchmarks.speed_figure import Bar, Series, speed_figure
from gp_deq.plotting import save_figure


def test_speed(tmp_path: Path) -> None:
    bars = [
        Bar("reference", 1.0),
        Bar("met", 0.9, target=1.0),
        Bar("missed", 2.4, target=2.0),
    ]
    line = Series("reference", (500, 1000), (0.1, 0.4))
    lines = {("n", "time"): [line], ("n", "memory"): [line], ("depth", "time"): [line]}
    figure = speed_figure(bars, lines, title="where")
    axes = figure.axes[0]
    assert [patch.get_width() for patch in axes.patches] == [1.0, 0.9, 2.4]
    colors = {patch.get_facecolor() for patch in axes.patches}
    assert len(colors) == 3  # no target, met, missed
    assert [text.get_text().strip() for text in axes.texts] == ["1.00", "0.90", "2.40"]
    assert len(figure.axes) == 4
    assert figure.axes[1].get_xscale() == figure.axes[1].get_yscale() == "log"
    save_figure(figure, tmp_path / "s.png", dpi=100)
    data = (tmp_path / "s.png").read_bytes()
    size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert size == (1400, 720)


def test_speed_without_lines(tmp_path: Path) -> None:
    figure = speed_figure([Bar("only", 1.0)], {})
    assert len(figure.axes) == 1
    save_figure(figure, tmp_path / "s.png")
