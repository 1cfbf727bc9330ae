"""Exact GPs of the regression benchmark, fitted by marginal likelihood."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gp_deq.benchmarks.contestants import Maker, Predictions, start_kernel
from gp_deq.datasets import Split

try:
    from botorch.optim.fit import fit_gpytorch_mll_scipy

    from gp_deq.benchmarks.surrogates import FAILURES
    from gp_deq.tables import make_model
except ImportError as error:
    raise ImportError('the benchmark fits with BoTorch: pip install "gp_deq[bo]"') from error

__all__ = ["fit_by_likelihood"]

_MAX_ITERATIONS = 200


def fit_by_likelihood(makers: Sequence[Maker], split: Split, starts: int) -> Predictions:
    """An exact GP, its hyperparameters learned by marginal likelihood.

    Args:
        makers: Makers of the kernels to choose from.
        split: The data.
        starts: Number of starts of each kernel, the first of them from its defaults.

    Returns:
        The predictions; NaN if every start failed.
    """
    best, result, failures = -math.inf, Predictions.none(split), 0
    for index, maker in enumerate(makers):
        for start in range(starts):
            kernel = start_kernel(maker, split, perturb=start > 0)
            try:
                value, mean, std = _learn(kernel, split)
            except FAILURES:
                value = math.nan
            failures += math.isnan(value)
            if value > best:
                best, result = value, Predictions(mean, std, index)
    return replace(result, failures=failures)


def _learn(kernel: Kernel, split: Split) -> tuple[float, Tensor, Tensor]:
    """Marginal likelihood at its maximum, means and standard deviations of the test targets."""
    mll = make_model(kernel, split.train_x, split.train_y)
    # not fit_gpytorch_mll, which discards a fit that ended in a line search
    fit_gpytorch_mll_scipy(mll, options={"maxiter": _MAX_ITERATIONS})
    with torch.no_grad():
        mll.train()
        value = float(mll(mll.model(*mll.model.train_inputs), split.train_y))
        mll.eval()
        prediction = mll.likelihood(mll.model(split.test_x))
        return value, prediction.mean, prediction.variance.sqrt()
