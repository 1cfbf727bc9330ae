"""Seconds of a training step of a sparse GP with each kernel.

The kernels take turns of a few steps each, from their defaults; ratios are those of medians.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from gp_deq.benchmarks.command import script
from gp_deq.benchmarks.contestants import KERNELS, start_kernel
from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option
from gp_deq.benchmarks.runs import Key, Row
from gp_deq.benchmarks.svgp import SVGPConfig, process_device, train
from gp_deq.benchmarks.timing import conditions
from gp_deq.datasets import load, train_test_split

#: The kernel to which the others are compared.
BASELINE = "Matérn-5/2"
_STEPS = 6


@dataclass(frozen=True)
class Sizes(Configuration):
    """The data and the mini-batches.

    Args:
        dataset: Name for :func:`gp_deq.datasets.load`; at least six mini-batches.
        rounds: How often each kernel takes six steps, after a round that is not timed.
        num_inducing: Number of inducing points.
        batch_size: Rows of a mini-batch.
    """

    dataset: str = option("protein", "Data set, such as protein, elevators or bike.")
    rounds: int = option(5, "How often each is timed.")
    num_inducing: int = option(SVGPConfig.num_inducing, "Number of inducing points.")
    batch_size: int = option(SVGPConfig.batch_size, "Rows of a mini-batch.")

    @property
    def keys(self) -> list[Key]:
        """Every kernel that is not a family of depths."""
        names = [name for name, makers in KERNELS.items() if len(makers) == 1]
        return [(self.dataset, name, self.num_inducing, self.batch_size) for name in names]


@dataclass(frozen=True)
class Time(Row):
    """A measurement; a row of the CSV file.

    Args:
        dataset: Name of the data set.
        kernel: Name of the kernel.
        num_inducing: Number of inducing points.
        batch_size: Rows of a mini-batch.
        seconds: Median seconds of a step.
        ratio: To Matérn-5/2.
    """

    dataset: str
    kernel: str
    num_inducing: int
    batch_size: int
    seconds: float
    ratio: float

    keys = ("dataset", "kernel", "num_inducing", "batch_size")


def _run(config: Sizes, keys: Iterator[Key], tell: Callable[[str], None]) -> Iterator[Time]:
    if next(keys, None) is None:
        return
    split = train_test_split(load(config.dataset), seed=0)
    rows = slice(_STEPS * config.batch_size)
    x, y = split.train_x[rows].to(process_device()), split.train_y[rows].to(process_device())
    settings = SVGPConfig(config.num_inducing, config.batch_size, epochs=1)
    times: dict[str, list[float]] = {str(name): [] for _, name, *_ in config.keys}
    order, shuffle = list(times), random.Random(0).shuffle
    for timed in (False, *[True] * config.rounds):
        shuffle(order)
        for name in order:
            seconds = train(start_kernel(KERNELS[name][-1], split), x, y, settings).seconds
            tell(name)
            if timed:
                times[name].append(seconds)
    medians = {name: median(seconds) for name, seconds in times.items()}
    for name, seconds in medians.items():
        ratio = seconds / medians[BASELINE]
        yield Time(config.dataset, name, config.num_inducing, config.batch_size, seconds, ratio)


def _tables(config: Sizes, times: Sequence[Time]) -> Iterator[Table | str]:
    yield conditions()
    title = f"{config.dataset}, {config.num_inducing} inducing points, {config.batch_size} rows"
    rows = [[time.kernel, f"{time.seconds:.4f}", f"{time.ratio:.2f}"] for time in times]
    yield Table(title, ["kernel", "seconds", "ratio"], rows)


EXPERIMENT = Experiment(
    name="svgp-speed",
    configuration=Sizes,
    row=Time,
    run=_run,
    tables=_tables,
    timing=True,
)


if __name__ == "__main__":
    script(__file__)
