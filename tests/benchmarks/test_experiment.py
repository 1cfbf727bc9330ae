"""An experiment in small: what is collected, kept and continued."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("joblib")

from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option, plus_minus
from gp_deq.benchmarks.runs import Key, Row


@dataclass(frozen=True)
class Squares(Configuration):
    """Numbers to be squared."""

    numbers: tuple[int, ...] = option((1, 2, 3), "Number.")
    power: float = option(2.0, "Power.")

    presets: ClassVar = {"quick": "One number."}

    @classmethod
    def quick(cls) -> "Squares":
        return cls(numbers=(1,))

    @property
    def keys(self) -> list[Key]:
        return [(number, self.power) for number in self.numbers]


@dataclass(frozen=True)
class Square(Row):
    """A power of a number."""

    number: int
    power: float
    value: float

    keys = ("number", "power")


def run(config: Squares, keys: Iterator[Key], tell: Callable[[str], None]) -> Iterator[Square]:
    for number, power in keys:
        tell(f"raising {number}")
        yield Square(number, power, number**power)


def tables(config: Squares, rows: list[Square]) -> list[Table | str]:
    cells = [[str(row.number), f"{row.value:g}"] for row in rows]
    return [Table("Powers of numbers", ["number", "power"], cells), f"{len(rows)} numbers."]


EXPERIMENT = Experiment(name="squares", configuration=Squares, row=Square, run=run, tables=tables)


def test_rows_are_made_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "squares.csv"
    steps: list[str] = []
    first = EXPERIMENT.collect(Squares((2,)), path, on_step=steps.append)
    labels: list[str] = []
    rows = EXPERIMENT.collect(Squares(), path, on_row=labels.append, on_step=steps.append)
    assert [row.value for row in rows] == [1, 4, 9] and rows[1:2] == first
    assert steps == ["raising 2", "raising 1", "raising 3"]
    assert labels == ["2, 2.0", "1, 2.0", "3, 2.0"]  # what the file holds comes first
    # another configuration shares the file
    assert [row.value for row in EXPERIMENT.collect(Squares(power=3.0), path)] == [1, 8, 27]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 7
    assert EXPERIMENT.collect(Squares(), path, minutes=0) == rows


def test_starting_anew_forgets_the_file(tmp_path: Path) -> None:
    path = tmp_path / "squares.csv"
    path.write_text("not of this experiment\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not a file of this benchmark"):
        EXPERIMENT.collect(Squares(), path)
    EXPERIMENT.collect(Squares((1,)), path, resume=False)
    EXPERIMENT.collect(Squares((2,)), path, resume=False)
    assert path.read_text(encoding="utf-8").split() == ["number,power,value", "2,2.0,4.0"]


def test_no_row_is_started_after_the_time() -> None:
    assert EXPERIMENT.collect(Squares(), minutes=0) == []


def test_what_is_not_there_stops_the_experiment_before_any_row() -> None:
    def prepare(config: Squares) -> None:
        raise FileNotFoundError("no numbers")

    steps: list[str] = []
    with pytest.raises(FileNotFoundError, match="no numbers"):
        dataclasses.replace(EXPERIMENT, prepare=prepare).collect(Squares(), on_step=steps.append)
    assert not steps


def test_options_replace_the_values_of_a_preset() -> None:
    assert Squares.from_options(None, {}) == Squares()
    assert Squares.from_options("quick", {"power": 3.0}) == Squares((1,), 3.0)


def test_table_of_a_data_frame() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"x": [1.23456, float("nan")], "n": [1, 2], "s": ["a", "b"]})
    frame.index = pd.MultiIndex.from_tuples([("one", 1), ("two", 2)], names=["name", None])
    table = Table.of("Title", frame, {"x": ".2f"})
    assert list(table.columns) == ["name", "", "x", "n", "s"]
    assert table.rows == [["one", "1", "1.23", "1", "a"], ["two", "2", "–", "2", "b"]]


def test_errors_are_shown_where_there_are_any() -> None:
    assert plus_minus(1.2345, 0.0678, ".3g", ".1g") == "1.23 ± 0.07"
    assert plus_minus(1.2345, float("nan"), ".2f") == "1.23"
