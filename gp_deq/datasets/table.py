"""Data sets from any table: CSV files, with text columns one-hot encoded.

Cells are read as text, so that a message can quote what a file says and where. Rows are counted
from 1, without the header and without blank lines.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .dataset import Dataset

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MAX_CATEGORIES = 50
"""Largest number of categories, a choice: a column of more different texts is taken for an
identifier or free text, each of which would be an input with a lengthscale of its own."""

_MISSING = (
    "",
    "#N/A",
    "#N/A N/A",
    "#NA",
    "-1.#IND",
    "-1.#QNAN",
    "-NaN",
    "-nan",
    "1.#IND",
    "1.#QNAN",
    "<NA>",
    "N/A",
    "NA",
    "NULL",
    "NaN",
    "None",
    "n/a",
    "nan",
    "null",
)
"""Texts of missing cells, as in pandas, which itself looks for them before blanks are removed."""

_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors of pandas for files that are missing, damaged, or not a table."""

_SHOWN = 5
"""Rows that a message names before it says how many more there are, so that it fits a line."""


class TableError(ValueError):
    """A table that cannot be used; the message names the file, and the column and row."""


@dataclass(frozen=True)
class Table:
    """Cells of text under the names of their columns.

    Args:
        name: Name in messages, such as the path of the file.
        cells: Cells of text or NaN, one column for each name; the index numbers the rows from 1.
    """

    name: str
    cells: DataFrame

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Table:
        """Read a CSV file: commas, UTF-8, names of the columns in the first line.

        Args:
            path: Path of the file; it is decompressed if its name ends in .gz, .zip or the like.

        Returns:
            The cells, without surrounding blanks. The texts that pandas takes for missing ("",
            "NA", "NaN", "null", "None" and such) are missing, also with blanks around them.

        Raises:
            TableError: The file is missing or empty, is not a CSV file, or a column has no name or
                that of another.
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('tables are read by pandas: pip install "gp_deq[cli]"') from error

        name = os.fspath(path)
        try:
            # utf-8-sig: spreadsheets begin their files with a byte order mark
            lines = pd.read_csv(
                name, header=None, dtype=str, encoding="utf-8-sig", keep_default_na=False
            )
        except pd.errors.EmptyDataError:
            raise TableError(f"{name}: the file is empty") from None
        except _UNREADABLE as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise TableError(f"{name}: cannot be read as a CSV file ({reason})") from error
        lines = lines.apply(lambda cells: cells.str.strip())
        header, cells = lines.iloc[0], lines.iloc[1:]
        cells = cells.mask(cells.isin(_MISSING))
        if (header == "").any():
            position = int((header == "").to_numpy().argmax()) + 1
            raise TableError(f"{name}: column {position} has no name in the first line")
        if header.duplicated().any():
            raise TableError(
                f'{name}: two columns are named "{header[header.duplicated()].iloc[0]}"'
            )
        if cells.empty:
            raise TableError(f"{name}: there are no rows under the names of the columns")
        return cls(name, cells.set_axis(list(header), axis=1))

    def find(self, names: Collection[str]) -> None:
        """Refuse a table that lacks a column.

        Args:
            names: Names of the columns that are needed.

        Raises:
            TableError: Columns are missing.
        """
        lacking = [name for name in names if name not in self.cells]
        if lacking:
            present = list(self.cells)
            hint = "; are the cells separated by commas?" if len(present) == 1 else ""
            raise TableError(
                f"{self.name}: no column {_quoted(lacking)}, only {_quoted(present)}{hint}"
            )

    def require(self, names: Collection[str]) -> None:
        """Refuse a table that lacks a column or has missing cells in it.

        Args:
            names: Names of the columns that are needed.

        Raises:
            TableError: Columns or cells are missing.
        """
        self.find(names)
        missing = self.cells[list(names)].isna()
        gaps = [
            f'column "{name}", {describe_rows(missing.index[missing[name]])}'
            for name in names
            if missing[name].any()
        ]
        if gaps:
            raise TableError(f"{self.name}: missing values in {'; '.join(gaps)}")

    def numbers(self, name: str, role: str = "column", hint: str = "") -> Tensor:
        """A column that has to consist of numbers.

        Args:
            name: Name of the column, which has no missing cells.
            role: Word for the column in messages.
            hint: Advice at the end of messages.

        Returns:
            The values, ``n``, float64.

        Raises:
            TableError: A cell is not a finite number.
        """
        import pandas as pd

        cells = self.cells[name]
        values = torch.tensor(
            pd.to_numeric(cells, errors="coerce").astype(float).tolist(), dtype=torch.float64
        )
        bad = cells[~values.isfinite().numpy()]
        if len(bad):
            found = ", ".join(f'"{cell}" in row {row}' for row, cell in bad.iloc[:_SHOWN].items())
            raise TableError(
                f'{self.name}: the {role} "{name}" has to be finite numbers, but has {found}'
                f"{_more(len(bad))}{hint}"
            )
        return values


@dataclass(frozen=True)
class Column:
    """An input column and its encoding as numbers.

    Args:
        name: Name in the table.
        categories: Categories of a categorical column, each of which becomes an input that is 1 or
            0; None for a column of numbers.
    """

    name: str
    categories: tuple[str, ...] | None = None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of its inputs, ``name=category`` for a categorical column."""
        if self.categories is None:
            return (self.name,)
        return tuple(f"{self.name}={category}" for category in self.categories)


