"""An experiment: a configuration, rows, and the tables and the figure made from them.

A module of this package that has an ``EXPERIMENT`` is the command ``gp-deq benchmark NAME``; the
fields of its configuration are the options. :meth:`Experiment.collect` runs any of them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from gp_deq.benchmarks.runs import Key, Row, RunFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["Configuration", "Experiment", "Table", "option", "plus_minus"]


def option(
    default: Any,
    help: str,
    name: str | None = None,
    choices: Iterable[str] = (),
    shown: str | None = None,
) -> Any:
    """A field of a configuration that is an option of its command.

    Args:
        default: The value where none is given.
        help: Its description in the command's help.
        name: The option's name without its dashes; default: the name of the field.
        choices: The values allowed, if they are few.
        shown: How the help writes the default; default: the value.

    Returns:
        A field of a dataclass.
    """
    metadata = {"help": help, "name": name, "choices": tuple(choices), "shown": shown}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Configuration:
    """The settings of an experiment; subclasses are dataclasses whose fields are made by `option`.

    They raise a ValueError where a value is impossible.
    """

    #: Names of class methods that return other defaults, with what the command's help says of them.
    presets: ClassVar[Mapping[str, str]] = {}

    @property
    def keys(self) -> Sequence[Key]:
        """The keys of all rows, in the order in which they are made."""
        raise NotImplementedError

    @classmethod
    def from_options(cls, preset: str | None, given: Mapping[str, Any]) -> Self:
        """The configuration of a command.

        Args:
            preset: One of `presets`; None for the defaults.
            given: Values of the fields that the user named.

        Raises:
            ValueError: A value is impossible.
        """
        return replace(cls() if preset is None else getattr(cls, preset)(), **given)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        title: Above it.
        columns: Names of the columns.
        rows: Their cells; ``**bold**`` is as in Markdown.
        name: Name of its files, without the suffix; default: the title's first word.
        num_labels: Number of columns on the left that name the rows.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    name: str = ""
    num_labels: int = 1

    @classmethod
    def of(
        cls,
        title: str,
        frame: DataFrame,
        form: str | Mapping[str, str] = ".4g",
        name: str = "",
    ) -> Self:
        """The table of a data frame.

        Args:
            title: Above it.
            frame: Numbers or text; its index comes first.
            form: Format of the numbers, or formats by column; ".4g" for a column without one. NaN
                is a dash.
            name: Name of its files.
        """
        forms = form if isinstance(form, Mapping) else dict.fromkeys(frame.columns, form)

        def cell(column: str, value: Any) -> str:
            if isinstance(value, str):
                return value
            return format(value, forms.get(column, ".4g")) if value == value else "–"

        index = frame.index.to_frame()
        rows = [
            [
                *map(str, labels),
                *(cell(column, value) for column, value in zip(frame.columns, values, strict=True)),
            ]
            for labels, values in zip(
                index.itertuples(index=False), frame.itertuples(index=False), strict=True
            )
        ]
        names = ["" if label is None else str(label) for label in frame.index.names]
        return cls(title, [*names, *map(str, frame.columns)], rows, name, len(names))


def plus_minus(mean: float, error: float, form: str, error_form: str | None = None) -> str:
    """A mean with its error.

    Args:
        mean: The mean.
        error: Its error; NaN where there is none.
        form: Format of the mean.
        error_form: Format of the error; default: that of the mean.
    """
    return f"{mean:{form}}" + (f" ± {error:{error_form or form}}" if error == error else "")


C = TypeVar("C", bound=Configuration)
R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Experiment(Generic[C, R]):
    """An experiment.

    Args:
        name: Name of its command and of its files.
        configuration: The class of configurations.
        row: The class of rows.
        run: Yields the rows of those keys that are missing, as they are made. The keys are an
            iterator that ends when no more row is to be started. The third argument is told what is
            being done, for experiments whose rows take long.
        tables: Makes tables, and notes below or between them, from a configuration and its rows.
        figure: Draws the rows; None if there is nothing to draw.
        prepare: Called before any row is made, such as to load data; raises a ValueError or a
            FileNotFoundError where the user has to do something about it.
        timing: Whether the rows are times that have to be taken side by side: then they are made in
            this process, and an earlier file is only continued on demand. Other rows do not
            depend on when and where they are made.
    """

    name: str
    configuration: type[C]
    row: type[R]
    run: Callable[[C, Iterator[Key], Callable[[str], None]], Iterable[R]]
    tables: Callable[[C, Sequence[R]], Iterable[Table | str]]
    figure: Callable[[C, Sequence[R]], Figure | None] | None = None
    prepare: Callable[[C], object] | None = None
    timing: bool = False

    def collect(
        self,
        config: C,
        path: str | os.PathLike[str] | None = None,
        minutes: float = math.inf,
        on_row: Callable[[str], None] = lambda label: None,
        on_step: Callable[[str], None] = lambda description: None,
        resume: bool = True,
    ) -> list[R]:
        """Run the experiment; rows that the file already holds are not made again.

        Rows are spread by joblib: one after the other unless the caller sets a backend or a number
        of jobs with :func:`joblib.parallel_config`.

        Args:
            config: The settings.
            path: A CSV file that receives each row as soon as it is made; none if None.
            minutes: No row is started later than this; those in progress are finished.
            on_row: Called with a description after each row, those from the file included.
            on_step: Called with what is being done, by experiments whose rows take long.
            resume: Whether to keep the rows that the file holds.

        Returns:
            The finished rows of ``config``, in the order of its keys.

        Raises:
            ValueError: The file is not one of this experiment.
        """
        deadline = time.monotonic() + 60 * minutes
        file = RunFile(self.row, path)
        done: dict[Key, R] = {row.key: row for row in file.read()} if resume else {}
        file.write(done.values())
        if self.prepare is not None:
            self.prepare(config)
        keys = config.keys
        missing = [key for key in keys if key not in done]
        for key in keys:
            if key in done:
                on_row(done[key].label)
        started = (key for key in missing if time.monotonic() < deadline)
        for row in self.run(config, started, on_step):
            done[row.key] = row
            file.append(row)
            on_row(row.label)
        return [done[key] for key in keys if key in done]
