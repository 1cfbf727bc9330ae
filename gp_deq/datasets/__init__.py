"""Real data sets by name, data sets from tables, and the split that the benchmarks share."""

from .dataset import Dataset, Split, split_rows, standardized_split, train_test_split
from .registry import NAMES, load, load_diabetes
from .table import Column, Columns, Table, TableError, load_csv
from .table import describe_rows as describe_rows

__all__ = [
    "NAMES",
    "Column",
    "Columns",
    "Dataset",
    "Split",
    "Table",
    "TableError",
    "load",
    "load_csv",
    "load_diabetes",
    "split_rows",
    "standardized_split",
    "train_test_split",
]
