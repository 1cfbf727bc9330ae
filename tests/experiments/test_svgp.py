"""Sparse GPs as scripts: two processes against one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("botorch")
pytest.importorskip("joblib")

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "experiments" / "svgp.py"


def scores(processes: int) -> dict[str, float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    command += [str(processes), str(SCRIPT), "diabetes", "--num-inducing", "32"]
    command += ["--batch-size", "64", "--epochs", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"{processes} process" in done.stdout
    return {
        name: float(value)
        for name, value in re.findall(r"^([a-z0-9 ]+?) +(\S+)$", done.stdout, re.MULTILINE)
        if name != "seconds a step"
    }


def test_two_processes_take_the_steps_of_one() -> None:
    """Twenty steps of Adam; sums in another order differ by rounding alone."""
    one, two = scores(1), scores(2)
    assert one == pytest.approx(two, rel=1e-7)
    assert {"last loss", "rmse", "nlpd"} <= one.keys()
