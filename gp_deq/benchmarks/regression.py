"""Regression on real data sets with the kernels of this package and others.

Every run takes one data set, one kernel and one random 80/20 split, standardised by its training
part, and scores the predictions of the test part. There are three protocols.

``likelihood``: an exact GP with one lengthscale for each input and learned noise, fitted by
marginal likelihood. Every kernel starts from its defaults, lengthscales in the same units for all,
and as often again from there plus a standard normal draw on each unconstrained parameter; the
largest marginal likelihood wins. A trial step with an indefinite matrix ends a fit where it is,
whatever the kernel.

``ridge``: kernel ridge regression with one lengthscale, chosen by five-fold cross-validation on the
training part. Every kernel has the same number of settings, the points of a Sobol sequence in a box
of its hyperparameters, and each setting the same ridges. The intervals of its predictions have the
width of the cross-validated error.

``sparse``: a sparse variational GP with one lengthscale for each input, for data too large for an
exact one; every kernel has the same steps of Adam on the same mini-batches, from its defaults.

NNGP and NTK are families whose depth is chosen like a hyperparameter, on the training part: by
likelihood every depth has as many starts as another kernel, by ridge all depths share the settings
of one. Beside them stand both at depth 3, with settings of their own; these alone by default where
every fit takes minutes. I-BNN is BoTorch's kernel of depth 3, which has no lengthscales.
"""

import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from gp_deq.benchmarks import regression_results
from gp_deq.benchmarks.contestants import KERNELS, Maker, Predictions
from gp_deq.benchmarks.experiment import Configuration, Experiment, option
from gp_deq.benchmarks.likelihood import fit_by_likelihood
from gp_deq.benchmarks.ridge import fit_by_ridge
from gp_deq.benchmarks.runs import Key, Row, one_thread, spread
from gp_deq.benchmarks.svgp import fit_by_bound
from gp_deq.datasets import Split, load, train_test_split
from gp_deq.metrics import Metrics, predictive_metrics

try:
    from joblib import delayed
except ImportError as error:
    raise ImportError(f'the benchmark needs {error.name}: pip install "gp_deq[cli]"') from error

__all__ = ["DATASETS", "EXPERIMENT", "LARGE", "PROTOCOLS", "Protocol", "RegressionConfig", "Result"]
__all__ += ["run_regression"]

#: The data sets of the paper.
DATASETS = ("diabetes", "yacht", "energy-heating", "energy-cooling", "concrete", "wine")
#: Data sets of more than 10,000 rows.
LARGE = ("elevators", "bike", "protein")
_TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Protocol:
    """How the kernels are fitted, and what a run of the benchmark does by default.

    Args:
        fit: The predictions of the best of several makers of kernels within a budget.
        budget: Number of starts, of settings, or of passes over the data.
        datasets: Names for :func:`gp_deq.datasets.load`.
        kernels: Names in :data:`gp_deq.benchmarks.contestants.KERNELS`.
        seeds: Number of splits of each data set.
    """

    fit: Callable[[Sequence[Maker], Split, int], Predictions]
    budget: int
    datasets: tuple[str, ...] = DATASETS
    kernels: tuple[str, ...] = tuple(KERNELS)
    seeds: int = 5


PROTOCOLS: Mapping[str, Protocol] = {
    "likelihood": Protocol(fit_by_likelihood, budget=2),
    "ridge": Protocol(fit_by_ridge, budget=24, seeds=20),
    "sparse": Protocol(
        fit_by_bound,
        budget=10,
        datasets=LARGE,
        kernels=tuple(
            name
            for name, makers in KERNELS.items()
            # a step with DEKer tanh takes as long as those of four others
            if len(makers) == 1 and name != "DEKer tanh"
        ),
        seeds=2,
    ),
}


@dataclass(frozen=True)
class Result(Row):
    """A kernel on a split of a data set; a row of the CSV file.

    Args:
        protocol: One of `PROTOCOLS`.
        dataset: Its name.
        kernel: One of `KERNELS`.
        seed: Seed of the split.
        budget: Number of starts, of settings, or of passes over the data.
        rmse: Root mean squared error of the test targets, in their units; NaN if all starts failed.
        nlpd: Mean negative log predictive density of the test targets, in nats.
        coverage: Share of the test targets inside their central 95 % intervals.
        seconds: Seconds of the fit, the choice and the predictions.
        failures: Number of starts, or of settings and ridges, that failed numerically.
        chosen: Index of the maker chosen; for a family of depths, the depth less one.
        ridge: The ridge chosen, in the units of :data:`gp_deq.benchmarks.ridge.RIDGES`;
            0 for the other protocols.
    """

    protocol: str
    dataset: str
    kernel: str
    seed: int
    budget: int
    rmse: float
    nlpd: float
    coverage: float
    seconds: float
    failures: int
    chosen: int
    ridge: float

    keys = ("protocol", "dataset", "kernel", "seed", "budget")

    @property
    def label(self) -> str:
        """A description for the progress bar."""
        return f"{self.dataset}, {self.kernel}"


