"""Seconds of a training step of a sparse GP: ``python -m gp_deq.benchmarks.svgp_speed protein``.

The kernels take turns of a few steps each, from their defaults; ratios are those of medians.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from gp_deq.benchmarks.contestants import KERNELS, start_kernel
from gp_deq.benchmarks.speed import conditions
from gp_deq.benchmarks.svgp import SVGPConfig, process_device, train
from gp_deq.datasets import Split, load, train_test_split

__all__ = ["BASELINE", "main", "measure"]

#: The kernel to which the others are compared.
BASELINE = "Matérn-5/2"
_STEPS = 6


def measure(
    split: Split, config: SVGPConfig, kernels: Sequence[str], rounds: int
) -> dict[str, float]:
    """Time the steps.

    Args:
        split: The data; at least six mini-batches.
        config: The mini-batches and the inducing points.
        kernels: Names in :data:`gp_deq.benchmarks.contestants.KERNELS`; of a family the deepest.
        rounds: How often each kernel takes six steps, after a round that is not timed.

    Returns:
        The median seconds of a step by kernel.
    """
    rows = slice(_STEPS * config.batch_size)
    x, y = split.train_x[rows].to(process_device()), split.train_y[rows].to(process_device())
    config = replace(config, epochs=1)
    times: dict[str, list[float]] = {name: [] for name in kernels}
    order, shuffle = list(kernels), random.Random(0).shuffle
    for timed in (False, *[True] * rounds):
        shuffle(order)
        for name in order:
            seconds = train(start_kernel(KERNELS[name][-1], split), x, y, config).seconds
            if timed:
                times[name].append(seconds)
    return {name: median(seconds) for name, seconds in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the medians and their ratios to Matérn-5/2.

    Args:
        arguments: Command-line arguments; those of the process if None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gp_deq.benchmarks.svgp_speed",
        description="Seconds of a training step of a sparse GP.",
    )
    parser.add_argument("dataset", help="such as protein, elevators or bike")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    parser.add_argument("--num-inducing", type=int, default=SVGPConfig.num_inducing)
    parser.add_argument("--batch-size", type=int, default=SVGPConfig.batch_size)
    options = parser.parse_args(arguments)
    config = SVGPConfig(options.num_inducing, options.batch_size)
    split = train_test_split(load(options.dataset), seed=0)
    names = [name for name, makers in KERNELS.items() if len(makers) == 1]
    print(conditions())
    print(f"{options.dataset}, {config.num_inducing} inducing points, {config.batch_size} rows")
    seconds = measure(split, config, names, options.rounds)
    for name, value in seconds.items():
        print(f"  {name:16s} {value:8.4f} s   {value / seconds[BASELINE]:6.2f}")


if __name__ == "__main__":
    main()
