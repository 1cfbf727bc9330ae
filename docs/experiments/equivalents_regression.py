r"""GP regression by a structured matrix: ``python docs/experiments/equivalents_regression.py``.

The target is a linear function of 200 independent normal inputs, plus the squares of eight others,
plus noise of a third of its variance:

.. math::
    y = u^\top x + \tfrac14\sum_{k=1}^8 \bigl[(a_k^\top x)^2 - 1\bigr] + \varepsilon .

First, with few rows, the kernel of the high-dimensional equivalent is compared with the exact DEQ
kernel of the centred activation: both are fitted by marginal likelihood and scored on new inputs.
Then the equivalent is fitted to so many rows that the exact kernel matrix would take 20 GB, and the
seconds of the steps and the peak memory of the process are shown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from gpytorch import settings
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.metrics import negative_log_predictive_density
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.models import ExactGP
from rich.progress import track
from torch import Tensor

from gp_deq import DEQNNGPKernel
from gp_deq.benchmarks.timing import conditions, max_resident
from gp_deq.equivalents import HighDimensionalDEQKernel, centered_kernel


class Data(NamedTuple):
    """Rows to learn from, and rows to be scored on."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def make_data(rows: int, dims: int = 200, seed: int = 0, num_test: int = 1000) -> Data:
    """Draw inputs and targets; these have mean zero and variance one over the training rows.

    Args:
        rows: Rows to learn from.
        dims: Dimensions of an input.
        seed: Seed of random numbers.
        num_test: Rows to be scored on.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    slope, directions = normal(dims) / dims**0.5, normal(dims, 8) / dims**0.5
    x = normal(rows + num_test, dims)
    y = x @ slope + ((x @ directions).square() - 1).sum(-1) / 4
    y = y + (y.std() / 3**0.5) * normal(rows + num_test)
    y = (y - y[:rows].mean()) / y[:rows].std()
    return Data(x[:rows], y[:rows], x[rows:], y[rows:])


class _Model(ExactGP):
    def __init__(self, data: Data, kernel: Kernel) -> None:
        super().__init__(data.train_x, data.train_y, GaussianLikelihood())
        self.mean_module, self.covar_module = ConstantMean(), ScaleKernel(kernel)

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


def _fit(
    model: _Model, steps: int, on_step: Callable[[Sequence[int]], Iterable[int]]
) -> list[float]:
    """Seconds of the steps of Adam."""
    model.train()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.1)
    objective = ExactMarginalLogLikelihood(model.likelihood, model)
    seconds = []
    for _ in on_step(range(steps)):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = -objective(model(*model.train_inputs), model.train_targets)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    model.eval()
    return seconds


def compare(rows: int, steps: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Root mean squared error and negative log predictive density of new targets, by kernel.

    Both by Cholesky's factorization. The activation of the exact kernel is centred once, at the
    initial hyperparameters, that of the equivalent at each step.

    Args:
        rows: Rows to learn from.
        steps: Steps of Adam.
        seed: Seed of the data.
    """
    data = make_data(rows, seed=seed)
    exact = centered_kernel(_relu(), data.train_x)
    exact.raw_bias_variance.requires_grad_(False)
    kernels = {"exact": exact, "equivalent": HighDimensionalDEQKernel(reference=data.train_x)}
    scores = {}
    for name, kernel in kernels.items():
        model = _Model(data, kernel).double()
        with settings.max_cholesky_size(2 * rows):
            _fit(model, steps, partial(track, description=f"{name}, {rows} rows"))
            with torch.no_grad():
                predicted = model.likelihood(model(data.test_x))
        error = (predicted.mean - data.test_y).square().mean().sqrt().item()
        scores[name] = error, negative_log_predictive_density(predicted, data.test_y).item()
    return scores


def _relu() -> DEQNNGPKernel:
    kernel = DEQNNGPKernel().double()
    kernel.lengthscale = HighDimensionalDEQKernel().lengthscale.item()
    return kernel


def large(rows: int, steps: int, dtype: torch.dtype, seed: int = 0) -> tuple[list[float], float]:
    """Fit the equivalent alone.

    Args:
        rows: Rows to learn from.
        steps: Steps of Adam.
        dtype: Precision of the computation.
        seed: Seed of the data.

    Returns:
        Seconds of the steps, and the root mean squared error of new targets.
    """
    data = Data(*(part.to(dtype) for part in make_data(rows, seed=seed)))
    model = _Model(data, HighDimensionalDEQKernel(reference=data.train_x)).to(dtype)
    seconds = _fit(model, steps, partial(track, description=f"equivalent, {rows} rows"))
    with torch.no_grad(), settings.skip_posterior_variances():
        mean = model(data.test_x).mean
    return seconds, (mean - data.test_y).square().mean().sqrt().item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare exact and equivalent kernel, and fit the equivalent to many rows.

    Args:
        arguments: Command-line arguments; those of the process if None.
    """
    parser = argparse.ArgumentParser(
        description="Compare exact and equivalent kernel, and fit the equivalent to many rows."
    )
    parser.add_argument("--few", type=int, default=2000, help="rows of the comparison; 0: none")
    parser.add_argument("--fits", type=int, default=60, help="steps of Adam of the comparison")
    parser.add_argument("--rows", type=int, default=50_000, help="rows of the large fit")
    parser.add_argument("--steps", type=int, default=20, help="its steps of Adam")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--probes", type=int, default=10, help="random vectors for determinants")
    parser.add_argument("--lanczos", type=int, default=20, help="products with each of them")
    options = parser.parse_args(arguments)
    print(conditions())
    torch.manual_seed(0)
    with (
        settings.fast_computations(True, True, True),  # BoTorch switches them off
        settings.num_trace_samples(options.probes),
        settings.max_lanczos_quadrature_iterations(options.lanczos),
    ):
        seconds, error = large(options.rows, options.steps, getattr(torch, options.dtype))
    print(
        f"{options.rows} rows, {options.dtype}: a step {median(seconds):.1f} s in the median "
        f"({min(seconds):.1f} to {max(seconds):.1f}), RMSE {error:.3f}, peak memory "
        f"{max_resident() * 2**20 / 1e6:.0f} MB"
    )
    if options.few:
        for name, (error, density) in compare(options.few, options.fits).items():
            print(f"{options.few} rows, {name}: RMSE {error:.4f}, NLPD {density:.4f}")


if __name__ == "__main__":
    main()
