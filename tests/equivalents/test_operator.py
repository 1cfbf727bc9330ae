"""The structured matrix: linear_operator's own suite, products, solves and determinants."""

from __future__ import annotations

import unittest

import pytest
import torch
from gpytorch import settings
from linear_operator import LinearOperator
from linear_operator.test.linear_operator_test_case import (
    LinearOperatorTestCase,
    RectangularLinearOperatorTestCase,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gp_deq.equivalents import EquivalentLinearOperator, squared_gram
from gp_deq.equivalents.squared_gram import squared_gram_matmul


def operator(
    *batch: int, n: int = 6, m: int | None = None, d: int = 4, dtype: torch.dtype = torch.float32
) -> EquivalentLinearOperator:
    """A random one: square with noise, or ``n x m`` without; two of its inputs are identical."""
    generator = torch.Generator().manual_seed(0)

    def side(count: int) -> list[Tensor]:
        shapes = (count, d + 1), (count, d), (count, 1)
        root, z, weight = (
            torch.rand(*batch, *shape, generator=generator, dtype=dtype) - 0.5 for shape in shapes
        )
        key = torch.arange(count).unsqueeze(-1).expand(*batch, -1, -1).clone()
        key[..., 1, 0] = 0
        return [root, z, weight, torch.full_like(weight, 0.7), key]

    rows = side(n)
    if m is not None:
        return EquivalentLinearOperator(*rows, *side(m))
    noise = 0.5 + torch.rand(*batch, n, generator=generator, dtype=dtype)
    return EquivalentLinearOperator(*rows, *rows, noise)


def dense(matrix: EquivalentLinearOperator) -> Tensor:
    """Entry by entry."""
    rows, columns = matrix.rows, matrix.columns
    value = torch.einsum("...ik,...jk->...ij", rows.root, columns.root)
    gram = torch.einsum("...ik,...jk->...ij", rows.z, columns.z)
    value = value + rows.weight * gram**2 * columns.weight.mT
    nugget = (rows.nugget + columns.nugget.mT) / 2
    value = value + 1.0 * (rows.key == columns.key.mT) * nugget
    return value if matrix.noise is None else value + torch.diag_embed(matrix.noise)


class TestSquare(LinearOperatorTestCase, unittest.TestCase):
    seed = 0

    def setUp(self) -> None:
        super().setUp()
        # which BoTorch, where another test has imported it, switches off
        self.enterContext(settings.fast_computations(True, True, True))

    def create_linear_op(self) -> LinearOperator:
        return operator().clone().requires_grad_(True)

    def evaluate_linear_op(self, linear_op: LinearOperator) -> Tensor:
        return dense(linear_op)


class TestBatch(TestSquare):
    def create_linear_op(self) -> LinearOperator:
        return operator(3).clone().requires_grad_(True)


class TestRectangular(RectangularLinearOperatorTestCase, unittest.TestCase):
    seed = 0

    def create_linear_op(self) -> LinearOperator:
        return operator(n=6, m=5).clone().requires_grad_(True)

    def evaluate_linear_op(self, linear_op: LinearOperator) -> Tensor:
        return dense(linear_op)


# ------------------------------------------------------------------------------------------
# Products with the squared Gram matrix
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("few", [True, False], ids=["by rows", "by weighted Gram matrices"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
def test_product_in_blocks(few: bool, batch: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squared_gram, "_few_inputs", lambda *args: few)
    monkeypatch.setattr(squared_gram, "_BLOCK", 16)
    generator = torch.Generator().manual_seed(0)
    shapes = [(*batch, 7, 5), (*batch, 6, 5), (*batch, 6, 3)]
    z1, z2, vectors = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    expected = (z1 @ z2.mT) ** 2 @ vectors
    found = squared_gram_matmul(z1, z2, vectors)
    assert torch.allclose(found, expected, rtol=1e-13, atol=1e-13)
    arguments = tuple(x.requires_grad_() for x in (z1, z2, vectors))
    assert torch.autograd.gradcheck(squared_gram_matmul, arguments)


@pytest.mark.parametrize(("count", "dims"), [(300, 4), (40, 30)], ids=["long", "wide"])
def test_product_by_either_way(count: int, dims: int) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(count, dims, generator=generator, dtype=torch.float64)
    v = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    assert squared_gram._few_inputs(z, v) == (count == 40)
    expected = (z @ z.mT) ** 2 @ v
    # sums of n products, each to rounding
    assert (squared_gram_matmul(z, z, v) - expected).abs().max() < 1e-13 * expected.abs().max()


def test_product_in_a_checkpoint() -> None:
    """Its backward pass reads each saved tensor once, as ``use_reentrant=False`` asks."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_()
    v = torch.randn(7, 2, generator=generator, dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:
        return squared_gram_matmul(z, z, v).sin().sum()

    found = torch.autograd.grad(checkpoint(loss, z, use_reentrant=False), z)[0]
    assert found.equal(torch.autograd.grad(loss(z), z)[0])


def test_no_inputs() -> None:
    z, v = torch.zeros(0, 3), torch.zeros(0, 2)
    assert squared_gram_matmul(z, z, v).shape == (0, 2)
    assert squared_gram_matmul(torch.ones(4, 3), z, v).equal(torch.zeros(4, 2))


# ------------------------------------------------------------------------------------------
# Structure kept, and used
# ------------------------------------------------------------------------------------------


def test_factor_and_diagonal_keep_the_structure() -> None:
    matrix = operator(dtype=torch.float64)
    noise = torch.rand(6, dtype=torch.float64)
    changed = (2.5 * matrix).add_diagonal(noise)
    assert isinstance(changed, EquivalentLinearOperator)
    assert torch.allclose((-2.5 * matrix).to_dense(), -2.5 * dense(matrix), rtol=1e-14)
    expected = 2.5 * dense(matrix) + noise.diag()
    assert torch.allclose(changed.to_dense(), expected, rtol=1e-14)
    assert torch.allclose(changed.diagonal(), expected.diagonal(), rtol=1e-14)
    with pytest.raises(RuntimeError, match="square"):
        operator(m=5).add_diagonal(torch.ones(1))


def _spread(kind: str, count: int = 600, dims: int = 20) -> list[Tensor]:
    """A matrix of a GP with noise, whose inputs vary evenly or mostly in a few directions."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, dims + 1, dtype=torch.float64) ** (-1.0 if kind == "decaying" else 0.0)
    z = torch.randn(count, dims, generator=generator, dtype=torch.float64) * scale
    z = z / z.square().sum(-1).mean().sqrt()
    mean = 0.2 * (z.square().sum(-1, keepdim=True) - 1)
    weight = torch.full_like(mean, 0.0 if kind == "linear" else 0.3)
    side = [torch.cat([0.5 * z, mean], -1), z, weight, 0.02 + 0 * mean]
    side.append(torch.arange(count).unsqueeze(-1))
    return side


@pytest.mark.parametrize(("kind", "gain"), [("even", 20), ("decaying", 8)])
def test_preconditioner(kind: str, gain: float) -> None:
    side = _spread(kind, dims=60)
    matrix = EquivalentLinearOperator(*side, *side)
    with settings.min_preconditioning_size(1), settings.max_preconditioner_size(30):
        solve, near, logdet = matrix._preconditioner()
    assert solve is not None and near is not None and logdet is not None
    whole = near.to_dense()
    # consistent with itself
    vectors = torch.randn(600, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(whole @ solve(vectors), vectors, rtol=1e-8, atol=1e-8)
    assert torch.allclose(torch.logdet(whole), logdet, rtol=1e-10)
    # 138 without and 5 with it, or 5300 and 510
    without = _condition(matrix.to_dense(), torch.eye(600, dtype=torch.float64))
    assert gain * _condition(matrix.to_dense(), whole) < without


def _condition(matrix: Tensor, preconditioner: Tensor) -> float:
    factor = torch.linalg.cholesky(preconditioner)
    half = torch.linalg.solve_triangular(factor, matrix, upper=False)
    whole = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    values = torch.linalg.eigvalsh(whole)
    return (values[-1] / values[0]).item()


def test_no_preconditioner_of_wide_inputs() -> None:
    """Its rank would be near that of the matrix."""
    side = _spread("even", count=60, dims=40)
    with settings.min_preconditioning_size(1):
        assert EquivalentLinearOperator(*side, *side)._preconditioner() == (None, None, None)


@pytest.mark.parametrize("kind", ["even", "decaying", "linear"])
def test_marginal_likelihood_by_conjugate_gradients(kind: str) -> None:
    """Quadratic form, log determinant and gradients against those of the dense matrix."""
    y = torch.randn(300, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(dense: bool) -> tuple[Tensor, ...]:
        *side, key = _spread(kind, count=300)
        leaves = [part.clone().requires_grad_() for part in side]
        found = EquivalentLinearOperator(*leaves, key, *leaves, key)
        if dense:
            whole = found.to_dense()
            value = (y * torch.linalg.solve(whole, y)).sum() + torch.logdet(whole)
        else:
            value = sum(found.inv_quad_logdet(y, logdet=True))
        value.backward()
        return value.detach(), *(leaf.grad for leaf in leaves)

    torch.manual_seed(0)
    with (
        settings.fast_computations(True, True, True),
        settings.max_cholesky_size(1),
        settings.min_preconditioning_size(1),
        settings.cg_tolerance(1e-4),
        settings.num_trace_samples(400),
        settings.max_lanczos_quadrature_iterations(60),
    ):
        value, *gradients = loss(dense=False)
    exact, *exact_gradients = loss(dense=True)
    # 400 probes: the determinant's standard error is of the order of (n / 400)^(1/2)
    assert abs(value - exact) < 4
    for found, expected in zip(gradients, exact_gradients, strict=True):
        assert (found - expected).norm() < 0.1 * expected.norm() + 1e-6
