"""Errors in spectral norm of the equivalents of DEQ kernels, for inputs that obey their theory.

High-dimensional equivalents and matched explicit networks are compared with the kernels, for
Gaussian mixtures of growing dimension (``equivalents_spectra.py`` has the definitions).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import equivalents_spectra as spectra
from matplotlib.figure import Figure

from gp_deq.benchmarks.command import script
from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option
from gp_deq.benchmarks.runs import Key


@dataclass(frozen=True)
class Mixtures(Configuration):
    """The dimensions and the activations.

    Args:
        activations: Names of the activations.
        sizes: Dimensions of the inputs, ten or more.
        seeds: Number of draws.
    """

    activations: tuple[str, ...] = option(("relu", "tanh"), "Activation.")
    sizes: tuple[int, ...] = option((100, 200, 400, 800, 1600), "Dimension of the inputs.")
    seeds: int = option(5, "Number of draws.")

    @property
    def keys(self) -> list[Key]:
        """Inputs, activation, dimension and seed of every comparison."""
        return spectra.keys(["mixture"], self.activations, self.sizes, self.seeds)


def _tables(config: Mixtures, rows: Sequence[spectra.Comparison]) -> Iterator[Table]:
    if not rows:
        return
    yield Table.of("Spectral norms", spectra.summarize(rows))
    if len({row.size for row in rows}) > 1:
        title = "Slopes of the logs of mean spread and mean relative errors against log p"
        slopes = spectra.slopes(rows).T.rename_axis("quantity")
        slopes.columns = slopes.columns.get_level_values("activation")
        yield Table.of(title, slopes, ".3f")


def _figure(config: Mixtures, rows: Sequence[spectra.Comparison]) -> Figure | None:
    if not rows:
        return None
    figure = Figure(figsize=(9, 4), layout="constrained")
    spectra.draw_errors(rows, figure)
    return figure


EXPERIMENT = Experiment(
    name="equivalents-mixture",
    configuration=Mixtures,
    row=spectra.Comparison,
    run=spectra.run,
    tables=_tables,
    figure=_figure,
)


if __name__ == "__main__":
    script(__file__)
