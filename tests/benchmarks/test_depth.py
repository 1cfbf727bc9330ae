"""Correlation against depth: feed-forward networks collapse, equilibria do not."""

import pytest

pytest.importorskip("joblib")

from gp_deq.benchmarks.depth import EXPERIMENT, Correlation, DepthConfig, _lines, _tables, draw


@pytest.fixture(scope="module")
def rows() -> list[Correlation]:
    return EXPERIMENT.collect(DepthConfig())


def test_collapse_and_equilibrium(rows: list[Correlation]) -> None:
    lines = _lines(rows)
    assert len(lines) == 6
    for (network, w), line in lines.items():
        if network == "feed-forward":
            assert list(line) == list(DepthConfig().depths)
            assert list(line.values()) == sorted(line.values())
            assert line[1024] > 0.9999
        elif network == "injected":
            limit = lines["equilibrium", w][0]
            assert line[1024] == pytest.approx(limit, abs=1e-12)
            assert limit < 0.9


def test_feed_forward_at_critical_weight_follows_its_asymptote() -> None:
    """1 - r tends to zero like 1 / depth**2 at w = 2 when the bias is negligible (theory)."""
    config = DepthConfig(depths=(100, 200), feed_forward=(2.0,), injected=())
    at_100, at_200 = (1 - row.correlation for row in EXPERIMENT.collect(config))
    assert 2.5 < at_100 / at_200 < 4.5


def test_table_has_every_depth(rows: list[Correlation]) -> None:
    table, *notes = _tables(DepthConfig(), rows)
    assert [int(row[0]) for row in table.rows] == list(DepthConfig().depths)
    columns = ["depth", "feed-forward 1", "feed-forward 2", "injected 1", "injected 1.9"]
    assert list(table.columns) == columns
    assert notes[0] == "Equilibrium, w = 1: 0.471617."


def test_figure() -> None:
    pytest.importorskip("matplotlib")
    networks = {
        ("feed-forward", 1.0): (0.4, 0.9, 1.0),
        ("feed-forward", 2.0): (0.4, 0.7, 0.95),
        ("injected", 1.0): (0.4, 0.46, 0.47),
    }
    rows = [
        Correlation(network, w, depth, value)
        for (network, w), values in networks.items()
        for depth, value in zip((1, 4, 16), values)
    ]
    figure = draw([*rows, Correlation("equilibrium", 1.0, 0, 0.47)])
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["feed-forward, w = 1"].get_xdata()) == [1, 4, 16]
    assert list(lines["feed-forward, w = 1"].get_ydata()) == [0.4, 0.9, 1.0]
    assert "feed-forward, w = 2 (critical)" in lines
    assert set(lines["equilibrium, w = 1"].get_ydata()) == {0.47}
    same = {lines[f"{kind}, w = 1"].get_color() for kind in ("equilibrium", "feed-forward")}
    assert len(same) == 1  # the colour stands for the weight variance
    assert axes.get_xscale() == "log"
