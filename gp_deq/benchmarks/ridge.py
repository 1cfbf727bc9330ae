"""Kernel ridge regression of the regression benchmark, chosen by cross-validation."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.quasirandom import SobolEngine

from gp_deq.benchmarks.contestants import Maker, Predictions, length_unit
from gp_deq.datasets import Split
from gp_deq.kernels import DEKerKernel, DEQNNGPKernel, DEQNTKKernel

__all__ = ["RIDGES", "cross_validated_error", "fit_by_ridge", "settings"]

#: Ridges in units of the variance of the kernel about its mean over the training inputs.
RIDGES = tuple(10.0**power for power in range(-8, 1))
_FOLDS = 5


def fit_by_ridge(makers: Sequence[Maker], split: Split, count: int) -> Predictions:
    """Kernel ridge regression, chosen by cross-validation.

    Args:
        makers: Makers of the kernels to choose from.
        split: The data.
        count: Number of settings, all makers together.

    Returns:
        The predictions, their standard deviation that of the cross-validated errors; NaN if every
        setting failed.
    """
    x, y = split.train_x, split.train_y
    folds = torch.randperm(len(y)).chunk(_FOLDS)
    best, result, failures = math.inf, Predictions.none(split), 0
    for index, kernel in settings(makers, x.shape[-1], count):
        kernel = kernel.to(x)
        with torch.no_grad():
            matrix = kernel(x).to_dense()
        scale = float(matrix.diagonal().mean() - matrix.mean())
        for ridge in RIDGES:
            error = cross_validated_error(matrix, y, ridge * scale, folds)
            failures += math.isinf(error)
            if error < best:
                mean = _ridge_mean(kernel, matrix, split, ridge * scale)
                std = torch.full_like(mean, math.sqrt(error))
                best, result = error, Predictions(mean, std, index, ridge)
    return replace(result, failures=failures)


def _ridge_mean(kernel: Kernel, matrix: Tensor, split: Split, ridge: float) -> Tensor:
    regularized = matrix.clone()
    regularized.diagonal().add_(ridge)
    weights = torch.cholesky_solve(split.train_y.unsqueeze(-1), torch.linalg.cholesky(regularized))
    with torch.no_grad():
        return (kernel(split.test_x, split.train_x).to_dense() @ weights).squeeze(-1)


def cross_validated_error(
    matrix: Tensor, y: Tensor, ridge: float, folds: Sequence[Tensor]
) -> float:
    r"""Mean squared error of held-out targets.

    With :math:`A = (K + r I)^{-1}` the residuals of the held-out rows :math:`f` of a model of the
    others are :math:`A_{ff}^{-1} (A y)_f`, from the inverse of a matrix in blocks: one
    factorisation for all folds.

    Args:
        matrix: ``K``, ``n x n``.
        y: Targets, ``n``.
        ridge: ``r``, positive.
        folds: Indices that together are all rows.

    Returns:
        The error; infinite if the matrix is not positive definite in floating point.
    """
    regularized = matrix.clone()
    regularized.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(regularized)
    if int(info) != 0:
        return math.inf
    inverse = torch.cholesky_inverse(factor)
    weights = inverse @ y
    squares = y.new_zeros(())
    for fold in folds:
        residual = torch.linalg.solve(inverse[fold[:, None], fold], weights[fold])
        squares = squares + residual.square().sum()
    error = float(squares) / len(y)
    return error if math.isfinite(error) else math.inf


def settings(makers: Sequence[Maker], num_dims: int, count: int) -> Iterator[tuple[int, Kernel]]:
    """Points of a Sobol sequence in the box of hyperparameters, as kernels.

    Args:
        makers: Makers of the kernels to choose from; a coordinate of the sequence chooses.
        num_dims: Number of inputs.
        count: Number of points.

    Returns:
        Each kernel with the index of its maker.
    """
    names = [name for name in _BOX if getattr(makers[0](None), name, None) is not None]
    points = SobolEngine(1 + len(names), scramble=True, seed=0).draw(count, dtype=torch.float64)
    for which, *coordinates in points.tolist():
        index = int(which * len(makers))
        kernel = makers[index](None).double()
        for name, coordinate in zip(names, coordinates, strict=True):
            setattr(kernel, name, _BOX[name](kernel, num_dims, coordinate))
        yield index, kernel


def _between(low: float, high: float, coordinate: float) -> float:
    """Log-uniform."""
    return low * (high / low) ** coordinate


def _lengthscale(kernel: Kernel, num_dims: int, coordinate: float) -> float:
    return _between(0.25, 8.0, coordinate) * length_unit(kernel, num_dims)


def _weight_variance(kernel: Kernel, num_dims: int, coordinate: float) -> float:
    if isinstance(kernel, DEQNNGPKernel | DEQNTKKernel):
        return (0.02 + 0.96 * coordinate) * kernel.activation.critical_weight_variance
    return _between(0.5, 4.0, coordinate)


def _regularization(kernel: DEKerKernel, num_dims: int, coordinate: float) -> float:
    return kernel.critical_regularization / math.sqrt(0.02 + 0.96 * coordinate)


def _log(low: float, high: float) -> Callable[[Kernel, int, float], float]:
    return lambda kernel, num_dims, coordinate: _between(low, high, coordinate)


#: Value of a hyperparameter at a coordinate in [0, 1], for a kernel and a number of inputs.
_BOX: Mapping[str, Callable[..., float]] = {
    "lengthscale": _lengthscale,
    "weight_variance": _weight_variance,
    "bias_variance": _log(0.01, 10.0),
    "regularization": _regularization,
    "feature_scale": _log(0.1, 10.0),
    "weight_var": _log(0.5, 20.0),
    "bias_var": _log(0.01, 10.0),
}
