r"""A GPyTorch kernel below a network: the squared distances of what it injects.

A base kernel gives the covariances :math:`k_{11}, k_{22}, k_{12}` of a pair, and the network needs
the variances and the squared distance :math:`m = k_{11} + k_{22} - 2 k_{12}`. Computed so, its
error is a rounding of the variances, however close two inputs are. Radial basis function, Matern
and linear kernels, and their sums, products and scalings, have a form without that cancellation.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from gpytorch.kernels import (
    AdditiveKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    ProductKernel,
    RBFKernel,
    ScaleKernel,
)
from torch import Tensor

from ..activations import bounded, safe_sqrt, squared_distance
from ..equilibrium import Versines


class BasePairs(NamedTuple):
    """Pairs of inputs as a base kernel sees them.

    Args:
        var1: Variances of the first inputs, ``... x n x 1``.
        var2: Variances of the second inputs, ``... x m x 1``.
        sqdist: Squared distances, ``... x n x m``.
    """

    var1: Tensor
    var2: Tensor
    sqdist: Tensor


class Stationary(NamedTuple):
    """A base kernel that is a variance times a function of a distance.

    Args:
        versines: One minus that function.
        z1: Inputs over lengthscales, ``... x n x d``.
        z2: Likewise, ``... x m x d``; None for ``z1`` again.
        variance: ``... x 1 x 1``.
    """

    versines: Versines
    z1: Tensor
    z2: Tensor | None
    variance: Tensor


class RBFVersines:
    """One minus ``exp(-r^2 / 2)`` of squared distances."""

    def versine(self, sqdist: Tensor) -> Tensor:
        """See :class:`~gp_deq.equilibrium.Versines`."""
        return (-0.5 * sqdist).expm1_().neg_()

    def slope(self, sqdist: Tensor, versine: Tensor) -> Tensor:
        """See :class:`~gp_deq.equilibrium.Versines`."""
        return 1 - versine


class MaternVersines:
    r"""One minus the Matern correlation of squared distances.

    With :math:`a = \sqrt{2\nu}\, r` the correlation is :math:`e^{-a}` times 1, :math:`1 + a` or
    :math:`1 + a + a^2/3` for :math:`\nu` of 1/2, 3/2 and 5/2 (Rasmussen and Williams, 2006,
    equation 4.17). Its derivative by :math:`r^2/2` is :math:`-e^{-a}` times :math:`1/a`, 3 or
    :math:`\frac53 (1 + a)`.

    Args:
        nu: 0.5, 1.5 or 2.5.
    """

    def __init__(self, nu: float) -> None:
        self.nu = nu

    def versine(self, sqdist: Tensor) -> Tensor:
        """See :class:`~gp_deq.equilibrium.Versines`; to a rounding of ``a``."""
        a = (2 * self.nu * sqdist).sqrt_()
        decay = torch.expm1(-a)
        if self.nu == 0.5:
            return decay.neg_()
        # -expm1(-a) - exp(-a) p(a), p without its constant
        rest = a if self.nu == 1.5 else (a / 3).add_(1).mul_(a)
        return (1 + decay).mul_(rest).add_(decay).neg_()

    def slope(self, sqdist: Tensor, versine: Tensor) -> Tensor:
        """See :class:`~gp_deq.equilibrium.Versines`."""
        a = safe_sqrt(2 * self.nu * sqdist)
        if self.nu == 0.5:
            return torch.where(a > 0, torch.exp(-a) / a.masked_fill(a == 0, 1.0), 0.0)
        return torch.exp(-a) * (3.0 if self.nu == 1.5 else 5 / 3 * (1 + a))


def stationary_form(kernel: Kernel) -> Versines | None:
    """The versines of a radial basis function or Matern kernel, scaled or not; None for others."""
    while type(kernel) is ScaleKernel:
        kernel = kernel.base_kernel
    if type(kernel) is RBFKernel:
        return RBFVersines()
    return MaternVersines(kernel.nu) if type(kernel) is MaternKernel else None


def stationary_inputs(kernel: Kernel, x1: Tensor, x2: Tensor | None) -> Stationary | None:
    """The base kernel as a function of a distance; None if it is not known to be one.

    Args:
        kernel: The base kernel.
        x1: ``... x n x d``.
        x2: ``... x m x d``; None for ``x1`` again.
    """
    versines = stationary_form(kernel)
    if versines is None:
        return None
    x1, x2 = _active(kernel, x1), None if x2 is None else _active(kernel, x2)
    variance = x1.new_ones(1, 1)
    while isinstance(kernel, ScaleKernel):
        variance = variance * kernel.outputscale[..., None, None]
        kernel = kernel.base_kernel
    z1, z2 = _scaled(kernel, x1, x2)
    return Stationary(versines, z1, z2, variance)


def base_pairs(kernel: Kernel, x1: Tensor, x2: Tensor | None, diag: bool = False) -> BasePairs:
    """Variances and squared distances of a base kernel.

    Args:
        kernel: The base kernel.
        x1: ``... x n x d``.
        x2: ``... x m x d``; None for ``x1`` again.
        diag: Only the pairs of equal index, each a 1 x 1 matrix of its own.

    Raises:
        ValueError: Its values are no covariances of one output.
    """
    pairs = _pairs(kernel, _active(kernel, x1), None if x2 is None else _active(kernel, x2), diag)
    for variance in (pairs.var1,) if x2 is None else (pairs.var1, pairs.var2):
        _check_variance(kernel, variance.detach())
    return pairs


def versine_of(versines: Versines, sqdist: Tensor) -> Tensor:
    """Versines of squared distances, with derivatives of any order."""
    return _Versine.apply(versines, sqdist)


def _pairs(kernel: Kernel, x1: Tensor, x2: Tensor | None, diag: bool) -> BasePairs:
    """:func:`base_pairs` of inputs in the active dimensions."""
    if type(kernel) is ScaleKernel:
        scale = kernel.outputscale[..., None, None]
        scale = scale.unsqueeze(-1) if diag else scale
        inner = _pairs(kernel.base_kernel, x1, x2, diag)
        return BasePairs(*(scale * term for term in inner))
    if type(kernel) in (AdditiveKernel, ProductKernel):
        parts = [
            _pairs(part, _active(part, x1), None if x2 is None else _active(part, x2), diag)
            for part in kernel.kernels
        ]
        total = parts[0]
        for part in parts[1:]:
            total = (_sum if type(kernel) is AdditiveKernel else _product)(total, part)
        return total
    versines = stationary_form(kernel)
    if versines is not None:
        z1, z2 = _as_pairs(*_scaled(kernel, x1, x2), diag)
        one = torch.ones_like(z1[..., :1]), torch.ones_like(z2[..., :1])
        return BasePairs(*one, 2 * versine_of(versines, squared_distance(z1, z2)))
    if type(kernel) is LinearKernel:
        scale = kernel.variance.sqrt()
        z1, z2 = _as_pairs(x1 * scale, None if x2 is None else x2 * scale, diag)
        var1, var2 = (z.square().sum(-1, keepdim=True) for z in (z1, z2))
        return BasePairs(var1, var2, squared_distance(z1, z2))
    return _pairs_by_difference(kernel, x1, x2, diag)


def _pairs_by_difference(kernel: Kernel, x1: Tensor, x2: Tensor | None, diag: bool) -> BasePairs:
    """Those of any kernel, its own ``active_dims`` applied before."""
    others = x1 if x2 is None else x2
    # with all batch dimensions, without which GPyTorch may take a diagonal for a matrix
    batch = torch.broadcast_shapes(kernel.batch_shape, x1.shape[:-2], others.shape[:-2])
    x1, others = (x.expand(*batch, *x.shape[-2:]) for x in (x1, others))
    bare = _WithoutSelection(kernel)
    var1 = bare(x1, x1, diag=True)
    var2 = var1 if x2 is None else bare(others, others, diag=True)
    if diag:
        var1, var2 = var1[..., None, None], var2[..., None, None]
        if x2 is None:
            return BasePairs(var1, var2, torch.zeros_like(var1))
        cov = bare(x1, others, diag=True)[..., None, None]
        return BasePairs(var1, var2, bounded(var1 + var2 - 2 * cov, 0.0))
    var1, var2 = var1.unsqueeze(-1), var2.unsqueeze(-1)
    cov = bare(x1, others)
    if cov.shape[-2:] != (x1.shape[-2], others.shape[-2]):
        raise ValueError(
            f"base_kernel must have one value for each pair of inputs, but {type(kernel).__name__} "
            f"gives a matrix of {cov.shape[-2]} x {cov.shape[-1]} for {x1.shape[-2]} x "
            f"{others.shape[-2]} inputs."
        )
    sqdist = bounded(var1 + var2.mT - 2 * cov, 0.0)
    if x2 is None:
        # rounding leaves something of the distance of an input to itself
        same = torch.eye(x1.shape[-2], dtype=torch.bool, device=x1.device)
        sqdist = sqdist.masked_fill(same, 0.0)
    return BasePairs(var1, var2, sqdist)


class _WithoutSelection:
    """Calls a kernel on inputs in whose columns its ``active_dims`` have been selected."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __call__(self, x1: Tensor, x2: Tensor, diag: bool = False) -> Tensor:
        value: Any = self.kernel.forward(x1, x2, diag=diag)
        value = value if isinstance(value, Tensor) else value.to_dense()
        # some kernels give a matrix whatever they are asked for
        square = value.dim() == x1.dim() and value.shape[-2:] == (x1.shape[-2], x2.shape[-2])
        return value.diagonal(dim1=-1, dim2=-2) if diag and square else value