@dataclass(frozen=True)
class Columns:
    """Encoding of the columns of a table as inputs and a target, for this and new tables.

    Columns of a new table are found by their names, whatever their order; others are ignored.

    Args:
        target: Name of the target.
        inputs: Input columns, in the order of the inputs.

    Example:
        >>> import pandas as pd
        >>> from gp_deq.datasets import Columns, Table
        >>> cells = pd.DataFrame({"size": ["1", "2.5"], "colour": ["red", "blue"], "y": ["3", "4"]})
        >>> columns = Columns.infer(Table("example", cells), target="y")
        >>> columns.feature_names
        ('size', 'colour=blue', 'colour=red')
        >>> columns.encode(Table("new", pd.DataFrame({"colour": ["blue"], "size": ["7"]})))
        tensor([[7., 1., 0.]], dtype=torch.float64)
    """

    target: str
    inputs: tuple[Column, ...]

    @classmethod
    def infer(
        cls,
        table: Table,
        target: str,
        categorical: Collection[str] = (),
        ignore: Collection[str] = (),
    ) -> Columns:
        """Decide which columns are numbers and which are categories.

        A column is one of numbers if more than half of its cells are numbers, including numbers
        with a comma such as "1,5"; then each cell must be a number. So a few bad cells are an error
        and do not make a category of each number. Any other column is categorical, with its
        different texts as categories.

        Args:
            table: Table, of which all columns but the target and the ignored ones are inputs.
            target: Name of the target.
            categorical: Names of columns of numbers that stand for categories, such as codes.
            ignore: Names of columns to leave out.

        Returns:
            The columns, in the order of the table, categories sorted.

        Raises:
            TableError: A column is missing, has missing or bad cells or more than
                `MAX_CATEGORIES` categories, the target is constant, no input is left, or two
                inputs would have the same name.
        """
        inputs = [name for name in table.cells if name != target and name not in ignore]
        options = (*categorical, *ignore)
        if target in options:
            raise TableError(f'the target "{target}" can be neither ignored nor categorical')
        table.find([target, *options])
        if not inputs:
            raise TableError(f'{table.name}: no column is left beside the target "{target}"')
        table.require([target, *inputs])
        if len(set(table.numbers(target, role="target").tolist())) == 1:
            value = table.cells[target].iloc[0]
            raise TableError(f'{table.name}: the target "{target}" is {value} in every row')
        columns = cls(target, tuple(_infer(table, name, name in categorical) for name in inputs))
        owners: dict[str, str] = {}
        for column in columns.inputs:
            for feature in column.feature_names:
                if feature in owners:
                    raise TableError(
                        f'{table.name}: two inputs would be named "{feature}", of the columns '
                        f"{_quoted([owners[feature], column.name])}; rename one of them"
                    )
                owners[feature] = column.name
        return columns

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(name for column in self.inputs for name in column.feature_names)

    def encode(self, table: Table) -> Tensor:
        """The inputs of a table.

        Args:
            table: Table with all the input columns.

        Returns:
            The inputs, ``n x d``, float64.

        Raises:
            TableError: A column or cell is missing, a cell is not a number where it has to be, or a
                category is unknown.
        """
        table.require([column.name for column in self.inputs])
        return torch.cat([_encode(table, column) for column in self.inputs], dim=1)

    def dataset(self, table: Table) -> Dataset:
        """Inputs and target of a table.

        Args:
            table: Table with all the input columns and the target.

        Returns:
            The data set, with the name of the table's file.

        Raises:
            TableError: See :meth:`encode`; the same holds for the target.
        """
        table.require([self.target])
        return Dataset(
            name=Path(table.name).stem,
            X=self.encode(table),
            y=table.numbers(self.target, role="target"),
            feature_names=self.feature_names,
            target_name=self.target,
        )

    def to_json(self) -> dict[str, Any]:
        """A description for :meth:`from_json`, of dicts, lists, strings and None."""
        inputs = [
            {"name": name, "categories": None if categories is None else list(categories)}
            for name, categories in ((column.name, column.categories) for column in self.inputs)
        ]
        return {"target": self.target, "inputs": inputs}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Columns:
        """The columns that :meth:`to_json` has described.

        Args:
            data: Description of the columns.

        Returns:
            The columns.

        Raises:
            KeyError: A part is missing.
            TypeError: A part is of another type.
        """
        inputs = []
        for item in data["inputs"]:
            categories = item["categories"]
            if categories is not None and not isinstance(categories, list):
                raise TypeError(f"categories have to be a list, got {categories!r}")
            inputs.append(Column(item["name"], None if categories is None else tuple(categories)))
        for name in (data["target"], *(part for item in inputs for part in _texts(item))):
            if not isinstance(name, str):
                raise TypeError(f"names and categories have to be texts, got {name!r}")
        return cls(data["target"], tuple(inputs))


