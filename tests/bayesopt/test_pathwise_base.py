"""Pathwise samples over a base kernel, and without an import of gp_deq.bayesopt."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from botorch.models import SingleTaskGP
from botorch.sampling.pathwise import draw_matheron_paths
from botorch.sampling.pathwise.features.generators import gen_kernel_features
from gpytorch.kernels import Kernel, MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel

from gp_deq import DEQNNGPKernel, DEQNTKKernel, NNGPKernel
from gp_deq.bayesopt.pathwise import NystromFeatureMap
from gp_deq.kernels import WeightedKernel

WITH_FEATURES: dict[str, Callable[[], Kernel]] = {
    "rbf": lambda: RBFKernel(ard_num_dims=2),
    "matern": lambda: ScaleKernel(MaternKernel(2.5)),
    "matern, one input": lambda: MaternKernel(1.5, active_dims=[1]),
}
WITHOUT: dict[str, Callable[[], Kernel]] = {
    "periodic": PeriodicKernel,
    "sum": lambda: RBFKernel() + MaternKernel(2.5),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("base", WITH_FEATURES)
@pytest.mark.parametrize("cls", [DEQNNGPKernel, DEQNTKKernel, NNGPKernel])
@pytest.mark.parametrize("activation", ["relu", "erf", "tanh"])
def test_features_have_the_kernel(cls: type[WeightedKernel], activation: str, base: str) -> None:
    """Variances exactly, covariances to some deviations of a width of 2048 (0.022 each)."""
    kernel = cls(activation, base_kernel=WITH_FEATURES[base](), active_dims=[2, 0]).double()
    x = torch.rand(12, 3, dtype=torch.float64)
    values = gen_kernel_features(kernel, 3, 2048)(x)
    expected = kernel(x).to_dense().detach()
    found = values @ values.mT
    torch.testing.assert_close(found.diagonal(), expected.diagonal(), rtol=1e-12, atol=1e-12)
    assert (found - expected).abs().max() <= 0.12 * expected.diagonal().mean()


@pytest.mark.parametrize("base", WITHOUT)
@pytest.mark.parametrize("cls", [DEQNNGPKernel, DEQNTKKernel])
def test_nystrom_features_where_the_base_has_none(cls: type[WeightedKernel], base: str) -> None:
    kernel = cls("erf", base_kernel=WITHOUT[base]()).double()
    features = gen_kernel_features(kernel, 2, 256)
    assert isinstance(features, NystromFeatureMap)
    x = torch.rand(12, 2, dtype=torch.float64)
    expected = kernel(x).to_dense().detach()
    values = features(x)
    assert (values @ values.mT - expected).abs().max() <= 0.05 * expected.diagonal().mean()


def test_batches_of_kernels() -> None:
    shape = torch.Size([2])
    base = ScaleKernel(RBFKernel(batch_shape=shape), batch_shape=shape)
    base.outputscale = torch.tensor([0.5, 2.0])
    kernel = DEQNNGPKernel("erf", base_kernel=base, batch_shape=shape).double()
    x = torch.rand(7, 2, dtype=torch.float64)
    values = gen_kernel_features(kernel, 2, 512)(x)
    assert values.shape == (2, 7, 512)
    torch.testing.assert_close(values.square().sum(-1), kernel(x, diag=True))


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_paths_have_the_posterior(activation: str) -> None:
    x = torch.rand(20, 2, dtype=torch.float64)
    kernel = DEQNNGPKernel(activation, base_kernel=MaternKernel(2.5, ard_num_dims=2))
    noise = torch.full((20, 1), 1e-2, dtype=torch.float64)
    y = (5 * x).sin().sum(-1, keepdim=True)
    model = SingleTaskGP(x, y, noise, covar_module=ScaleKernel(kernel)).double()
    count, test = 1024, torch.rand(6, 2, dtype=torch.float64)
    paths = draw_matheron_paths(model, torch.Size([count]))(test).detach()
    posterior = model.posterior(test)
    mean, deviation = posterior.mean.squeeze(-1), posterior.variance.squeeze(-1).sqrt()
    # four standard errors, and the error of the features, which far from data is the larger
    assert ((paths.mean(0) - mean) / deviation).abs().max() <= 4 / count**0.5 + 0.05
    assert (paths.std(0) / deviation - 1).abs().max() <= 0.25


@pytest.mark.parametrize(
    "first, second", [("gp_deq", "botorch"), ("botorch", "gp_deq"), ("gp_deq.kernels", "botorch")]
)
def test_only_the_kernels_need_to_be_imported(first: str, second: str) -> None:
    code = f"""
import {first}, sys
assert {first!r} == "botorch" or "botorch" not in sys.modules
import {second}, torch
from botorch.sampling.pathwise import draw_kernel_feature_paths
from botorch.models import SingleTaskGP
from gp_deq.kernels import DEKerKernel, DEQNNGPKernel, NTKKernel
assert "gp_deq.bayesopt" not in sys.modules
x = torch.rand(5, 2).double()
for kernel in (DEQNNGPKernel(), DEKerKernel(), NTKKernel()):
    model = SingleTaskGP(x, x[:, :1], covar_module=kernel)
    assert draw_kernel_feature_paths(model, torch.Size([3]))(x).shape == (3, 5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
