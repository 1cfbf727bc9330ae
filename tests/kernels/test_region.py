"""Every kernel over the whole region of hyperparameters and of inputs, by Hypothesis.

The region is that of ``test_region_accuracy.py``, which compares with many digits; here every
activation, link and read-out has its turn: finite values and gradients, converged or warned,
symmetric to the bit, Cauchy-Schwarz and positive semi-definite within the documented error of an
entry, 64 eps times the condition number, relative to the mean of the two variances.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from gp_deq import DEKerKernel, DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel
from gp_deq.equilibrium import ConvergenceWarning

ACTIVATIONS = ["relu", "leaky_relu", "erf", "sin", "gelu", "identity"]
SERIES = ["tanh", "sigmoid", "silu", "elu", "softplus"]
LINKS = ["relu", "identity", "logistic", "tanh", "softplus-gaussian"]
TRAINED = ["all", "hidden", "recurrent", "preactivation"]


class Case(NamedTuple):
    """A kernel of a class with its options, and where it is evaluated."""

    cls: type
    options: dict[str, Any]
    fraction: float
    lengthscale: float
    bias_variance: float
    sizes: tuple[float, float]
    gap: float
    seed: int
    dims: int
    dtype: torch.dtype


def logarithmic(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


@st.composite
def cases(draw: st.DrawFn, kinds: list[str]) -> Case:
    kind = draw(st.sampled_from(kinds))
    options: dict[str, Any] = {}
    if kind == "DEKer":
        cls: type = DEKerKernel
        options["link"] = draw(st.sampled_from(LINKS))
        options["features"] = draw(st.sampled_from(["relu", "linear"]))
        options["num_steps"] = draw(st.sampled_from([None, 3]))
    else:
        cls = {c.__name__: c for c in (DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel)}[kind]
        options["activation"] = draw(st.sampled_from([*ACTIVATIONS, *SERIES]))
        if cls in (DEQNTKKernel, NTKKernel):
            options["trained"] = draw(st.sampled_from(TRAINED))
        if cls in (NNGPKernel, NTKKernel):
            options["depth"] = draw(st.integers(1, 5))
            options["input_injection"] = draw(st.booleans())
    return Case(
        cls,
        options,
        draw(st.one_of(logarithmic(-3, -0.05), st.floats(0.9, 0.995))),
        draw(st.one_of(logarithmic(-2, 3), logarithmic(-2, 0))),
        draw(logarithmic(-10, 5)),
        (draw(st.one_of(logarithmic(-4, 4), logarithmic(0, 3))), draw(logarithmic(-4, 4))),
        draw(logarithmic(-6, 0.5)),
        draw(st.integers(0, 10**6)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from([torch.float64, torch.float32])),
    )


def points(case: Case) -> Tensor:
    """Clusters of close inputs around two points, their antipodes, a multiple and the origin.

    Kernels of a cluster have eigenvalues near zero, which errors elsewhere make negative.
    """
    generator = torch.Generator().manual_seed(case.seed)
    large, small = case.sizes
    a, b = torch.randn(2, case.dims, generator=generator, dtype=torch.float64)
    a, b = large * a, small * b
    centres = torch.stack((a, -a, 0.3 * a, b, a + b, 0 * a))
    close = torch.randn(6, 4, case.dims, generator=generator, dtype=torch.float64)
    close[:, 0] = 0.0
    reach = case.gap * case.lengthscale * math.sqrt(case.dims)
    x = (centres.unsqueeze(1) + reach * close).flatten(0, 1)
    return torch.cat((x, b.unsqueeze(0))).clamp(-1e4, 1e4).to(case.dtype)


def make(case: Case) -> tuple[Any, float]:
    """The kernel, and the factor of its condition number."""
    kernel = case.cls(**case.options).to(case.dtype)
    kernel.lengthscale, kernel.bias_variance = case.lengthscale, case.bias_variance
    if case.cls is DEKerKernel:
        kernel.regularization = kernel.critical_regularization / math.sqrt(case.fraction)
        return kernel, 1 / (1 - case.fraction)
    critical = kernel.activation.critical_weight_variance
    kernel.weight_variance = case.fraction * critical
    if "depth" in case.options:
        return kernel, sum(case.fraction**layer for layer in range(case.options["depth"]))
    return kernel, 1 / (1 - case.fraction)


def check(case: Case) -> None:
    kernel, condition = make(case)
    x = points(case).requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        matrix = kernel(x).to_dense()
    warned = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    assert warned or kernel.solver_report.converged
    assert bool(matrix.isfinite().all())
    weights = torch.linspace(-1, 1, matrix.numel(), dtype=matrix.dtype).reshape(matrix.shape)
    scale = matrix.detach().abs().max().clamp_min(torch.finfo(matrix.dtype).tiny)
    gradients = torch.autograd.grad((matrix / scale * weights).sum(), [x, *kernel.parameters()])
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    matrix = matrix.detach()
    assert torch.equal(matrix, matrix.mT)
    if not kernel.solver_report.converged:
        return
    matrix = matrix.double()
    variance = matrix.diagonal().unsqueeze(-1)
    assert bool((variance >= 0).all())
    error = 64 * torch.finfo(case.dtype).eps * condition * (variance + variance.mT) / 2
    excess = matrix.abs() - variance.sqrt() * variance.mT.sqrt()
    assert bool((excess <= error).all())
    # each entry errs by at most that, a matrix of errors moves eigenvalues by at most its norm
    assert torch.linalg.eigvalsh(matrix)[0] >= -torch.linalg.matrix_norm(error)


KINDS = ["DEQNNGPKernel", "DEQNTKKernel", "NNGPKernel", "NTKKernel", "DEKer"]
QUICK = hypothesis.settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.mark.parametrize("kind", KINDS)
def test_region(kind: str) -> None:
    QUICK(hypothesis.given(cases([kind]))(check))()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_region_at_length(kind: str) -> None:
    long = hypothesis.settings(QUICK, max_examples=1000)
    long(hypothesis.given(cases([kind]))(check))()


@pytest.mark.parametrize("activation", ["erf", "sin", "gelu", "tanh"])
@pytest.mark.parametrize("cls", [DEQNNGPKernel, DEQNTKKernel])
def test_short_lengthscales_in_float32(cls: type, activation: str) -> None:
    """Inputs of a hundred and more, thousands of lengthscales from the centre."""
    for seed, (lengthscale, size) in enumerate([(0.02, 300.0), (0.05, 30.0), (0.1, 300.0)]):
        where = (lengthscale, 0.1, (size, 1.0), 0.5, seed, 1 + seed, torch.float32)
        check(Case(cls, {"activation": activation}, 0.5, *where))
