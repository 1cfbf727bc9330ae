"""Experiments of many independent runs: spread by joblib, resumable, each a row of a CSV file."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar, get_type_hints

try:
    from joblib import Parallel, effective_n_jobs, parallel_config
    from joblib.parallel import get_active_backend
except ImportError as error:
    raise ImportError(f'the benchmark needs {error.name}: pip install "gp_deq[cli]"') from error

__all__ = ["Row", "RunFile", "run_missing", "run_with_progress"]


@dataclass(frozen=True)
class Row:
    """A finished run; subclasses are dataclasses of strings, integers and floats.

    A field of another type is parsed by the function that ``parsers`` names for it and written by
    that in ``formats``.
    """

    #: Names of the fields that tell runs apart.
    keys: ClassVar[tuple[str, ...]]
    parsers: ClassVar[dict[str, Callable[[str], object]]] = {}
    formats: ClassVar[dict[str, Callable[..., str]]] = {}

    @classmethod
    def columns(cls) -> list[str]:
        """Names of the fields."""
        return [field.name for field in fields(cls)]

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What tells runs apart."""
        return tuple(getattr(self, name) for name in self.keys)

    @property
    def row(self) -> list[str]:
        """The cells of the CSV file; numbers survive unchanged."""
        return [self.formats.get(name, str)(getattr(self, name)) for name in self.columns()]

    @classmethod
    def from_row(cls, row: Sequence[str]) -> Self:
        """The inverse of `row`.

        Args:
            row: Cells.

        Raises:
            ValueError: the cells are not those of a run.
        """
        types = get_type_hints(cls)
        values = [
            cls.parsers.get(name, types[name])(cell)
            for name, cell in zip(cls.columns(), row, strict=True)
        ]
        return cls(*values)


R = TypeVar("R", bound=Row)


class RunFile(Generic[R]):
    """A CSV file of runs, or none.

    Args:
        kind: Class of the runs.
        path: Of the file; None for a record in memory alone.
    """

    def __init__(self, kind: type[R], path: str | os.PathLike[str] | None = None) -> None:
        self.kind = kind
        self.path = None if path is None else Path(path)

    def read(self) -> list[R]:
        """The runs, without one that was being written when the experiment was stopped.

        Raises:
            ValueError: the file is of another origin.
        """
        if self.path is None or not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            lines = list(file)
        columns = self.kind.columns()
        rows = list(csv.reader(line for line in lines if line.endswith("\n")))
        if rows[:1] != [columns] if rows else not ",".join(columns).startswith("".join(lines)):
            raise ValueError(f"{self.path} is not a file of this benchmark; give another.")
        try:
            return [self.kind.from_row(row) for row in rows[1:]]
        except ValueError as error:
            raise ValueError(f"{self.path} has a row that this benchmark did not write.") from error

    def open(self) -> dict[Hashable, R]:
        """The runs by key; the file is left with whole rows only, or is created."""
        runs = self.read()
        if self.path is not None:
            fresh = self.path.with_name(self.path.name + ".part")
            with open(fresh, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(self.kind.columns())
                writer.writerows(run.row for run in runs)
            os.replace(fresh, self.path)
        return {run.key: run for run in runs}

    def append(self, run: R) -> None:
        """Adds a run."""
        if self.path is not None:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(run.row)


def run_missing(
    file: RunFile[R],
    keys: Sequence[tuple[Hashable, ...]],
    start: Callable[..., tuple],
    describe: Callable[..., str],
    minutes: float = math.inf,
    on_run: Callable[[str], None] = lambda description: None,
) -> list[R]:
    """Runs what the file does not hold yet.

    Runs are spread by joblib: one after the other unless the caller sets a backend or a number of
    jobs with :func:`joblib.parallel_config`.

    Args:
        file: Receives each run as soon as it is done.
        keys: Of the runs wanted.
        start: The run of a key, as a task of joblib's ``delayed``.
        describe: What ``on_run`` is told of a key.
        minutes: No run is started later than this; those in progress are finished.
        on_run: Called after each run, those from the file included.

    Returns:
        The finished runs, in the order of the keys.

    Raises:
        ValueError: the file is of another origin.
    """
    deadline = time.monotonic() + 60 * minutes
    done = file.open()
    missing = []
    for key in keys:
        if key in done:
            on_run(describe(key))
        else:
            missing.append(key)
    for run in _finished(start(key) for key in missing if time.monotonic() < deadline):
        done[run.key] = run
        file.append(run)
        on_run(describe(run.key))
    return [done[key] for key in keys if key in done]


def run_with_progress(
    file: RunFile[R],
    keys: Sequence[tuple[Hashable, ...]],
    start: Callable[..., tuple],
    describe: Callable[..., str],
    title: str,
    jobs: int,
) -> list[R]:
    """Runs what the file does not hold yet in processes of this machine, under a progress bar.

    Args:
        file: As for :func:`run_missing`.
        keys: As there.
        start: As there.
        describe: As there; shown on the bar.
        title: Of the bar, before the first run is done.
        jobs: Processes, as in joblib.

    Returns:
        The runs, in the order of the keys.

    Raises:
        ValueError: the file is of another origin.
    """
    try:
        from rich.progress import Progress
    except ImportError as error:
        raise ImportError(f'the benchmark needs {error.name}: pip install "gp_deq[cli]"') from error
    with Progress() as progress, parallel_config("loky", n_jobs=jobs):
        bar = progress.add_task(title, total=len(keys))
        return run_missing(
            file,
            keys,
            start,
            describe,
            on_run=lambda name: progress.update(bar, advance=1, description=name),
        )


def _finished(tasks: Iterator[tuple]) -> Iterator:
    """What tasks of joblib return, as they finish."""
    if get_active_backend()[0].supports_return_generator:
        parallel = Parallel(batch_size=1, pre_dispatch="n_jobs", return_as="generator_unordered")
        yield from parallel(tasks)
    else:  # Ray's: some at a time, so that not all is lost
        while some := list(islice(tasks, effective_n_jobs(None))):
            yield from Parallel(batch_size=1)(some)
