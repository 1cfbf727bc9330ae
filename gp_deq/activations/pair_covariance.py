"""The joint covariance of a pair of pre-activations, for all pairs of two sets of inputs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class PairCovariance(NamedTuple):
    r"""Covariances of the pairs :math:`(u, v) \sim \mathcal N(0, \Sigma)`, held as distances.

    The covariance of a pair is carried as the squared distance
    :math:`m = \operatorname{E}(u - v)^2 = v_1 + v_2 - 2c`. Unlike :math:`c`, it keeps its full
    relative precision where two inputs nearly coincide, and so do all quantities computed from it.

    Args:
        var1: Variances :math:`v_1` of the first inputs, ``... x n x 1``.
        var2: Variances :math:`v_2` of the second inputs, ``... x 1 x m``.
        sqdist: Squared distances :math:`m`, ``... x n x m``.
        vardiff: Differences :math:`v_1 - v_2`, ``... x n x m``. Formed from the inputs, because a
            difference of rounded variances has lost the digits that matter where the inputs nearly
            coincide.
    """

    var1: Tensor
    var2: Tensor
    sqdist: Tensor
    vardiff: Tensor

    @classmethod
    def from_inputs(cls, x1: Tensor, x2: Tensor, bias_variance: Tensor | float) -> PairCovariance:
        r"""Covariance :math:`\langle x, x' \rangle + \beta` of an affine layer.

        Args:
            x1: First inputs, ``... x n x d``.
            x2: Second inputs, ``... x m x d``.
            bias_variance: :math:`\beta \ge 0`, broadcasting with ``... x 1 x 1``.
        """
        sqdist, vardiff = _InputDifferences.apply(x1, x2)
        var1 = x1.square().sum(-1, keepdim=True) + bias_variance
        var2 = x2.square().sum(-1).unsqueeze(-2) + bias_variance
        return cls(var1, var2, sqdist, vardiff)

    @property
    def cov(self) -> Tensor:
        """Covariances of the pairs, ``... x n x m``."""
        return (self.var1 + self.var2 - self.sqdist).mul_(0.5)

    @property
    def versine(self) -> Tensor:
        r""":math:`e = 1 - r` for the correlations :math:`r` of the pairs, in ``[0, 2]``.

        With :math:`q = (\sqrt{v_1} - \sqrt{v_2})^2` it is :math:`(m - q) / (2\sqrt{v_1 v_2})`. An
        input of variance zero counts as uncorrelated with all but another such input.
        """
        root1, root2 = safe_sqrt(self.var1), safe_sqrt(self.var2)
        scale, total = root1 * root2, root1 + root2
        degenerate = scale <= 0
        gap = self.vardiff / total.masked_fill(degenerate, 1.0)
        versine = (self.sqdist - gap.square()) / (2 * scale.masked_fill(degenerate, 1.0))
        undefined = (total > 0).to(versine.dtype)
        return torch.where(degenerate, undefined, bounded(versine, 0.0, 2.0))


def bounded(value: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """A quantity that only rounding takes out of its range, put back into it.

    Unlike :func:`torch.clamp` it keeps the derivative, which would otherwise depend on the side of
    a bound to which the last digit fell: at coincident inputs correlations lie on their bound.
    """
    if not (torch.is_grad_enabled() and value.requires_grad):
        return value.clamp(low, high)
    return _Bounded.apply(value, low, high)


class _Bounded(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, low: float, high: float) -> Tensor:
        return value.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return tangent.clone()


def safe_sqrt(value: Tensor) -> Tensor:
    """Square root whose derivative at zero is the symmetric subgradient, zero."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0).sqrt(), 0.0)


class _InputDifferences(torch.autograd.Function):
    """Squared distances and differences of squared norms, to rounding of close inputs too.

    ``torch.cdist`` forms the former so, but cannot be differentiated twice.
    """

    @staticmethod
    def forward(ctx: Any, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x1, x2)
        (norm1, rest1), (norm2, rest2) = squared_norms(x1), squared_norms(x2)
        normdiff = (norm1 - norm2.mT).add_(rest1).sub_(rest2.mT)
        return squared_distance(x1, x2), normdiff

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x1, x2 = ctx.saved_tensors
        grad_sqdist, grad_normdiff = grads
        to1 = grad_sqdist + grad_normdiff
        to2 = grad_sqdist - grad_normdiff
        grad1 = 2 * (to1.sum(-1).unsqueeze(-1) * x1 - grad_sqdist @ x2)
        grad2 = 2 * (to2.sum(-2).unsqueeze(-1) * x2 - grad_sqdist.mT @ x1)
        return grad1.sum_to_size(x1.shape), grad2.sum_to_size(x2.shape)


def squared_norms(x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norms, and what rounding left of them: their sum has twice the digits.

    Args:
        x: ``... x n x d``.

    Returns:
        Both ``... x n x 1``.
    """
    square, error = exact_product(x, x)
    norm, rest = torch.zeros_like(x[..., :1]), error.sum(-1, keepdim=True)
    for term in square.split(1, -1):
        total = norm + term
        part = total - norm
        rest += (norm - (total - part)) + (term - part)
        norm = total
    return norm, rest


def exact_product(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Product and its rounding error, exactly [Dekker1971]_."""
    product = first * second
    (high1, low1), (high2, low2) = _split(first), _split(second)
    error = ((high1 * high2 - product) + high1 * low2 + low1 * high2) + low1 * low2
    return product, error


def _split(value: Tensor) -> tuple[Tensor, Tensor]:
    scaled = (2.0**27 + 1 if value.dtype == torch.float64 else 2.0**12 + 1) * value
    high = scaled - (scaled - value)
    return high, value - high


def squared_distance(x1: Tensor, x2: Tensor) -> Tensor:
    """Squared Euclidean distances from differences of coordinates; not differentiable twice."""
    return torch.cdist(x1, x2, compute_mode="donot_use_mm_for_euclid_dist").square_()
