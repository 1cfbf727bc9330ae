"""Commands of experiments: options from the configuration, tables that fit, files."""

import dataclasses
import importlib
import io
from pathlib import Path

import pytest

pytest.importorskip("botorch")
pytest.importorskip("joblib")
pytest.importorskip("pandas")
pytest.importorskip("typer")

from benchmarks.test_experiment import EXPERIMENT
from rich.console import Console
from typer.testing import CliRunner, Result

from gp_deq import cli
from gp_deq.benchmarks.command import command, find, load, print_tables, write_tables
from gp_deq.benchmarks.experiment import Experiment, Table

WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
TABLE = Table("Long numbers", ["name", "first", "second"], [["a", "1.5 ± 0.5", "**2**"]], "long")


def invoke(experiment: Experiment, folder: Path, *arguments: str) -> Result:
    files = ["--csv", str(folder / "rows.csv")]
    app = command(experiment, "Powers.\n\nMore of it.")
    return CliRunner().invoke(app, [*files, *arguments], env=WIDE)


def test_every_experiment_is_found_and_named_as_its_module() -> None:
    found = find()
    assert set(found) == {"bo", "declarative", "depth", "regression", "speed"}
    for name, summary in found.items():
        experiment = load(name)
        assert experiment.name == name and summary.endswith(".")
        module = importlib.import_module(f"gp_deq.benchmarks.{name.replace('-', '_')}")
        assert module.EXPERIMENT is experiment
        help = CliRunner().invoke(cli.build_app(), ["benchmark", name, "--help"], env=WIDE)
        assert help.exit_code == 0 and "--csv" in help.output, help.output
        for field in dataclasses.fields(experiment.configuration):
            if field.metadata:
                option = field.metadata["name"] or field.name.replace("_", "-")
                assert f"--{option}" in help.output


def test_options_are_the_fields_of_the_configuration(tmp_path: Path) -> None:
    result = invoke(EXPERIMENT, tmp_path, "--numbers", "3", "--numbers", "2", "--numbers", "3")
    assert result.exit_code == 0, result.output
    assert result.output.index("│ 3      │     9 │") < result.output.index("│ 2      │     4 │")
    assert "2 numbers." in result.output and "Rows: " in result.output
    result = invoke(EXPERIMENT, tmp_path, "--quick", "--power", "3")
    assert "1 numbers." in result.output and "the results mean nothing" in result.output
    assert len((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()) == 4
    assert "0 of 3 runs are done" in invoke(EXPERIMENT, tmp_path, "--power=4", "--minutes=0").output
    help = CliRunner().invoke(command(EXPERIMENT, "Powers.\n\nMore."), ["--help"], env=WIDE).output
    assert "Powers." in help and "More." not in help
    assert "Number. May be repeated.  [default: 1, 2, 3]" in help
    assert "--quick" in help and "--jobs" in help and "--resume" not in help
    assert "--output" not in help  # there is no figure


def test_times_are_continued_on_demand_only(tmp_path: Path) -> None:
    timing = dataclasses.replace(EXPERIMENT, timing=True)
    invoke(timing, tmp_path, "--numbers", "2")
    invoke(timing, tmp_path, "--numbers", "3", "--resume")
    assert len((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()) == 3
    invoke(timing, tmp_path, "--numbers", "3")
    assert len((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()) == 2
    assert invoke(timing, tmp_path, "--jobs", "1").exit_code == 2


def test_faults_of_the_user_are_told_in_a_line(tmp_path: Path) -> None:
    assert invoke(EXPERIMENT, tmp_path, "--numbers", "two").exit_code == 2
    result = invoke(EXPERIMENT, tmp_path / "nowhere")
    assert result.exit_code == 2 and "does not exist" in result.output
    (tmp_path / "rows.csv").write_text("a,b\n", encoding="utf-8")
    result = invoke(EXPERIMENT, tmp_path)
    assert result.exit_code == 2 and "not a file of this benchmark" in result.output


def test_a_table_that_is_too_wide_is_continued_below() -> None:
    def printed(width: int) -> str:
        console = Console(file=io.StringIO(), width=width)
        print_tables(console, [TABLE, "A note [not markup]."])
        return console.file.getvalue()  # type: ignore[attr-defined]

    assert printed(80).count("Long numbers") == 1
    narrow = printed(22)
    assert narrow.count("Long numbers") == 2 and narrow.count("│ a ") == 2
    for text in (printed(80), narrow):
        assert "1.5 ± 0.5" in text and "│      2 │" in text and "A note [not markup]." in text


def test_tables_are_written_as_markdown_and_latex(tmp_path: Path) -> None:
    write_tables(tmp_path / "new", [TABLE, "A note."])
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"long.md", "long.tex"}
    markdown = (tmp_path / "new" / "long.md").read_text(encoding="utf-8")
    assert [cell.strip() for cell in markdown.splitlines()[2].split("|")[1:-1]] == [*TABLE.rows[0]]
    latex = (tmp_path / "new" / "long.tex").read_text(encoding="utf-8")
    assert r"1.5 $\pm$ 0.5" in latex and r"\textbf{2}" in latex
