"""The joint covariance of a pair of pre-activations, for all pairs of two sets of inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
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

    @classmethod
    def from_distance(cls, var1: Tensor, var2: Tensor, sqdist: Tensor) -> PairCovariance:
        """A pair of which no more is known than variances and squared distance."""
        return cls(var1, var2, sqdist, var1 - var2)

    @property
    def cov(self) -> Tensor:
        """Covariances of the pairs, ``... x n x m``."""
        return (self.var1 + self.var2 - self.sqdist).mul_(0.5)

    @property
    def correlation(self) -> Tensor:
        """Correlations, between inputs of positive variance."""
        return bounded(self.cov / (self.var1.sqrt() * self.var2.sqrt()), -1.0, 1.0)

    @property
    def opposite(self) -> Tensor:
        r"""Squared distances from the mirrored inputs, :math:`v_1 + v_2 + 2c`."""
        return bounded(2 * (self.var1 + self.var2) - self.sqdist, 0.0)

    @property
    def gram(self) -> Tensor:
        r"""Gram determinants :math:`v_1 v_2 - c^2`, without cancellation at coincident inputs.

        There :math:`4(v_1 v_2 - c^2) = m(2(v_1 + v_2) - m) - (v_1 - v_2)^2` is a difference of
        small terms; where the variances are far apart, it is computed as it stands.
        """
        half, total, radial = self.sqdist / 2, self.var1 + self.var2, self.vardiff.square()
        gram = torch.sub((total - half).mul(half), radial, alpha=0.25)
        if not _comparable(self.var1, self.var2):
            product = self.var1 * self.var2
            gram = torch.where(radial > 4 * product, product - (total / 2 - half).square(), gram)
        return bounded(gram, 0.0)

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

    def scaled(self, factor: float) -> PairCovariance:
        """The covariances times a factor."""
        return PairCovariance(*(factor * term for term in self))

    def after_activation(
        self,
        var1: Tensor,
        var2: Tensor,
        sqdist: Tensor,
        vardiff: Tensor,
        cov: Callable[[], Tensor],
        gram: Callable[[], Tensor] | None = None,
    ) -> PairCovariance:
        """Covariance of the activations of this pair, of the same kind.

        Args:
            var1: As in :class:`PairCovariance`, as the next three.
            var2: Likewise.
            sqdist: Likewise.
            vardiff: Likewise.
            cov: Gives the covariances to a kind that carries them.
            gram: Gives the Gram determinants, without a graph, to a kind that carries them. None
                where the difference :math:`v_1 v_2 - c^2` has the digits that the next layer needs;
                it has for bounded activations.
        """
        return PairCovariance(var1, var2, sqdist, vardiff)

    def next_layer(self, weight_variance: Tensor, injected: PairCovariance) -> PairCovariance:
        r"""Covariance :math:`w G + b` of the pre-activations of the next layer.

        This pair is the covariance :math:`G` of the activations.

        Args:
            weight_variance: :math:`w`.
            injected: Covariance :math:`b` of the injected input, of the same kind.
        """
        terms = zip(self, injected, strict=True)
        return PairCovariance(*(weight_variance * term + source for term, source in terms))

    def next_layer_without_input(
        self, weight_variance: Tensor, bias_variance: Tensor
    ) -> PairCovariance:
        """:meth:`next_layer` where a bias is all that is injected.

        Args:
            weight_variance: ``... x 1 x 1``.
            bias_variance: ``... x 1 x 1``.
        """
        return PairCovariance(
            weight_variance * self.var1 + bias_variance,
            weight_variance * self.var2 + bias_variance,
            weight_variance * self.sqdist,
            weight_variance * self.vardiff,
        )


def _comparable(var1: Tensor, var2: Tensor) -> bool:
    """Whether ``(v1 - v2)**2 <= 4 * v1 * v2`` for all pairs, from their ranges alone."""
    if var1.numel() == 0 or var2.numel() == 0:
        return True
    lows, highs = zip(*(variance.detach().aminmax() for variance in (var1, var2)), strict=True)
    return bool(max(highs) <= 5.8 * min(lows))


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
    """Squared Euclidean distances from differences of coordinates, with derivatives of any order.

    Args:
        x1: ``... x n x d``.
        x2: ``... x m x d``.

    Returns:
        ``... x n x m``.
    """
    if torch.is_grad_enabled() and (x1.requires_grad or x2.requires_grad):
        return _SquaredDistance.apply(x1, x2)
    return torch.cdist(x1, x2, compute_mode="donot_use_mm_for_euclid_dist").square_()


class _SquaredDistance(torch.autograd.Function):
    """``torch.cdist`` has no second derivative, and none at distance zero."""

    @staticmethod
    def forward(ctx: Any, x1: Tensor, x2: Tensor) -> Tensor:
        ctx.save_for_backward(x1, x2)
        return squared_distance(x1, x2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x1, x2 = ctx.saved_tensors
        grad1 = 2 * (grad.sum(-1).unsqueeze(-1) * x1 - grad @ x2)
        grad2 = 2 * (grad.sum(-2).unsqueeze(-1) * x2 - grad.mT @ x1)
        return grad1.sum_to_size(x1.shape), grad2.sum_to_size(x2.shape)
