r"""The most probable natural parameters of an exponential family under a Gaussian prior.

For :math:`f = m + K\alpha` the objective

.. math:: \Psi(\alpha) = \tfrac12 \alpha^\top K \alpha + \sum_i [A(f_i) - T_i f_i]

is strictly convex in :math:`f`, and its minimum is where :math:`\alpha = T - A'(f)`: a fixed point
of :math:`f = m + K(T - A'(f))`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from linear_operator.settings import cholesky_jitter
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from .. import settings
from ..activations import ExponentialFamily
from ..equilibrium import SolverMonitor, implicit_fixed_point

#: Halvings of a Newton step at most; 60 of them leave 1e-18 of it, which is below rounding.
_HALVINGS = 60


class Curvature(NamedTuple):
    r"""Factors of :math:`B = I + W^{1/2} K W^{1/2}`, :math:`W = A''(f)`.

    Args:
        root: :math:`W^{1/2}`, ``... x n x 1``.
        factor: Lower Cholesky factor of ``B``, ``... x n x n``.
    """

    root: Tensor
    factor: Tensor

    @classmethod
    def at(cls, eta: Tensor, covariance: Tensor, family: ExponentialFamily) -> Curvature:
        """The factors at given natural parameters.

        Args:
            eta: Natural parameters, ``... x n``.
            covariance: ``K``, ``... x n x n``.
            family: Family of the targets.

        Raises:
            NotPSDError: the covariance is not positive semi-definite.
            NanError: the curvature is not finite.
        """
        root = family.std(eta).unsqueeze(-1)
        if not bool(root.square().isfinite().all()):
            raise NanError(
                f"The curvature of {family!r} overflows: natural parameters reach "
                f"{eta.detach().max().item():.3g}."
            )
        matrix = root * covariance * root.mT
        matrix = matrix + torch.eye(eta.shape[-1], dtype=eta.dtype, device=eta.device)
        factor, info = torch.linalg.cholesky_ex(matrix)
        if bool((info != 0).any()):
            raise NotPSDError(_INDEFINITE)
        return cls(root, factor)

    def solve(self, vector: Tensor) -> Tensor:
        r""":math:`W^{1/2} B^{-1} W^{1/2} v = (W^{-1} + K)^{-1} v`, also where ``W`` is zero.

        Args:
            vector: ``... x n x k``.
        """
        return self.root * torch.cholesky_solve(self.root * vector, self.factor)


_INDEFINITE = (
    "The kernel matrix is not positive semi-definite: the kernel is not a covariance, or its "
    "values have lost their digits. Use float64, or see whether the kernel is one."
)


def check_covariance(covariance: Tensor) -> None:
    """Raises an error for a matrix that is not a covariance matrix.

    Args:
        covariance: ``... x n x n``.

    Raises:
        NanError: it is not finite.
        ValueError: it is not symmetric.
        NotPSDError: it has an eigenvalue below zero by more than rounding and GPyTorch's
            ``cholesky_jitter`` explain.
    """
    matrix = covariance.detach()
    n = matrix.shape[-1]
    if not bool(matrix.isfinite().all()):
        raise NanError("The kernel matrix has NaN or infinite entries.")
    if not matrix.numel():
        return
    # GPyTorch's stationary kernels expand squared distances, which loses more than rounding
    rounding = max(10 * n * torch.finfo(matrix.dtype).eps, cholesky_jitter.value(matrix.dtype))
    level = matrix.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None]
    if bool(((matrix - matrix.mT).abs() > rounding * level).any()):
        raise ValueError("The kernel matrix is not symmetric.")
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    _, info = torch.linalg.cholesky_ex(
        matrix + (rounding * level + torch.finfo(matrix.dtype).tiny) * eye
    )
    if bool((info != 0).any()):
        raise NotPSDError(_INDEFINITE)


def check_data(X: Tensor, Y: Tensor) -> None:
    """Raises an error for inputs and targets that do not go together.

    Args:
        X: Inputs, ``... x n x d``.
        Y: Targets, ``... x n``.

    Raises:
        ValueError: the shapes or dtypes do not fit, or inputs are not finite.
    """
    if X.dim() < 2 or Y.dim() < 1 or Y.shape[-1] != X.shape[-2]:
        raise ValueError(
            f"X is to be ... x n x d and Y ... x n, but they are {tuple(X.shape)} and "
            f"{tuple(Y.shape)}."
        )
    try:
        torch.broadcast_shapes(X.shape[:-2], Y.shape[:-1])
    except RuntimeError as error:
        raise ValueError(
            f"The leading dimensions of X and Y do not go together: {tuple(X.shape)} and "
            f"{tuple(Y.shape)}."
        ) from error
    if X.dtype != Y.dtype:
        raise ValueError(f"X and Y are to have one dtype, but have {X.dtype} and {Y.dtype}.")
    if not bool(X.isfinite().all()):
        raise ValueError("X has NaN or infinite entries.")


def check_new_inputs(X_new: Tensor, X: Tensor) -> None:
    """Raises an error for new inputs that do not go with the inputs of the data.

    Args:
        X_new: ``... x m x d``.
        X: ``... x n x d``.

    Raises:
        ValueError: the shapes or dtypes do not fit, or inputs are not finite.
    """
    if X_new.dim() < 2 or X_new.shape[-1] != X.shape[-1]:
        raise ValueError(
            f"X_new is to be ... x m x {X.shape[-1]}, like X, but it is {tuple(X_new.shape)}."
        )
    if X_new.dtype != X.dtype:
        raise ValueError(
            f"X_new and X are to have one dtype, but have {X_new.dtype} and {X.dtype}."
        )
    if not bool(X_new.isfinite().all()):
        raise ValueError("X_new has NaN or infinite entries.")


def most_probable(
    covariance: Tensor,
    statistic: Tensor,
    family: ExponentialFamily,
    monitor: SolverMonitor,
    offset: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    r"""Minimises the objective by Newton's method, and attaches the derivatives of the minimum.

    Each Newton step is a weighted least-squares problem, solved through :math:`B = I + W^{1/2} K
    W^{1/2}` (Rasmussen and Williams 2006, section 3.4), so that ``K`` may be singular. With
    :math:`g = T - A'(f)` it leads to :math:`\alpha = g + (W^{-1} + K)^{-1}(f - m - Kg)`, a small
    correction near the solution, where algorithm 3.1 there subtracts large numbers. A step is
    halved until the objective falls enough, which makes the method converge from everywhere. It
    ends with a step within ``settings.solver_tolerance`` or, after ten, within the rounding of
    :math:`K\alpha`, if that is below the root of the tolerance. The derivatives are :math:`df = (I
    + KW)^{-1}(dK \alpha + K\, dT + dm)`.

    Args:
        covariance: ``K``, ``... x n x n``, positive semi-definite.
        statistic: ``T``, ``... x n``.
        family: Family of the targets.
        monitor: Records the iterations and the last step, or its rounding error if that is larger,
            relative to ``1 + max |f|``.
        offset: ``m``, of a shape that broadcasts with ``T``; None for zero.
        start: First :math:`\alpha`, ``... x n``, such as that of a similar problem, where it is
            better than starts from the prior's mean and from the targets.

    Returns:
        The natural parameters ``f``, ``... x n``.

    Raises:
        NotPSDError: the covariance is not positive semi-definite.
    """
    if offset is None:
        offset = torch.zeros_like(statistic)
    with torch.no_grad():
        eta = _newton(covariance, statistic, family, monitor, offset, start)
    return attach(eta, covariance, statistic, family, offset)


def attach(
    eta: Tensor, covariance: Tensor, statistic: Tensor, family: ExponentialFamily, offset: Tensor
) -> Tensor:
    """Attaches derivatives to natural parameters that were found without a graph.

    Args:
        eta: The minimum, ``... x n``.
        covariance: ``K``, ``... x n x n``.
        statistic: ``T``, ``... x n``.
        family: Family of the targets.
        offset: ``m``, of a shape that broadcasts with ``T``.

    Returns:
        The same natural parameters, differentiable with respect to the three tensors.
    """

    def layer(eta: Tensor, covariance: Tensor, statistic: Tensor, offset: Tensor) -> Tensor:
        residual = (statistic - family.mean(eta)).unsqueeze(-1)
        return offset + (covariance @ residual).squeeze(-1)

    def solve_adjoint(grad: Tensor, eta: Tensor, covariance: Tensor, *others: Tensor) -> Tensor:
        # (I + WK)^-1 by Woodbury's identity
        column = grad.unsqueeze(-1)
        curvature = Curvature.at(eta, covariance, family)
        return (column - curvature.solve(covariance @ column)).squeeze(-1)

    return implicit_fixed_point(eta, layer, solve_adjoint, covariance, statistic, offset)


def _newton(
    covariance: Tensor,
    statistic: Tensor,
    family: ExponentialFamily,
    monitor: SolverMonitor,
    offset: Tensor,
    start: Tensor | None,
) -> Tensor:
    shape = torch.broadcast_shapes(covariance.shape[:-1], statistic.shape, offset.shape)
    statistic, offset = statistic.expand(shape), offset.expand(shape)
    eps = torch.finfo(statistic.dtype).eps
    tolerance = settings.solver_tolerance.value(statistic.dtype)
    loose = tolerance**0.5

    def objective(alpha: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        terms = torch.stack(
            [alpha * (eta - offset) / 2, family.log_partition(eta), -statistic * eta]
        )
        return terms.sum((0, -1)), eps * terms.abs().sum((0, -1))

    def proposal_from(eta: Tensor) -> Tensor:
        """The next alpha, from natural parameters anywhere."""
        curvature = Curvature.at(eta, covariance, family)
        gradient = statistic - family.mean(eta)
        excess = eta - offset - (covariance @ gradient.unsqueeze(-1)).squeeze(-1)
        return gradient + curvature.solve(excess.unsqueeze(-1)).squeeze(-1)

    # start from the best of the prior's mean, a step from parameters that suit the targets, and the
    # start that was given
    alpha, eta = torch.zeros_like(statistic), offset.clone()
    value, rounding = objective(alpha, eta)
    candidates = [proposal_from(family.likely_parameter(statistic))] if eta.numel() else []
    for candidate in candidates if start is None else [*candidates, start]:
        reached = offset + (covariance @ candidate.unsqueeze(-1)).squeeze(-1)
        new_value, new_rounding = objective(candidate, reached)
        better = new_value < value
        alpha = torch.where(better.unsqueeze(-1), candidate, alpha)
        eta = torch.where(better.unsqueeze(-1), reached, eta)
        value = torch.where(better, new_value, value)
        rounding = torch.where(better, new_rounding, rounding)
    relative, count, last = torch.zeros_like(value), 0, torch.full_like(value, torch.inf)
    while eta.numel() and count < settings.max_solver_iterations.value():
        count += 1
        gradient, proposal = statistic - family.mean(eta), proposal_from(eta)
        reached = offset + (covariance @ proposal.unsqueeze(-1)).squeeze(-1)
        step, slope = reached - eta, ((reached - eta) * (alpha - gradient)).sum(-1)
        length = torch.ones_like(value)
        for _ in range(_HALVINGS):
            part = length.unsqueeze(-1)
            new_alpha = alpha + part * (proposal - alpha)
            new_eta = eta + part * step
            new_value, new_rounding = objective(new_alpha, new_eta)
            accepted = new_value <= value + 1e-4 * length * slope + 8 * rounding
            if bool(accepted.all()):
                break
            length = torch.where(accepted, length, length / 2)
        alpha, eta, value, rounding = new_alpha, new_eta, new_value, new_rounding
        # rounding error of the sums in K alpha
        noise = eps * (covariance.abs() @ proposal.abs().unsqueeze(-1)).squeeze(-1).amax(-1)
        size, scale = step.abs().amax(-1), 1 + reached.abs().amax(-1)
        relative = (torch.maximum(size, noise) / scale).nan_to_num(torch.inf, torch.inf)
        # the step is below rounding, or full steps have stopped to shrink
        settled = (size <= noise) | ((size > last / 2) & (length == 1))
        last = size
        limit = torch.where(settled, loose, tolerance) if count > 10 else tolerance
        if bool((relative <= limit).all()):
            break
    monitor.record(count, relative, loose if count > 10 and bool(settled.any()) else tolerance)
    return eta