@dataclass(frozen=True)
class RegressionConfig(Configuration):
    """Kernels, data and budget; the defaults are those of marginal likelihood.

    Args:
        protocol: One of `PROTOCOLS`.
        datasets: Names for :func:`gp_deq.datasets.load`.
        kernels: Names in :data:`gp_deq.benchmarks.contestants.KERNELS`.
        seeds: Number of splits of each data set.
        budget: Number of starts (``likelihood``), of settings (``ridge``) or of passes over the
            data (``sparse``) for each kernel.

    Raises:
        ValueError: A protocol or kernel is unknown, or a number is below 1.
    """

    protocol: str = option(
        "likelihood",
        "By marginal likelihood, kernel ridge regression, or sparse variational GPs.",
        choices=PROTOCOLS,
    )
    datasets: tuple[str, ...] = option(
        DATASETS, "Data set.", name="dataset", shown="those of the paper; sparse: the large ones"
    )
    kernels: tuple[str, ...] = option(
        tuple(KERNELS), "Kernel.", name="kernel", shown="all; sparse: one of each but NNGP and NTK"
    )
    seeds: int = option(5, "Number of splits of each data set.", shown="5; ridge: 20; sparse: 2")
    budget: int = option(
        2,
        "Starts (likelihood), settings (ridge) or passes over the data (sparse) of each kernel.",
        shown="2; ridge: 24; sparse: 10",
    )

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"no protocol {self.protocol!r}; there are {', '.join(PROTOCOLS)}.")
        for kernel in self.kernels:
            if kernel not in KERNELS:
                raise ValueError(f"no kernel {kernel!r}; there are {', '.join(KERNELS)}.")
        for name in ("seeds", "budget"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.datasets or not self.kernels:
            raise ValueError("There must be at least one data set and one kernel.")

    @property
    def keys(self) -> list[Key]:
        """The keys of every run; one seed is complete before the next begins."""
        return [
            (self.protocol, dataset, kernel, seed, self.budget)
            for seed in range(self.seeds)
            for dataset in self.datasets
            for kernel in self.kernels
        ]

    @classmethod
    def from_options(cls, preset: str | None, given: Mapping[str, Any]) -> Self:
        """The defaults are those of the protocol.

        Args:
            preset: None.
            given: Values of the fields that the user named.

        Raises:
            ValueError: A value is impossible.
        """
        default = PROTOCOLS[given.get("protocol", "likelihood")]
        names = ("datasets", "kernels", "seeds", "budget")
        return cls(**({name: getattr(default, name) for name in names} | dict(given)))


@one_thread()
def _fit(protocol: str, dataset: str, kernel: str, seed: int, budget: int) -> Result:
    split = train_test_split(load(dataset), _TEST_FRACTION, seed)
    start = time.perf_counter()
    random_seed = zlib.crc32(f"{dataset}/{seed}".encode())
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(random_seed)
        predictions = PROTOCOLS[protocol].fit(KERNELS[kernel], split, budget)
    seconds = time.perf_counter() - start
    metrics = _score(predictions, split)
    return Result(
        protocol,
        dataset,
        kernel,
        seed,
        budget,
        metrics.rmse,
        metrics.nlpd,
        metrics.coverage,
        seconds,
        predictions.failures,
        predictions.chosen,
        predictions.ridge,
    )


def _score(predictions: Predictions, split: Split) -> Metrics:
    """In the units of the target."""
    if bool(predictions.mean.isnan().any()):
        return Metrics(math.nan, math.nan, math.nan, math.nan)
    return predictive_metrics(
        split.y_mean + split.y_std * predictions.mean,
        split.y_std * predictions.std,
        split.y_mean + split.y_std * split.test_y,
    )


def _run(
    config: RegressionConfig, keys: Iterator[Key], tell: Callable[[str], None]
) -> Iterator[Result]:
    return spread(delayed(_fit)(*key) for key in keys)


def _prepare(config: RegressionConfig) -> None:
    """Load the data here, so that processes do not download side by side."""
    for name in config.datasets:
        load(name)


EXPERIMENT = Experiment(
    name="regression",
    configuration=RegressionConfig,
    row=Result,
    run=_run,
    tables=lambda config, results: regression_results.tables(results),
    figure=lambda config, results: regression_results.draw(results),
    prepare=_prepare,
)

run_regression = EXPERIMENT.collect
