"""GP regression by a structured matrix, in small."""

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("botorch")

from equivalents_regression import compare, large, main, make_data


def test_data_repeat_and_are_standardised() -> None:
    data, again = make_data(100, 20), make_data(100, 20)
    assert all(first.equal(second) for first, second in zip(data, again, strict=True))
    assert abs(data.train_y.mean()) < 1e-12 and abs(data.train_y.std() - 1) < 1e-12
    assert data.test_x.shape == (1000, 20) and not data.test_x[0].equal(data.train_x[0])


def test_predictions_are_those_of_the_exact_kernel() -> None:
    scores = compare(300, steps=30)
    (exact_error, exact), (error, density) = scores["exact"], scores["equivalent"]
    assert exact_error < 0.99
    assert error == pytest.approx(exact_error, rel=0.02)
    assert density == pytest.approx(exact, rel=0.02)


def test_large_fit_learns() -> None:
    torch.manual_seed(0)
    seconds, error = large(1500, 12, torch.float64)
    assert len(seconds) == 12 and error < 0.9


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--rows", "900", "--steps", "2", "--few", "50", "--fits", "2", "--dtype", "float32"])
    out = capsys.readouterr().out
    assert "900 rows, float32: a step" in out and "50 rows, equivalent: RMSE" in out
