"""The scripts in docs/experiments run as scripts, on several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("joblib")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

ROOT = Path(__file__).parents[2]


def test_processes_find_what_the_script_defines(tmp_path: Path) -> None:
    script = ROOT / "docs" / "experiments" / "equivalents_mixture.py"
    arguments = "--sizes 20 --sizes 30 --activations relu --seeds 1 --jobs 2 --tables ."
    result = subprocess.run(
        [sys.executable, str(script), *arguments.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "gp-deq-equivalents-mixture.csv" in result.stdout
    written = {path.name for path in tmp_path.iterdir()}
    assert {"gp-deq-equivalents-mixture.csv", "gp-deq-equivalents-mixture.png"} <= written
    assert {"spectral.md", "slopes.tex"} <= written
