"""Data sets and splits."""

import dataclasses

import pytest
import torch

from gp_deq.datasets import Dataset, load_diabetes, train_test_split


def test_diabetes() -> None:
    data = load_diabetes()
    assert data.X.shape == (442, 10) and data.y.shape == (442,)
    assert data.X.dtype == data.y.dtype == torch.float64
    assert data.feature_names[2] == "bmi"
    assert 18 <= data.X[:, 2].min() <= data.X[:, 2].max() <= 45  # kg/m², not standardised


def test_split_standardises_by_the_training_part() -> None:
    data = load_diabetes()
    split = train_test_split(data, test_fraction=0.2, seed=3)
    assert split.test_x.shape == (88, 10) and split.train_x.shape == (354, 10)
    torch.testing.assert_close(split.train_x.mean(0), torch.zeros(10, dtype=torch.float64))
    torch.testing.assert_close(split.train_x.std(0), torch.ones(10, dtype=torch.float64))
    assert split.train_y.mean().item() == pytest.approx(0, abs=1e-12)
    assert split.train_y.std().item() == pytest.approx(1)
    assert split.test_x.mean(0).abs().max() > 1e-3
    # Every row is used once, and the way back is exact.
    rows = torch.cat([split.train_x, split.test_x]) * split.x_std + split.x_mean
    targets = torch.cat([split.train_y, split.test_y]) * split.y_std + split.y_mean
    torch.testing.assert_close(rows.sort(0).values, data.X.sort(0).values)
    torch.testing.assert_close(targets.sort().values, data.y.sort().values)


def test_split_depends_on_the_seed_alone() -> None:
    data = load_diabetes()
    state = torch.random.get_rng_state()
    first, again = train_test_split(data, seed=1), train_test_split(data, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.test_x, again.test_x)
    assert not torch.equal(first.test_y, train_test_split(data, seed=2).test_y)


def test_constant_column_is_only_centred() -> None:
    data = load_diabetes()
    constant = dataclasses.replace(data, X=torch.full_like(data.X, 7.0))
    assert train_test_split(constant).train_x.abs().max() < 1e-12


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.0005])
def test_split_refuses_an_empty_part(fraction: float) -> None:
    with pytest.raises(ValueError, match="test_fraction"):
        train_test_split(load_diabetes(), test_fraction=fraction)


def test_dataset_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="n x d"):
        Dataset("bad", torch.zeros(3, 2), torch.zeros(4), ("a", "b"))
    with pytest.raises(ValueError, match="feature names"):
        Dataset("bad", torch.zeros(3, 2), torch.zeros(3), ("a",))


def test_repr_is_a_line() -> None:
    data = Dataset("waves", torch.zeros(30, 2), torch.zeros(30), ("a", "b"), "height")
    assert repr(data) == "<Dataset waves: 30 rows, 2 inputs, target height>"
