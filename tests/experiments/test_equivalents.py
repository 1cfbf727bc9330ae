"""Experiments of the equivalents, in small: mixtures, and random digits in the place of MNIST."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("joblib")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("typer")

import equivalents_classification as classification
import equivalents_mixture
import equivalents_mnist
from equivalents_classification import FEATURES, Settings, classify, digits, run
from equivalents_spectra import (
    ERRORS,
    compare,
    deq_kernel,
    inputs,
    mixture,
    slopes,
)
from mnist import SCALINGS, load_mnist
from typer.testing import CliRunner

from gp_deq.benchmarks.command import command
from gp_deq.benchmarks.experiment import Experiment
from gp_deq.equivalents import centered_kernel, match_explicit

SMALL = Settings(num_train=150, num_test=60)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten noisy patterns in the place of the digits."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (10, 28, 28))
    arrays = {}
    for part, count in (("train", 300), ("test", 100)):
        y = np.arange(count) % 10
        noisy = patterns[y] + rng.integers(-150, 150, (count, 28, 28))
        arrays[f"x_{part}"] = noisy.clip(0, 255).astype(np.uint8)
        arrays[f"y_{part}"] = y.astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", **arrays)
    monkeypatch.setenv("GP_DEQ_DATA", str(tmp_path))
    digits.cache_clear()
    return tmp_path


def test_absent_images_say_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GP_DEQ_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"GP_DEQ_DATA .* mnist\.npz.*it is not set"):
        load_mnist()
    monkeypatch.setenv("GP_DEQ_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="has neither"):
        load_mnist()


def test_mixture_has_two_classes_and_the_scale_of_the_theory() -> None:
    X = mixture(400, 0)
    assert X.shape == (320, 400)
    means = 20 * torch.stack([X[:160].mean(0), X[160:].mean(0)])
    expected = torch.zeros(2, 400).double()
    expected[0, 0] = expected[1, 8] = 8
    assert (means - expected).abs().max() < 0.5
    noise = X[160:, 20:].square().sum(-1).mean() / X[:160, 20:].square().sum(-1).mean()
    assert noise.item() == pytest.approx(1.4, rel=0.02)


def test_kernel_has_the_injected_covariance_of_the_theory() -> None:
    X = mixture(100, 0)
    kernel = deq_kernel("tanh", 100)
    injected = X @ X.mT / (100 * kernel.lengthscale.square()) + kernel.bias_variance
    assert torch.allclose(injected, 0.8 * X @ X.mT)


def test_equivalents_are_as_far_from_the_kernels_as_was_published() -> None:
    """Means over five draws at p = 400, ReLU: .047 of 6.46, and .056 of 6.85 for K."""
    found = compare("mixture", "relu", 400, 0)
    assert found.norm == pytest.approx(6.46, rel=0.03)
    assert found.tangent_norm == pytest.approx(6.85, rel=0.03)
    assert found.mean_norm_error == pytest.approx(0.047, rel=0.15)
    assert found.tangent_mean_norm_error == pytest.approx(0.056, rel=0.2)
    # with the scalars of each input far less
    assert found.equivalent_error < 0.1 * found.mean_norm_error
    assert found.tangent_error < 0.2 * found.tangent_mean_norm_error


def test_errors_fall_with_the_dimension() -> None:
    comparisons = [compare("mixture", name, p, 0) for name in ("relu", "tanh") for p in (50, 200)]
    found = slopes(comparisons)
    of_the_mean, of_each = (
        found[[label for label in ERRORS.values() if name in label]].to_numpy()
        for name in ("mean norm", "each input")
    )
    assert of_the_mean.shape == of_each.shape == (2, 2)
    assert of_the_mean.max() < -0.2 and of_each.max() < -1


def test_images_are_scaled(images: Path) -> None:
    for name in SCALINGS:
        x = inputs(name, 120, 0)
        assert x.square().sum(-1).mean().item() == pytest.approx(1.0)
        assert torch.equal(x, inputs(name, 120, 0)) and not torch.equal(x, inputs(name, 120, 1))
    assert compare("unit", "relu", 60, 0).spread < 1e-12
    assert inputs("whitened", 300, 0).var(0).std() < 1e-12
    data = digits(SMALL)
    assert data.train_x.mean(0).abs().max() < 1e-12 and data.train_x.shape == (150, 784)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_wide_networks_have_the_limiting_kernels(
    features: str, activation: str, images: Path
) -> None:
    x = inputs("standard", 20, 0)
    kernel = deq_kernel(activation, 784)
    torch.manual_seed(0)
    with torch.no_grad():
        found = classification._network(features, kernel, x, 4000)(x.float()).double()
        limit = classification._limit(features, kernel, x)(x).to_dense()
    error = torch.linalg.matrix_norm(found @ found.mT - limit, 2)
    assert error < 0.2 * torch.linalg.matrix_norm(limit, 2)
    if features == "matched":
        assert torch.allclose(limit, match_explicit(kernel, x).kernel()(x).to_dense())
    if features == "equilibrium":
        assert torch.allclose(limit, centered_kernel(kernel, x)(x).to_dense())


def test_equilibrium_is_a_fixed_point() -> None:
    generator = torch.Generator().manual_seed(0)
    W = 0.2**0.5 * torch.randn(100, 100, generator=generator) / 10
    u = torch.randn(7, 100, generator=generator)
    z = classification.equilibrium(torch.tanh, W, u)
    assert torch.allclose(z, torch.tanh(z @ W.mT + u), atol=1e-4)
    with pytest.raises(RuntimeError, match="has not settled"):
        classification.equilibrium(torch.tanh, 100 * W, u)


def test_ridge_is_the_same_from_features_and_from_their_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    F = torch.randn(80, 12, generator=generator, dtype=torch.float64)
    y = (F[:, :10] + 0.5 * F[:, 1:11]).argmax(-1)
    targets = torch.nn.functional.one_hot(y[:60], 10).double() - 0.1
    primal = classify(classification._primal(F, targets), y[:60], y[60:])
    dual = classify(classification._dual(F @ F[:60].mT, targets), y[:60], y[60:])
    assert primal == dual and primal[0] > 0.5


@pytest.mark.parametrize("width", [0, 64])
@pytest.mark.parametrize("features", FEATURES)
def test_digits_are_recognised(features: str, width: int, images: Path) -> None:
    score = run(SMALL, "relu", features, width, 0)
    assert score.accuracy > 0.8
    assert run(SMALL, "relu", features, width, 0).accuracy == score.accuracy
    if width == 0:  # equal, matched, and not matched
        bounds = {"equilibrium": (0, 1e-12), "matched": (1e-7, 1e-3), "one layer": (0.02, 1)}
        low, high = bounds[features]
        assert low <= score.distance <= high


@pytest.mark.parametrize(
    ("experiment", "arguments"),
    [
        (equivalents_mixture.EXPERIMENT, "--sizes 20 --sizes 40 --seeds 1"),
        (
            equivalents_mnist.EXPERIMENT,
            "--sizes 30 --seeds 1 --scalings standard --scalings unit",
        ),
        (classification.EXPERIMENT, "--widths 16 --num-train 100 --num-test 50"),
    ],
    ids=lambda value: value.name if isinstance(value, Experiment) else "",
)
def test_command_resumes(
    experiment: Experiment, arguments: str, images: Path, tmp_path: Path
) -> None:
    csv, output = tmp_path / "a.csv", tmp_path / "a.png"
    files = ["--jobs", "1", "--csv", str(csv), "--output", str(output)]

    def invoke() -> str:
        app = command(experiment, experiment.__doc__)
        result = CliRunner().invoke(app, [*arguments.split(), *files], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    assert "relu" in invoke() and output.stat().st_size > 5000
    # a number that no run would give shows that what is there is not run again
    header, first, *rest = csv.read_text(encoding="utf-8").splitlines()
    marked = "\n".join([header, first.rpartition(",")[0] + ",0.125", *rest, ""])
    csv.write_text(marked, encoding="utf-8")
    invoke()
    assert csv.read_text(encoding="utf-8").splitlines() == marked.splitlines()


def test_absent_images_end_the_command_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GP_DEQ_DATA", str(tmp_path))
    arguments = ["--csv", str(tmp_path / "a.csv"), "--output", str(tmp_path / "a.png")]
    app = command(equivalents_mnist.EXPERIMENT, None)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert result.exit_code == 2 and "MNIST is not on this machine" in result.output
