"""Tables: their encoding, models of them, reports, and the two commands."""

import gzip
import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("botorch")
pytest.importorskip("typer")

import pandas as pd
from gpytorch.kernels import MaternKernel, RBFKernel
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_operator.utils.errors import NanError, NotPSDError
from scipy.stats import norm
from sklearn.metrics import r2_score, root_mean_squared_error
from sklearn.preprocessing import OneHotEncoder
from typer.testing import CliRunner, Result

from gp_deq import cli, tables
from gp_deq.datasets import Column, Columns, Table, TableError, load_csv, split_rows
from gp_deq.tables import FitConfig, ModelFileError, ReportError, TableModel, fit_table
from gp_deq.tables import fit as fit_module
from gp_deq.tables.kernels import KERNELS, resolve_activation
from gp_deq.tables.model import Scaling

WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
KINDS = ("farm", "flat", "house")


def _invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.build_app(), [str(item) for item in arguments], env=WIDE)


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def houses() -> pd.DataFrame:
    """60 rows of two numbers and a category."""
    rng = np.random.default_rng(0)
    n = 60
    frame = pd.DataFrame(
        {
            "area": rng.uniform(0, 3, n),
            "age": rng.integers(1, 30, n),
            "kind": rng.choice(KINDS, n),
        }
    )
    level = frame["kind"].map(dict(zip(KINDS, (0.0, 1.0, 2.0))))
    frame["price"] = 100 + np.sin(2 * frame["area"]) + level + 0.1 * rng.normal(size=n)
    return frame


@pytest.fixture(scope="module")
def data(houses: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "houses.csv"
    houses.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def fit(data: Path) -> tables.TableFit:
    table = Table.read(data)
    return fit_table(table, Columns.infer(table, "price"), FitConfig(kernel="rbf", train_only=True))


@pytest.fixture(scope="module")
def report(fit: tables.TableFit, data: Path) -> Path:
    folder = data.parent / "report"
    tables.write_report(fit, folder)
    return folder


# encoding


def test_csv_agrees_with_pandas_and_scikit_learn(houses: pd.DataFrame, data: Path) -> None:
    loaded = load_csv(data, "price")
    assert loaded.feature_names == ("area", "age", "kind=farm", "kind=flat", "kind=house")
    assert loaded.X.dtype == loaded.y.dtype == torch.float64
    assert loaded.target_name == "price" and loaded.name == "houses"
    expected = OneHotEncoder(sparse_output=False).fit_transform(houses[["kind"]])
    np.testing.assert_array_equal(loaded.X[:, 2:].numpy(), expected)
    np.testing.assert_array_equal(loaded.X[:, :2].numpy(), houses[["area", "age"]].to_numpy())
    np.testing.assert_array_equal(loaded.y.numpy(), houses["price"].to_numpy())


texts = st.text("abcxyz éß=,|", min_size=1, max_size=6).map(str.strip).filter(bool)
numbers = st.floats(-1e9, 1e9, allow_subnormal=False)


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(numbers, texts, texts), min_size=2, max_size=12))
def test_encoding_round_trips(rows: list[tuple[float, str, str]]) -> None:
    cells = pd.DataFrame(rows, columns=["number", "one", "two"])
    cells["y"] = range(len(cells))
    cells = cells.astype(str)
    table = Table("table", cells)
    columns = Columns.infer(table, "y")
    again = Columns.from_json(json.loads(json.dumps(columns.to_json())))
    assert again == columns

    encoded = columns.encode(table)
    assert encoded.shape == (len(rows), len(columns.feature_names))
    assert encoded[:, 0].tolist() == [row[0] for row in rows]
    first = 1 + len({row[1] for row in rows})
    for part in (encoded[:, 1:first], encoded[:, first:]):
        assert bool(((part == 0) | (part == 1)).all())
        assert bool((part.sum(1) == 1).all()) and bool((part.sum(0) >= 1).all())
    for row, values in zip(rows, encoded):
        names = [name for name, on in zip(columns.feature_names[1:], values[1:]) if on]
        assert names == [f"one={row[1]}", f"two={row[2]}"]

    # a part of the rows, in other columns' order, without a target and with more columns
    shuffled = cells[["two", "number", "one"]].assign(more="?").iloc[::-1]
    assert torch.equal(again.encode(Table("new", shuffled)), encoded.flip(0))
    assert torch.equal(again.encode(Table("new", cells.iloc[1:])), encoded[1:])


