"""Tables, tests and the figure of the regression benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from gp_deq.benchmarks.experiment import Table
from gp_deq.benchmarks.ranks import Ranking, complete, frame, paired_tests, rank, score_table

try:
    import pandas as pd
except ImportError as error:
    raise ImportError('the tables need pandas: pip install "gp_deq[cli]"') from error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gp_deq.benchmarks.regression import Result

__all__ = ["draw", "tables"]

#: Scores by column: title, format, and whether they are ranked.
_SCORES = {
    "rmse": ("RMSE", ".3g", True),
    "nlpd": ("NLPD", ".3f", True),
    "coverage": ("inside 95 % intervals", ".3f", False),
    "seconds": ("seconds", ".3g", False),
}
#: The claim of the DEKer paper: a kernel, and those that it is to beat.
_CLAIM = "DEKer relu", ("NNGP", "NTK", "NNGP, depth 3", "NTK, depth 3")
#: Below it no Wilcoxon test can find anything after Holm's correction.
_FEWEST_SPLITS = 10


def tables(results: Sequence[Result]) -> Iterator[Table | str]:
    """Tables and tests of those splits that all kernels have finished.

    Args:
        results: Finished runs of one protocol.

    Yields:
        A table for each score, a row for each kernel, and one of mean ranks; then what the tests
        say.
    """
    if not results:
        return
    whole = complete(frame(results))
    if whole.empty:
        yield "No split has been finished by all kernels."
        return
    protocol, rankings = results[0].protocol, _rankings(whole)

    def table(title: str, cells: pd.DataFrame) -> Table:
        return Table.of(title, cells, name=f"{protocol}-{title.split()[0].lower()}")

    for score, (title, _, _) in _SCORES.items():
        yield table(title, _cells(whole, score))
    ranks = {title: ranking.ranks for title, ranking in rankings.items()}
    yield table("mean rank", pd.DataFrame(ranks).map("{:.2f}".format))
    yield from _notes(whole, rankings, _num_splits(whole))


def draw(results: Sequence[Result]) -> Figure | None:
    """Mean ranks with bars of half the critical difference: kernels whose bars overlap are alike.

    Args:
        results: Finished runs of one protocol.

    Returns:
        The figure, a panel for each score; None if no split has been finished by all kernels.
    """
    if not results or (whole := complete(frame(results))).empty:
        return None
    from matplotlib.figure import Figure

    from gp_deq.plotting import palette, style

    rankings = _rankings(whole)
    kernels = sorted(set(whole["kernel"]))
    size = (4.6 * len(rankings), 0.3 * len(kernels) + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    num_blocks = whole["dataset"].nunique()
    splits = _splits(_num_splits(whole))
    title = f"{results[0].protocol}: {num_blocks} data sets, {splits} of each"
    figure.suptitle(title, fontsize=11)
    colors = palette(kernels)
    panels = figure.subplots(1, len(rankings), squeeze=False)[0]
    for axes, (score, ranking) in zip(panels, rankings.items(), strict=True):
        half = ranking.critical_difference / 2
        for i, (name, mean) in enumerate(ranking.ranks.items()):
            axes.errorbar(mean, i, xerr=half, fmt="o", color=colors[name], capsize=3)
        best = min(ranking.ranks.values())
        axes.axvspan(best - half, best + half, color="0.92", zorder=0)
        axes.set_yticks(range(len(kernels)), list(ranking.ranks))
        axes.invert_yaxis()
        axes.set_title(score, fontsize=10)
        axes.set_xlabel("mean rank (1 is best) ± half the critical difference", fontsize=8)
        axes.tick_params(labelsize=8)
        style(axes)
    return figure


def _rankings(whole: pd.DataFrame) -> dict[str, Ranking]:
    return {title: rank(whole, score) for score, (title, _, ranked) in _SCORES.items() if ranked}


def _num_splits(whole: pd.DataFrame) -> int:
    """Number of splits of the data set with the fewest."""
    return int(whole.groupby("dataset")["seed"].nunique().min())


def _cells(results: pd.DataFrame, score: str) -> pd.DataFrame:
    table, form = score_table(results, score), _SCORES[score][1]
    cells = pd.DataFrame(index=table.index)
    for dataset in table["mean"]:
        mean, sem = table["mean", dataset], table["sem", dataset]
        errors = sem.map(lambda error: f" ± {error:.2g}" if error == error else "")
        cells[dataset] = mean.map(lambda m: f"{m:{form}}" if m == m else "failed") + errors
        if _SCORES[score][2] and bool(mean.notna().any()):
            cells.loc[mean.idxmin(), dataset] += " *"
    return cells


def _splits(number: int) -> str:
    return "1 split" if number == 1 else f"{number} splits"


def _notes(results: pd.DataFrame, rankings: Mapping[str, Ranking], num_splits: int) -> list[str]:
    notes = [f"Mean ± standard error over {_splits(num_splits)} or more; * the best of a data set."]
    if {"energy-heating", "energy-cooling"} <= set(results["dataset"]):
        notes.append(
            "energy-heating and energy-cooling have the same inputs: they are not quite two data "
            "sets."
        )
    for title, ranking in rankings.items():
        if ranking.friedman == ranking.friedman:
            notes.append(
                f"{title}: Friedman p = {ranking.friedman:.2g} over {ranking.num_blocks} data "
                f"sets; ranks that differ by less than {ranking.critical_difference:.2f} are not "
                "told apart (Nemenyi, 5 %)."
            )
    failed = results[results["failures"] > 0].groupby("kernel")["failures"].agg(["size", "sum"])
    for kernel, row in failed.iterrows():
        notes.append(f"{kernel}: {row['sum']} numerical failures in {row['size']} runs.")
    method, rivals = _CLAIM
    others = [name for name in rivals if name in set(results["kernel"])]
    if method not in set(results["kernel"]) or not others or num_splits < _FEWEST_SPLITS:
        return notes
    tests = paired_tests(results, "rmse", method, others)
    for row in tests.itertuples():
        notes.append(
            f"{method} against {row.other} on {row.dataset}: RMSE less on {row.wins:.0%} of the "
            f"splits, median difference {row.difference:+.1%}, p = {row.p:.2g} (Wilcoxon, Holm)."
        )
    return notes
