"""Readers of the file formats of the data sets; each returns rows of float64."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

#: A function that reads the given columns of a file in the given order, or all of them.
Reader = Callable[[Path, Sequence[int] | None], np.ndarray]


def read_text(path: Path, columns: Sequence[int] | None = None) -> np.ndarray:
    """Numbers between white space, without a header.

    Args:
        path: Path of the file.
        columns: Indices of the columns to read. Default: all columns.

    Returns:
        The numbers, ``n x columns``.
    """
    return np.loadtxt(path, usecols=columns, ndmin=2)


def read_bare_csv(path: Path, columns: Sequence[int] | None = None) -> np.ndarray:
    """Comma-separated numbers without a header; arguments of `read_text`."""
    return np.loadtxt(path, delimiter=",", usecols=columns, ndmin=2)


def read_csv(path: Path, columns: Sequence[int] | None = None) -> np.ndarray:
    """Comma-separated numbers under one header row, gzipped or not; arguments of `read_text`."""
    return np.loadtxt(path, delimiter=",", skiprows=1, usecols=columns, ndmin=2)


def read_arff(path: Path, columns: Sequence[int] | None = None) -> np.ndarray:
    """Weka's ARFF with numeric attributes only and no missing value; arguments of `read_text`."""
    return np.loadtxt(path, comments=["%", "@"], delimiter=",", usecols=columns, ndmin=2)


def read_xlsx(path: Path, columns: Sequence[int] | None = None) -> np.ndarray:
    """Cells of the first sheet of an Excel file below one header row; arguments of `read_text`.

    Rows whose first cell is empty are left out.

    Raises:
        ImportError: openpyxl is not installed.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise ImportError(f'{path.name} needs openpyxl: pip install "gp_deq[data]"') from error
    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        cells = book.worksheets[0].iter_rows(min_row=2, values_only=True)
        return _select([row for row in cells if row and row[0] is not None], columns)
    finally:
        book.close()


def read_xls(path: Path, columns: Sequence[int] | None = None) -> np.ndarray:
    """Cells of the first sheet of an old ``.xls`` file below one header row, as `read_xlsx`.

    Raises:
        ImportError: xlrd is not installed.
    """
    try:
        import xlrd
    except ImportError as error:
        raise ImportError(f'{path.name} needs xlrd: pip install "gp_deq[data]"') from error
    sheet = xlrd.open_workbook(path).sheet_by_index(0)
    return _select([sheet.row_values(row) for row in range(1, sheet.nrows)], columns)


def _select(rows: Sequence[Sequence[float]], columns: Sequence[int] | None) -> np.ndarray:
    if columns is not None:
        rows = [[row[column] for column in columns] for row in rows]
    return np.array(rows, dtype=np.float64)