def test_codes_and_identifiers(tmp_path: Path) -> None:
    rows = "".join(f"id{i},{i % 3},{i}\n" for i in range(60))
    path = _write(tmp_path / "t.csv", "id,code,y\n" + rows)
    with pytest.raises(TableError, match=r'column "id" has 60 different texts.*ignore it'):
        load_csv(path, "y")
    dataset = load_csv(path, "y", categorical=["code"], ignore=["id"])
    assert dataset.feature_names == ("code=0", "code=1", "code=2")
    with pytest.raises(TableError, match='no column "postcode", only "id", "code", "y"'):
        load_csv(path, "y", ignore=["postcode"])
    with pytest.raises(TableError, match='the target "y" can be neither'):
        load_csv(path, "y", ignore=["y"])


BAD_TABLES = {
    "empty file": ("", "the file is empty"),
    "no rows": ("a,y\n", "no rows"),
    "no target": ("a,b\n1,2\n", 'no column "y", only "a", "b"'),
    "semicolons": ("a;y\n1;2\n", 'no column "y", only "a;y"; are the cells separated by commas'),
    "no inputs": ("y\n1\n2\n", "no column is left beside"),
    "no name": (",y\n1,2\n", "column 1 has no name"),
    "equal names": ("a,a,y\n1,2,3\n", 'two columns are named "a"'),
    "ragged": ("a,y\n1,2\n1,2,3\n", "cannot be read as a CSV file"),
    "missing": (
        "a,b,y\n1,x,2\n,x,3\n1, ,4\nNA,x,5\n",
        'missing values in column "a", rows 2, 4; column "b", row 3',
    ),
    "missing after a blank": (
        "a,y\nred, 1\n NA,2\nblue,3\n",
        'missing values in column "a", row 2',
    ),
    "missing, quoted": ('a,y\nred,1\n" null ",2\nblue,3\n', 'missing values in column "a", row 2'),
    "equal inputs": (
        "a,a=b,y\nb,1,1\nc,2,2\n",
        'two inputs would be named "a=b", of the columns "a", "a=b"; rename one of them',
    ),
    "equal inputs of categories": (
        "a,a=b,y\nb=c,c,1\nd,e,2\n",
        'two inputs would be named "a=b=c", of the columns "a", "a=b"',
    ),
    "many missing": (
        "a,y\n" + "".join(f"NaN,{i}\n" for i in range(9)),
        'column "a", rows 1, 2, 3, 4, 5 and 4 more',
    ),
    "short row": ("a,y\n1,2\n3\n", 'missing values in column "y", row 2'),
    "missing target": ("a,y\n1,2\n2,\n", 'missing values in column "y", row 2'),
    "constant target": ("a,y\n1,2\n2,2\n", 'the target "y" is 2 in every row'),
    "target of text": ("a,y\n1,low\n2,high\n", 'the target "y" has to be finite numbers'),
    "bad cells": (
        "a,y\n1,1\n2,2\n3,3\n3+,4\n5,5\ninf,6\n",
        'the column "a" has to be finite numbers, but has "3+" in row 4, "inf" in row 6',
    ),
    "decimal commas": ('a,y\n"1,5",1\n"2,5",2\n', '"1,5" in row 1, "2,5" in row 2'),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_refused(name: str, tmp_path: Path) -> None:
    text, message = BAD_TABLES[name]
    path = _write(tmp_path / "bad.csv", text)
    with pytest.raises(TableError) as caught:
        load_csv(path, "y")
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    result = _invoke("fit", path, "--target", "y", "--output", tmp_path / "report")
    _check_one_line(result, message)
    assert [item.name for item in tmp_path.iterdir()] == ["bad.csv"]


def _check_one_line(result: Result, message: str) -> None:
    assert isinstance(result.exception, SystemExit)  # no traceback
    assert result.exit_code == 1
    lines = result.output.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("gp-deq: ") and message in lines[0]


def test_columns_may_be_named_like_missing_values(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", "NA, null,y\n1,2,3\n4,5,6\n")
    assert load_csv(path, "y").feature_names == ("NA", "null")


@pytest.mark.parametrize("ending", ["csv.gz", "csv.bz2", "csv.xz", "csv.zip", "csv.tar"])
def test_damaged_archives_are_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{ending}"
    pd.DataFrame({"a": range(3000), "y": range(3000)}).to_csv(path, index=False)
    assert len(load_csv(path, "y").y) == 3000
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(TableError, match=rf"{re.escape(str(path))}: cannot be read as a CSV file"):
        Table.read(path)


def test_other_archives_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "a,y\n1,2\n")
        archive.writestr("b.csv", "a,y\n1,2\n")
    with pytest.raises(TableError, match=r"two\.zip: cannot be read .*Multiple files"):
        Table.read(tmp_path / "two.zip")
    damaged = bytearray(gzip.compress(b"a,y\n1,2\n" * 99))
    damaged[20] ^= 255
    (tmp_path / "t.csv.gz").write_bytes(damaged)
    with pytest.raises(TableError, match=r"t\.csv\.gz: cannot be read"):
        Table.read(tmp_path / "t.csv.gz")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nowhere\.csv: cannot be read.*No such file"):
        load_csv(tmp_path / "nowhere.csv", "y")
    (tmp_path / "latin.csv").write_bytes("größe,y\n1,2\n".encode("latin-1"))
    with pytest.raises(TableError, match=r"latin\.csv: cannot be read"):
        load_csv(tmp_path / "latin.csv", "y")


def test_missing_pandas_is_named() -> None:
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from gp_deq.datasets import load_csv\n"
        "load_csv('t.csv', 'y')"
    )
    result = _python(code)
    assert 'pip install "gp_deq[cli]"' in result.stderr


