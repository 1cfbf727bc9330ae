"""Real data sets by name."""

import torch

from .dataset import Dataset


def load_diabetes() -> Dataset:
    """The diabetes data of Efron et al. (2004): 442 patients, 10 measurements each.

    The target is a measure of disease progression one year after the measurements.

    Returns:
        The data in their original units.

    Example:
        >>> load_diabetes().X.shape
        torch.Size([442, 10])
    """
    from sklearn.datasets import load_diabetes as load

    bunch = load(scaled=False)
    return Dataset(
        name="diabetes",
        X=torch.as_tensor(bunch.data, dtype=torch.float64),
        y=torch.as_tensor(bunch.target, dtype=torch.float64),
        feature_names=tuple(bunch.feature_names),
    )
