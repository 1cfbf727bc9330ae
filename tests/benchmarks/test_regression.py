"""The regression benchmark, on small parts of the diabetes data."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("botorch")
pytest.importorskip("joblib")
pytest.importorskip("pandas")
pytest.importorskip("typer")

from gpytorch.kernels import RBFKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel
from sklearn.model_selection import PredefinedSplit, cross_val_score
from typer.testing import CliRunner

from gp_deq import cli
from gp_deq.benchmarks import likelihood, regression, ridge
from gp_deq.benchmarks.command import write_tables
from gp_deq.benchmarks.contestants import KERNELS, start_kernel
from gp_deq.benchmarks.experiment import Table
from gp_deq.benchmarks.likelihood import fit_by_likelihood
from gp_deq.benchmarks.regression import PROTOCOLS, RegressionConfig, run_regression
from gp_deq.benchmarks.regression_results import draw, tables
from gp_deq.benchmarks.ridge import RIDGES, cross_validated_error, fit_by_ridge, settings
from gp_deq.benchmarks.svgp import fit_by_bound
from gp_deq.datasets import Dataset, load, train_test_split


def small(name: str = "diabetes") -> Dataset:
    data = load(name)
    return Dataset(name, data.X[:70], data.y[:70], data.feature_names)


def report(results: list[regression.Result]) -> tuple[dict[str, Table], list[str]]:
    """Tables by their title, and notes."""
    found = list(tables(results))
    by_title = {item.title: item for item in found if isinstance(item, Table)}
    return by_title, [item for item in found if isinstance(item, str)]


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "load", small)


def test_cross_validation_is_that_of_refitted_models() -> None:
    split = train_test_split(small())
    x, y = split.train_x.numpy(), split.train_y
    folds = torch.arange(len(y)) % 5
    expected = -cross_val_score(
        KernelRidge(alpha=0.3, kernel="laplacian", gamma=0.1),
        x,
        y.numpy(),
        cv=PredefinedSplit(folds.numpy()),
        scoring="neg_mean_squared_error",
    )
    matrix = torch.as_tensor(laplacian_kernel(x, gamma=0.1))
    parts = [torch.nonzero(folds == fold).squeeze(-1) for fold in range(5)]
    sizes = torch.tensor([len(part) for part in parts]).double()
    mean = float((torch.as_tensor(expected) * sizes).sum() / len(y))
    assert cross_validated_error(matrix, y, 0.3, parts) == pytest.approx(mean, rel=1e-10)


def test_indefinite_matrix_has_infinite_error() -> None:
    matrix = -torch.eye(10, dtype=torch.float64)
    parts = torch.arange(10).chunk(5)
    assert cross_validated_error(matrix, torch.ones(10).double(), 0.5, parts) == math.inf


def test_cross_validation_is_exact_at_the_smallest_ridge() -> None:
    """Condition number up to n / ridge, 6e9: six digits are left of the inverse."""
    split = train_test_split(small())
    x, y = split.train_x, split.train_y
    matrix = (-torch.cdist(x, x).square() / 200).exp()
    parts = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).chunk(5)
    smallest, squares = RIDGES[0], 0.0
    for part in parts:
        rest = torch.tensor([i for i in range(len(y)) if i not in set(part.tolist())])
        gram = matrix[rest][:, rest] + smallest * torch.eye(len(rest), dtype=torch.float64)
        mean = matrix[part][:, rest] @ torch.linalg.solve(gram, y[rest])
        squares += float((y[part] - mean).square().sum())
    assert cross_validated_error(matrix, y, smallest, parts) == pytest.approx(
        squares / len(y), rel=1e-5
    )


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_has_as_many_settings_and_predicts(name: str) -> None:
    split = train_test_split(small())
    found = list(settings(KERNELS[name], 10, 4))
    assert len(found) == 4
    assert all(0 <= index < len(KERNELS[name]) for index, _ in found)
    torch.manual_seed(0)
    predictions = fit_by_ridge(KERNELS[name], split, 2)
    assert bool(predictions.mean.isfinite().all()) and bool((predictions.std > 0).all())


def test_ridge_predictions_are_those_of_scikit_learn() -> None:
    split = train_test_split(small())
    torch.manual_seed(0)
    found = fit_by_ridge(KERNELS["RBF"], split, 1)
    ((_, kernel),) = settings(KERNELS["RBF"], 10, 1)
    gamma = float(0.5 / kernel.lengthscale.detach().square())
    matrix = rbf_kernel(split.train_x.numpy(), gamma=gamma)
    errors = []
    for multiple in RIDGES:
        model = KernelRidge(alpha=multiple * (1 - matrix.mean()), kernel="rbf", gamma=gamma)
        mean = model.fit(split.train_x.numpy(), split.train_y.numpy()).predict(split.test_x.numpy())
        errors.append(float((found.mean - torch.as_tensor(mean)).abs().max()))
    assert min(errors) < 1e-10


@pytest.mark.parametrize("name", ["DEQ-NNGP relu", "I-BNN"])
def test_likelihood_keeps_the_best_start(name: str) -> None:
    split = train_test_split(small())
    torch.manual_seed(0)
    one = fit_by_likelihood(KERNELS[name], split, 1)
    assert one.failures == 0 and bool(one.std.isfinite().all())
    r2 = 1 - (one.mean - split.test_y).square().mean() / split.test_y.square().mean()
    assert float(r2) > 0


@pytest.mark.parametrize("name", ["DEQ-NNGP relu", "RBF"])
def test_sparse_fits_learn(name: str) -> None:
    """A smooth function with one part of noise in a hundred, every row an inducing point."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 2, dtype=torch.float64, generator=generator)
    y = (x[:, 0] - x[:, 1]).sin() + 0.1 * torch.randn(100, generator=generator).double()
    split = train_test_split(Dataset("waves", x, y, ("a", "b")))
    torch.manual_seed(0)
    found, short = (fit_by_bound(KERNELS[name], split, epochs) for epochs in (400, 3))
    errors = [float((p.mean - split.test_y).square().mean()) for p in (found, short)]
    assert found.failures == 0 and bool((found.std > 0).all())
    assert errors[0] < 0.3 < errors[1]