def _python(code: str) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=os.environ
    )


# models


def test_scores_agree_with_scipy_and_scikit_learn(fit: tables.TableFit) -> None:
    target = fit.dataset.y[fit.test_rows].numpy()
    mean, std = (value.numpy() for value in fit.prediction)
    assert len(target) == 12
    assert fit.metrics.rmse == pytest.approx(root_mean_squared_error(target, mean))
    assert fit.metrics.r2 == pytest.approx(r2_score(target, mean))
    assert fit.metrics.nlpd == pytest.approx(-norm.logpdf(target, mean, std).mean())
    low, high = norm.interval(0.95, mean, std)
    assert fit.metrics.coverage == pytest.approx(((low <= target) & (target <= high)).mean())
    np.testing.assert_allclose(fit.prediction.lower, low)
    np.testing.assert_allclose(fit.prediction.upper, high)
    train = fit.dataset.y[fit.train_rows].numpy()
    density = norm.logpdf(target, train.mean(), train.std(ddof=1))
    assert fit.baseline.nlpd == pytest.approx(-density.mean())
    assert fit.metrics.r2 > 0.9 > fit.baseline.r2
    assert fit.warnings == []
    assert sum(fit.relevance.values()) == pytest.approx(1)
    assert list(fit.relevance) == ["area", "age", "kind"]


def test_rows_are_split_once(fit: tables.TableFit) -> None:
    assert sorted([*fit.train_rows.tolist(), *fit.test_rows.tolist()]) == list(range(60))
    assert torch.equal(fit.model_rows, fit.train_rows)  # train_only


def test_model_keeps_what_was_learned_and_sees_all_rows(fit: tables.TableFit) -> None:
    rows = torch.cat([fit.train_rows, fit.test_rows])
    model = fit.model.condition_on(fit.dataset.X[rows], fit.dataset.y[rows])
    assert len(model.mll.model.train_targets) == 60
    for name, value in model.mll.named_parameters():
        assert torch.equal(value, fit.model.mll.get_parameter(name))
    held_out = fit.dataset.X[fit.test_rows]
    assert bool((model.predict_inputs(held_out).std < fit.prediction.std).all())


def test_small_tables_and_constant_parts_are_refused() -> None:
    def table(targets: list[int]) -> Table:
        y = pd.Series(targets)
        return Table("t", pd.DataFrame({"x": y.index, "y": y}).astype(str))

    small = table(list(range(9)))
    with pytest.raises(TableError, match="t: 9 rows, 2 of them held out, are too few"):
        fit_table(small, Columns.infer(small, "y"), FitConfig("rbf"))
    skewed = table([1, 1] + [0] * 18)
    seed = next(s for s in range(1000) if {0, 1} <= set(split_rows(20, 0.2, s)[1].tolist()))
    with pytest.raises(TableError, match="is 0 in all of the 16 rows to learn on"):
        fit_table(skewed, Columns.infer(skewed, "y"), FitConfig("rbf", seed=seed))


