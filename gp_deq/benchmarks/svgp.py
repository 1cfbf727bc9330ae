"""Sparse variational GPs of data too large for exact ones, trained by one process or several.

Under ``torchrun`` every mini-batch is shared out and the gradients of the shares are averaged, so
that the processes take the steps that one would take, but for rounding.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean, median

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.mlls import VariationalELBO
from gpytorch.models import ApproximateGP
from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy
from torch import Tensor, distributed
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from gp_deq.benchmarks.contestants import Maker, Predictions, start_kernel
from gp_deq.benchmarks.surrogates import FAILURES
from gp_deq.datasets import Split

__all__ = ["SVGP", "SVGPConfig", "Trained", "fit_by_bound", "predict"]
__all__ += ["process_device", "process_group", "train"]


@dataclass(frozen=True)
class SVGPConfig:
    """How a sparse GP is trained.

    Args:
        num_inducing: Number of inducing points, at first a random part of the training inputs.
        batch_size: Rows of a mini-batch, all processes together.
        epochs: Passes over the data; rows that do not fill a mini-batch are left out of a pass.
        learning_rate: Learning rate of Adam.

    Raises:
        ValueError: a value that is not positive.
    """

    num_inducing: int = 512
    batch_size: int = 1024
    epochs: int = 20
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}.")


class SVGP(ApproximateGP):
    """A GP with a constant mean, an output scale and learned inducing points.

    Args:
        kernel: Without an output scale.
        inducing: Inducing points, ``m x d``.
    """

    def __init__(self, kernel: Kernel, inducing: Tensor) -> None:
        distribution = CholeskyVariationalDistribution(inducing.shape[-2])
        super().__init__(VariationalStrategy(self, inducing, distribution))
        self.mean_module = ConstantMean()
        self.covar_module = ScaleKernel(kernel)
        with torch.no_grad():
            self.covar_module.outputscale = 1 / kernel(inducing, diag=True).mean()

    def forward(self, x: Tensor) -> MultivariateNormal:
        """The prior at some inputs.

        Args:
            x: ``n x d``.
        """
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Args:
        model: The GP.
        likelihood: Its noise.
        losses: Negative evidence lower bound for each row, after each step.
        seconds: Median seconds of a step.
    """

    model: SVGP
    likelihood: GaussianLikelihood
    losses: Sequence[float]
    seconds: float


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Rank and number of the processes that ``torchrun`` started; one if it did not."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield distributed.get_rank(), distributed.get_world_size()
    finally:
        distributed.destroy_process_group()


def train(
    kernel: Kernel,
    x: Tensor,
    y: Tensor,
    config: SVGPConfig,
    seed: int = 0,
    on_step: Callable[[float], None] = lambda loss: None,
) -> Trained:
    """Maximise the evidence lower bound by Adam; inside :func:`process_group` by all processes.

    Args:
        kernel: Without an output scale.
        x: Standardised inputs, ``n x d``, the same in all processes.
        y: Standardised targets, ``n``.
        config: How.
        seed: Seed of the inducing points and of the mini-batches.
        on_step: Called with the loss of each step.

    Raises:
        ValueError: there are fewer rows than a mini-batch or than inducing points, or a mini-batch
            cannot be shared out evenly.
    """
    rank, world = 0, 1
    if distributed.is_available() and distributed.is_initialized():
        rank, world = distributed.get_rank(), distributed.get_world_size()
    if len(y) < max(config.batch_size, config.num_inducing):
        raise ValueError(
            f"{len(y)} rows are fewer than a mini-batch of {config.batch_size} or than "
            f"{config.num_inducing} inducing points."
        )
    if config.batch_size % world:
        raise ValueError(f"A batch of {config.batch_size} is not a multiple of {world} processes.")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randperm(len(y), generator=generator)[: config.num_inducing]
    model = SVGP(kernel, x[first]).to(x)
    likelihood = GaussianLikelihood().to(x)
    likelihood.noise = 0.1
    bound = VariationalELBO(likelihood, model, num_data=len(y))
    parameters = [p for p in bound.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    losses, seconds = [], []
    # the first call of a model draws the means at the inducing points
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in _batches(len(y), config, generator):
            start = time.perf_counter()
            share = batch[rank::world]
            optimizer.zero_grad(set_to_none=False)
            loss = -bound(model(x[share]), y[share])
            loss.backward()
            losses.append(_average(parameters, loss.detach(), world))
            optimizer.step()
            seconds.append(time.perf_counter() - start)
            on_step(losses[-1])
    return Trained(model.eval(), likelihood.eval(), losses, median(seconds))


def _batches(n: int, config: SVGPConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Whole mini-batches, in random order."""
    whole = n // config.batch_size * config.batch_size
    for _ in range(config.epochs):
        yield from torch.randperm(n, generator=generator)[:whole].split(config.batch_size)


def _average(parameters: Sequence[Tensor], loss: Tensor, world: int) -> float:
    """Replaces gradients by their mean over processes; the mean loss."""
    if world == 1:
        return float(loss)
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([parameters_to_vector(gradients), loss.reshape(1)])
    distributed.all_reduce(flat)
    flat /= world
    vector_to_parameters(flat[:-1], gradients)
    return float(flat[-1])


def predict(trained: Trained, x: Tensor, batch_size: int = 4096) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of observations, noise included.

    Args:
        trained: A trained model.
        x: Standardised inputs, ``n x d``.
        batch_size: Rows at a time.
    """
    with torch.no_grad():
        parts = [trained.likelihood(trained.model(rows)) for rows in x.split(batch_size)]
    means = torch.cat([part.mean for part in parts])
    return means, torch.cat([part.variance for part in parts]).sqrt()


def fit_by_bound(makers: Sequence[Maker], split: Split, epochs: int) -> Predictions:
    """A sparse GP for the regression benchmark, its hyperparameters learned by the evidence bound.

    Args:
        makers: Makers of the kernels to choose from, by the mean bound of the last pass over the
            data.
        split: The data.
        epochs: Passes over the data for each kernel.

    Returns:
        The predictions; NaN if every kernel failed.
    """
    n = len(split.train_y)
    default = SVGPConfig(epochs=epochs)
    config = replace(
        default,
        num_inducing=min(n, default.num_inducing),
        batch_size=min(n, default.batch_size),
    )
    seed = int(torch.randint(2**31, ()))
    best, result, failures = math.inf, Predictions.none(split), 0
    for index, maker in enumerate(makers):
        kernel = start_kernel(maker, split)
        try:
            trained = train(kernel, split.train_x, split.train_y, config, seed)
            loss = fmean(trained.losses[-len(trained.losses) // epochs :])
            mean, std = predict(trained, split.test_x)
        except FAILURES:
            loss = math.nan
        failures += math.isnan(loss)
        if loss < best:
            best, result = loss, Predictions(mean, std, index)
    return replace(result, failures=failures)


def process_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
