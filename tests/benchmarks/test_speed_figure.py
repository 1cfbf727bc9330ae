"""The figure of the benchmark of speed shows what was measured."""

from pathlib import Path

import pytest

pytest.importorskip("botorch")
pytest.importorskip("joblib")
pytest.importorskip("matplotlib")

from gp_deq.benchmarks.speed import Record, Target
from gp_deq.benchmarks.speed_figure import draw
from gp_deq.plotting import save_figure


def record(
    section: str, kernel: str, ratio: float, n: int = 500, depth: int | None = None
) -> Record:
    return Record(section, kernel, n, depth, "s", ratio / 10, 0.0, 1.0, ratio, 3)


def test_ratios_with_their_targets(tmp_path: Path) -> None:
    ratios = {"reference": 1.0, "met": 0.9, "missed": 2.4}
    records = [record("kept-pages", name, ratio) for name, ratio in ratios.items()]
    records += [
        record(section, "reference", 1.0, n) for section in ("time-n", "memory-n") for n in (9, 99)
    ]
    records += [record("time-depth", f"deep depth {d}", 2.0, depth=d) for d in (10, 3)]
    targets = [
        Target(f"{name}: time / Matérn-5/2, kept pages", bound, ratios[name])
        for name, bound in (("met", 1.0), ("missed", 2.0))
    ]
    figure = draw(records, targets, "where")
    assert figure.get_suptitle() == "where"
    axes, *others = figure.axes
    assert [patch.get_width() for patch in axes.patches] == [1.0, 0.9, 2.4]
    assert len({patch.get_facecolor() for patch in axes.patches}) == 3  # no target, met, missed
    assert [text.get_text().strip() for text in axes.texts] == ["1.00", "0.90", "2.40"]
    names = [(panel.get_xlabel().split(" (")[0], panel.get_ylabel()) for panel in others]
    assert names == [("n", "time [s]"), ("depth", "time [s]"), ("n", "peak memory [MiB]")]
    assert others[0].get_xscale() == others[0].get_yscale() == "log"
    assert list(others[0].lines[0].get_xdata()) == [9, 99]
    assert list(others[1].lines[0].get_xdata()) == [3, 10]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["reference", "deep"]
    save_figure(figure, tmp_path / "s.png", dpi=100)
    data = (tmp_path / "s.png").read_bytes()
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (1400, 720)


def test_without_lines(tmp_path: Path) -> None:
    figure = draw([record("kept-pages", "only", 1.0)], [], "")
    assert len(figure.axes) == 1
    save_figure(figure, tmp_path / "s.png")
