"""How priors were chosen: the comparisons run, and summaries count what they say."""

import pytest

pytest.importorskip("botorch")
pytest.importorskip("joblib")
pd = pytest.importorskip("pandas")

import bo_priors_optimize  # noqa: E402
from bo_priors import CANDIDATES, EXPERIMENT, Comparison, summarize  # noqa: E402

from gp_deq.bayesopt.covar_modules import KERNELS  # noqa: E402
from gp_deq.benchmarks.problems import TRAINING  # noqa: E402


def test_densities() -> None:
    assert {kernel for kernel, *_ in filter(None, CANDIDATES.values())} == set(KERNELS)
    config = Comparison(("RBF", "deq-nngp relu"), tuple(TRAINING)[:1], (10,), seeds=2)
    fits = pd.DataFrame(map(vars, EXPERIMENT.collect(config)))
    assert fits.shape[0] == 4 and bool(fits.nlpd.notna().all())
    fits.loc[fits.model == "RBF", ["nlpd", "r2"]] = [5.0, 0.0]
    fits.loc[fits.model != "RBF", ["nlpd", "r2"]] = [1.0, 0.6]
    assert (fits.evaluations > 5).all()
    table = summarize(fits)
    assert list(table.index) == ["deq-nngp relu", "RBF"]
    assert table["rank"].tolist() == [1.0, 2.0]
    assert table["collapsed"].tolist() == [0.0, 1.0]
    assert table["excess"].tolist() == [-2.0, 2.0]


def test_optimisation() -> None:
    config = bo_priors_optimize.Optimization(("RBF", "deq-nngp relu"), ("SixHumpCamel 2",), 1, 1)
    rows = bo_priors_optimize.EXPERIMENT.collect(config)
    assert [row.key for row in rows] == config.keys
    (table,) = bo_priors_optimize._tables(config, rows)
    assert sorted(row[0] for row in table.rows) == ["RBF", "deq-nngp relu"]
    assert sum(float(row[1]) for row in table.rows) == 3  # ranks 1 and 2, or 1.5 twice


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="no model 'GP'"):
        Comparison(models=("GP",))
    with pytest.raises(ValueError, match="several outputs"):
        Comparison(problems=("BraninCurrin 2",))
