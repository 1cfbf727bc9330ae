"""Real data sets, and the split that the benchmarks share."""

from .dataset import Dataset, Split, train_test_split
from .registry import NAMES, load, load_diabetes

__all__ = ["NAMES", "Dataset", "Split", "load", "load_diabetes", "train_test_split"]
