"""Seconds of a step of a sparse GP with each kernel."""

import re
from pathlib import Path

import pytest

pytest.importorskip("botorch")
pytest.importorskip("typer")

from svgp_speed import EXPERIMENT
from typer.testing import CliRunner

from gp_deq.benchmarks.command import command


def test_prints_a_ratio_for_each_kernel(tmp_path: Path) -> None:
    arguments = ["--dataset", "diabetes", "--rounds", "1", "--num-inducing", "16"]
    arguments += ["--batch-size", "32", "--csv", str(tmp_path / "a.csv")]
    result = CliRunner().invoke(command(EXPERIMENT, None), arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    ratios = dict(re.findall(r"│ (\S.*?) +│ +[\d.]+ │ +([\d.]+) │", result.output))
    assert ratios.keys() >= {"DEQ-NNGP relu", "DEKer relu", "Matérn-5/2"}
    assert float(ratios["Matérn-5/2"]) == 1.0
