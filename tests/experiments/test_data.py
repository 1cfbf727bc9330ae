"""The rows behind the documentation are read, and continued, by the experiments as they are."""

import importlib
from pathlib import Path

import pytest

pytest.importorskip("botorch")
pytest.importorskip("joblib")
pytest.importorskip("pandas")
pytest.importorskip("typer")

from gp_deq.benchmarks.runs import RunFile

DATA = Path(__file__).parents[2] / "docs" / "data"
#: The surrogates of the page "When should I use a DEQ surrogate?", and the models of its table.
AFFINE = (
    "DEQ-NNGP affine",
    "DEQ-NNGP erf affine",
    "DEQ-NTK affine",
    "DEKer",
    "BoTorch default",
    "Matérn-5/2",
    "I-BNN fitted",
    "I-BNN fixed",
    "linear",
    "random",
)
BASES = (
    "RBF",
    "Matérn-5/2 scaled",
    "deq-nngp relu over matern",
    "deq-nngp erf over matern",
    "deq-nngp relu",
)
#: By file, the module of the experiment and the options of the documentation.
FILES = {
    "bo.csv": ("gp_deq.benchmarks.bo", {"num_steps": 20, "seeds": 5, "surrogates": AFFINE}),
    "bo_bases.csv": ("bo_priors_optimize", {"seeds": 2, "models": BASES}),
    "declarative.csv": ("gp_deq.benchmarks.declarative", {}),
    "equivalents_classification.csv": ("equivalents_classification", {}),
    "equivalents_mixture.csv": ("equivalents_mixture", {}),
    "equivalents_mnist.csv": ("equivalents_mnist", {}),
    "laplace.csv": ("laplace", {"seeds": 3}),
    "regression.csv": ("gp_deq.benchmarks.regression", {"protocol": "ridge"}),
}


def test_every_file_has_its_experiment() -> None:
    assert {path.name for path in DATA.glob("*.csv")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_rows_are_read_and_are_those_of_the_command(name: str) -> None:
    module, options = FILES[name]
    experiment = importlib.import_module(module).EXPERIMENT
    rows = RunFile(experiment.row, DATA / name).read()
    assert len({row.key for row in rows}) == len(rows)
    missing = set(experiment.configuration.from_options(None, options).keys) - {
        row.key for row in rows
    }
    assert not missing
