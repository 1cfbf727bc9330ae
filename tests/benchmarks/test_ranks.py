"""Ranks and tests against published figures and SciPy."""

import math
from collections import Counter

import pytest

pd = pytest.importorskip("pandas")

from scipy import stats  # noqa: E402

from gp_deq.benchmarks.ranks import complete, paired_tests, rank, score_table  # noqa: E402

#: AUC of four decision trees on 14 data sets, Demsar (2006), table 6.
DEMSAR = [
    (0.763, 0.768, 0.771, 0.798),
    (0.599, 0.591, 0.590, 0.569),
    (0.954, 0.971, 0.968, 0.967),
    (0.628, 0.661, 0.654, 0.657),
    (0.882, 0.888, 0.886, 0.898),
    (0.936, 0.931, 0.916, 0.931),
    (0.661, 0.668, 0.609, 0.685),
    (0.583, 0.583, 0.563, 0.625),
    (0.775, 0.838, 0.866, 0.875),
    (1.000, 1.000, 1.000, 1.000),
    (0.940, 0.962, 0.965, 0.962),
    (0.619, 0.666, 0.614, 0.669),
    (0.972, 0.981, 0.9751, 0.975),
    (0.957, 0.978, 0.946, 0.970),
]
TREES = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")


def demsar() -> "pd.DataFrame":
    rows = [
        {"dataset": f"set {i}", "seed": 0, "kernel": tree, "error": 1 - value}
        for i, values in enumerate(DEMSAR)
        for tree, value in zip(TREES, values)
    ]
    return pd.DataFrame(rows)


def test_published_example() -> None:
    """Mean ranks, Friedman's statistic and the critical difference of the paper."""
    found = rank(demsar(), "error")
    assert found.num_blocks == 14
    published = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    assert found.ranks == pytest.approx(published, abs=5e-4)
    assert list(found.ranks) == sorted(published, key=published.__getitem__)
    # the paper has 9.28, without the correction for ties, which can only raise it
    statistic = stats.chi2.isf(found.friedman, 3)
    ties = sum(sum(v**3 - v for v in Counter(row).values()) for row in DEMSAR)
    assert statistic * (1 - ties / (14 * (4**3 - 4))) == pytest.approx(9.28, abs=0.01)
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), rel=1e-3)


def test_seeds_are_averaged_before_the_test() -> None:
    """Ten copies of every split prove no more than one."""
    once = demsar()
    often = pd.concat([once.assign(seed=seed) for seed in range(10)])
    assert rank(often, "error") == rank(once, "error")


def test_failed_runs_rank_last_and_unfinished_splits_are_left_out() -> None:
    table = pd.concat([demsar(), demsar().assign(seed=1)], ignore_index=True)
    best = (table.dataset == "set 0") & (table.kernel == "C4.5+m+cf")
    table.loc[best & (table.seed == 1), "error"] = math.nan
    # from first to fourth of 14 data sets, though the other split has a score
    assert rank(table, "error").ranks["C4.5+m+cf"] == pytest.approx(1.964 + 3 / 14, abs=5e-4)
    assert math.isnan(score_table(table, "error")["mean", "set 0"]["C4.5+m+cf"])
    table = demsar()
    part = table[~((table.dataset == "set 3") & (table.kernel == "C4.5+m"))]
    assert set(complete(part).dataset) == {f"set {i}" for i in range(14)} - {"set 3"}


def test_data_sets_of_different_numbers_of_splits() -> None:
    rows = [
        ("A", seed, kernel, error) for seed in range(3) for kernel, error in zip("abc", (1, 2, 3))
    ]
    rows += [("B", 0, kernel, error) for kernel, error in zip("abc", (1, 2, 3))]
    table = pd.DataFrame(rows, columns=["dataset", "seed", "kernel", "error"])
    assert rank(table, "error").ranks == {"a": 1, "b": 2, "c": 3}


def test_table_and_paired_tests() -> None:
    generator = __import__("numpy").random.default_rng(0)
    rows = []
    for dataset, shift in (("near", 0.0), ("far", 0.5)):
        for seed in range(12):
            base = generator.uniform(1, 2)
            for kernel, better in (("a", shift), ("b", 0.0)):
                noise = generator.normal(0, 0.05)
                rows.append((dataset, seed, kernel, base - better + noise))
    table = pd.DataFrame(rows, columns=["dataset", "seed", "kernel", "error"])
    scores = score_table(table, "error")
    group = table[(table.dataset == "far") & (table.kernel == "a")].error
    assert scores["mean", "far"]["a"] == pytest.approx(group.mean())
    assert scores["sem", "far"]["a"] == pytest.approx(group.std() / math.sqrt(12))
    tests = paired_tests(table, "error", "a", ["b"]).set_index("dataset")
    assert tests.wins["far"] == 1 and tests.difference["far"] < -0.2
    # Holm: the smaller of two p-values twice, the larger at least as large
    assert tests.p["far"] == pytest.approx(2 * 0.5**12 * 2)
    assert tests.p["near"] > 0.05
