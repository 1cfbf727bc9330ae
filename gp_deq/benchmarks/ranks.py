"""Tables of scores, and what they prove: mean ranks, Friedman's, Nemenyi's and Wilcoxon's tests.

The blocks of the tests are data sets (Demsar 2006, "Statistical comparisons of classifiers over
multiple data sets"): splits of one data set overlap, so scores are averaged over them first. A
kernel that failed on a split has no score on that data set, and ranks last there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy import stats

try:
    import pandas as pd
except ImportError as error:
    raise ImportError('the tables need pandas: pip install "gp_deq[cli]"') from error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gp_deq.benchmarks.regression import Result

__all__ = ["Ranking", "complete", "frame", "paired_tests", "rank", "score_table"]


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of several methods, 1 the best, and what they prove.

    Args:
        ranks: By method, best first.
        num_blocks: Number of data sets.
        friedman: p-value of the hypothesis that all methods are alike; NaN for fewer than three
            methods or two data sets.
        critical_difference: Two methods whose mean ranks differ by more are told apart by
            Nemenyi's test at the level of 5 %.
    """

    ranks: Mapping[str, float]
    num_blocks: int
    friedman: float
    critical_difference: float


def frame(results: Sequence[Result]) -> pd.DataFrame:
    """The results as a table, one row for each.

    Args:
        results: Finished runs.
    """
    return pd.DataFrame(
        [dict(zip(result.columns(), vars(result).values(), strict=True)) for result in results]
    )


def complete(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of those splits that all kernels have finished.

    Args:
        results: The table of `frame`.
    """
    counts = results.groupby(["dataset", "seed"])["kernel"].transform("nunique")
    return results[counts == results["kernel"].nunique()]


def score_table(results: pd.DataFrame, score: str) -> pd.DataFrame:
    """Mean and standard error over splits.

    Args:
        results: The table of `complete`.
        score: Name of a column.

    Returns:
        A row for each kernel; under "mean" and "sem" a column for each data set.
    """
    groups = results.groupby(["kernel", "dataset"], sort=False)[score]
    mean = groups.apply(lambda values: values.mean(skipna=False))
    sem = groups.apply(lambda values: values.sem(skipna=False))
    return pd.DataFrame({"mean": mean, "sem": sem}).unstack("dataset")


def rank(results: pd.DataFrame, score: str) -> Ranking:
    """Rank the kernels by their mean scores on each data set, and average over data sets.

    Args:
        results: The table of `complete`.
        score: Name of a column of which less is better.

    Returns:
        The ranks and the tests.
    """
    means = score_table(results, score)["mean"].T
    blocks = means.rank(axis=1, na_option="bottom")
    num_blocks, num_methods = blocks.shape
    friedman = math.nan
    if num_methods > 2 and num_blocks > 1:
        friedman = float(stats.friedmanchisquare(*(blocks[name] for name in blocks)).pvalue)
    quantile = stats.studentized_range.ppf(0.95, num_methods, math.inf) / math.sqrt(2)
    difference = quantile * math.sqrt(num_methods * (num_methods + 1) / (6 * num_blocks))
    ranks = blocks.mean().sort_values()
    return Ranking(
        {name: float(value) for name, value in ranks.items()},
        num_blocks,
        friedman,
        float(difference),
    )


def paired_tests(
    results: pd.DataFrame, score: str, method: str, others: Sequence[str]
) -> pd.DataFrame:
    """One method against others, on each data set over its splits.

    A failure is a loss. The p-values are those of Wilcoxon's signed-rank test, two-sided, after
    Holm's correction for all rows. Splits of one data set share most of their rows, which makes
    p-values too small: a large one shows that there is no evidence, a small one not that there is.

    Args:
        results: The table of `complete`.
        score: Name of a column of which less is better.
        method: A kernel.
        others: Kernels.

    Returns:
        A row for each of the others and data set: the share of splits on which ``method`` is
        better ("wins"), the median of the relative difference ("difference", negative where it is
        better), and "p".
    """
    rows = []
    for dataset, group in results.groupby("dataset", sort=False):
        scores = group.pivot(index="seed", columns="kernel", values=score)
        scores = scores.fillna(10 * scores.abs().max().max())
        for other in others:
            change = scores[method] - scores[other]
            p = stats.wilcoxon(change).pvalue if bool((change != 0).any()) else 1.0
            rows.append(
                {
                    "other": other,
                    "dataset": dataset,
                    "wins": float((change < 0).mean()),
                    "difference": float((change / scores[other].abs()).median()),
                    "p": float(p),
                }
            )
    table = pd.DataFrame(rows)
    order = table["p"].sort_values().index
    factors = pd.Series(range(len(table), 0, -1), index=order)
    table["p"] = (table["p"] * factors).loc[order].cummax().clip(upper=1.0)
    return table