def load_csv(
    path: str | os.PathLike[str],
    target: str,
    categorical: Collection[str] = (),
    ignore: Collection[str] = (),
) -> Dataset:
    r"""A data set from a CSV file, with categorical columns one-hot encoded.

    `Columns.infer` decides which columns are categorical; use it with `Table.read` to encode
    another table in the same way.

    Args:
        path: Path of the file: commas, UTF-8, names of the columns in the first line.
        target: Name of the column to predict, which has to be numbers.
        categorical: Names of columns of numbers that stand for categories, such as codes.
        ignore: Names of columns to leave out.

    Returns:
        The data set; an input of category ``c`` in column ``a`` is named ``a=c``.

    Raises:
        TableError: The table cannot be used. The message names the file, the column and the rows,
            counted from 1 without the header.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from gp_deq.datasets import load_csv
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "houses.csv")
        ...     _ = path.write_text("area,kind,price\n80,flat,210\n120,house,335\n")
        ...     houses = load_csv(path, target="price")
        >>> houses.feature_names
        ('area', 'kind=flat', 'kind=house')
        >>> houses.X[1]
        tensor([120.,   0.,   1.], dtype=torch.float64)
    """
    table = Table.read(path)
    return Columns.infer(table, target, categorical, ignore).dataset(table)


def _infer(table: Table, name: str, categorical: bool) -> Column:
    import pandas as pd

    cells = table.cells[name]
    if not categorical:
        # a decimal or thousands comma still says that the column is meant to be numbers
        likely = pd.to_numeric(cells.str.replace(",", ""), errors="coerce").notna()
        if likely.mean() > 0.5:
            table.numbers(name, hint="; correct these cells, or make the column categorical")
            return Column(name)
    categories = sorted(set(cells))
    if len(categories) > MAX_CATEGORIES:
        raise TableError(
            f'{table.name}: column "{name}" has {len(categories)} different texts, such as '
            f'"{categories[0]}", more than the {MAX_CATEGORIES} categories of a column; ignore it, '
            "or turn it into numbers"
        )
    return Column(name, tuple(categories))


def _encode(table: Table, column: Column) -> Tensor:
    """The inputs of one column, ``n x 1`` or ``n x categories``."""
    if column.categories is None:
        return table.numbers(column.name).unsqueeze(1)
    cells: Series = table.cells[column.name]
    unknown = cells[~cells.isin(column.categories)]
    if len(unknown):
        row, cell = next(iter(unknown.items()))
        raise TableError(
            f'{table.name}: column "{column.name}" has the unknown category "{cell}" in row {row}'
            f"{_more(len(unknown), shown=1)}; known are {_quoted(column.categories)}"
        )
    codes = torch.tensor([column.categories.index(cell) for cell in cells])
    return torch.nn.functional.one_hot(codes, len(column.categories)).to(torch.float64)


def _texts(column: Column) -> tuple[str, ...]:
    """The name and the categories of a column."""
    return (column.name, *(column.categories or ()))


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def describe_rows(rows: Sequence[int]) -> str:
    """Rows for a message: "row 3" or "rows 3, 7"."""
    shown = ", ".join(str(row) for row in rows[:_SHOWN])
    return f"row{'s' * (len(rows) > 1)} {shown}{_more(len(rows))}"


def _more(count: int, shown: int = _SHOWN) -> str:
    return f" and {count - shown} more" if count > shown else ""
