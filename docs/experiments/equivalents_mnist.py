"""Errors in spectral norm of the equivalents of DEQ kernels, for images of digits.

The theory of the equivalents promises nothing for them (``equivalents_spectra.py`` has the
definitions). The images are in a folder that the environment variable ``GP_DEQ_DATA`` names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import equivalents_spectra as spectra
from matplotlib.figure import Figure
from mnist import SCALINGS, load_mnist

from gp_deq.benchmarks.command import script
from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option
from gp_deq.benchmarks.runs import Key


@dataclass(frozen=True)
class Digits(Configuration):
    """The images and the activations.

    Args:
        scalings: Names in `SCALINGS`.
        activations: Names of the activations.
        sizes: Numbers of images.
        seeds: Number of choices of images.

    Raises:
        ValueError: A scaling is unknown.
    """

    scalings: tuple[str, ...] = option(tuple(SCALINGS), "Scaling.")
    activations: tuple[str, ...] = option(("relu", "tanh"), "Activation.")
    sizes: tuple[int, ...] = option((200, 400, 800, 1600), "Number of images.")
    seeds: int = option(3, "Number of choices of images.")

    def __post_init__(self) -> None:
        for name in self.scalings:
            if name not in SCALINGS:
                raise ValueError(f"no scaling {name!r}; there are {', '.join(SCALINGS)}.")

    @property
    def keys(self) -> list[Key]:
        """Scaling, activation, number of images and seed of every comparison."""
        return spectra.keys(self.scalings, self.activations, self.sizes, self.seeds)


def _tables(config: Digits, rows: Sequence[spectra.Comparison]) -> Iterator[Table]:
    if rows:
        yield Table.of("Spectral norms", spectra.summarize(rows))


def _figure(config: Digits, rows: Sequence[spectra.Comparison]) -> Figure | None:
    if not rows:
        return None
    shape = 4 * len(config.scalings) + 0.5, 3.4 * len(config.activations) + 0.3
    figure = Figure(figsize=shape, layout="constrained")
    spectra.draw_spectra(rows, figure)
    return figure


EXPERIMENT = Experiment(
    name="equivalents-mnist",
    configuration=Digits,
    row=spectra.Comparison,
    run=spectra.run,
    tables=_tables,
    figure=_figure,
    prepare=lambda config: load_mnist(),
)


if __name__ == "__main__":
    script(__file__)
