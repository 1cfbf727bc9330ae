"""Anderson's acceleration of fixed-point iterations, for many independent ones at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..equilibrium import SolverMonitor

#: Number of iterates that are combined.
_MEMORY = 6


def anderson(
    layer: Callable[[Tensor], Tensor],
    start: Tensor,
    tolerance: float,
    max_iterations: int,
    monitor: SolverMonitor,
    damping: float | Tensor = 1.0,
) -> Tensor:
    r"""A fixed point :math:`z = F(z)`, without a graph.

    The iteration is :math:`z + \tau (F(z) - z)`, accelerated by the combination of the last six
    iterates that has the least residual (Walker and Ni 2011, "Anderson acceleration for fixed-point
    iterations"). An accelerated point whose residual is more than twice that of the point before is
    replaced by a step of the plain iteration from there, and the memory is emptied.

    Args:
        layer: :math:`F`; maps ``... x n`` to the same shape. Leading dimensions are independent
            problems.
        start: First points :math:`z_0`, ``... x n``.
        tolerance: Bound on the Euclidean norm of the residual :math:`F(z) - z` relative to
            :math:`|F(z)| + |F(z_0)|`, for every problem.
        max_iterations: Evaluations of ``layer`` at most.
        monitor: Records iterations and last residuals.
        damping: :math:`\tau`, in (0, 1].

    Returns:
        The points of the least residuals, ``... x n``.
    """
    shape = start.shape
    if not start.numel():
        monitor.record(0, start, tolerance)
        return start.clone()
    best = last = point = start.reshape(-1, shape[-1])
    least = torch.full_like(point[:, 0], torch.inf)
    last_size, last_residual = least, torch.zeros_like(point)
    points, residuals = point.new_zeros(2, _MEMORY, *point.shape)
    filled = torch.zeros_like(least, dtype=torch.long)
    relative, count = least, 0
    unit, reference = torch.ones_like(least), torch.zeros_like(least)
    for count in range(1, max_iterations + 1):
        value = layer(point.reshape(shape)).reshape(point.shape)
        residual = value - point
        if count == 1:
            # norms are taken in units of the first value: squares neither overflow nor vanish
            unit = value.abs().amax(-1).nan_to_num(1.0, 1.0)
            unit = unit.masked_fill(unit == 0, 1.0)
            reference = (value / unit[:, None]).norm(dim=-1)
        size = (residual / unit[:, None]).norm(dim=-1).nan_to_num(torch.inf, torch.inf)
        better = size < least
        best = torch.where(better[:, None], point, best)
        scale = (value / unit[:, None]).norm(dim=-1) + reference
        ratio = torch.where(size == 0, 0.0, size / scale)
        relative = torch.where(better, ratio, relative)
        least = torch.minimum(size, least)
        if bool((relative <= tolerance).all()):
            break
        # return to the point before the acceleration and take its plain step next
        worse = (filled > 1) & (size > 2 * last_size)
        point = torch.where(worse[:, None], last, point)
        residual = torch.where(worse[:, None], last_residual, residual)
        filled = torch.where(worse, 0, filled)
        last, last_residual = point, residual
        last_size = torch.where(worse, last_size, size)
        slot = (count - 1) % _MEMORY
        points[slot], residuals[slot] = point, residual
        filled = (filled + 1).clamp_max(_MEMORY)
        age = (slot - torch.arange(_MEMORY, device=point.device)) % _MEMORY
        valid = age[:, None] < filled
        weights = _weights(residuals / unit[:, None], valid)
        mixed = torch.where(valid[..., None], points + damping * residuals, 0.0)
        point = (weights * mixed).sum(0)
    monitor.record(count, relative, tolerance)
    return best.reshape(shape)


def _weights(residuals: Tensor, valid: Tensor) -> Tensor:
    """Weights, of sum one, of the combination of residuals that is least in norm.

    Args:
        residuals: ``memory x batch x n``.
        valid: Which of them are in use, ``memory x batch``.

    Returns:
        ``memory x batch x 1``; zero for residuals that are not in use.
    """
    kept = torch.where(valid[..., None], residuals, 0.0).transpose(0, 1)
    gram = kept @ kept.mT
    scale = gram.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]
    gram = gram / scale.masked_fill(scale == 0, 1.0)
    # A one in the diagonal of a residual that is not in use, against zero on the right side, makes
    # its weight zero. The ridge, relative to the largest squared residual and above the rounding of
    # the Gram matrix, keeps the system solvable where residuals are parallel.
    ridge = torch.where(valid.mT, max(1e-10, 10 * torch.finfo(gram.dtype).eps), 1.0)
    gram = gram + torch.diag_embed(ridge)
    ones = valid.mT.to(gram.dtype).unsqueeze(-1)
    weights = torch.linalg.solve_ex(gram, ones).result
    return (weights / weights.sum(-2, keepdim=True)).transpose(0, 1)
