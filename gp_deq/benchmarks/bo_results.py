"""Tables and figure of the benchmark of Bayesian optimisation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from gp_deq.benchmarks.experiment import Table, plus_minus
from gp_deq.benchmarks.problems import known_problem

try:
    import pandas as pd
except ImportError as error:
    raise ImportError('the tables need pandas: pip install "gp_deq[cli]"') from error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gp_deq.benchmarks.bo import Run

__all__ = ["complete", "draw", "final_table", "rank_table", "tables"]


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

    Lines are means over seeds. The 95 % intervals of more than four lines would hide one another:
    they are drawn behind the end of the lines alone, side by side.

    Args:
        runs: Runs that `complete` returned.

    Returns:
        The figure; None without runs.
    """
    if not runs:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from gp_deq.plotting import COLORS, style

    problems, surrogates = (
        list(dict.fromkeys(getattr(run, name) for run in runs)) for name in ("problem", "surrogate")
    )
    columns = min(4, len(problems))
    rows = -(-len(problems) // columns)
    figure = Figure(figsize=(max(4.0 * columns, 6.4), 3.1 * rows + 0.9), layout="constrained")
    figure.suptitle("Bayesian optimisation: mean and 95 % interval", fontsize=11)
    handles = {}
    for k, name in enumerate(problems):
        axes = figure.add_subplot(rows, columns, k + 1)
        problem, means = known_problem(name), []
        seeds = {run.seed for run in runs if run.problem == name}
        for i, surrogate in enumerate(surrogates):
            group = [run for run in runs if (run.problem, run.surrogate) == (name, surrogate)]
            x, mean, low, high = _curves(group, regret=problem.best is not None)
            means.append(mean)
            color = COLORS[i % len(COLORS)]
            if len(surrogates) > 4:
                end = x[-1] + (0.02 + 0.02 * i) * (x[-1] - x[0] or 1.0)
                axes.vlines(end, low[-1], high[-1], color=color, linewidth=1.2)
                axes.scatter(end, mean[-1], color=color, s=5)
            else:
                axes.fill_between(x, low, high, color=color, alpha=0.1, linewidth=0)
            line = "-" if i < len(COLORS) else "--"
            (handles[surrogate],) = axes.plot(x, mean, color=color, linewidth=1.6, linestyle=line)
        if problem.best is not None:
            axes.set_yscale("log")
        # of the lines alone: the intervals of two or three repetitions dwarf them
        transform = axes.transScale.inverted().transform
        limits = (np.min(means), np.max(means))
        ends = axes.transScale.transform([(x[0], limit) for limit in limits])[:, 1]
        margin = 0.12 * (ends[1] - ends[0]) or 1.0
        axes.set_ylim(*transform([(0.0, ends[0] - margin), (0.0, ends[1] + margin)])[:, 1])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_title(f"{name}, {len(seeds)} seed{'s' * (len(seeds) > 1)}", fontsize=10)
        axes.set_xlabel("evaluations", fontsize=9)
        value = "best value" if problem.num_outputs == 1 else "hypervolume"
        axes.set_ylabel(value if problem.best is None else "simple regret", fontsize=9)
        axes.tick_params(which="both", labelsize=8)
        style(axes)
    figure.legend(
        list(handles.values()),
        surrogates,
        loc="outside lower center",
        ncols=min(5, len(surrogates)),
        fontsize=9,
        frameon=False,
    )
    return figure


def _curves(group: Sequence[Run], regret: bool) -> tuple[range, np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of evaluations, the mean over seeds, and the ends of its 95 % interval."""
    first = group[0].num_initial
    scores = np.stack([run.scores for run in group])[:, first - 1 :]
    mean, half = scores.mean(0), np.zeros(scores.shape[1])
    if len(group) > 1:
        quantile = stats.t.ppf(0.975, len(group) - 1)
        half = quantile * scores.std(0, ddof=1) / len(group) ** 0.5
    curves = np.stack([mean, mean - half, mean + half])
    mean, low, high = 10.0**-curves if regret else curves
    return range(first, first + scores.shape[1]), mean, low, high
