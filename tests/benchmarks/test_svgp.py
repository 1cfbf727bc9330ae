"""Sparse GPs learn, and a seed gives the same run."""

import pytest
import torch

pytest.importorskip("botorch")
pytest.importorskip("joblib")

from gpytorch.kernels import RBFKernel

from gp_deq.benchmarks.svgp import SVGPConfig, predict, train
from gp_deq.kernels import DEQNNGPKernel


def data(n: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    noise = torch.randn(n, dtype=torch.float64, generator=generator)
    return x, (2 * x[:, 0]).sin() * x[:, 1].cos() + 0.1 * noise


@pytest.mark.parametrize("kernel", [DEQNNGPKernel, RBFKernel])
def test_learns(kernel: type) -> None:
    x, y = data()
    config = SVGPConfig(num_inducing=40, batch_size=64, epochs=60, learning_rate=0.05)
    trained = train(kernel(ard_num_dims=2).double(), x, y, config)
    assert len(trained.losses) == 240 and trained.seconds > 0
    assert trained.losses[-1] < trained.losses[0] - 0.5
    mean, std = predict(trained, x, batch_size=100)
    assert float((mean - y).square().mean() / y.var()) < 0.1
    # the noise is a tenth, and the intervals know it
    assert 0.07 < float(std.median()) < 0.2


def test_a_seed_gives_the_same_run() -> None:
    x, y = data(100)
    config = SVGPConfig(num_inducing=10, batch_size=50, epochs=2)
    torch.manual_seed(1)
    first = train(RBFKernel().double(), x, y, config, seed=3).losses
    torch.manual_seed(2)
    assert train(RBFKernel().double(), x, y, config, seed=3).losses == first
    assert train(RBFKernel().double(), x, y, config, seed=4).losses != first


def test_bad_sizes() -> None:
    x, y = data(30)
    with pytest.raises(ValueError, match="30 rows are fewer than a mini-batch of 64"):
        train(RBFKernel(), x, y, SVGPConfig(num_inducing=8, batch_size=64))
    with pytest.raises(ValueError, match="epochs must be positive"):
        SVGPConfig(epochs=0)
