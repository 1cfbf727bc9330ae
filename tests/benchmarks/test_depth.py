"""The command that draws the figure of the documentation."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from gp_deq.benchmarks import depth


def test_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "depth.png"
    depth.main(["--output", str(path)])
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.strip()[:1].isdigit()]
    assert [int(row.split()[0]) for row in rows] == list(depth.DEFAULT_DEPTHS)
    assert "equilibrium: 1: " in printed
    assert path.read_bytes().startswith(b"\x89PNG")
    assert 10_000 < path.stat().st_size < 200_000


def test_feed_forward_at_critical_weight_follows_its_asymptote() -> None:
    """1 - r tends to zero like 1 / depth**2 at w = 2 when the bias is negligible (theory)."""
    curves = depth.correlation_against_depth(
        depths=(100, 200), feed_forward=(2.0,), injected=(1.0,)
    )
    at_100, at_200 = (1 - r for r in curves.feed_forward[2.0])
    assert 2.5 < at_100 / at_200 < 4.5
