"""Regression problems and their splits."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """A regression problem in its original units.

    Args:
        name: Name in tables and figures.
        X: Inputs, ``n x d``, float64.
        y: Targets, ``n``, float64.
        feature_names: One name for each column of ``X``.
        target_name: Name of the target.

    Raises:
        ValueError: The shapes or the number of names do not agree.
    """

    name: str
    X: Tensor
    y: Tensor
    feature_names: tuple[str, ...]
    target_name: str = "y"

    def __post_init__(self) -> None:
        if self.X.ndim != 2 or self.y.shape != self.X.shape[:1]:
            raise ValueError(
                "a Dataset has X of shape n x d and y of shape n, "
                f"but got {tuple(self.X.shape)} and {tuple(self.y.shape)}"
            )
        if len(self.feature_names) != self.X.shape[1]:
            raise ValueError(
                f"{self.X.shape[1]} columns need as many feature names, "
                f"but got {len(self.feature_names)}"
            )

    def __repr__(self) -> str:
        rows, columns = self.X.shape
        return f"<Dataset {self.name}: {rows} rows, {columns} inputs, target {self.target_name}>"


@dataclass(frozen=True)
class Split:
    """A train/test split, standardised by the mean and standard deviation of the training part.

    Args:
        train_x: Training inputs, ``n x d``, each column with mean 0 and variance 1.
        train_y: Training targets, ``n``, with mean 0 and variance 1.
        test_x: Test inputs, standardised by the figures of the training part.
        test_y: Test targets, standardised by the figures of the training part.
        x_mean: Mean of each input column over the training part.
        x_std: Standard deviation of each input column over the training part.
        y_mean: Mean of the training targets.
        y_std: Standard deviation of the training targets, which takes a standardised error back
            to the original units.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    x_mean: Tensor
    x_std: Tensor
    y_mean: float
    y_std: float


def split_rows(n: int, test_fraction: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw the rows that are held out.

    Args:
        n: Number of rows.
        test_fraction: Share of the rows that are held out, strictly between 0 and 1.
        seed: Seed of the permutation; the global random state is left alone.

    Returns:
        Indices of the training rows and of the test rows, in random order.

    Raises:
        ValueError: No test row, or fewer than two training rows, would be left.
    """
    num_test = round(n * test_fraction)
    if not 0 < num_test < n - 1:
        raise ValueError(
            f"test_fraction={test_fraction} leaves {num_test} of {n} rows for the test; at least "
            "one is needed, and at least two to train on"
        )
    permutation = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return permutation[num_test:], permutation[:num_test]


def standardized_split(dataset: Dataset, train: Tensor, test: Tensor) -> Split:
    """Split at given rows and standardise by the training part.

    Args:
        dataset: Data in their original units.
        train: Indices of the training rows.
        test: Indices of the test rows.

    Returns:
        The standardised split. A column that is constant over the training part is only centred.
    """
    x_mean, x_std = dataset.X[train].mean(0), dataset.X[train].std(0)
    # the mean of a constant such as 0.1 has a rounding error, so its deviation need not be zero
    constant = (dataset.X[train] == dataset.X[train[0]]).all(0)
    x_std = torch.where(constant, torch.ones_like(x_std), x_std)
    y_mean, y_std = dataset.y[train].mean().item(), dataset.y[train].std().item()
    y_std = y_std if y_std > 0 else 1.0
    return Split(
        train_x=(dataset.X[train] - x_mean) / x_std,
        train_y=(dataset.y[train] - y_mean) / y_std,
        test_x=(dataset.X[test] - x_mean) / x_std,
        test_y=(dataset.y[test] - y_mean) / y_std,
        x_mean=x_mean,
        x_std=x_std,
        y_mean=y_mean,
        y_std=y_std,
    )


def train_test_split(dataset: Dataset, test_fraction: float = 0.2, seed: int = 0) -> Split:
    """Split at random and standardise by the training part.

    Args:
        dataset: Data in their original units.
        test_fraction: Share of the rows that are held out, strictly between 0 and 1.
        seed: Seed of the permutation; the global random state is left alone.

    Returns:
        The standardised split. A column that is constant over the training part is only centred.
    """
    return standardized_split(dataset, *split_rows(len(dataset.y), test_fraction, seed))
