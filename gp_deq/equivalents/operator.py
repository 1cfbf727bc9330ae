"""The high-dimensional equivalent of a DEQ kernel as a structured matrix."""

from __future__ import annotations

from collections.abc import Callable

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

from ..activations.pair_covariance import safe_sqrt
from .squared_gram import squared_gram_matmul

__all__ = ["EquivalentLinearOperator"]


class EquivalentLinearOperator(LinearOperator):
    r"""A Gram matrix, its elementwise square, a matrix of rank one and a diagonal.

    .. math::
        a_1 Z_1Z_2^\top + a_2\chi_1\chi_2^\top + a_3 (Z_1Z_2^\top)^{\circ 2}
            + \mathrm{diag}(\delta)

    It is held in :math:`O(nd)` memory, and a product with a vector takes :math:`O(nd^2)`
    operations (see :mod:`gp_deq.equivalents.squared_gram`). A factor or a diagonal, such as that
    of a likelihood's noise, leaves the structure as it is.

    GPyTorch solves with it by preconditioned conjugate gradients where Cholesky's factorization is
    too much. The preconditioner has the terms of :math:`a_1` and :math:`a_2` exactly, and of the
    quadratic term its diagonal and its share in the directions in which it is largest:
    ``gpytorch.settings.max_preconditioner_size`` of them.

    Args:
        z1: Scaled inputs of the rows, ``... x n x d``.
        z2: Scaled inputs of the columns, ``... x m x d``.
        chi1: Deviations of the rows' squared norms, ``... x n x 1``.
        chi2: Deviations of the columns' squared norms, ``... x m x 1``.
        weights: :math:`a_1, a_2, a_3`, ``... x 3``, not negative.
        delta: :math:`\delta`, ``... x n``. Default: none.

    Example:
        >>> z = torch.eye(2)
        >>> chi = torch.zeros(2, 1)
        >>> EquivalentLinearOperator(z, z, chi, chi, torch.tensor([1.0, 2.0, 3.0])).to_dense()
        tensor([[4., 0.],
                [0., 4.]])
    """

    def __init__(
        self,
        z1: Tensor,
        z2: Tensor,
        chi1: Tensor,
        chi2: Tensor,
        weights: Tensor,
        delta: Tensor | None = None,
    ) -> None:
        tensors = (z1, z2, chi1, chi2, weights)
        super().__init__(*tensors, *(() if delta is None else (delta,)))
        self.z1, self.z2, self.chi1, self.chi2, self.weights = tensors
        self.delta = delta

    def _weight(self, index: int) -> Tensor:
        return self.weights[..., index, None, None]

    def _size(self) -> torch.Size:
        return torch.Size([*self.z1.shape[:-1], self.z2.shape[-2]])

    def _transpose_nonbatch(self) -> LinearOperator:
        return self._with(z1=self.z2, z2=self.z1, chi1=self.chi2, chi2=self.chi1)

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        linear = self._weight(0) * (self.z1 @ (self.z2.mT @ rhs))
        norms = self._weight(1) * (self.chi1 @ (self.chi2.mT @ rhs))
        square = self._weight(2) * squared_gram_matmul(self.z1, self.z2, rhs)
        value = linear + norms + square
        return value if self.delta is None else value + self.delta.unsqueeze(-1) * rhs

    def to_dense(self) -> Tensor:
        """The matrix."""
        gram = self.z1 @ self.z2.mT
        norms = self.chi1 @ self.chi2.mT
        value = self._weight(0) * gram + self._weight(1) * norms + self._weight(2) * gram.square()
        return value if self.delta is None else value + torch.diag_embed(self.delta)

    def _diagonal(self) -> Tensor:
        gram = (self.z1 * self.z2).sum(-1, keepdim=True)
        norms = self.chi1 * self.chi2
        value = self._weight(0) * gram + self._weight(1) * norms + self._weight(2) * gram.square()
        return value.squeeze(-1) if self.delta is None else value.squeeze(-1) + self.delta

    def _mul_constant(self, other: float | Tensor) -> LinearOperator:
        factor = torch.as_tensor(other).to(self.weights)
        factor = factor.expand(self.batch_shape).unsqueeze(-1)
        delta = None if self.delta is None else factor * self.delta
        return self._with(weights=factor * self.weights, delta=delta)

    def __add__(self, other: Tensor | LinearOperator | float) -> LinearOperator | Tensor:
        if isinstance(other, DiagLinearOperator) and self.shape == other.shape:
            return self.add_diagonal(other._diagonal())
        return super().__add__(other)

    def add_diagonal(self, diag: Tensor) -> LinearOperator:
        """The operator with a diagonal added.

        Args:
            diag: ``... x n``, ``... x 1``, or a scalar.

        Raises:
            RuntimeError: the operator is not square.
        """
        if not self.is_square:
            raise RuntimeError("add_diagonal only defined for square matrices")
        diag = diag.expand(self.shape[:-1])
        return self._with(delta=diag if self.delta is None else self.delta + diag)

    def _preconditioner(
        self,
    ) -> tuple[Callable[[Tensor], Tensor] | None, LinearOperator | None, Tensor | None]:
        size = settings.max_preconditioner_size.value()
        if size == 0 or self.shape[-1] < settings.min_preconditioning_size.value():
            return None, None, None
        root = self._preconditioner_root(size)
        diagonal = self._diagonal()
        rest = diagonal - root.square().sum(-1)
        rest = torch.maximum(rest, 1e-4 * diagonal.mean(-1, keepdim=True))
        factors = LowRankRootLinearOperator(root), DiagLinearOperator(rest)
        solver = LowRankRootAddedDiagLinearOperator(*factors)
        logdet = solver.logdet()
        solver = solver.detach()
        # a sum has samples and derivatives by its parts
        return solver.solve, PsdSumLinearOperator(*factors), logdet

    def _preconditioner_root(self, size: int) -> Tensor:
        r"""``L`` with :math:`LL^\top` near the operator less a diagonal.

        The quadratic term is the Gram matrix of the features :math:`zz^\top`. In the basis of the
        eigenvectors of :math:`Z^\top Z`, with eigenvalues :math:`\lambda`, the features are largest
        in the direction of :math:`\mathrm{diag}(\lambda)`, their mean, and then in those of the
        products of two coordinates with the largest :math:`\lambda_i\lambda_j`.
        """
        with torch.no_grad():
            strengths, basis = torch.linalg.eigh(self.z1.mT @ self.z1)
        coordinates = self.z1 @ basis
        mean = (strengths / torch.linalg.vector_norm(strengths, dim=-1, keepdim=True)).unsqueeze(-1)
        top = strengths.flatten(0, -2).mean(0) if strengths.dim() > 1 else strengths
        rows, columns = torch.triu_indices(len(top), len(top), 1, device=top.device)
        order = (top[rows] * top[columns]).argsort(descending=True)[: size - 1]
        rows, columns = rows[order], columns[order]
        products = coordinates[..., rows] * coordinates[..., columns] * 2**0.5
        quadratic = torch.cat([coordinates.square() @ mean, products], -1)
        parts = (self.z1, self.chi1, quadratic)
        return torch.cat([safe_sqrt(self._weight(i)) * part for i, part in enumerate(parts)], -1)

    def _with(self, **changes: Tensor | None) -> EquivalentLinearOperator:
        names = ("z1", "z2", "chi1", "chi2", "weights", "delta")
        return type(self)(**{name: changes.get(name, getattr(self, name)) for name in names})
