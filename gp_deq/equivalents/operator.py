"""The high-dimensional equivalent of a DEQ kernel as a structured matrix."""

from __future__ import annotations

import torch
from linear_operator.operators import (
    LinearOperator,
)
from torch import Tensor

__all__ = ["EquivalentLinearOperator"]


class EquivalentLinearOperator(LinearOperator):
    r""":math:`a_1 Z_1Z_2^\top + a_2\chi_1\chi_2^\top + a_3 (Z_1Z_2^\top)^{\circ 2} + \delta I`.

    A product with a vector takes :math:`O(n d^2)` operations and :math:`O(nd + d^2)` memory, for
    the row sums of :math:`(Z_1Z_2^\top)^{\circ 2}\mathrm{diag}(v)` are those of :math:`(Z_1 Z_2^\top
    \mathrm{diag}(v) Z_2) \circ Z_1`.

    Args:
        z1: Scaled inputs of the rows, ``... x n x d``.
        z2: Scaled inputs of the columns, ``... x m x d``.
        chi1: Deviations of the rows' squared norms, ``... x n x 1``.
        chi2: Deviations of the columns' squared norms, ``... x m x 1``.
        weights: :math:`a_1, a_2, a_3`, ``... x 3``.
        diagonal: What a pair of identical inputs has besides, ``... x n``; zero where rows and
            columns are different inputs.
    """

    def __init__(
        self,
        z1: Tensor,
        z2: Tensor,
        chi1: Tensor,
        chi2: Tensor,
        weights: Tensor,
        diagonal: Tensor | None = None,
    ) -> None:
        if diagonal is None:
            super().__init__(z1, z2, chi1, chi2, weights)
        else:
            super().__init__(z1, z2, chi1, chi2, weights, diagonal)
        self.z1, self.z2, self.chi1, self.chi2 = z1, z2, chi1, chi2
        self.weights, self.diagonal_part = weights, diagonal

    def _size(self) -> torch.Size:
        batch = torch.broadcast_shapes(self.z1.shape[:-2], self.weights.shape[:-1])
        return torch.Size([*batch, self.z1.shape[-2], self.z2.shape[-2]])

    def _transpose_nonbatch(self) -> LinearOperator:
        return type(self)(self.z2, self.z1, self.chi2, self.chi1, self.weights, self.diagonal_part)

    def _matmul(self, rhs: Tensor) -> Tensor:
        vector = rhs.dim() == 1
        columns = rhs.unsqueeze(-1) if vector else rhs
        a1, a2, a3 = (self.weights[..., i, None, None] for i in range(3))
        value = a1 * (self.z1 @ (self.z2.mT @ columns)) + a2 * (
            self.chi1 @ (self.chi2.mT @ columns)
        )
        squares = [
            ((self.z1 @ (self.z2.mT @ (column.unsqueeze(-1) * self.z2))) * self.z1).sum(-1)
            for column in columns.unbind(-1)
        ]
        value = value + a3 * torch.stack(squares, -1)
        if self.diagonal_part is not None:
            value = value + self.diagonal_part.unsqueeze(-1) * columns
        return value.squeeze(-1) if vector else value

    def to_dense(self) -> Tensor:
        """The matrix."""
        product = self.z1 @ self.z2.mT
        a1, a2, a3 = (self.weights[..., i, None, None] for i in range(3))
        value = a1 * product + a2 * (self.chi1 @ self.chi2.mT) + a3 * product.square()
        if self.diagonal_part is not None:
            value = value + torch.diag_embed(self.diagonal_part)
        return value

    def _diagonal(self) -> Tensor:
        product = (self.z1 * self.z2).sum(-1)
        a1, a2, a3 = (self.weights[..., i, None] for i in range(3))
        value = a1 * product + a2 * (self.chi1 * self.chi2).squeeze(-1) + a3 * product.square()
        return value if self.diagonal_part is None else value + self.diagonal_part
