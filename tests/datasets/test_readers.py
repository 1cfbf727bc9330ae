"""Every format, on a small file made here."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import openpyxl
import pytest

from gp_deq.datasets import readers

# as many digits as openpyxl writes; no float32 has them
ROWS = np.array([[1.0, -2.5, 3e-4], [0.3, 5.0, 0.1234567890123456]])


def lines(separator: str) -> str:
    return "".join(separator.join(map(repr, row)) + "\n" for row in ROWS.tolist())


def text(folder: Path) -> Path:
    path = folder / "data.txt"
    path.write_text("  " + lines("   ") + "\n\n")
    return path


def bare_csv(folder: Path) -> Path:
    path = folder / "data.csv"
    path.write_text(lines(","))
    return path


def csv(folder: Path) -> Path:
    path = folder / "data.csv"
    path.write_text("a,b,c\n" + lines(","))
    return path


def csv_gz(folder: Path) -> Path:
    path = folder / "data.csv.gz"
    path.write_bytes(gzip.compress(csv(folder).read_bytes()))
    return path


def arff(folder: Path) -> Path:
    path = folder / "data.arff"
    head = "% about\n@relation r\n\n" + "".join(f"@attribute  {c} real\n" for c in "abc")
    path.write_text(head + "\n@data\n" + lines(","))
    return path


def xlsx(folder: Path) -> Path:
    path = folder / "data.xlsx"
    book = openpyxl.Workbook()
    # an empty row below the table, and a second sheet
    for row in (["a", "b", "c"], *ROWS.tolist()):
        book.worksheets[0].append(row)
    book.worksheets[0].cell(5, 3).number_format = "0.00"
    book.create_sheet().append(["other"])
    book.save(path)
    return path


def xls(folder: Path) -> Path:
    """The records of Excel 2's format, which is a stream of (kind, length, content)."""
    path = folder / "data.xls"
    records = [(0x09, struct.pack("<HH", 2, 0x10))]  # begin of a sheet
    for column, title in enumerate(b"abc"):
        cell = struct.pack("<HH3sB", 0, column, bytes(3), 1)
        records.append((0x04, cell + bytes([title])))
    for (row, column), value in np.ndenumerate(ROWS):
        records.append((0x03, struct.pack("<HH3sd", row + 1, column, bytes(3), value)))
    records.append((0x0A, b""))  # end
    path.write_bytes(b"".join(struct.pack("<HH", kind, len(c)) + c for kind, c in records))
    return path


FORMATS = [
    (readers.read_text, text),
    (readers.read_bare_csv, bare_csv),
    (readers.read_csv, csv),
    (readers.read_csv, csv_gz),
    (readers.read_arff, arff),
    (readers.read_xlsx, xlsx),
    (readers.read_xls, xls),
]


@pytest.mark.parametrize("read, make", FORMATS, ids=[make.__name__ for _, make in FORMATS])
def test_reader(read: readers.Reader, make, tmp_path: Path) -> None:
    path = make(tmp_path)
    table = read(path, None)
    assert table.dtype == np.float64
    assert np.array_equal(table, ROWS)  # to the bit
    assert np.array_equal(read(path, [2, 0]), ROWS[:, [2, 0]])


@pytest.mark.parametrize(
    "read, package", [(readers.read_xlsx, "openpyxl"), (readers.read_xls, "xlrd")]
)
def test_missing_package_names_the_extra(read, package, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*gp_deq\[data\]"):
        read(tmp_path / "table", None)
