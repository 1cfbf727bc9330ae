"""What the regression benchmark shows: tables, tests and the figure of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gp_deq.benchmarks.ranks import Ranking, complete, frame, paired_tests, rank, score_table

try:
    import pandas as pd
except ImportError as error:
    raise ImportError('the tables need pandas: pip install "gp_deq[cli]"') from error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gp_deq.benchmarks.regression import Result

__all__ = ["Report", "report"]

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


@dataclass(frozen=True)
class Report:
    """Tables and tests.

    Args:
        protocol: Of the runs.
        num_splits: Number of splits of the data set with the fewest.
        tables: By title, cells as text; a row for each kernel, the best of a data set marked.
        rankings: By score.
        notes: What the tests say.
    """

    protocol: str
    num_splits: int
    tables: Mapping[str, pd.DataFrame]
    rankings: Mapping[str, Ranking]
    notes: Sequence[str]

    def draw(self) -> Figure:
        """The figure of mean ranks."""
        from gp_deq.plotting import RankPanel, ranks_figure

        panels = [
            RankPanel(name, ranking.ranks, ranking.critical_difference)
            for name, ranking in self.rankings.items()
        ]
        blocks = next(iter(self.rankings.values())).num_blocks
        return ranks_figure(
            panels, f"{self.protocol}: {blocks} data sets, {_splits(self.num_splits)} of each"
        )

    def write(self, folder: Path) -> None:
        """Each table as Markdown and as LaTeX.

        Args:
            folder: Where to; made if need be.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for title, table in self.tables.items():
            name = f"{self.protocol}-{title.split()[0].lower()}"
            (folder / f"{name}.md").write_text(table.to_markdown() + "\n", encoding="utf-8")
            (folder / f"{name}.tex").write_text(_latex(table), encoding="utf-8")


def report(results: Sequence[Result]) -> Report:
    """Tables and tests of those splits that all kernels have finished.

    Args:
        results: Of `run_regression`, of one protocol.
    """
    if not results:
        return Report("", 0, {}, {}, [])
    whole = complete(frame(results))
    protocol = results[0].protocol
    if whole.empty:
        return Report(protocol, 0, {}, {}, ["No split has been finished by all kernels."])
    rankings = {
        title: rank(whole, score) for score, (title, _, ranked) in _SCORES.items() if ranked
    }
    tables = {title: _cells(whole, score) for score, (title, _, _) in _SCORES.items()}
    tables["mean rank"] = pd.DataFrame(
        {title: ranking.ranks for title, ranking in rankings.items()}
    ).map("{:.2f}".format)
    num_splits = int(whole.groupby("dataset")["seed"].nunique().min())
    return Report(protocol, num_splits, tables, rankings, _notes(whole, rankings, num_splits))


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


def _latex(table: pd.DataFrame) -> str:
    text = table.style.format_index(escape="latex", axis=1).to_latex(hrules=True)
    return text.replace("±", r"$\pm$")


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
