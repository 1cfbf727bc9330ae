"""Rows of an experiment: kept in a CSV file as they are made, and spread over processes."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, get_type_hints

import torch

try:
    from joblib import Parallel, effective_n_jobs
    from joblib.parallel import get_active_backend
except ImportError as error:
    raise ImportError(f'the benchmark needs {error.name}: pip install "gp_deq[cli]"') from error

__all__ = ["Key", "Row", "RunFile", "one_thread", "spread"]

#: The values that tell rows apart.
Key = tuple[Hashable, ...]


@dataclass(frozen=True)
class Row:
    """One result; subclasses are dataclasses of strings, integers and floats.

    A field of another type is parsed by the function that ``parsers`` names for it and written by
    that in ``formats``.
    """

    #: Names of the fields or properties that tell rows apart.
    keys: ClassVar[tuple[str, ...]]
    parsers: ClassVar[dict[str, Callable[[str], object]]] = {}
    formats: ClassVar[dict[str, Callable[..., str]]] = {}

    @classmethod
    def columns(cls) -> list[str]:
        """Names of the fields."""
        return [field.name for field in fields(cls)]

    @property
    def key(self) -> Key:
        """The values that tell rows apart."""
        return tuple(getattr(self, name) for name in self.keys)

    @property
    def label(self) -> str:
        """A description for the progress bar."""
        return ", ".join(map(str, self.key))

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
            ValueError: The cells are not those of a row.
        """
        types = get_type_hints(cls)
        values = [
            cls.parsers.get(name, types[name])(cell)
            for name, cell in zip(cls.columns(), row, strict=True)
        ]
        return cls(*values)


R = TypeVar("R", bound=Row)


class RunFile(Generic[R]):
    """A CSV file of rows, or none.

    Args:
        kind: The class of the rows.
        path: The file; None for a record in memory alone.
    """

    def __init__(self, kind: type[R], path: str | os.PathLike[str] | None = None) -> None:
        self.kind = kind
        self.path = None if path is None else Path(path)

    def read(self) -> list[R]:
        """The rows, without one that was being written when the experiment was stopped.

        Returns:
            The rows; none if there is no file.

        Raises:
            ValueError: The file is not one of these rows.
        """
        if self.path is None or not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            lines = list(file)
        columns = self.kind.columns()
        rows = list(csv.reader(line for line in lines if line.endswith("\n")))
        header = ",".join(columns) + "\r"  # which may have been written in part
        if rows[:1] != [columns] if rows else not header.startswith("".join(lines)):
            raise ValueError(f"{self.path} is not a file of this benchmark; give another.")
        try:
            return [self.kind.from_row(row) for row in rows[1:]]
        except ValueError as error:
            raise ValueError(f"{self.path} has a row that this benchmark did not write.") from error

    def write(self, rows: Iterable[R]) -> None:
        """Replace the content of the file, all at once."""
        if self.path is None:
            return
        fresh = self.path.with_name(self.path.name + ".part")
        with open(fresh, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.kind.columns())
            writer.writerows(row.row for row in rows)
        os.replace(fresh, self.path)

    def append(self, row: R) -> None:
        """Add a row."""
        if self.path is not None:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(row.row)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of PyTorch: rounding does not depend on the cores, and processes do not compete.

    Also a decorator.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def spread(tasks: Iterable[tuple]) -> Iterator[Any]:
    """Run tasks by joblib.

    They run one after the other unless the caller sets a backend or a number of jobs with
    :func:`joblib.parallel_config`.

    Args:
        tasks: Calls that joblib's ``delayed`` made; a task is taken when a process is free for it.

    Yields:
        The results of the tasks, as they finish.
    """
    tasks = iter(tasks)
    if get_active_backend()[0].supports_return_generator:
        parallel = Parallel(batch_size=1, pre_dispatch="n_jobs", return_as="generator_unordered")
        yield from parallel(tasks)
    else:  # Ray's backend: some tasks at a time, so that not all is lost
        while some := list(islice(tasks, effective_n_jobs(None))):
            yield from Parallel(batch_size=1)(some)