def test_sparse_fits_choose_among_depths_and_survive_failures() -> None:
    class Broken(RBFKernel):
        def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
            raise RuntimeError("no")

    split = train_test_split(small())
    found = fit_by_bound((lambda dims: Broken(), *KERNELS["RBF"]), split, 2)
    assert found.failures == 1 and found.chosen == 1 and bool(found.mean.isfinite().all())
    assert bool(fit_by_bound((lambda dims: Broken(),), split, 1).mean.isnan().all())


def test_protocols_fit_their_kernels_and_data() -> None:
    assert set(PROTOCOLS["sparse"].kernels) == set(KERNELS) - {"NNGP", "NTK", "DEKer tanh"}
    for name, protocol in PROTOCOLS.items():
        config = RegressionConfig(name, protocol.datasets, protocol.kernels, seeds=2)
        assert len(config.keys) == 2 * len(protocol.datasets) * len(protocol.kernels)


def test_all_starts_failing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(likelihood, "fit_gpytorch_mll_scipy", fail)
    config = RegressionConfig(datasets=("diabetes",), kernels=("RBF",), seeds=1, budget=2)
    (result,) = run_regression(config)
    assert result.failures == 2 and math.isnan(result.rmse) and math.isnan(result.coverage)
    by_title, notes = report([result])
    assert by_title["RMSE"].columns == ["kernel", "diabetes"]
    assert by_title["RMSE"].rows == [["RBF", "failed"]]
    assert "RBF: 2 numerical failures in 1 runs." in notes


def test_all_settings_failing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "cross_validated_error", lambda *arguments: math.inf)
    config = RegressionConfig("ridge", ("diabetes",), ("RBF",), seeds=1, budget=2)
    (result,) = run_regression(config)
    assert result.failures == 18 and math.isnan(result.rmse) and math.isnan(result.coverage)


def test_stationary_kernels_start_where_the_others_do() -> None:
    """The same correlation at a given distance, to first order, as lengthscales of 0.69."""
    split = train_test_split(small())
    kernel = start_kernel(KERNELS["RBF"][0], split)
    assert kernel.lengthscale.unique().item() == pytest.approx(
        math.log(2) * math.sqrt(10), rel=1e-3
    )


def test_same_numbers_again_and_after_a_kill(tmp_path: Path) -> None:
    config = RegressionConfig(
        "ridge", ("diabetes",), ("RBF", "DEKer relu", "NNGP", "NTK"), seeds=2, budget=2
    )
    path = tmp_path / "runs.csv"
    results = run_regression(config, path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:-7], encoding="utf-8", newline="")
    again = run_regression(config, path)

    def numbers(result: regression.Result) -> tuple[object, ...]:
        return tuple(value for name, value in vars(result).items() if name != "seconds")

    assert [numbers(result) for result in again] == [numbers(result) for result in results]
    assert path.read_text(encoding="utf-8").splitlines(keepends=True)[:4] == lines[:4]
    by_title, notes = report(results)
    assert set(by_title) == {"RMSE", "NLPD", "inside 95 % intervals", "seconds", "mean rank"}
    assert sum("*" in row[1] for row in by_title["RMSE"].rows) == 1
    # two splits cannot show anything
    assert not any("Wilcoxon" in note for note in notes)
    again = [dataclasses.replace(r, seed=r.seed + 2 * i) for i in range(5) for r in results]
    _, notes = report(again)
    assert any("DEKer relu against NTK on diabetes" in note for note in notes)
    write_tables(tmp_path / "tables", tables(results))
    assert "DEKer relu" in (tmp_path / "tables" / "ridge-rmse.tex").read_text(encoding="utf-8")
    assert "| NNGP" in (tmp_path / "tables" / "ridge-rmse.md").read_text(encoding="utf-8")
    assert len(draw(results).axes) == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_command(tmp_path: Path, protocol: str) -> None:
    arguments = ["benchmark", "regression", "--protocol", protocol, "--dataset", "diabetes"]
    arguments += ["--kernel", "RBF", "--kernel", "Matérn-5/2", "--seeds", "1", "--budget", "1"]
    arguments += ["--jobs", "1", "--output", str(tmp_path / "a.png")]
    arguments += ["--csv", str(tmp_path / "a.csv"), "--tables", str(tmp_path)]
    done = CliRunner().invoke(cli.build_app(), arguments)
    assert done.exit_code == 0, done.output
    assert "RMSE" in done.output and (tmp_path / "a.png").stat().st_size > 1000
    wrong = CliRunner().invoke(cli.build_app(), [*arguments, "--kernel", "cubic"])
    assert wrong.exit_code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "guess"}, "no protocol 'guess'"),
        ({"kernels": ("cubic",)}, "no kernel 'cubic'"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"datasets": ()}, "at least one data set"),
    ],
)
def test_bad_configuration(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegressionConfig(**change)  # type: ignore[arg-type]


def test_defaults_are_those_of_the_protocol() -> None:
    config = RegressionConfig.from_options(None, {"protocol": "sparse", "seeds": 1})
    sparse = PROTOCOLS["sparse"]
    assert (config.datasets, config.kernels) == (sparse.datasets, sparse.kernels)
    assert (config.seeds, config.budget) == (1, sparse.budget)
    assert RegressionConfig.from_options(None, {}) == RegressionConfig()
