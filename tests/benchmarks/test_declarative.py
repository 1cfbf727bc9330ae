"""Networks that start as kernel GLMs, in small."""

import dataclasses
from pathlib import Path

import pytest
import torch

pytest.importorskip("joblib")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from gpytorch.kernels import RBFKernel
from typer.testing import CliRunner

from gp_deq import cli
from gp_deq.benchmarks.declarative import (
    EXPERIMENT,
    STARTS,
    DeclarativeNetwork,
    Settings,
    Training,
    run,
)
from gp_deq.benchmarks.runs import RunFile
from gp_deq.implicit_layers import KernelGLM

SMALL = Settings(num_points=20, num_train=100, num_test=50, epochs=2, batch_size=50)


def test_informed_start_is_the_kernel_glm() -> None:
    network = DeclarativeNetwork(20)
    STARTS["informed"](network, 20)
    X = torch.linspace(-2 * torch.pi, 2 * torch.pi, 20).unsqueeze(-1)
    kernel = RBFKernel()
    kernel.lengthscale = 1.0
    norm = torch.linalg.matrix_norm(kernel(X).to_dense().detach(), 2).item()
    y = torch.randn(5, 20).sign()
    # float32, and an equilibrium to 1e-4
    expected = KernelGLM(kernel, "signed-bernoulli", norm)(X, y)
    assert torch.allclose(network(y), expected, atol=2e-3)


def test_naive_start_passes_the_input_on() -> None:
    network = DeclarativeNetwork(20)
    STARTS["naive"](network, 20)
    y = torch.randn(5, 20)
    assert torch.allclose(network(y), y.tanh(), atol=1e-5)


@pytest.mark.parametrize("start", STARTS)
def test_training_repeats_and_learns(start: str) -> None:
    first = run(start, 1, SMALL)
    assert run(start, 1, SMALL) == first
    assert len(first.losses) == 3 and first.losses[-1] < first.losses[0]


def test_resumes_and_keeps_other_numbers_of_epochs(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    config = dataclasses.replace(SMALL, seeds=1)
    first = EXPERIMENT.collect(config, path)
    assert [training.key for training in first] == config.keys
    longer = EXPERIMENT.collect(dataclasses.replace(config, epochs=3), path)
    assert [len(training.losses) for training in longer] == [4] * 3
    assert len(RunFile(Training, path).read()) == 6 and EXPERIMENT.collect(config, path) == first


def test_runs_of_the_documentation_are_still_read() -> None:
    path = Path(__file__).parents[2] / "docs" / "data" / "declarative.csv"
    assert {training.key for training in RunFile(Training, path).read()} == set(Settings().keys)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "from_options", lambda *_: dataclasses.replace(SMALL, seeds=1))
    arguments = ["benchmark", "declarative", "--seeds", "1", "--epochs", "2", "--jobs", "1"]
    arguments += ["--csv", str(tmp_path / "a.csv"), "--output", str(tmp_path / "a.png")]
    result = CliRunner().invoke(cli.build_app(), arguments)
    assert result.exit_code == 0, result.output
    for start in STARTS:
        assert f" {start} " in result.output
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert len((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()) == 4
