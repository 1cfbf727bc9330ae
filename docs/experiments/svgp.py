"""A sparse variational GP of a large data set, on one process or several.

``torchrun --nproc_per_node 2 docs/experiments/svgp.py protein`` trains data-parallel, and
``python docs/experiments/svgp.py protein`` does the same with one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from gp_deq.benchmarks.contestants import KERNELS, start_kernel
from gp_deq.benchmarks.svgp import (
    SVGPConfig,
    Trained,
    predict,
    process_device,
    process_group,
    train,
)
from gp_deq.datasets import Split, load, train_test_split
from gp_deq.metrics import predictive_metrics


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on a split of a data set and print the scores of the test part."""
    parser = argparse.ArgumentParser(
        description="Train on a split of a data set and print the scores of the test part."
    )
    parser.add_argument("dataset", help="such as protein, elevators or bike")
    parser.add_argument("--kernel", default="DEQ-NNGP relu", choices=KERNELS)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the split and the mini-batches"
    )
    for name, default in vars(SVGPConfig()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = parser.parse_args(arguments)
    config = SVGPConfig(
        options.num_inducing, options.batch_size, options.epochs, options.learning_rate
    )
    split = train_test_split(load(options.dataset), seed=options.seed)
    # of the families of depths, the third
    maker = (KERNELS[options.kernel] * 3)[2]
    with process_group() as (rank, world):
        device = process_device()
        trained = train(
            start_kernel(maker, split),
            split.train_x.to(device),
            split.train_y.to(device),
            config,
            options.seed,
        )
        if rank > 0:
            return
        _print(trained, split, device, world)


def _print(trained: Trained, split: Split, device: torch.device, world: int) -> None:
    mean, std = predict(trained, split.test_x.to(device))
    found = vars(
        predictive_metrics(
            split.y_mean + split.y_std * mean.cpu(),
            split.y_std * std.cpu(),
            split.y_mean + split.y_std * split.test_y,
        )
    )
    print(f"{world} process{'es' * (world > 1)}, {len(trained.losses)} steps")
    print(f"seconds a step  {trained.seconds:.4f}")
    print(f"last loss       {trained.losses[-1]:.9f}")
    for name, value in found.items():
        print(f"{name:15s} {value:.9g}")


if __name__ == "__main__":
    main()
