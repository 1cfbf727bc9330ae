"""Ranks, final results and the figure, on a few runs."""

import math
from typing import Any

import pytest

pytest.importorskip("botorch")
pytest.importorskip("joblib")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")

from gp_deq.benchmarks.bo import SURROGATES, Run
from gp_deq.benchmarks.bo_results import complete, draw, final_table, rank_table, tables


def _run(problem: str, surrogate: str, seed: int, final: float, **options: Any) -> Run:
    trace = (final - 1.0, final - 1.0, final)
    values = {"fit_seconds": 2.0, "acquisition_seconds": 1.0, "failures": (), "trace": trace}
    return Run(problem, surrogate, seed, 2, 1, 1, 1, **(values | options))


def test_ranks_on_a_small_table() -> None:
    finals = {
        ("Branin 2", 0): (-1.0, -2.0, -3.0),  # ranks 1, 2, 3
        ("Branin 2", 1): (-2.0, -1.0, -3.0),  # 2, 1, 3
        ("Levy 10", 0): (-3.0, -2.0, -2.0),  # 3, 1.5, 1.5
        ("Levy 10", 1): (-3.0, -2.0, -1.0),  # 3, 2, 1
        ("Hartmann 6", 0): (3.32237, 3.3223699, 0.0),  # 1.5, 1.5, 3: both below the floor
    }
    names = ("DEQ-NNGP", "linear", "random")
    runs = [
        _run(problem, name, seed, value, failures=("fit:NanError",) * (name == "linear"))
        for (problem, seed), values in finals.items()
        for name, value in zip(names, values)
    ]
    table = rank_table(runs)
    assert list(table.index) == list(names)
    assert table["d >= 10"].tolist() == pytest.approx([3.0, 1.75, 1.25])
    assert table["d < 10"].tolist() == pytest.approx([1.5, 1.5, 3.0])
    assert table["all"].tolist() == pytest.approx([2.0, (1.5 + 1.75 + 1.5) / 3, 7.25 / 3])
    assert table["seconds"].tolist() == pytest.approx([1.5] * 3)
    assert table["failures"].tolist() == [0, 5, 0]

    results = final_table(runs)
    assert list(results.index) == ["Branin 2", "Levy 10", "Hartmann 6"]
    regrets = [math.log10(-0.397887 + value) for value in (1.0, 2.0)]
    assert results.loc["Branin 2", ("mean", "DEQ-NNGP")] == pytest.approx(sum(regrets) / 2)
    assert results.loc["Hartmann 6", ("mean", "linear")] == pytest.approx(-6.0)
    assert math.isnan(results.loc["Hartmann 6", ("sem", "linear")])
    values = final_table([_run("BraninCurrin 2", "linear", seed, 5.0) for seed in range(2)])
    assert values.loc["BraninCurrin 2"].tolist() == [5.0, 0.0]


def test_only_what_all_have_finished_is_compared() -> None:
    runs = [_run("Levy 10", name, 0, -1.0) for name in ("linear", "random")]
    runs.append(_run("Levy 10", "linear", 1, -1.0))
    assert complete(runs, ("linear", "random")) == runs[:2]
    assert complete(runs, ("linear",)) == runs
    assert complete(runs, ("linear", "DEKer")) == []


def test_figure() -> None:
    runs = [
        _run(problem, name, seed, value - seed)
        for problem, value in (("Levy 10", -1.0), ("tanh network 20", 2.0), ("DTLZ2 6", 1.0))
        for name in SURROGATES
        for seed in range(2)
    ]
    figure = draw(runs)
    titles = ["Levy 10, 2 seeds", "tanh network 20, 2 seeds", "DTLZ2 6, 2 seeds"]
    assert [axes.get_title() for axes in figure.axes] == titles
    labels = ["simple regret", "best value", "hypervolume"]
    assert [axes.get_ylabel() for axes in figure.axes] == labels
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]
    line = figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2, 3]
    assert line.get_ydata() == pytest.approx([6**0.5, 6**0.5, 2**0.5])
    assert len(figure.legends[0].get_texts()) == len(SURROGATES)
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == len(SURROGATES)


def test_tables_mark_the_best_and_say_what_is_left_out() -> None:
    runs = [
        _run(problem, name, seed, value + seed)
        for problem in ("Levy 10", "DTLZ2 6")
        for name, value in (("linear", -3.0), ("random", -9.0))
        for seed in range(2)
    ]
    final, ranks, *notes = tables([*runs, _run("Levy 10", "linear", 2, 0.0)], ("linear", "random"))
    assert [row[0] for row in final.rows] == ["Levy 10", "DTLZ2 6 +"]
    for row in final.rows:  # smaller regrets and larger hypervolumes
        assert row[1].startswith("**") and row[1].endswith("**") and "±" in row[1]
        assert not row[2].startswith("**")
    assert [row[:2] for row in ranks.rows] == [["linear", "1.00"], ["random", "2.00"]]
    assert notes[0] == "Mean ± standard error over 2 seeds of each problem, paired."
    assert notes[1].startswith("1 runs are left out")
    assert list(tables([], ("linear",))) == [] and draw([]) is None
