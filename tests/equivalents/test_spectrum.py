"""Eigenvalues of a DEQ kernel beside those of its equivalents."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gp_deq import DEQNNGPKernel, DEQNTKKernel
from gp_deq.equivalents import centered_kernel, equivalent_kernel, match_explicit, spectrum

pytestmark = pytest.mark.filterwarnings("ignore:The squared norms")


def mixture(p: int, seed: int, weight: float = 0.2) -> Tensor:
    """Two classes of inputs such that the injected covariance is ``(1 - w) X X^T``.

    The classes are ``x = (8 e_1 + xi)/sqrt(p)`` and ``x = (8 e_9 + (1 + 8/sqrt(p))^(1/2)
    xi)/sqrt(p)``; there are ``0.8 p`` inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = []
    for k in (0, 1):
        x = torch.randn(2 * p // 5, p, generator=generator, dtype=torch.float64)
        x = x * (1 + 8 * k / math.sqrt(p)) ** 0.5
        x[:, 8 * k] += 8
        classes.append(x)
    return torch.cat(classes) * math.sqrt(1 - weight)


def kernel_of(cls: type, activation: str = "relu", weight: float = 0.2, **options):
    kernel = cls(activation, **options).double()
    kernel.weight_variance, kernel.lengthscale = weight, 1.0
    return kernel


def test_error_on_mixtures() -> None:
    """At p = 400, where the form with scalars of the mean norm errs by .047 and .056."""
    seeds = range(3)
    found = [spectrum(kernel_of(DEQNNGPKernel), mixture(400, seed)) for seed in seeds]
    tangent = kernel_of(DEQNTKKernel, trained="recurrent")
    found_tangent = [spectrum(tangent, mixture(400, seed)) for seed in seeds]
    assert sum(s.norm for s in found) / 3 == pytest.approx(6.46, rel=0.02)
    assert sum(s.norm for s in found_tangent) / 3 == pytest.approx(6.85, rel=0.02)
    assert sum(s.equivalent_error for s in found) / 3 < 0.005
    assert sum(s.equivalent_error for s in found_tangent) / 3 < 0.010
    for s, t in zip(found, found_tangent, strict=True):
        assert s.explicit_error < 0.1 * s.equivalent_error and not s.reason
        assert t.reason
        assert t.network is None and t.explicit is None and math.isnan(t.explicit_error)


def test_error_falls_with_the_dimension() -> None:
    kernel = kernel_of(DEQNNGPKernel)
    first, last = (spectrum(kernel, mixture(p, 0)) for p in (100, 800))
    ratio = (first.equivalent_error / first.norm) / (last.equivalent_error / last.norm)
    assert ratio > 8


def test_fields() -> None:
    kernel, X = kernel_of(DEQNNGPKernel), mixture(50, 0)
    found = spectrum(kernel, X)
    exact, equivalent = centered_kernel(kernel, X)(X).to_dense(), equivalent_kernel(kernel, X)(X)
    assert torch.allclose(found.exact, torch.linalg.eigvalsh(exact).flip(-1), rtol=1e-10)
    distance = torch.linalg.matrix_norm(exact - equivalent.to_dense(), 2).item()
    assert found.equivalent_error == pytest.approx(distance, rel=1e-8)
    assert found.norm == pytest.approx(torch.linalg.matrix_norm(exact, 2).item(), rel=1e-10)
    assert (found.equivalent.diff() <= 0).all() and (found.explicit.diff() <= 0).all()


def test_without_a_match() -> None:
    """GELU's four equations contradict one another in the family."""
    found = spectrum(kernel_of(DEQNNGPKernel, "gelu"), mixture(50, 0))
    assert found.network is None and found.explicit is None and "No explicit" in found.reason
    assert found.equivalent_error < 0.3 * found.norm


def test_centred_kernel() -> None:
    """Its features have mean zero: orthogonal inputs of the level's norm have no covariance."""
    X = 3 * torch.eye(16, dtype=torch.float64)
    kernel = kernel_of(DEQNNGPKernel, "relu", bias_variance_constraint=None)
    kernel.bias_variance = 0.7
    centred = centered_kernel(kernel, X)
    assert centred.bias_variance.item() == 0.0
    matrix = centred(X).to_dense()
    assert matrix.fill_diagonal_(0.0).abs().max() < 1e-14
    hidden = kernel_of(DEQNTKKernel, trained="hidden")
    with pytest.raises(ValueError, match="recurrent"):
        centered_kernel(hidden, X)


@pytest.mark.parametrize("cls", [DEQNNGPKernel, DEQNTKKernel])
def test_integer_inputs(cls: type) -> None:
    """Half of the entries are 0 and half 1, so that a center of 0.5 is what matters."""
    X = torch.randint(0, 2, (30, 50), generator=torch.Generator().manual_seed(0))
    options = {} if cls is DEQNNGPKernel else {"trained": "recurrent"}
    kernel = kernel_of(cls, center=0.5, **options)
    found, expected = spectrum(kernel, X), spectrum(kernel, X.double())
    assert found.exact.equal(expected.exact) and found.equivalent.equal(expected.equivalent)
    assert found.equivalent_error == expected.equivalent_error
    if cls is DEQNNGPKernel:
        assert found.explicit.equal(expected.explicit)
        network = match_explicit(kernel, X)
        assert network.parameters == match_explicit(kernel, X.double()).parameters
        module = network.module(50, 64)
        assert module(X).equal(module(X.double()))


def test_plot() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure, axes = pyplot.subplots()
    spectrum(kernel_of(DEQNNGPKernel), mixture(50, 0)).draw(axes)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(labels) == 3 and labels[0] == "equilibrium" and "leaky-relu" in labels[2]
    assert axes.get_xlabel() == "rank" and axes.get_ylabel() == "eigenvalue"
    pyplot.close(figure)