def test_kernels_and_activations() -> None:
    names = [(kernel, "erf" if kernel == "deq-nngp" else None) for kernel in KERNELS]
    for kernel, activation in names:
        x = torch.randn(4, 3, dtype=torch.float64)
        matrix = tables.make_kernel(kernel, 3, activation).double()(x).to_dense()
        assert torch.linalg.eigvalsh(matrix).min() > -1e-10
    with pytest.raises(ValueError, match="kernel must be 'deq-nngp'"):
        tables.make_kernel("cubic", 3)
    with pytest.raises(ValueError, match="'rbf' has no activation"):
        tables.make_kernel("rbf", 3, "relu")
    with pytest.raises(ValueError, match="comes with its activation"):
        _ = FitConfig("auto", "erf").candidates


def test_larger_tables_are_sampled_with_a_warning(data: Path) -> None:
    table = Table.read(data)
    columns = Columns.infer(table, "price")
    fit = fit_table(table, columns, FitConfig(kernel="rbf", max_rows=30))
    assert len(fit.train_rows) == len(fit.model_rows) == 30 and len(fit.test_rows) == 12
    assert "random 30 of the 48 training rows" in fit.warnings[0]
    assert "random 30 of the 48 training rows" in tables.model_card(fit)


def test_collapse_is_warned_of(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "COLLAPSED_R2", 1.5)
    table = Table.read(data)
    fit = fit_table(table, Columns.infer(table, "price"), FitConfig(kernel="rbf"))
    assert "takes them for noise" in fit.warnings[0]
    assert "**Warning.**" in tables.model_card(fit)


