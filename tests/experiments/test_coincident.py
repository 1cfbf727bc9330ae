"""The command that draws the figure of close inputs under the DEKer kernel."""

import math
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

import coincident


def test_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "coincident.png"
    coincident.main(["--output", str(path)])
    printed = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: [float(entry) for entry in line.split()[1:]] for line in printed[2:4]}
    assert rows["relu"] == [0.60658, 0.64957, 0.69714, 0.72055, 0.75523]
    assert rows["linear"] == [0.92538, 0.83470, 0.80556, 0.79808, 0.79177]
    rates = [[float(entry) for entry in line.split()] for line in printed[5:10]]
    for steps, (count, _, power, expected) in enumerate(rates, 1):
        assert count == steps and expected == 2.0 ** (1 - steps)
        assert abs(power / expected - 1) < 0.05
    assert path.read_bytes().startswith(b"\x89PNG")
    assert 10_000 < path.stat().st_size < 200_000


@pytest.mark.parametrize("features", ["relu", "linear"])
def test_fixed_point_tends_to_its_limit_and_updates_to_one(features: str) -> None:
    angles = (1e-12, 1e-6, math.pi / 2)
    curves = coincident.correlation_against_angle(
        angles, fixed=(0.75, 3.0), updated=(1, 60), regularization=3.0, features=features
    )
    for lam, values in curves.fixed.items():
        assert values[0] == pytest.approx(curves.limits[lam], abs=1e-9)
        assert values[2] < values[1] < 1
    assert curves.updated[1][0] > 1 - 1e-11
    assert curves.updated[60] == pytest.approx(curves.fixed[3.0], abs=1e-9)


def test_figure() -> None:
    fixed = {1.0: (0.65, 0.6, 0.1), 2.0: (0.72, 0.7, 0.2)}
    updated = {1: (0.999, 0.99, 0.2), 3: (0.9, 0.8, 0.15)}
    figure = coincident.coincident_figure(
        (1e-3, 1e-2, 1.0), fixed, {1.0: 0.65, 2.0: 0.72}, updated, 1.0
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
