"""Rows in a CSV file, and tasks spread over processes."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("joblib")

from joblib import delayed, parallel_config

from gp_deq.benchmarks.runs import Row, RunFile, spread


@dataclass(frozen=True)
class Point(Row):
    """A row."""

    name: str
    x: float
    y: float

    keys = ("name",)


POINTS = [Point("a, b", 0.1 + 0.2, math.nan), Point("c", -1e-300, math.inf)]


def test_numbers_survive_unchanged(tmp_path: Path) -> None:
    file = RunFile(Point, tmp_path / "points.csv")
    assert file.read() == []
    file.write(POINTS[:1])
    file.append(POINTS[1])
    assert list(map(repr, file.read())) == list(map(repr, POINTS))
    assert [path.name for path in tmp_path.iterdir()] == ["points.csv"]


def test_a_row_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    file = RunFile(Point, tmp_path / "points.csv")
    file.write(POINTS)
    text = (tmp_path / "points.csv").read_bytes()
    for length in range(len(text)):
        (tmp_path / "points.csv").write_bytes(text[:length])
        rows = file.read()
        assert list(map(repr, rows)) == list(map(repr, POINTS))[: len(rows)]
        assert len(rows) == max(0, text[:length].count(b"\n") - 1)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "torn", "name,x,y\nc,one,2.0\n", "name,x,y\nc,1\n"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"other\.csv .* this benchmark"):
        RunFile(Point, path).read()


def test_without_a_file_nothing_is_kept() -> None:
    file = RunFile(Point)
    file.write(POINTS)
    file.append(POINTS[0])
    assert file.read() == []


def test_tasks_are_taken_when_a_process_is_free() -> None:
    taken: list[int] = []

    def tasks() -> object:
        for i in range(6):
            taken.append(i)
            yield delayed(abs)(-i)

    results = spread(tasks())
    assert next(results) == 0 and len(taken) < 6
    assert sorted(results) == [1, 2, 3, 4, 5]
    with parallel_config("loky", n_jobs=2):
        assert sorted(spread(delayed(abs)(-i) for i in range(4))) == [0, 1, 2, 3]
