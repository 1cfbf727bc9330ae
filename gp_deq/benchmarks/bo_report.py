"""Tables and figure of the benchmark of Bayesian optimisation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gp_deq.benchmarks.experiment import Table, plus_minus
from gp_deq.benchmarks.problems import known_problem

try:
    import pandas as pd
except ImportError as error:
    raise ImportError('the tables need pandas: pip install "gp_deq[cli]"') from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gp_deq.benchmarks.bo import Run
    from gp_deq.plotting import Band

__all__ = ["Panel", "complete", "draw", "final_table", "panels_figure", "rank_table", "tables"]


def complete(runs: Sequence[Run], surrogates: Iterable[str]) -> list[Run]:
    """The runs of those problems and seeds that all surrogates have finished.

    Args:
        runs: Finished runs.
        surrogates: Names.

    Returns:
        Some of the runs.
    """
    wanted = set(surrogates)
    found: dict[tuple[str, int], set[str]] = {}
    for run in runs:
        found.setdefault((run.problem, run.seed), set()).add(run.surrogate)
    return [run for run in runs if wanted <= found[run.problem, run.seed]]


def _frame(runs: Sequence[Run]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "problem": [run.problem for run in runs],
            "num_dims": [known_problem(run.problem).num_dims for run in runs],
            "surrogate": [run.surrogate for run in runs],
            "seed": [run.seed for run in runs],
            "score": [float(run.scores[-1]) for run in runs],
            "seconds": [
                (run.fit_seconds + run.acquisition_seconds) / run.num_steps for run in runs
            ],
            "failures": [len(run.failures) for run in runs],
        }
    )


def final_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Final results by problem and surrogate.

    Args:
        runs: Runs that `complete` returned.

    Returns:
        A row for each problem; for each surrogate its "mean", and under "sem" the standard error,
        of the decimal logarithm of the final regret where the best value is known, otherwise of the
        final value or hypervolume.
    """
    frame = _frame(runs)
    known = frame["problem"].map(lambda name: known_problem(name).best is not None)
    frame["final"] = frame["score"].where(~known, -frame["score"])
    groups = frame.groupby(["problem", "surrogate"], sort=False)["final"]
    return groups.agg(["mean", "sem"]).unstack("surrogate")[["mean", "sem"]]