def _sum(first: BasePairs, second: BasePairs) -> BasePairs:
    return BasePairs(*(x + y for x, y in zip(first, second, strict=True)))


def _product(first: BasePairs, second: BasePairs) -> BasePairs:
    r"""Pairs of a product of kernels.

    With means :math:`\bar a` and half differences :math:`\delta_a` of the variances, :math:`a_{12}
    = \bar a - m_a/2`, and the squared distance is :math:`2\delta_a\delta_b + \bar a m_b + \bar b
    m_a - m_a m_b/2`, without cancellation where both variances are constant.
    """
    (mean1, half1), (mean2, half2) = (
        ((pair.var1 + pair.var2.mT) / 2, (pair.var1 - pair.var2.mT) / 2) for pair in (first, second)
    )
    m1, m2 = first.sqdist, second.sqdist
    sqdist = 2 * half1 * half2 + mean1 * m2 + mean2 * m1 - m1 * m2 / 2
    return BasePairs(first.var1 * second.var1, first.var2 * second.var2, bounded(sqdist, 0.0))


def _active(kernel: Kernel, x: Tensor) -> Tensor:
    return x if kernel.active_dims is None else x.index_select(-1, kernel.active_dims)


def _scaled(kernel: Kernel, x1: Tensor, x2: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Inputs over lengthscales, around their mean: distances do not depend on it."""
    if kernel.ard_num_dims is not None and kernel.ard_num_dims != x1.shape[-1]:
        raise RuntimeError(
            f"The base kernel {type(kernel).__name__} was made with "
            f"ard_num_dims={kernel.ard_num_dims}, but its inputs have {x1.shape[-1]} dimensions."
        )
    mean = x1.detach().mean(-2, keepdim=True) if x1.shape[-2] else 0.0
    z1, z2 = ((None if x is None else (x - mean) / kernel.lengthscale) for x in (x1, x2))
    assert z1 is not None
    return z1, z2


def _as_pairs(z1: Tensor, z2: Tensor | None, diag: bool) -> tuple[Tensor, Tensor]:
    z2 = z1 if z2 is None else z2
    return (z1.unsqueeze(-2), z2.unsqueeze(-2)) if diag else (z1, z2)


def _check_variance(kernel: Kernel, variance: Tensor) -> None:
    if not variance.numel():
        return
    low, high = (float(x) for x in variance.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)) or low < 0 or high == 0:
        raise ValueError(
            "A base kernel, or one of features, must have variances that are positive, but "
            f"those of {type(kernel).__name__} are {low:g} to {high:g} at these inputs."
        )


class _Versine(torch.autograd.Function):
    """Versines of squared distances; their slopes have a limit where the root of these has none."""

    @staticmethod
    def forward(ctx: Any, versines: Versines, sqdist: Tensor) -> Tensor:
        ctx.versines = versines
        ctx.save_for_backward(sqdist)
        return versines.versine(sqdist)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (sqdist,) = ctx.saved_tensors
        # the versine with a graph, for further derivatives
        versine = versine_of(ctx.versines, sqdist)
        return None, grad * 0.5 * ctx.versines.slope(sqdist, versine)
