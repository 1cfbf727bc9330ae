"""Real data sets, and the split that the benchmarks share."""

from .dataset import Dataset, Split, train_test_split
from .registry import load_diabetes

__all__ = ["Dataset", "Split", "load_diabetes", "train_test_split"]
