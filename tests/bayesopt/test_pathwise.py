"""Pathwise samples: how well the features have the kernel, and what BoTorch makes of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from botorch.models import SingleTaskGP
from botorch.sampling.pathwise import draw_kernel_feature_paths, draw_matheron_paths
from botorch.sampling.pathwise.features import gen_kernel_features
from botorch.sampling.pathwise.posterior_samplers import get_matheron_path_model
from botorch.utils.sampling import optimize_posterior_samples
from gpytorch.kernels import AdditiveKernel, Kernel, MaternKernel, ScaleKernel
from torch import Tensor

from gp_deq import DEKerKernel, DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel
from gp_deq.activations import Activation, get_activation
from gp_deq.bayesopt import gen_nystrom_features, get_covar_module
from gp_deq.equilibrium import ConvergenceWarning

TRAINED = ("all", "hidden", "recurrent", "preactivation")
TANGENT = [
    partial(DEQNTKKernel, activation, trained=trained)
    for activation in ("relu", "erf")
    for trained in TRAINED
]
NETWORKS = [
    *(partial(DEQNNGPKernel, name) for name in ("relu", "erf", "tanh", "gelu", "sin")),
    *(partial(NNGPKernel, "relu", input_injection=injection) for injection in (False, True)),
    *TANGENT,
]


def name(make: Any) -> str:
    options = [*make.args, *make.keywords.values()]
    return "-".join([make.func.__name__, *map(str, options)])


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def x() -> Tensor:
    return torch.rand(12, 3).double()


def prepare(kernel: Kernel, share: float = 0.5) -> Kernel:
    kernel = kernel.double()
    kernel.initialize(lengthscale=0.3, bias_variance=1.0)
    if hasattr(kernel, "weight_variance"):
        kernel.weight_variance = share * kernel.activation.critical_weight_variance
    return kernel.requires_grad_(False)


def features(kernel: Kernel, x: Tensor, number: int) -> Tensor:
    return gen_kernel_features(kernel, num_inputs=x.shape[-1], num_outputs=number)(x)


def relative_errors(kernel: Kernel, x: Tensor, number: int, draws: int) -> Tensor:
    """Errors of inner products, draws x n x n, in units of the standard deviations."""
    exact = kernel(x).to_dense()
    root = exact.diagonal().sqrt()
    drawn = torch.stack([features(kernel, x, number) for _ in range(draws)])
    assert drawn.shape[-1] == number
    return (drawn @ drawn.mT - exact) / (root[:, None] * root)


@pytest.mark.parametrize("make", NETWORKS, ids=name)
def test_error_falls_like_the_root_of_the_width(make, x):
    """The same constant at two widths that differ by a factor of eight; and hardly a bias."""
    kernel = prepare(make(center=0.5))
    narrow, wide = relative_errors(kernel, x, 64, 40), relative_errors(kernel, x, 512, 5)
    for errors in (narrow, wide):
        assert errors.diagonal(dim1=-2, dim2=-1).abs().max() < 1e-12
    size = narrow.square().mean().sqrt()
    assert size < 1.4 / 64**0.5
    assert 1.7 < size / wide.square().mean().sqrt() < 4.7  # 8**0.5 = 2.8
    assert narrow.mean(0).square().mean().sqrt() < 0.35 * size  # 40**-0.5 = 0.16 is noise


@pytest.mark.parametrize("share", [0.9, 0.999])
def test_near_the_critical_weight_variance(share, x):
    """The error does not grow there, and the depth suffices: ReLU is the hardest case."""
    errors = relative_errors(prepare(DEQNNGPKernel("relu", center=0.5), share), x, 384, 3)
    assert errors.square().mean().sqrt() < 0.03


def test_tangent_kernel_near_the_critical_weight_variance_warns(x):
    tangent = prepare(DEQNTKKernel("relu", center=0.5), 0.999)
    with pytest.warns(ConvergenceWarning, match="did not converge at close inputs"):
        features(tangent, x, 64)
    features(prepare(DEQNTKKernel("relu", center=0.5), 0.9), x, 64)
    features(prepare(DEQNTKKernel("erf", center=0.5), 0.999), x, 64)


@pytest.mark.parametrize("make", [DEKerKernel, NTKKernel, partial(DEKerKernel, num_steps=2)])
def test_nystrom_features_are_exact_at_the_landmarks(make, x):
    kernel = prepare(make(center=0.5))
    found = gen_kernel_features(kernel, num_inputs=3, num_outputs=100)
    assert found.num_outputs == 100
    at_landmarks = found(found.landmarks)
    exact = kernel(found.landmarks).to_dense()
    scale = exact.diagonal().max()
    torch.testing.assert_close(at_landmarks @ at_landmarks.mT, exact, rtol=0, atol=1e-9 * scale)
    assert found.residual(found.landmarks).abs().max() < 1e-9 * scale
    residual = found.residual(x)
    torch.testing.assert_close(residual + found(x).square().sum(-1), kernel(x, diag=True))
    assert residual.min() > -1e-9 * scale
    coarse = gen_kernel_features(kernel, num_inputs=3, num_outputs=25)
    assert residual.mean() < coarse.residual(x).mean() < 0.5 * scale


@pytest.mark.parametrize("make", [DEQNNGPKernel, NNGPKernel, DEQNTKKernel, DEKerKernel, NTKKernel])
def test_integer_inputs(make):
    kernel = prepare(make(center=0.5))
    x = torch.tensor([[0, 1, 1], [2, -1, 0]])
    found = gen_kernel_features(kernel, num_inputs=3, num_outputs=16)
    assert found(x).equal(found(x.double()))


def data(m: int = 1, d: int = 2) -> tuple[Tensor, Tensor]:
    x = torch.rand(8, d, dtype=torch.float64)
    return x, torch.stack([(3 * x + shift).sin().sum(-1) for shift in range(m)], -1)


def make_model(
    x: Tensor, y: Tensor, kernel: Kernel | str = "deq-nngp", noise: float = 1e-6, **options: Any
) -> SingleTaskGP:
    if isinstance(kernel, str):
        kernel = get_covar_module(kernel, **options)
    return SingleTaskGP(x, y, torch.full_like(y, noise), covar_module=kernel).eval()


@pytest.mark.parametrize("kernel", ["deq-nngp", "deq-ntk", "deker"])
def test_prior_paths_have_the_moments_of_the_prior(kernel):
    """Over draws of the features too: all paths of one call share them."""
    x, y = data()
    model = make_model(x, y, kernel)
    model.outcome_transform = None
    test_x = torch.rand(6, 2, dtype=torch.float64)
    with torch.no_grad():
        values = torch.cat(
            [
                draw_kernel_feature_paths(model, torch.Size([100]), num_features=128)(test_x)
                for _ in range(30)
            ]
        )
        exact = model.covar_module(test_x).to_dense()
    root = exact.diagonal().sqrt()
    assert ((values.mean(0) - model.mean_module(test_x)) / root).abs().max() < 5 / 30**0.5
    assert ((values.mT.cov() - exact) / (root[:, None] * root)).abs().max() < 0.1


@pytest.mark.parametrize("kernel", ["deq-nngp", "deq-ntk", "deker"])
@pytest.mark.parametrize("noise", [1e-6, 1e-2])
def test_posterior_paths_agree_with_the_posterior(kernel, noise):
    x, y = data()
    model = make_model(x, y, kernel, noise, ard_num_dims=2)
    test_x = torch.rand(6, 2, dtype=torch.float64)
    with torch.no_grad():
        paths = draw_matheron_paths(model, torch.Size([512]))
        if noise == 1e-6:
            assert (paths(x) - y.squeeze(-1)).abs().max() < 6e-3  # six standard deviations
        values, posterior = paths(test_x), model.posterior(test_x)
    mean, std = posterior.mean.squeeze(-1), posterior.variance.sqrt().squeeze(-1)
    assert values.shape == (512, 6)
    # standard errors 512**-0.5 = 0.044 and 0.031; the features' errors are common to the paths
    assert ((values.mean(0) - mean) / std).abs().max() < 0.25
    assert (values.std(0) / std).log().abs().max() < 0.4


@pytest.mark.parametrize("kernel", ["deq-nngp", "deq-ntk", "deker"])
def test_two_outputs_and_active_dims(kernel):
    x, y = data(m=2, d=3)
    covar_module = get_covar_module(
        kernel, ard_num_dims=2, batch_shape=torch.Size([2]), active_dims=[2, 0], base="affine"
    )
    covar_module.base_kernel.lengthscale = torch.tensor([[[0.5, 0.9]], [[0.7, 0.4]]])
    model = make_model(x, y, covar_module)
    test_x = torch.rand(5, 3, dtype=torch.float64)
    with torch.no_grad():
        path = get_matheron_path_model(model)
        assert (path(x) - y).abs().max() < 2e-2
        assert path(test_x).shape == (5, 2)
        assert path(torch.rand(4, 5, 3).double()).shape == (4, 5, 2)
        moved = test_x.clone()
        moved[:, 1] = 0.0
        torch.testing.assert_close(path(moved), path(test_x))
        paths = draw_matheron_paths(model, torch.Size([256]))(test_x.unsqueeze(-3))
        posterior = model.posterior(test_x)
    assert paths.shape == (256, 2, 5)
    ratio = (paths.mean(0).mT - posterior.mean) / posterior.variance.sqrt()
    assert ratio.abs().max() < 0.35


def test_features_are_read_at_the_hyperparameters(x):
    """Those of a batch are those of its members, with the same random numbers."""
    batch = DEQNNGPKernel("erf", batch_shape=torch.Size([2])).double()
    batch.lengthscale = torch.tensor([[[0.5]], [[0.2]]])
    found = gen_kernel_features(batch, num_inputs=3, num_outputs=512)(x)
    assert found.shape == (2, 12, 512)
    exact = batch(x).to_dense()
    torch.testing.assert_close(found @ found.mT, exact, rtol=0, atol=0.2)
    assert (found @ found.mT - exact).abs().mean() < 0.3 * (exact[0] - exact[1]).abs().mean()


@pytest.mark.parametrize(
    "make",
    [
        partial(DEQNNGPKernel, "relu"),
        partial(DEQNNGPKernel, "erf"),
        partial(DEQNTKKernel, "erf"),
        partial(DEQNTKKernel, "tanh", trained="recurrent"),
        partial(NNGPKernel, "erf"),
        DEKerKernel,
    ],
    ids=str,
)
def test_gradient_of_a_path(make):
    x, y = data()
    path = get_matheron_path_model(make_model(x, y, ScaleKernel(make(center=0.5)), noise=1e-2))
    test_x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(path, (test_x,), raise_exception=True)


def test_gradient_where_the_kernel_vanishes():
    kernel = prepare(DEQNNGPKernel("relu", center=0.5))
    kernel.bias_variance = 0.0
    centre = torch.full((1, 2), 0.5, dtype=torch.float64, requires_grad=True)
    found = features(kernel, centre, 32)
    assert (found == 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), centre)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kernel", ["deq-nngp", "deq-ntk", "deker"])
def test_thompson_samples_are_inside_the_bounds(kernel):
    x, y = data()
    # paths of a ReLU tangent kernel have small jumps, at which a gradient is blind
    model = make_model(x, y, kernel, activation="erf" if kernel == "deq-ntk" else None)
    bounds = torch.tensor([[0.1, 0.0], [0.9, 0.5]], dtype=torch.float64)
    paths = get_matheron_path_model(model, torch.Size([3]))
    best_x, best = optimize_posterior_samples(paths, bounds, raw_samples=64, num_restarts=3)
    assert best_x.shape == (3, 2)
    assert ((best_x >= bounds[0]) & (best_x <= bounds[1])).all()
    candidates = bounds[0] + (bounds[1] - bounds[0]) * torch.rand(200, 2).double()
    with torch.no_grad():
        assert (best.squeeze(-1) > paths(candidates).amax(-2).squeeze(-1) - 0.02).all()


def test_paths_are_reproducible():
    x, y = data()
    for kernel in ("deq-nngp", "deq-ntk", "deker"):
        model = make_model(x, y, kernel)
        values = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            values.append(draw_matheron_paths(model, torch.Size([2]))(x + 0.1))
        assert values[0].dtype == torch.float64
        assert torch.equal(values[0], values[1])
        assert not torch.equal(values[0], values[2])


def test_sums_of_kernels_by_nystrom_features():
    x, y = data()
    kernel = ScaleKernel(AdditiveKernel(DEQNNGPKernel("erf", center=0.5), MaternKernel()))
    model = make_model(x, y, kernel)
    with pytest.raises(NotImplementedError):
        draw_kernel_feature_paths(model, torch.Size([1]))
    sampler = partial(draw_kernel_feature_paths, map_generator=gen_nystrom_features)
    paths = draw_matheron_paths(model, torch.Size([4]), prior_sampler=sampler)
    assert (paths(x) - y.squeeze(-1)).abs().max() < 1e-2 * y.std()


def test_an_activation_without_its_function_says_so(x):
    class Unknown(type(get_activation("erf"))):  # type: ignore[misc]
        __call__ = Activation.__call__

    with pytest.raises(NotImplementedError, match="Unknown does not define __call__"):
        features(prepare(DEQNNGPKernel(Unknown())), x, 16)


def test_few_features_and_many_inputs():
    x = torch.rand(4, 9).double()
    for kernel in (DEQNNGPKernel("relu"), DEQNTKKernel("relu", trained="all")):
        assert features(prepare(kernel), x, 5).shape == (4, 5)
    depth_one = prepare(NNGPKernel("erf", depth=1))
    errors = relative_errors(depth_one, x, 512, 2)
    assert errors.abs().max() < 0.2
