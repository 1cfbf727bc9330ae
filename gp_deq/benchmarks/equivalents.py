"""Equivalents of DEQ kernels: ``python -m gp_deq.benchmarks.equivalents EXPERIMENT``.

``mixture``: errors in spectral norm of the high-dimensional equivalents and of matched explicit
networks, for inputs of growing dimension that obey their theory. ``mnist``: the same for images of
digits, which do not. ``classification``: digits recognised by random features of finite equilibrium
networks and of the explicit networks matched to them. The images are in a folder that the
environment variable ``GP_DEQ_DATA`` names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import chain, product
from pathlib import Path

from gp_deq.benchmarks import equivalents_classification as classification
from gp_deq.benchmarks import equivalents_spectra as spectra
from gp_deq.benchmarks.mnist import SCALINGS
from gp_deq.benchmarks.runs import RunFile, run_with_progress

try:
    import pandas as pd
    from joblib import delayed
    from matplotlib.figure import Figure

    from gp_deq.plotting import save_figure
except ImportError as error:
    raise ImportError(f'the experiment needs {error.name}: pip install "gp_deq[cli]"') from error

__all__ = ["main"]

_DISPLAY = {
    "display.width": 160,
    "display.max_rows": None,
    "display.max_columns": None,
    "display.float_format": "{:.4g}".format,
}


def _compare(options: argparse.Namespace, names: Sequence[str]) -> list[spectra.Comparison]:
    seeds = range(options.seeds)
    return run_with_progress(
        RunFile(spectra.Comparison, options.csv),
        list(product(names, options.activations, sorted(options.sizes), seeds)),
        lambda key: delayed(spectra.compare)(*key),
        lambda key: f"{key[0]}, {key[1]}, size {key[2]}, seed {key[3]}",
        "matrices",
        options.jobs,
    )


def _mixture(options: argparse.Namespace) -> None:
    comparisons = _compare(options, ["mixture"])
    print(spectra.summarize(comparisons))
    if len(set(options.sizes)) > 1:
        print("\nslopes of the logs of mean spread and mean relative errors against log p")
        print(spectra.slopes(comparisons))
    figure = Figure(figsize=(9, 4), layout="constrained")
    spectra.draw_errors(comparisons, figure)
    save_figure(figure, options.output)


def _mnist(options: argparse.Namespace) -> None:
    comparisons = _compare(options, options.scalings)
    print(spectra.summarize(comparisons))
    shape = 4 * len(options.scalings) + 0.5, 3.4 * len(options.activations) + 0.3
    figure = Figure(figsize=shape, layout="constrained")
    spectra.draw_spectra(comparisons, figure)
    save_figure(figure, options.output)


def _classification(options: argparse.Namespace) -> None:
    settings = classification.Settings(options.num_train, options.num_test)
    limits = product([0], options.activations, classification.FEATURES, [0])
    finite = product(
        sorted(options.widths), options.activations, classification.FEATURES, range(options.seeds)
    )
    keys = [
        (settings.num_train, settings.num_test, activation, features, width, seed)
        for width, activation, features, seed in (*limits, *finite)
    ]
    scores = run_with_progress(
        RunFile(classification.Score, options.csv),
        keys,
        lambda key: delayed(classification.run)(settings, *key[2:]),
        lambda key: f"{key[2]}, {key[3]}, width {key[4] or 'infinite'}, seed {key[5]}",
        "classifiers",
        options.jobs,
    )
    print(classification.summarize(scores))
    figure = Figure(figsize=(9, 9.5), layout="constrained")
    classification.draw(scores, figure)
    save_figure(figure, options.output)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare DEQ kernels with their high-dimensional equivalents and matched networks.

    Args:
        arguments: Command-line arguments; those of the process if None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gp_deq.benchmarks.equivalents", description=str(main.__doc__)
    )
    commands = parser.add_subparsers(dest="experiment", required=True)
    for name, run, seeds in (
        ("mixture", _mixture, 5),
        ("mnist", _mnist, 3),
        ("classification", _classification, 3),
    ):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--activations", nargs="+", default=["relu", "tanh"])
        command.add_argument("--seeds", type=int, default=seeds)
        command.add_argument("--jobs", type=int, default=-1, help="processes")
        command.add_argument("--csv", help="file for the results; runs it holds are not repeated")
        output = Path(f"gp-deq-equivalents-{name}.png")
        command.add_argument("--output", type=Path, default=output)
        if name == "classification":
            widths = [2**power for power in range(5, 13)]
            command.add_argument("--widths", type=int, nargs="+", default=widths)
            command.add_argument("--num-train", type=int, default=5000)
            command.add_argument("--num-test", type=int, default=2000)
        else:
            sizes = [100, 200, 400, 800, 1600] if name == "mixture" else [200, 400, 800, 1600]
            what = "dimensions" if name == "mixture" else "numbers of images"
            command.add_argument("--sizes", type=int, nargs="+", default=sizes, help=what)
        if name == "mnist":
            command.add_argument(
                "--scalings", nargs="+", default=list(SCALINGS), choices=list(SCALINGS)
            )
    options = parser.parse_args(arguments)
    with pd.option_context(*chain(*_DISPLAY.items())):
        options.run(options)


if __name__ == "__main__":
    main()
