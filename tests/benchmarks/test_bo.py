"""The benchmark of Bayesian optimisation: runs repeat and resume, ranks, failures, the command."""

import dataclasses
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("botorch")
pytest.importorskip("joblib")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("typer")

from botorch.exceptions.errors import ModelFittingError
from joblib import parallel_config
from typer.testing import CliRunner, Result

from gp_deq import cli
from gp_deq.benchmarks import bo, runs
from gp_deq.benchmarks.bo import BOConfig, Run, run_bo
from gp_deq.benchmarks.runs import RunFile

TINY = dataclasses.replace(
    BOConfig.quick(), surrogates=("BoTorch default", "random"), num_steps=2, seeds=2
)
HEADER = ",".join(field.name for field in dataclasses.fields(Run)) + "\n"


def _results(runs: list[Run]) -> list[Run]:
    """Without the times."""
    return [dataclasses.replace(run, fit_seconds=0.0, acquisition_seconds=0.0) for run in runs]


@pytest.fixture(scope="module")
def whole() -> list[Run]:
    return run_bo(TINY)


def test_runs(whole: list[Run]) -> None:
    assert [run.key for run in whole] == TINY.keys
    assert [run.seed for run in whole] == [0] * 4 + [1] * 4
    for run in whole:
        assert run.num_initial == 5 and len(run.trace) == 7
        assert all(math.isfinite(value) for value in run.trace)
        assert list(run.trace) == sorted(run.trace)  # hypervolumes, too, only grow
        assert (run.fit_seconds > 0) == (run.surrogate != "random")
    for default, random in zip(whole[::2], whole[1::2]):
        assert default.trace[:5] == random.trace[:5]  # the same initial points
    assert whole[1].trace[:5] != whole[5].trace[:5]


def test_resumes_with_equal_numbers(
    whole: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.csv"
    assert _results(run_bo(TINY, path)) == _results(whole)
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    assert lines[0] == HEADER and len(lines) == 9
    assert RunFile(Run, path).read() == run_bo(TINY, path)
    assert path.read_text(encoding="utf-8") == text

    # killed in the middle of a row
    path.write_text("".join(lines[:4]) + lines[4][:-9], encoding="utf-8", newline="")
    fitted: list[str] = []
    original = bo._optimize

    def counting(config: BOConfig, name: str, surrogate: str, seed: int) -> Run:
        fitted.append(surrogate)
        return original(config, name, surrogate, seed)

    monkeypatch.setattr(bo, "_optimize", counting)
    steps: list[str] = []
    assert _results(run_bo(TINY, path, on_row=steps.append)) == _results(whole)
    assert len(fitted) == 5 and len(steps) == 8
    assert path.read_text(encoding="utf-8").splitlines(keepends=True)[:4] == lines[:4]

    # another budget shares the file
    run_bo(dataclasses.replace(TINY, surrogates=("random",), num_steps=1), path)
    assert len(fitted) == 9 and len(RunFile(Run, path).read()) == 12
    assert _results(run_bo(TINY, path)) == _results(whole) and len(fitted) == 9


@pytest.mark.parametrize("generator", [True, False])
def test_in_parallel(whole: list[Run], generator: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where joblib returns no generator, as with Ray."""
    backend = SimpleNamespace(supports_return_generator=generator)
    monkeypatch.setattr(runs, "get_active_backend", lambda: (backend, 2))
    with parallel_config("loky", n_jobs=2):
        assert _results(run_bo(TINY)) == _results(whole)


def test_no_run_starts_after_the_time(tmp_path: Path) -> None:
    assert run_bo(TINY, tmp_path / "runs.csv", minutes=0) == []
    assert RunFile(Run, tmp_path / "runs.csv").read() == []


def test_failures_are_recorded_and_cost_a_random_point(
    whole: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object) -> None:
        raise ModelFittingError("no")

    monkeypatch.setattr(bo, "fit_surrogate", failing)
    failed, random = run_bo(dataclasses.replace(TINY, problems=("Branin 2",), seeds=1))
    assert failed.failures == ("fit:ModelFittingError",) * 2
    assert failed.trace == random.trace
    assert Run.from_row(failed.row) == failed

    monkeypatch.undo()
    monkeypatch.setattr(bo, "maximize_acquisition", failing)
    failed, _ = run_bo(dataclasses.replace(TINY, problems=("Branin 2",), seeds=1))
    assert failed.failures == ("acquisition:ModelFittingError",) * 2
    assert failed.fit_seconds > 0


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "torn", HEADER + "Levy 10,linear\n"])
def test_foreign_file_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"other\.csv .* this benchmark"):
        run_bo(TINY, path)
    assert path.read_text(encoding="utf-8") == text


def test_bad_settings() -> None:
    for options in ({"seeds": 0}, {"num_steps": 0}, {"problems": ()}, {"surrogates": ()}):
        with pytest.raises(ValueError, match="must be"):
            BOConfig(**options)
    with pytest.raises(ValueError, match="no problem 'Branin'"):
        BOConfig(problems=("Branin",))
    with pytest.raises(ValueError, match="no surrogate 'GP'"):
        BOConfig(surrogates=("GP",))


def _invoke(folder: Path, *arguments: str) -> Result:
    files = ("--output", str(folder / "plot.png"), "--csv", str(folder / "runs.csv"))
    return CliRunner().invoke(
        cli.build_app(),
        ["benchmark", "bo", "--quick", "--jobs", "1", *files, *arguments],
        env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"},
    )


def test_command(tmp_path: Path) -> None:
    arguments = ("--surrogates", "linear", "--surrogates", "random", "--steps", "2")
    result = _invoke(tmp_path, *arguments, "--minutes", "0")
    assert result.exit_code == 0, result.output
    assert "0 of 8 runs are done; the same command goes on." in result.output
    assert not (tmp_path / "plot.png").exists()

    result = _invoke(tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    for text in ("Branin 2", "BraninCurrin 2 +", "log10 of the final regret", "Mean rank"):
        assert text in result.output
    assert "over 2 seeds of each problem, paired" in result.output
    assert "the results mean nothing" in result.output
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    rows = (tmp_path / "runs.csv").read_text(encoding="utf-8")
    assert len(rows.splitlines()) == 9
    assert _invoke(tmp_path, *arguments).output == result.output
    assert (tmp_path / "runs.csv").read_text(encoding="utf-8") == rows


def test_command_refuses_bad_settings(tmp_path: Path) -> None:
    result = _invoke(tmp_path, "--problems", "Branin")
    assert result.exit_code == 2 and "no problem 'Branin'" in result.output
    assert "seeds must be at least 1" in _invoke(tmp_path, "--seeds", "0").output
    (tmp_path / "runs.csv").write_text("a,b\n", encoding="utf-8")
    result = _invoke(tmp_path)
    assert result.exit_code == 2 and "not a file of this benchmark" in result.output


@pytest.mark.parametrize(("backend", "missing"), [("dask", "distributed"), ("ray", "ray")])
def test_missing_backend_is_named(
    tmp_path: Path, backend: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    result = _invoke(tmp_path, "--backend", backend)
    assert result.exit_code == 1
    assert f"pip install {missing}" in str(result.exception)
