"""The high-dimensional equivalent of a DEQ kernel as a structured matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from linear_operator import settings
from linear_operator.operators import (
    DiagLinearOperator,
    LinearOperator,
    LowRankRootAddedDiagLinearOperator,
    LowRankRootLinearOperator,
    PsdSumLinearOperator,
)
from torch import Tensor

from .squared_gram import squared_gram_matmul

__all__ = ["EquivalentLinearOperator"]


class _Side(NamedTuple):
    """Factors of the terms of the operator for its rows, or for its columns."""

    root: Tensor
    z: Tensor
    weight: Tensor
    nugget: Tensor
    key: Tensor


class EquivalentLinearOperator(LinearOperator):
    r"""A matrix of low rank, a squared Gram matrix, a nugget and a diagonal.

    .. math::
        A_1A_2^\top + \mathrm{diag}(q_1)\,(Z_1Z_2^\top)^{\circ 2}\,\mathrm{diag}(q_2)
            + \Bigl[\tfrac{\delta_i + \delta'_j}2\,[\mathrm{key}_i = \mathrm{key}'_j]\Bigr]_{ij}
            + \mathrm{diag}(\nu)

    It is held in :math:`O(nd)` memory, and a product with a vector takes :math:`O(nd^2)`
    operations (see :mod:`gp_deq.equivalents.squared_gram`). A positive factor or a diagonal, such
    as that of a likelihood's noise, leaves the structure as it is.

    For matrices beyond ``gpytorch.settings.max_cholesky_size`` GPyTorch solves with it by
    preconditioned conjugate gradients. The preconditioner has the first term exactly and of the
    second term its diagonal and its part along the ``gpytorch.settings.max_preconditioner_size``
    directions in which it is largest. Products are differentiable once, :meth:`to_dense` any number
    of times.

    Args:
        root1: Factor :math:`A_1` of the first term, ``... x n x k``.
        z1: Factor :math:`Z_1` of the squared Gram matrix, ``... x n x d``.
        weight1: Weights :math:`q_1` of its rows, ``... x n x 1``.
        nugget1: Nuggets :math:`\delta` of the rows, equal for equal keys, ``... x n x 1``.
        key1: Integers of the rows that are equal for identical inputs only, ``... x n x 1``.
        root2: Factor :math:`A_2` of the first term, ``... x m x k``.
        z2: Factor :math:`Z_2` of the squared Gram matrix, ``... x m x d``.
        weight2: Weights :math:`q_2` of its columns, ``... x m x 1``.
        nugget2: Nuggets :math:`\delta'` of the columns, ``... x m x 1``.
        key2: Integers of the columns, as ``key1``, ``... x m x 1``.
        noise: Diagonal :math:`\nu`, ``... x n``. Default: none.

    Example:
        >>> z, ones, key = torch.eye(2), torch.ones(2, 1), torch.arange(2).unsqueeze(-1)
        >>> side = z, z, ones, 0.5 * ones, key
        >>> EquivalentLinearOperator(*side, *side).to_dense()
        tensor([[2.5000, 0.0000],
                [0.0000, 2.5000]])
    """

    def __init__(
        self,
        root1: Tensor,
        z1: Tensor,
        weight1: Tensor,
        nugget1: Tensor,
        key1: Tensor,
        root2: Tensor,
        z2: Tensor,
        weight2: Tensor,
        nugget2: Tensor,
        key2: Tensor,
        noise: Tensor | None = None,
    ) -> None:
        rows = _Side(root1, z1, weight1, nugget1, key1)
        columns = _Side(root2, z2, weight2, nugget2, key2)
        super().__init__(*rows, *columns, *(() if noise is None else (noise,)))
        self.rows, self.columns, self.noise = rows, columns, noise

    def _size(self) -> torch.Size:
        return torch.Size([*self.rows.z.shape[:-1], self.columns.z.shape[-2]])

    def _transpose_nonbatch(self) -> LinearOperator:
        return self._with(rows=self.columns, columns=self.rows)

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        rows, columns = self.rows, self.columns
        linear = rows.root @ (columns.root.mT @ rhs)
        square = rows.weight * squared_gram_matmul(rows.z, columns.z, columns.weight * rhs)
        weighted = columns.nugget * rhs
        # the nuggets of rows and of columns in one sorting of the keys
        both = torch.cat([rhs.expand_as(weighted), weighted], -1)
        equals, weighted = _sum_of_equals(rows.key, columns.key, both).tensor_split(2, -1)
        value = linear + square + (rows.nugget * equals + weighted) / 2
        return value if self.noise is None else value + self.noise.unsqueeze(-1) * rhs

    def to_dense(self) -> Tensor:
        """The matrix."""
        rows, columns = self.rows, self.columns
        gram = rows.z @ columns.z.mT
        value = rows.root @ columns.root.mT + rows.weight * gram.square() * columns.weight.mT
        nugget = (rows.nugget + columns.nugget.mT) / 2
        value = value + torch.where(rows.key == columns.key.mT, nugget, 0.0)
        return value if self.noise is None else value + torch.diag_embed(self.noise)

    def _diagonal(self) -> Tensor:
        rows, columns = self.rows, self.columns
        gram = (rows.z * columns.z).sum(-1)
        value = (rows.root * columns.root).sum(-1)
        value = value + (rows.weight * columns.weight).squeeze(-1) * gram.square()
        equal = (rows.key == columns.key).squeeze(-1)
        nugget = (rows.nugget + columns.nugget).squeeze(-1) / 2
        value = value + torch.where(equal, nugget, 0.0)
        return value if self.noise is None else value + self.noise

    def _mul_constant(self, other: float | Tensor) -> LinearOperator:
        factor = torch.as_tensor(other).to(self.rows.root)
        if not bool((factor > 0).all()):
            return super()._mul_constant(other)
        factor = factor.expand(self.batch_shape)[..., None, None]
        half = factor.sqrt()  # the factors of rows and columns are multiplied with each other
        rows, columns = (
            side._replace(
                root=half * side.root, weight=half * side.weight, nugget=factor * side.nugget
            )
            for side in (self.rows, self.columns)
        )
        noise = None if self.noise is None else factor.squeeze(-1) * self.noise
        return self._with(rows=rows, columns=columns, noise=noise)

    def __add__(self, other: Tensor | LinearOperator | float) -> LinearOperator | Tensor:
        if isinstance(other, DiagLinearOperator) and self.shape == other.shape:
            return self.add_diagonal(other._diagonal())
        return super().__add__(other)

    def add_diagonal(self, diag: Tensor) -> LinearOperator:
        """The operator with a diagonal added.

        Args:
            diag: Diagonal, ``... x n``, ``... x 1``, or a scalar, with no more batch dimensions
                than the operator.

        Returns:
            An operator of the same structure.

        Raises:
            RuntimeError: the operator is not square.
        """
        if not self.is_square:
            raise RuntimeError("add_diagonal only defined for square matrices")
        diag = diag.expand(self.shape[:-1])
        return self._with(noise=diag if self.noise is None else self.noise + diag)

    def _preconditioner(
        self,
    ) -> tuple[Callable[[Tensor], Tensor] | None, LinearOperator | None, Tensor | None]:
        size, (count, dims) = settings.max_preconditioner_size.value(), self.rows.z.shape[-2:]
        # the first term has rank d or d + 1: a preconditioner of half the rank of the matrix or
        # more costs more than the iterations that it saves
        if size == 0 or count < max(settings.min_preconditioning_size.value(), 2 * dims):
            return None, None, None
        root = self._preconditioner_root(size)
        diagonal = self._diagonal()
        # without noise the remaining diagonal can be zero, or negative by rounding; with sqrt(eps)
        # of the mean diagonal the preconditioner is positive definite and keeps half of the digits
        least = torch.finfo(diagonal.dtype).eps ** 0.5 * diagonal.mean(-1, keepdim=True)
        rest = torch.maximum(diagonal - root.square().sum(-1), least)
        factors = LowRankRootLinearOperator(root), DiagLinearOperator(rest)
        solver = LowRankRootAddedDiagLinearOperator(*factors)
        logdet = solver.logdet()
        # GPyTorch draws samples of it and differentiates it, which a sum does by its terms
        return solver.detach().solve, PsdSumLinearOperator(*factors), logdet

    def _preconditioner_root(self, size: int) -> Tensor:
        r"""Factor ``L`` of an approximation :math:`LL^\top` of the operator less a diagonal.

        The quadratic term is the Gram matrix of the features :math:`q zz^\top`. In the basis of the
        eigenvectors of :math:`Z^\top Z`, with eigenvalues :math:`\lambda`, the features are largest
        in the direction of :math:`\mathrm{diag}(\lambda)`, their mean, and then in those of the
        products of two coordinates with the largest :math:`\lambda_i\lambda_j`.
        """
        with torch.no_grad():
            strengths, basis = torch.linalg.eigh(self.rows.z.mT @ self.rows.z)
            mean = torch.nn.functional.normalize(strengths, dim=-1).unsqueeze(-1)
            top = strengths.flatten(0, -2).mean(0) if strengths.dim() > 1 else strengths
            rows, columns = torch.triu_indices(len(top), len(top), 1, device=top.device)
            order = (top[rows] * top[columns]).argsort(descending=True)[: size - 1]
            rows, columns = rows[order], columns[order]
        coordinates = self.rows.z @ basis
        products = coordinates[..., rows] * coordinates[..., columns] * 2**0.5
        features = torch.cat([coordinates.square() @ mean, products], -1)
        return torch.cat([self.rows.root, self.rows.weight * features], -1)

    def _with(
        self,
        rows: _Side | None = None,
        columns: _Side | None = None,
        noise: Tensor | None = None,
    ) -> EquivalentLinearOperator:
        return type(self)(
            *(rows or self.rows),
            *(columns or self.columns),
            noise=self.noise if noise is None else noise,
        )


def _sum_of_equals(key1: Tensor, key2: Tensor, vectors: Tensor) -> Tensor:
    """For each row the sum of the vectors' entries at the columns that have the key of the row."""
    batch = torch.broadcast_shapes(key1.shape[:-2], vectors.shape[:-2])
    if not batch:
        keys, index = torch.unique(torch.cat([key1, key2]), return_inverse=True)
        sums = vectors.new_zeros(len(keys), vectors.shape[-1])
        sums = sums.index_add(0, index[len(key1) :, 0], vectors)
        return sums[index[: len(key1), 0]]
    expanded = (x.expand(*batch, -1, -1).flatten(0, -3) for x in (key1, key2, vectors))
    parts = [_sum_of_equals(*some) for some in zip(*expanded, strict=True)]
    return torch.stack(parts).unflatten(0, batch)
