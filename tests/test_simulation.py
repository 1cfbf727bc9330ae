"""Finite networks trained by stochastic gradient against the update of the infinite one.

A draw's error is O(1/sqrt(width)); the number of features is taken so large that its own,
O(sqrt(width / latent_dim)), vanishes. The mean over draws must lie within five standard errors of
the update, estimated from the draws.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gp_deq.simulation import FeatureSGD, default_latent_dim

X = torch.tensor([[1.0, 0.3, -0.2], [2.0, 2.2, -1.0], [-0.5, 1.0, 0.7]], dtype=torch.float64)
MANY = 10**13


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def angle(cov: Tensor) -> Tensor:
    root = cov.diagonal().sqrt()
    return (cov / torch.outer(root, root)).clamp(-1, 1).acos().fill_diagonal_(0.0)


def arc_cosine(cov: Tensor) -> Tensor:
    """E relu(u) relu(v)."""
    root, theta = cov.diagonal().sqrt(), angle(cov)
    bend = theta.sin() + (math.pi - theta) * theta.cos()
    return torch.outer(root, root) * bend / (2 * math.pi)


def update(sgd: FeatureSGD, b: Tensor, psi: Tensor) -> Tensor:
    """One update of the kernel, from the closed forms of the Gaussian expectations."""
    a, step = sgd.feature_scale, sgd.step_size
    c, mu = b, torch.zeros(len(b), dtype=torch.float64)
    if sgd.features == "relu":
        c, mu = arc_cosine(b), (b.diagonal() / (2 * math.pi)).sqrt()
    if sgd.link == "identity":
        expectation = a**2 * c + psi
    else:
        theta, root = angle(psi), psi.diagonal().sqrt()
        cross = torch.outer(mu, root) * (1 + theta.cos()) / (2 * math.sqrt(2 * math.pi))
        heaviside = (math.pi - theta) / (2 * math.pi)
        expectation = a**2 * c * heaviside - a * (cross + cross.mT) + arc_cosine(psi)
    return (1 - step) ** 2 * psi + step**2 * expectation / sgd.regularization**2


def check_mean(draws: Tensor, expected: Tensor) -> None:
    error = draws.std(0) / math.sqrt(len(draws))
    assert (error < 0.02 * expected.diagonal().max()).all()
    assert ((draws.mean(0) - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("step_size", [1.0, 0.5])
@pytest.mark.parametrize("features", ["relu", "linear"])
@pytest.mark.parametrize("link", ["relu", "identity"])
def test_gram_matrix_tends_to_the_update(
    link: str, features: str, step_size: float, num_steps: int
) -> None:
    sgd = FeatureSGD(
        link=link,
        features=features,
        regularization=1.2,
        step_size=step_size,
        feature_scale=0.8,
        bias_variance=0.25,
        lengthscale=(1.0, 2.0, 0.5),
        center=0.25,
    )
    scaled = (X - 0.25) / torch.tensor([1.0, 2.0, 0.5])
    b = scaled @ scaled.mT / 3 + 0.25
    expected = b
    for _ in range(num_steps):
        expected = update(sgd, b, expected)
    generator = seeded(1)
    draws = [sgd.draw_gram(X, 10_000, MANY, num_steps, generator=generator) for _ in range(40)]
    check_mean(torch.stack(draws), expected)


def test_one_update_of_inputs_of_unequal_norm() -> None:
    """A value by hand: unequal norms tell the two cross terms apart."""
    start = torch.linalg.cholesky(torch.tensor([[1, 0.45], [0.45, 2.25]], dtype=torch.float64))
    sgd = FeatureSGD(features="relu")
    b = X[:2] @ X[:2].mT / 3
    expected = update(sgd, b, start @ start.mT)
    assert expected[0, 1].item() == pytest.approx(0.22444, abs=5e-6)
    draws = [
        sgd.draw_gram(X[:2], 10_000, MANY, start=start, generator=seeded(seed))
        for seed in range(100)
    ]
    check_mean(torch.stack(draws), expected)


def test_pair_of_functions_as_link() -> None:
    """A pair of functions: sigma = sin, rho = cos, of known expectations."""
    sgd = FeatureSGD((torch.sin, torch.cos), "linear", regularization=1.5, bias_variance=0.25)
    z = sgd.injected_input(X)
    b = z @ z.mT
    # E sin u sin v and E cos u cos v
    variance, one = b.diagonal(), torch.ones(3, dtype=torch.float64)
    total = torch.outer(variance, one) + torch.outer(one, variance)
    k_sigma, k_rho = (-total / 2).exp() * b.sinh(), (-total / 2).exp() * b.cosh()
    draws = [sgd.draw_gram(X, 10_000, MANY, generator=seeded(seed)) for seed in range(60)]
    check_mean(torch.stack(draws), (b * k_rho + k_sigma) / 1.5**2)


@pytest.mark.parametrize(("width", "latent_dim"), [(20, 89), (3, 2), (12, 6), (2, 30)])
def test_both_ways_of_drawing_have_the_same_law(width: int, latent_dim: int) -> None:
    """Compared by means of bounded statistics, as the Gram matrices are heavy-tailed."""
    sgd = FeatureSGD(features="relu", step_size=0.7, bias_variance=0.25)
    generator, count = seeded(0), 1500

    def statistics(gram: Tensor) -> Tensor:
        root = gram.diagonal().sqrt()
        return torch.cat([(gram / torch.outer(root, root)).flatten()[[1, 2, 5]], root.log()])

    full, reduced = [], []
    for _ in range(count):
        features = sgd.draw_features(X, width, latent_dim, 3, generator=generator)
        full.append(statistics(features @ features.mT))
        reduced.append(statistics(sgd.draw_gram(X, width, latent_dim, 3, generator=generator)))
    a, b = torch.stack(full), torch.stack(reduced)
    for power in (1, 2):
        difference = (a**power).mean(0) - (b**power).mean(0)
        error = ((a**power).var(0) / count + (b**power).var(0) / count).sqrt()
        assert (difference.abs() < 4.5 * error).all()


def test_features_are_the_updates_of_the_loss() -> None:
    """One step by automatic differentiation of the loss, with the same random numbers."""
    width, m, lam, step, a = 7, 11, 1.3, 0.6, 0.8
    sgd = FeatureSGD("relu", "relu", lam, step, a, bias_variance=0.5)
    found = sgd.draw_features(X, width, m, 1, generator=seeded(3))
    generator, z = seeded(3), sgd.injected_input(X)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    gamma = (normal(width, 4) @ z.mT).relu()
    phi = (normal(m, 4) @ z.mT / math.sqrt(m)).requires_grad_()
    response = (normal(width, m) @ phi).relu()
    loss = lam / 2 * math.sqrt(m / width) * phi.square().sum()
    loss = loss + (response.square() / 2 - a * gamma * response).sum() / width
    (gradient,) = torch.autograd.grad(loss, phi)
    expected = phi - step * math.sqrt(width / m) / lam * gradient
    torch.testing.assert_close(found, expected.detach().mT, rtol=1e-12, atol=1e-14)


def test_start_and_zero_steps() -> None:
    sgd = FeatureSGD(bias_variance=0.25)
    z = sgd.injected_input(X)
    gram = sgd.draw_gram(X, 3, MANY, 0, generator=seeded(0))
    torch.testing.assert_close(gram, z @ z.mT, rtol=1e-5, atol=1e-5)
    features = sgd.draw_features(X, 3, 40, 0, start=torch.ones(3, 1), generator=seeded(0))
    assert (features == features[0]).all()


@pytest.mark.parametrize("method", ["draw_features", "draw_gram"])
def test_seeds_steps_and_precision(method: str) -> None:
    draw = getattr(FeatureSGD(), method)
    steps: list[int] = []
    first = draw(X, 20, num_steps=3, generator=seeded(5), on_step=steps.append)
    assert steps == [1, 2, 3]
    assert torch.equal(first, draw(X, 20, num_steps=3, generator=seeded(5)))
    assert not torch.equal(first, draw(X, 20, num_steps=3, generator=seeded(6)))
    assert draw(X.float(), 20).dtype == torch.float64
    assert first.shape == (3, default_latent_dim(20) if method == "draw_features" else 3)


def test_integer_inputs() -> None:
    sgd, x = FeatureSGD(center=0.5, lengthscale=2), torch.tensor([[1, 0], [3, -2]])
    assert torch.equal(sgd.injected_input(x), sgd.injected_input(x.double()))


def test_default_latent_dim() -> None:
    assert [default_latent_dim(d) for d in (1, 5, 100, 500)] == [1, 11, 1000, 11180]


def test_links_may_be_objects() -> None:
    link = SimpleNamespace(sigma=torch.relu, rho=lambda u: (u > 0).double())
    grams = [
        FeatureSGD(link=choice).draw_gram(X, 20, generator=seeded(0)) for choice in (link, "relu")
    ]
    assert torch.equal(*grams)


@pytest.mark.parametrize(
    "options",
    [
        {"link": "probit"},
        {"features": "erf"},
        {"regularization": 0.0},
        {"regularization": math.nan},
        {"step_size": 2.0},
        {"step_size": 0.0},
        {"feature_scale": math.inf},
        {"bias_variance": -0.1},
        {"lengthscale": 0.0},
    ],
)
def test_bad_hyperparameters(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FeatureSGD(**options)


@pytest.mark.parametrize("link", [torch.relu, (torch.relu,), (torch.relu, 1.0), None])
def test_bad_link(link: Any) -> None:
    with pytest.raises(TypeError, match="sigma, rho"):
        FeatureSGD(link=link)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": X[0]}, "n x D"),
        ({"x": X * math.nan}, "finite"),
        ({"width": 0}, "width"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"num_steps": -1}, "num_steps"),
        ({"start": torch.ones(2, 1)}, "start must be 3 x k"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    arguments = {"x": X, "width": 5} | options
    for draw in (FeatureSGD().draw_features, FeatureSGD().draw_gram):
        with pytest.raises(ValueError, match=message):
            draw(**arguments)


def test_lengthscale_of_the_wrong_length() -> None:
    with pytest.raises(ValueError, match="lengthscale has 2 entries, but x has 3 columns"):
        FeatureSGD(lengthscale=(1.0, 2.0)).draw_gram(X, 5)