def test_auto_takes_the_largest_validation_density(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # three of the six are enough here; the last cannot be fitted
    kernels = (("matern", None), ("deq-nngp", "relu"), ("rbf", None))
    monkeypatch.setattr(fit_module, "CANDIDATES", kernels)
    learn = fit_module._learn
    seen = []

    def learn_but_rbf(*arguments: object) -> TableModel:
        if arguments[2] == "rbf":
            raise fit_module.ModelFittingError
        seen.append(set(arguments[-1].tolist()))
        return learn(*arguments)

    monkeypatch.setattr(fit_module, "_learn", learn_but_rbf)
    folder = tmp_path / "report"
    result = _invoke("fit", data, "--target", "price", "--kernel", "auto", "--output", folder)
    assert result.exit_code == 0, result.output
    metrics = json.loads((folder / "metrics.json").read_text())
    candidates = metrics["candidates"]
    assert {item["kernel"] for item in candidates} == {"matern", "deq-nngp", "rbf"}
    assert candidates[-1]["kernel"] == "rbf" and candidates[-1]["nlpd"] is None
    assert candidates[0]["nlpd"] <= candidates[1]["nlpd"]
    assert metrics["kernel"] == candidates[0]["kernel"]
    test = set(split_rows(60)[1].tolist())
    assert [len(rows) for rows in seen] == [38, 38, 48] and not any(rows & test for rows in seen)
    card = (folder / "README.md").read_text()
    assert "| `rbf` | the fit failed |" in card and "`deq-nngp relu`" in card
    assert "rbf not fitted" in result.output


@pytest.mark.parametrize("error", [NotPSDError, NanError, torch.linalg.LinAlgError])
def test_numerical_failures_of_candidates_are_reported(
    error: type[Exception], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "CANDIDATES", [(kernel, None) for kernel in ("matern", "rbf")])
    table = Table.read(data)
    columns = Columns.infer(table, "price")
    learn, predict = fit_module._learn, TableModel.predict_inputs

    def learn_but_matern(*arguments: object) -> TableModel:
        if arguments[2] == "matern":
            raise error("no factor")
        return learn(*arguments)

    def fail(*arguments: object) -> TableModel:
        raise error("no factor")

    def predict_nan_by_matern(model: TableModel, X: torch.Tensor) -> tables.Prediction:
        mean, std = predict(model, X)
        return tables.Prediction(mean * math.nan if model.kernel == "matern" else mean, std)

    for name, replacement in (
        ("_learn", learn_but_matern),
        ("TableModel.predict_inputs", predict_nan_by_matern),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"gp_deq.tables.fit.{name}", replacement)
            fit = fit_table(table, columns, FitConfig("auto"))
            assert [(item.kernel, item.fitted) for item in fit.candidates] == [
                ("rbf", True),
                ("matern", False),
            ]
            assert fit.model.kernel == "rbf"
            with pytest.raises(TableError, match=f"{table.name}: .*matern.*another kernel"):
                fit_table(table, columns, FitConfig("matern"))
    monkeypatch.setattr(fit_module, "_learn", fail)
    with pytest.raises(TableError, match="none of the kernels could be fitted"):
        fit_table(table, columns, FitConfig("auto"))


EXTREMES = (1e9, 1e100, 1e160, 1e200, 1e308)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_dims", [1, 3])
def test_rows_do_not_depend_on_each_other(kernel: str, num_dims: int) -> None:
    torch.manual_seed(0)
    X = torch.randn(40, num_dims, dtype=torch.float64)
    columns = Columns("y", tuple(Column(f"x{i}") for i in range(num_dims)))
    scaling = Scaling(X.mean(0), X.std(0), 0.0, 1.0)
    activation = resolve_activation(kernel, None)
    mll = fit_module.make_table_model(kernel, activation, X, X.sin().sum(1))
    model = TableModel(kernel, activation, columns, scaling, mll)
    new = torch.randn(5, num_dims, dtype=torch.float64)
    alone = [model.predict_inputs(row.unsqueeze(0)) for row in new]
    for value in EXTREMES:
        extreme = torch.full((1, num_dims), value, dtype=torch.float64)
        together = model.predict_inputs(torch.cat([new, extreme]))
        for one, many in zip(map(torch.cat, zip(*alone)), together):
            torch.testing.assert_close(many[:5], one, rtol=1e-12, atol=1e-12)
        if kernel in ("rbf", "matern"):  # the prior, which is 0 and 1 with its noise
            assert together.mean[5] == 0
            assert together.std[5].item() == pytest.approx(math.sqrt(1.1))


@pytest.mark.parametrize("kernel", ["rbf", "matern"])
def test_stationary_kernels_agree_with_gpytorch(kernel: str) -> None:
    torch.manual_seed(0)
    x, z = torch.randn(6, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    ours = tables.make_kernel(kernel, 3).double().eval()
    reference = {"rbf": RBFKernel(ard_num_dims=3), "matern": MaternKernel(2.5, ard_num_dims=3)}
    theirs = reference[kernel].double().eval()
    ours.lengthscale = theirs.lengthscale = torch.tensor([0.5, 1.0, 2.0])
    for one, two in ((x, z), (x, x)):
        torch.testing.assert_close(ours(one, two).to_dense(), theirs(one, two).to_dense())
        torch.testing.assert_close(
            ours(x, diag=True), torch.ones(6, dtype=torch.float64), rtol=0, atol=0
        )


def test_predictions_that_are_not_finite_are_refused(
    data: Path, tmp_path: Path, fit: tables.TableFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TableModel(
        "deker",
        "relu",
        fit.model.columns,
        fit.model.scaling,
        fit_module.make_table_model("deker", "relu", fit.dataset.X, fit.dataset.y),
    )
    path = _write(tmp_path / "new.csv", "area,age,kind\n1,2,flat\n1e200,2,flat\n1,1e300,flat\n")
    with pytest.raises(TableError, match=r"new\.csv: .* not finite .* rows 2, 3"):
        model.predict(Table.read(path))

    def fail(*arguments: object) -> None:
        raise NotPSDError("no factor")

    monkeypatch.setattr(TableModel, "predict_inputs", fail)
    with pytest.raises(TableError, match=r"new\.csv: .* cannot predict .*no factor"):
        fit.model.predict(Table.read(path))


# files


def test_saved_model_predicts_the_same_in_a_new_process(
    fit: tables.TableFit, report: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "predictions.csv"
    result = _python(
        f"import sys; from gp_deq.cli import main; sys.argv = ['gp-deq', 'predict', "
        f"{str(report / 'model.pt')!r}, {str(data)!r}, '--output', {str(output)!r}]; main()"
    )
    assert result.returncode == 0, result.stderr
    assert "Ignored columns: price" in result.stdout
    again = pd.read_csv(output).set_index("row")
    assert list(again.columns) == ["mean", "std", "lower", "upper"]
    assert list(again.index) == list(range(1, 61))
    here = fit.model.predict(Table.read(data))
    np.testing.assert_allclose(again["mean"], here.mean, rtol=1e-10)
    np.testing.assert_allclose(again["std"], here.std, rtol=1e-10)
    # the model was fitted with train_only, so it gives the predictions of the report too
    held_out = pd.read_csv(report / "predictions.csv").set_index("row")
    assert list(held_out.index + 0) == sorted((fit.test_rows + 1).tolist())
    expected = again.loc[held_out.index]
    np.testing.assert_allclose(held_out.drop(columns="target"), expected, rtol=1e-10)
    truth = pd.read_csv(data)["price"]
    np.testing.assert_array_equal(held_out["target"], truth.iloc[held_out.index - 1])


@pytest.mark.parametrize(("kernel", "activation"), [("deq-ntk", "erf"), ("deker", "relu")])
def test_every_family_survives_its_file(
    kernel: str, activation: str, fit: tables.TableFit, tmp_path: Path
) -> None:
    X, y, scaling = fit.dataset.X, fit.dataset.y, fit.model.scaling
    mll = fit_module.make_table_model(kernel, activation, X, y)
    model = TableModel(kernel, activation, fit.model.columns, scaling, mll).condition_on(X, y)
    model.save(tmp_path / "model.pt")
    loaded = TableModel.load(tmp_path / "model.pt")
    assert (loaded.kernel, loaded.activation) == (kernel, activation)
    for one, two in zip(model.predict_inputs(X), loaded.predict_inputs(X)):
        assert torch.equal(one, two)


def test_report(fit: tables.TableFit, report: Path) -> None:
    names = {"README.md", "metrics.json", "model.pt", "predictions.csv"}
    assert {item.name for item in report.iterdir()} == names | {"predictions.png", "relevance.png"}
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["rmse"] == fit.metrics.rmse
    assert metrics["baseline"]["r2"] == fit.baseline.r2
    assert metrics["rows"] == {"table": 60, "train": 48, "test": 12, "model": 48}
    card = (report / "README.md").read_text()
    for text in (
        "# Model of price, from houses",
        "`kind` | one of `farm`, `flat`, `house`",
        "`outputscale`",
        "lengthscale of `area`",
        "seed 0",
        "gpytorch",
        "predictions.png",
    ):
        assert text in card
    for name in ("predictions.png", "relevance.png"):
        assert (report / name).read_bytes().startswith(b"\x89PNG")


class _Malicious:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


def test_other_files_are_refused(report: Path, data: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    bad = tmp_path / "model.pt"
    contents = torch.load(report / "model.pt", weights_only=True)

    def check(message: str) -> None:
        with pytest.raises(ModelFileError, match=message) as caught:
            TableModel.load(bad)
        result = _invoke("predict", bad, data, "--output", tmp_path / "out.csv")
        _check_one_line(result, str(caught.value))
        assert str(bad) in str(caught.value)
        assert not trap.exists() and not (tmp_path / "out.csv").exists()

    check("cannot be read .No such file")
    bad.write_bytes(pickle.dumps(_Malicious(trap)))
    check("not a model that gp-deq fit wrote")
    torch.save(contents | {"columns": _Malicious(trap)}, bad)
    check("not a model that gp-deq fit wrote")
    bad.write_text("area,age\n1,2\n")
    check("not a model that gp-deq fit wrote")
    bad.write_bytes(b"")
    check("not a model that gp-deq fit wrote")
    bad.write_bytes((report / "model.pt").read_bytes()[:-100])
    check("not a model that gp-deq fit wrote")
    torch.save({"weight": torch.zeros(2)}, bad)
    check("not a model that gp-deq fit wrote")
    torch.save(contents | {"version": 99, "gp_deq": "9.9"}, bad)
    check(r"version 99 of the format, written by gp_deq 9\.9, but gp_deq .* reads version 1")
    torch.save(contents | {"state": {}}, bad)
    check("damaged")
    torch.save({name: value for name, value in contents.items() if name != "scaling"}, bad)
    check("damaged")

    # what ends like a zip file need not begin like one, and then torch reads pickles of old
    old, archive = io.BytesIO(), io.BytesIO()
    torch.save(contents, old, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("a", "a")
    bad.write_bytes(old.getvalue() + archive.getvalue())
    assert zipfile.is_zipfile(bad)
    check("not a model that gp-deq fit wrote")


def _scaling(**changes: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda contents: {"scaling": contents["scaling"] | changes}


def _columns(**changes: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda contents: {"columns": contents["columns"] | changes}


def _one_column(categories: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return _columns(inputs=[{"name": "a", "categories": categories}])


DAMAGE: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "inputs of one dimension": lambda c: {"train_x": c["train_x"][:, 0]},
    "inputs of float32": lambda c: {k: c[k].float() for k in ("train_x", "train_y")},
    "inputs in a list": lambda c: {"train_x": c["train_x"].tolist()},
    "no rows": lambda c: {k: c[k][:0] for k in ("train_x", "train_y")},
    "sparse inputs": lambda c: {"train_x": c["train_x"].to_sparse()},
    "a gap in the targets": lambda c: {"train_y": c["train_y"].where(c["train_y"] > 0, math.nan)},
    "targets of another length": lambda c: {"train_y": c["train_y"][:-1]},
    "targets of two dimensions": lambda c: {"train_y": c["train_y"].unsqueeze(1)},
    "no scaling": lambda _: {"scaling": None},
    "mean of text": _scaling(y_mean="a"),
    "infinite mean": _scaling(y_mean=math.inf),
    "mean of a large integer": _scaling(y_mean=10**400),
    "deviation of zero": _scaling(y_std=0.0),
    "too few means": _scaling(x_mean=torch.zeros(1, dtype=torch.float64)),
    "deviations of zero": _scaling(x_std=torch.zeros(5, dtype=torch.float64)),
    "no inputs": _columns(inputs=[]),
    "target of numbers": _columns(target=1),
    "names of numbers": _columns(inputs=[{"name": 1, "categories": None}] * 5),
    "fewer inputs": _one_column(None),
    "categories of text": _one_column("abcde"),
    "categories of numbers": _one_column([1, 2, 3, 4, 5]),
    "a gap in the hyperparameters": lambda c: {
        "state": {name: value * math.nan for name, value in c["state"].items()}
    },
    "unknown kernel": lambda _: {"kernel": "cubic"},
    "kernel of a list": lambda _: {"kernel": ["rbf"]},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_models_are_refused(name: str, report: Path, data: Path, tmp_path: Path) -> None:
    contents = torch.load(report / "model.pt", weights_only=True)
    bad = tmp_path / "model.pt"
    torch.save(contents | DAMAGE[name](contents), bad)
    output = tmp_path / "out.csv"
    result = _invoke("predict", bad, data, "--output", output)
    _check_one_line(result, f"{bad}: the model in it is damaged")
    assert not output.exists()


def test_torch_reads_model_files_safely() -> None:
    """Below torch 2.6 a file may run code in spite of weights_only (CVE-2025-32434)."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    (floor,) = (item for item in project["dependencies"] if item.startswith("torch"))
    assert tuple(map(int, floor.removeprefix("torch>=").split("."))) >= (2, 6)


NEW_TABLES = {
    "lacks a column": ("area,kind\n1,flat\n", 'no column "age", only "area", "kind"'),
    "unknown category": (
        "kind,area,age\nflat,1,2\ncastle,1,2\n",
        'column "kind" has the unknown category "castle" in row 2; known are "farm", "flat"',
    ),
    "not a number": ("area,age,kind\n1,old,flat\n", 'the column "age" has to be finite numbers, '),
    "missing": ("area,age,kind\n1,2,flat\n1,,flat\n", 'missing values in column "age", row 2'),
}


@pytest.mark.parametrize("name", NEW_TABLES)
def test_other_tables_are_refused(name: str, report: Path, tmp_path: Path) -> None:
    text, message = NEW_TABLES[name]
    path = _write(tmp_path / "new.csv", text)
    output = tmp_path / "out.csv"
    result = _invoke("predict", report / "model.pt", path, "--output", output)
    _check_one_line(result, message)
    assert str(path) in result.output and not output.exists()


def test_predict_does_not_overwrite_its_input(report: Path, data: Path) -> None:
    before = data.read_bytes()
    result = _invoke("predict", report / "model.pt", data, "--output", data)
    assert result.exit_code == 2 and data.read_bytes() == before


def test_folders_that_are_taken(fit: tables.TableFit, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="does not exist"):
        tables.write_report(fit, tmp_path / "no" / "report")
    folder = tmp_path / "report"
    folder.mkdir()
    tables.write_report(fit, folder)  # an empty folder will do
    first = (folder / "README.md").stat().st_ino
    with pytest.raises(ReportError, match="has a report already; --force"):
        tables.write_report(fit, folder)
    tables.write_report(fit, folder, force=True)
    assert (folder / "README.md").stat().st_ino != first
    mine = tmp_path / "mine"
    mine.mkdir()
    _write(mine / "notes.txt", "mine")
    with pytest.raises(ReportError, match="is not a report"):
        tables.write_report(fit, mine, force=True)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mine", "report"]
    _write(folder / "new-predictions.csv", "mine")
    for force in (False, True):
        with pytest.raises(ReportError, match=r"has other files .*new-predictions\.csv"):
            tables.write_report(fit, folder, force=force)
    assert (folder / "new-predictions.csv").read_text() == "mine"


def test_predictions_that_the_card_suggests_do_not_hinder_a_new_report(
    fit: tables.TableFit, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "report"
    tables.write_report(fit, folder)
    _write(folder.parent / "new.csv", data.read_text())
    (line,) = re.findall(r"^gp-deq (predict .*)$", (folder / "README.md").read_text(), re.MULTILINE)
    monkeypatch.chdir(folder)
    result = _invoke(*line.split())
    assert result.exit_code == 0, result.output
    tables.write_report(fit, folder, force=True)
    assert (tmp_path / "new-predictions.csv").exists()


def test_folders_that_cannot_be_written_are_refused_before_the_fit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    def fit(*arguments: object) -> None:
        raise AssertionError("the fit has begun")

    # permissions do not hold for an administrator, who may run the tests
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    monkeypatch.setattr(fit_module, "fit_gpytorch_mll", fit)
    output = tmp_path / "report"
    result = _invoke("fit", data, "--target", "price", "--output", output)
    _check_one_line(result, f"cannot write to the folder {tmp_path} (Permission denied)")


@pytest.mark.parametrize(
    "where", ["gp_deq.tables.fit.fit_gpytorch_mll", "gp_deq.tables.report.model_card"]
)
@pytest.mark.parametrize("earlier", [False, True])
def test_interruption_leaves_no_part_of_a_report(
    where: str,
    earlier: bool,
    fit: tables.TableFit,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "report"
    if earlier:
        tables.write_report(fit, folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    arguments = ("--target", "price", "--kernel", "rbf", "--output", folder, "--force")
    result = _invoke("fit", data, *arguments)
    assert result.exit_code != 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    assert list(tmp_path.iterdir()) == ([folder] if earlier else [])


# the command


def test_fit_and_predict(houses: pd.DataFrame, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    arguments = ("--target", "price", "--activation", "erf", "--seed", 3, "--ignore", "age")
    result = _invoke("fit", data, *arguments, "--test-fraction", 0.25, "--output", folder)
    assert result.exit_code == 0, result.output
    assert "deq-nngp erf" in result.output and "mean of the targets" in result.output
    assert str(folder / "README.md") in result.output
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["rows"] == {"table": 60, "train": 45, "test": 15, "model": 60}
    assert metrics["r2"] > 0.9
    assert "those of the test included" in (folder / "README.md").read_text()
    new = tmp_path / "new.csv"
    houses[["kind", "area"]].iloc[:5].to_csv(new, index=False)
    output = tmp_path / "out.csv"
    result = _invoke("predict", folder / "model.pt", new, "--output", output)
    assert result.exit_code == 0, result.output
    predicted = pd.read_csv(output)
    np.testing.assert_allclose(predicted["mean"], houses["price"][:5], atol=0.5)
    assert bool((predicted["lower"] < predicted["mean"]).all())

    _check_one_line(_invoke("fit", data, *arguments, "--output", folder), "--force")


def test_any_name_of_a_column_will_do(houses: pd.DataFrame, tmp_path: Path) -> None:
    names = {"area": "area [m²] | a_b", "kind": "$kind$ of `house`", "price": "price [red] in $1^{"}
    path, folder = tmp_path / "t.csv", tmp_path / "report"
    houses.drop(columns="age").rename(columns=names).to_csv(path, index=False)
    options = ("--target", names["price"], "--kernel", "rbf", "--output", folder)
    result = _invoke("fit", path, *options)
    assert result.exit_code == 0, result.output
    assert "price [red] in $1^{" in result.output
    card = (folder / "README.md").read_text()
    assert "`area [m²] \\| a_b`" in card and "`$kind$ of 'house'`" in card


def test_options_that_do_not_go_together(data: Path, tmp_path: Path) -> None:
    common = ("fit", data, "--target", "price", "--output", tmp_path / "report")
    _check_one_line(_invoke(*common, "--kernel", "rbf", "--activation", "erf"), "no activation")
    _check_one_line(_invoke(*common, "--kernel", "auto", "--activation", "erf"), "do not give one")
    _check_one_line(_invoke(*common, "--activation", "relu6"), "relu6")
    assert _invoke(*common, "--kernel", "cubic").exit_code == 2
    assert _invoke(*common, "--test-fraction", 0).exit_code == 2
