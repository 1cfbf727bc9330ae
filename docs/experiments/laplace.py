"""Laplace GPs beside GPyTorch's variational GPs.

Two data sets: breast cancer (scikit-learn's, 569 rows, zero or one) and the hourly counts of
bicycle rentals (1,000 random rows of "bike"). Every model has a constant mean, an output scale and
one lengthscale for all inputs, learns from a random four fifths of the rows and is scored on the
others. (With a lengthscale for each of 30 inputs the evidence of 455 classes overfits; 500 steps of
Adam overfit less because they stop.) The variational GPs are GPyTorch's with all training inputs,
or 100 of them, as inducing points, trained by 500 steps of Adam on all rows. For classes they have
GPyTorch's Bernoulli likelihood, whose link is probit, and its closed forms. GPyTorch's Poisson
likelihood takes the softplus of the latent function, which would have to climb to hundreds: for
counts theirs has the exponential link, in closed form in the bound, and the same integral for its
predictions as the Laplace GPs. All start from the mean of the training targets.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import BernoulliLikelihood
from gpytorch.likelihoods.likelihood import _OneDimensionalLikelihood
from gpytorch.means import ConstantMean, Mean
from gpytorch.mlls import VariationalELBO
from gpytorch.models import ApproximateGP
from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy
from joblib import delayed
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.distributions import Distribution

from gp_deq.benchmarks.command import script
from gp_deq.benchmarks.contestants import length_unit
from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option
from gp_deq.benchmarks.runs import Key, Row, one_thread, spread
from gp_deq.benchmarks.timing import conditions
from gp_deq.datasets import load
from gp_deq.implicit_layers import Poisson
from gp_deq.kernels import DEQNNGPKernel, DEQNTKKernel
from gp_deq.laplace import LaplaceGP, log_predictive

_STEPS = 500
_LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Data:
    """A split of a data set, its inputs standardised by the training part.

    Args:
        family: Name of the family of the targets.
        train_x: ``n x d``.
        train_y: ``n``.
        test_x: ``m x d``.
        test_y: ``m``.
    """

    family: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def _breast_cancer() -> tuple[str, Tensor, Tensor]:
    found = load_breast_cancer()
    return "bernoulli", torch.as_tensor(found.data), torch.as_tensor(found.target).double()


def _bike() -> tuple[str, Tensor, Tensor]:
    data = load("bike")
    rows = torch.randperm(len(data.y), generator=torch.Generator().manual_seed(0))[:1000]
    return "poisson", data.X[rows], data.y[rows]


#: Families, inputs and targets by name.
DATASETS: Mapping[str, Callable[[], tuple[str, Tensor, Tensor]]] = {
    "breast cancer": _breast_cancer,
    "bike": _bike,
}

#: Log scores and predicted means of the test targets, of a model that learns from the others.
Model = Callable[[Data], tuple[Tensor, Tensor]]


def _laplace(make: Callable[[int], Kernel], data: Data) -> tuple[Tensor, Tensor]:
    kernel = ScaleKernel(make(data.train_x.shape[-1])).double()
    model = LaplaceGP(kernel, data.family, _mean(data))
    posterior = model.fit(data.train_x, data.train_y)
    return posterior.log_prob(data.test_x, data.test_y), posterior.predict(data.test_x).mean


def _mean(data: Data) -> ConstantMean:
    """Such that the mean target is that of the training part, about."""
    mean = ConstantMean().double()
    level = data.train_y.mean()
    mean.constant = level.log() if data.family == "poisson" else level.logit()
    return mean


class _Poisson(_OneDimensionalLikelihood):
    """Counts of the rate exp(f)."""

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Distribution:
        return torch.distributions.Poisson(function_samples.exp())

    def expected_log_prob(
        self, observations: Tensor, function_dist: MultivariateNormal, *args: Any, **kwargs: Any
    ) -> Tensor:
        rate = (function_dist.mean + function_dist.variance / 2).exp()
        return observations * function_dist.mean - rate - (observations + 1).lgamma()

    def log_marginal(
        self, observations: Tensor, function_dist: MultivariateNormal, *args: Any, **kwargs: Any
    ) -> Tensor:
        return log_predictive(Poisson(), observations, function_dist.mean, function_dist.variance)


class _Variational(ApproximateGP):
    def __init__(self, kernel: Kernel, mean: Mean, inducing: Tensor, learn: bool) -> None:
        super().__init__(
            VariationalStrategy(
                self,
                inducing,
                CholeskyVariationalDistribution(len(inducing)),
                learn_inducing_locations=learn,
            )
        )
        self.mean_module = mean
        self.covar_module = ScaleKernel(kernel)

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


def _variational(
    make: Callable[[int], Kernel], num_inducing: int | None, data: Data
) -> tuple[Tensor, Tensor]:
    x, y = data.train_x, data.train_y
    inducing = x if num_inducing is None else x[torch.randperm(len(x))[:num_inducing]]
    learn = num_inducing is not None
    model = _Variational(make(x.shape[-1]), _mean(data), inducing.clone(), learn).double()
    likelihood = BernoulliLikelihood() if data.family == "bernoulli" else _Poisson()
    bound = VariationalELBO(likelihood, model, num_data=len(y))
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss = -bound(model(x), y)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        latent = model(data.test_x)
        if data.family == "bernoulli":
            mean = likelihood(latent).mean
        else:
            mean = (latent.mean + latent.variance / 2).exp()
        return likelihood.log_marginal(data.test_y, latent), mean


_KERNELS: Mapping[str, Callable[[int], Kernel]] = {
    "DEQ-NNGP relu": lambda d: DEQNNGPKernel(),
    "DEQ-NNGP erf": lambda d: DEQNNGPKernel("erf"),
    "DEQ-NTK relu": lambda d: DEQNTKKernel(),
    "RBF": lambda d: _long(RBFKernel(), d),
    "Matérn-5/2": lambda d: _long(MaternKernel(2.5), d),
}


def _long(kernel: Kernel, num_dims: int) -> Kernel:
    """With the lengthscales of the other kernels, which divide by the number of inputs."""
    kernel.lengthscale = kernel.lengthscale.detach() * length_unit(kernel, num_dims)
    return kernel


#: The models by name.
MODELS: Mapping[str, Model] = {
    **{f"Laplace, {name}": partial(_laplace, make) for name, make in _KERNELS.items()},
    **{
        f"variational, {name}": partial(_variational, _KERNELS[name], None)
        for name in ("DEQ-NNGP relu", "RBF")
    },
    **{
        f"variational, {name}, 100 points": partial(_variational, _KERNELS[name], 100)
        for name in ("DEQ-NNGP relu", "RBF")
    },
}


@dataclass(frozen=True)
class Score(Row):
    """A model on a split of a data set; a row of the CSV file.

    Args:
        dataset: One of `DATASETS`.
        model: One of `MODELS`.
        seed: Seed of the split.
        log_score: Mean log predictive probability of the test targets, in nats.
        error: Share of wrong classes, or root mean squared error of counts.
        seconds: Seconds of the fit and the predictions.
    """

    dataset: str
    model: str
    seed: int
    log_score: float
    error: float
    seconds: float

    keys = ("dataset", "model", "seed")


def split(dataset: str, seed: int) -> Data:
    """A random split of a data set.

    Args:
        dataset: One of `DATASETS`.
        seed: Seed of the split.
    """
    family, X, y = DATASETS[dataset]()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, test = order[: len(y) * 4 // 5], order[len(y) * 4 // 5 :]
    mean, std = X[train].mean(0), X[train].std(0)
    std = torch.where(std > 0, std, 1.0)
    return Data(family, (X[train] - mean) / std, y[train], (X[test] - mean) / std, y[test])


@one_thread()
def _fit(dataset: str, model: str, seed: int) -> Score:
    data = split(dataset, seed)
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        start = time.perf_counter()
        log_scores, means = MODELS[model](data)
    seconds = time.perf_counter() - start
    if data.family == "bernoulli":
        error = ((means > 0.5) != (data.test_y > 0.5)).double().mean().item()
    else:
        error = (means - data.test_y).square().mean().sqrt().item()
    return Score(dataset, model, seed, log_scores.mean().item(), error, seconds)


def summarize(scores: Sequence[Score]) -> pd.DataFrame:
    """Means and standard errors over splits.

    Args:
        scores: Scores of any number of splits.
    """
    table = pd.DataFrame([vars(score) for score in scores])
    groups = table.groupby(["dataset", "model"], sort=False)
    return groups.agg(
        log_score=("log_score", "mean"),
        standard_error=("log_score", "sem"),
        error=("error", "mean"),
        seconds=("seconds", "median"),
        splits=("seed", "count"),
    )


@dataclass(frozen=True)
class Comparison(Configuration):
    """The models and the data.

    Args:
        datasets: Names in `DATASETS`.
        models: Names in `MODELS`.
        seeds: Number of splits.

    Raises:
        ValueError: A data set or a model is unknown.
    """

    datasets: tuple[str, ...] = option(tuple(DATASETS), "Data set.")
    models: tuple[str, ...] = option(tuple(MODELS), "Model.", shown="all")
    seeds: int = option(5, "Number of splits.")

    def __post_init__(self) -> None:
        for what, names, known in (
            ("data set", self.datasets, DATASETS),
            ("model", self.models, MODELS),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"no {what} {name!r}; there are {'; '.join(known)}.")

    @property
    def keys(self) -> list[Key]:
        """Data set, model and seed of every fit."""
        return [
            (dataset, model, seed)
            for seed in range(self.seeds)
            for dataset in self.datasets
            for model in self.models
        ]


def _run(config: Comparison, keys: Iterator[Key], tell: Callable[[str], None]) -> Iterator[Score]:
    return spread(delayed(_fit)(*key) for key in keys)


def _tables(config: Comparison, scores: Sequence[Score]) -> Iterator[Table | str]:
    yield conditions()
    if scores:
        yield Table.of("Laplace and variational GPs", summarize(scores))


EXPERIMENT = Experiment(
    name="laplace", configuration=Comparison, row=Score, run=_run, tables=_tables
)


if __name__ == "__main__":
    script(__file__)
