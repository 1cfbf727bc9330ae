"""The command line, run in this process and as a program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("botorch")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner, Result

from gp_deq import cli

WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def _invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.build_app(), list(arguments), env=WIDE)


def _row(output: str, kernel: str) -> list[str]:
    """The cells of a kernel's first row."""
    line = next(line for line in output.splitlines() if f" {kernel} " in line and "│" in line)
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def _png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_help_names_the_commands() -> None:
    result = _invoke("--help")
    assert result.exit_code == 0
    for command in ("demo", "fit", "predict", "benchmark"):
        assert f" {command} " in result.output
    benchmarks = _invoke("benchmark", "--help").output
    assert "speed" in benchmarks and " bo " in benchmarks


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gp_deq.benchmarks import demo

    # Two kernels are enough here; tests/benchmarks/test_demo.py fits them all.
    names = ("DEQ-NNGP relu", "RBF")
    monkeypatch.setattr(demo, "KERNELS", {name: demo.KERNELS[name] for name in names})
    path = tmp_path / "figure.png"
    result = _invoke("demo", "--output", str(path))
    assert result.exit_code == 0, result.output
    fits = {}
    for name in names:
        _, rmse, nlpd, coverage, r2, seconds = _row(result.output, name)
        assert 40 < float(rmse) < 70
        assert 5 < float(nlpd) < 6
        assert 85 <= float(coverage.removesuffix(" %")) <= 100
        assert float(r2) > 0.35
        assert float(seconds) >= 0
        fits[name] = rmse
    assert "No fit collapsed to all noise" in result.output
    assert "weight_variance" in result.output  # the learned values
    assert str(path) in result.output
    width, height = _png_size(path)
    assert width > 1000 and height > 600


def test_demo_says_that_a_fit_collapsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gp_deq.benchmarks import demo

    monkeypatch.setattr(demo, "COLLAPSED_R2", 0.99)
    monkeypatch.setattr(demo, "KERNELS", {"RBF": demo.KERNELS["RBF"]})
    result = _invoke("demo", "--seeds", "2", "--output", str(tmp_path / "figure.png"))
    assert result.exit_code == 0, result.output
    assert "RBF (all noise)" in result.output
    assert "RBF, split 0: collapsed to all noise" in result.output
    assert "RBF, split 1: collapsed to all noise" in result.output
    assert "2 random splits, mean ± standard error" in result.output
    assert "±" in _row(result.output, "RBF (all noise)")[1]


def test_benchmark_speed_quick(tmp_path: Path) -> None:
    figure, table = tmp_path / "speed.png", tmp_path / "speed.csv"
    result = _invoke(
        "benchmark", "speed", "--quick", "--no-memory", "--output", str(figure), "--csv", str(table)
    )
    assert result.exit_code == 0, result.output
    assert "threads, float64" in result.output
    for title in (
        "Forward and backward, n = 128",
        "Acquisition: t-batch",
        "against n",
        "against depth",
        "Targets",
    ):
        assert title in result.output
    assert _row(result.output, "Matérn-5/2")[3] == "1.00"
    assert "Sizes of --quick" in result.output
    assert _png_size(figure)[0] > 1000
    assert len(table.read_text(encoding="utf-8").splitlines()) > 30


def test_missing_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    result = _invoke("demo", "--output", str(tmp_path / "nowhere" / "figure.png"))
    assert result.exit_code == 2
    assert "does not exist" in result.output
    assert _invoke("demo", "--seeds", "0").exit_code == 2


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("typer", [], "gp_deq[cli]"),
        ("rich", [], "gp_deq[cli]"),
        ("matplotlib", ["demo"], "gp_deq[cli]"),
        ("botorch", ["demo"], "gp_deq[bo]"),
        ("botorch", ["fit", "table.csv", "--target", "y"], "gp_deq[bo]"),
        ("pandas", ["fit", "table.csv", "--target", "y"], "gp_deq[cli]"),
        ("botorch", ["predict", "model.pt", "table.csv"], "gp_deq[bo]"),
        ("botorch", ["benchmark", "speed"], "gp_deq[bo]"),
        ("botorch", ["benchmark", "bo"], "gp_deq[bo]"),
        ("pandas", ["benchmark", "bo"], "gp_deq[cli]"),
    ],
)
def test_missing_extra_is_named(missing: str, arguments: list[str], extra: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from gp_deq.cli import main;"
        f"sys.argv = ['gp-deq', *{arguments!r}]; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | WIDE,
    )
    assert result.returncode == 1
    assert f'pip install "{extra}"' in result.stderr
    assert "Traceback" not in result.stderr