def rank_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Ranks of the surrogates, and what a step costs.

    Ranks are among the surrogates on one problem with one seed, 1 the best, ties sharing their mean
    rank; they are averaged over the seeds of a problem, then over problems.

    Args:
        runs: Runs that `complete` returned.

    Returns:
        A row for each surrogate with its mean ranks "all", "d < 10" and "d >= 10" (NaN where there
        is no such problem), the mean "seconds" of a step and the number of "failures".
    """
    frame = _frame(runs)
    frame["rank"] = frame.groupby(["problem", "seed"])["score"].rank(ascending=False)
    by_problem = frame.groupby(["surrogate", "num_dims", "problem"], sort=False)["rank"].mean()
    ranks = by_problem.reset_index(["num_dims", "problem"])
    parts = {
        "all": ranks,
        "d < 10": ranks[ranks["num_dims"] < 10],
        "d >= 10": ranks[ranks["num_dims"] >= 10],
    }
    surrogates = frame.groupby("surrogate", sort=False)
    return pd.DataFrame(
        {
            **{name: part.groupby("surrogate")["rank"].mean() for name, part in parts.items()},
            "seconds": surrogates["seconds"].mean(),
            "failures": surrogates["failures"].sum(),
        }
    ).reindex(frame["surrogate"].unique())


def tables(runs: Sequence[Run], surrogates: Iterable[str]) -> Iterator[Table | str]:
    """The tables and notes that the command prints.

    Args:
        runs: Finished runs.
        surrogates: Names of those that are compared.

    Yields:
        The final results, the mean ranks, and notes.
    """
    compared = complete(runs, surrogates)
    if compared:
        yield _final_cells(final_table(compared))
        ranks = rank_table(compared).rename(columns={"d >= 10": "d ≥ 10", "seconds": "s a step"})
        ranks = ranks.rename(columns={"failures": "failed steps"}).rename_axis("surrogate")
        form = {"s a step": ".2g", "failed steps": ".0f"}
        form |= dict.fromkeys(("all", "d < 10", "d ≥ 10"), ".2f")
        yield Table.of("Mean rank over problems, 1 the best", ranks, form, "ranks")
        counts: dict[str, set[int]] = {}
        for run in compared:
            counts.setdefault(run.problem, set()).add(run.seed)
        numbers = sorted({len(seeds) for seeds in counts.values()})
        between = " to ".join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))
        seeds = f"{between} seeds of each problem"
        yield "One seed." if numbers == [1] else f"Mean ± standard error over {seeds}, paired."
    if len(compared) < len(runs):
        yield (
            f"{len(runs) - len(compared)} runs are left out until all surrogates have finished "
            "that problem and seed."
        )


def _final_cells(results: pd.DataFrame) -> Table:
    """A row for each problem, the best surrogate in bold."""
    names = list(results["mean"])
    rows = []
    for problem, row in results.iterrows():
        value = known_problem(str(problem)).best is None
        winner = row["mean"].idxmax() if value else row["mean"].idxmin()
        cells = {
            name: plus_minus(row["mean", name], row["sem", name], ".3g", ".2g") for name in names
        }
        cells[winner] = f"**{cells[winner]}**"
        rows.append([f"{problem}{' +' * value}", *cells.values()])
    title = "log10 of the final regret; + where it is a value: larger is better"
    return Table(title, ["problem", *names], rows, "final")


def draw(runs: Sequence[Run]) -> Figure | None:
    """The figure: regret, best value or hypervolume against evaluations, a panel for each problem.

    Args:
        runs: Runs that `complete` returned.

    Returns:
        The figure; None without runs.
    """
    from scipy.stats import t

    from gp_deq.plotting import Band

    if not runs:
        return None
    panels = []
    for name in dict.fromkeys(run.problem for run in runs):
        problem, bands = known_problem(name), []
        regret = problem.best is not None
        for surrogate in dict.fromkeys(run.surrogate for run in runs):
            group = [run for run in runs if (run.problem, run.surrogate) == (name, surrogate)]
            first = group[0].num_initial
            scores = np.stack([run.scores for run in group])[:, first - 1 :]
            mean, half = scores.mean(0), np.zeros(scores.shape[1])
            if len(group) > 1:
                half = t.ppf(0.975, len(group) - 1) * scores.std(0, ddof=1) / len(group) ** 0.5
            curves = np.stack([mean, mean - half, mean + half])
            curves = 10.0**-curves if regret else curves
            evaluations = range(first, first + scores.shape[1])
            bands.append(Band(surrogate, list(evaluations), *curves.tolist()))
        label = "best value" if problem.num_outputs == 1 else "hypervolume"
        seeds = f"{len(group)} seed{'s' * (len(group) > 1)}"
        label = "simple regret" if regret else label
        panels.append(Panel(f"{name}, {seeds}", label, bands, log=regret))
    return panels_figure(panels, "evaluations", "Bayesian optimisation: mean and 95 % interval")


class Panel(NamedTuple):
    """One of several plots with lines of the same names.

    Args:
        title: Above it.
        label: Label of its ordinates.
        bands: Its lines.
        log: Whether the ordinates are on a log axis.
    """

    title: str
    label: str
    bands: Sequence[Band]
    log: bool = False


def _draw_last_interval(axes: Axes, band: Band, color: str, place: int) -> None:
    """The interval at the last abscissa, moved to the right by its place."""
    x = band.x[-1] + (0.02 + 0.02 * place) * (band.x[-1] - band.x[0] or 1.0)
    axes.vlines(x, band.low[-1], band.high[-1], color=color, linewidth=1.2)
    axes.scatter(x, band.mean[-1], color=color, s=5)


def panels_figure(panels: Sequence[Panel], abscissa: str, title: str = "") -> Figure:
    """Lines with confidence intervals, several panels under one legend.

    The intervals of more than four lines would hide one another: they are drawn behind the end of
    the lines alone, side by side.

    Args:
        panels: At least one.
        abscissa: Label of the abscissae.
        title: Title of the whole figure.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from gp_deq.plotting import COLORS, style

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(4.0 * columns, 6.4), 3.1 * rows + 0.9), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    labels = list(dict.fromkeys(band.label for panel in panels for band in panel.bands))
    handles = {}
    for k, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, k + 1)
        for band in panel.bands:
            i = labels.index(band.label)
            color = COLORS[i % len(COLORS)]
            if len(labels) > 4:
                _draw_last_interval(axes, band, color, i)
            else:
                axes.fill_between(band.x, band.low, band.high, color=color, alpha=0.1, linewidth=0)
            (handles[band.label],) = axes.plot(
                band.x,
                band.mean,
                color=color,
                linewidth=1.6,
                linestyle="-" if i < len(COLORS) else "--",
            )
        if panel.log:
            axes.set_yscale("log")
        # of the lines alone: the intervals of two or three repetitions dwarf them
        transform = axes.transScale.inverted().transform
        ends = axes.transScale.transform(
            [(band.x[0], end(band.mean)) for band in panel.bands for end in (min, max)]
        )[:, 1]
        margin = 0.12 * (ends.max() - ends.min()) or 1.0
        axes.set_ylim(*transform([(0.0, ends.min() - margin), (0.0, ends.max() + margin)])[:, 1])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel(abscissa, fontsize=9)
        axes.set_ylabel(panel.label, fontsize=9)
        axes.tick_params(which="both", labelsize=8)
        style(axes)
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=min(5, len(labels)),
        fontsize=9,
        frameon=False,
    )
    return figure
