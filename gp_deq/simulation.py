r"""Finite networks of :class:`~gp_deq.kernels.DEKerKernel`: gradient steps on random features.

Tsuchida and Ong (2023, "Stochastic gradient updates yield deep equilibrium kernels", TMLR) embed
every input :math:`x` as features :math:`\phi(x) \in \mathbb R^m` of a latent-variable model. Its
observations :math:`\gamma(x) \in \mathbb R^d` have an exponential family with log-partition
:math:`A` and natural parameter :math:`R(V \phi)`, and the features descend the loss

.. math::
    \frac\lambda2 \sqrt{\frac md}\, \|\phi\|^2
    + \frac1d \sum_{i=1}^d \bigl[A(R((V\phi)_i)) - a\gamma_i R((V\phi)_i)\bigr]

with a fresh standard normal :math:`V \in \mathbb R^{d \times m}`, shared by all inputs, and the
step size :math:`h\sqrt{d/m}/\lambda` at every update. With :math:`\rho = R'`,
:math:`\sigma = A'(R) R'` and :math:`w = V\phi` an update is

.. math::
    \phi \leftarrow (1-h)\phi + \frac{h}{\lambda\sqrt{md}}\, V^\top g, \qquad
    g = a\gamma\rho(w) - \sigma(w) .

**Normalisation.** Given :math:`\phi`, the pairs :math:`(w_i, w'_i)` are independent over
:math:`i` with covariance :math:`\psi = \phi^\top\phi'`, the plain inner product. Since
:math:`VV^\top = mI + O(\sqrt m)` and :math:`\phi^\top V^\top g' = w^\top g' = O(d)`,

.. math::
    \phi_{t+1}^\top \phi'_{t+1} = (1-h)^2 \psi_t + \frac{h^2}{\lambda^2}\, \frac1d g^\top g'
    + O\Bigl((1-h) \sqrt{\tfrac dm}\Bigr) + O\Bigl(\tfrac dm\Bigr) + O\Bigl(\tfrac1{\sqrt m}\Bigr),

and :math:`g^\top g'/d` tends to its expectation, so that :math:`\phi^\top\phi'` itself tends to the
kernel :math:`\psi_t` as :math:`m \gg d \to \infty`, without a further factor.

**Observations.** They are data: drawn once, the same at every update. As :math:`V` is fresh,
:math:`w` is independent of them given :math:`\psi_t`, which has a deterministic limit; drawing
them anew at every update would give the same limit (at finite :math:`d` the errors of successive
updates would then be independent).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["FeatureSGD", "default_latent_dim"]

_Function = Callable[[Tensor], Tensor]

_LINKS: dict[str, tuple[_Function, _Function]] = {
    "identity": (lambda u: u, torch.ones_like),
    "relu": (torch.relu, lambda u: (u > 0).to(u.dtype)),
}
_OBSERVATIONS: dict[str, _Function] = {"linear": lambda g: g, "relu": torch.relu}


def default_latent_dim(width: int) -> int:
    """Number of features for a number of observations, ``m = floor(d**1.5)``, as in the paper.

    Args:
        width: Number ``d`` of observed coordinates.

    Returns:
        The number of features ``m``.
    """
    return math.isqrt(width**3)


@dataclass(frozen=True)
class FeatureSGD:
    r"""Stochastic gradient descent on the features of all inputs at once, in float64.

    The observations are :math:`\gamma = g` ("linear") or :math:`\gamma = \max(g, 0)` ("relu"),
    where the :math:`d` coordinates of :math:`g` are independent draws of a Gaussian process with
    the covariance of the injected input,

    .. math::
        b(x, x') = \frac1D \sum_j \frac{(x_j - \mathtt{center}_j)(x'_j - \mathtt{center}_j)}
        {\mathtt{lengthscale}_j^2} + \mathtt{bias\_variance}, \qquad x \in \mathbb R^D .

    So :math:`\operatorname{E}\gamma\gamma'` is :math:`b` or the arc-cosine kernel of :math:`b`, and
    :math:`\operatorname{E}\gamma` is 0 or :math:`\sqrt{b(x, x)/(2\pi)}`.

    Args:
        link: Link function: "relu" (:math:`\sigma` the ReLU, :math:`\rho` the Heaviside function),
            "identity" (:math:`\sigma(u) = u`, :math:`\rho = 1`), a pair ``(sigma, rho)`` of
            elementwise functions, or an object with these two attributes.
        features: Kind of the observations :math:`\gamma`, "linear" or "relu", named as in
            :class:`~gp_deq.kernels.DEKerKernel`.
        regularization: Regularization :math:`\lambda > 0`.
        step_size: Step size :math:`h` in (0, 2).
        feature_scale: Scale :math:`a` of the observations.
        lengthscale: Lengthscale, a float or one for each input dimension.
        bias_variance: Variance of the bias of :math:`g`.
        center: Point that is subtracted from the inputs, a float or one for each input dimension.

    Raises:
        ValueError: an unknown name, or a number outside its range.
        TypeError: ``link`` is neither a name nor a pair of functions.

    Example:
        >>> x = torch.tensor([[1.0, 0.3], [-0.2, 2.0]])
        >>> sgd = FeatureSGD(link="relu", features="linear", regularization=2.0)
        >>> sgd.draw_features(x, width=50, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 353])
    """

    link: str | tuple[_Function, _Function] | Any = "relu"
    features: str = "relu"
    regularization: float = 1.0
    step_size: float = 1.0
    feature_scale: float = 1.0
    lengthscale: float | Sequence[float] | Tensor = 1.0
    bias_variance: float = 0.0
    center: float | Sequence[float] | Tensor = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.features, str) or self.features not in _OBSERVATIONS:
            names = ", ".join(repr(name) for name in _OBSERVATIONS)
            raise ValueError(f"Unknown features {self.features!r}. Give one of {names}.")
        if not (math.isfinite(self.regularization) and self.regularization > 0):
            raise ValueError(f"regularization must be positive, got {self.regularization!r}.")
        if not 0 < self.step_size < 2:
            raise ValueError(f"step_size must be between 0 and 2, got {self.step_size!r}.")
        if not math.isfinite(self.feature_scale):
            raise ValueError(f"feature_scale must be finite, got {self.feature_scale!r}.")
        if not (math.isfinite(self.bias_variance) and self.bias_variance >= 0):
            raise ValueError(f"bias_variance must not be negative, got {self.bias_variance!r}.")
        if not (torch.as_tensor(self.lengthscale) > 0).all():
            raise ValueError(f"lengthscale must be positive, got {self.lengthscale!r}.")
        _functions(self.link)

    def injected_input(self, x: Tensor) -> Tensor:
        """Coordinates ``z`` of the injected input: ``b(x, x')`` is the inner product of two rows.

        Args:
            x: Inputs, ``n x D``.

        Returns:
            The coordinates, ``n x (D + 1)``, of which the last is the bias.

        Raises:
            ValueError: ``x`` is not a matrix of finite numbers, or its number of columns is not
                that of ``lengthscale`` or ``center``.
        """
        if x.ndim != 2 or not x.numel():
            raise ValueError(f"x must be n x D, got the shape {tuple(x.shape)}.")
        x = x.detach().double()
        if not x.isfinite().all():
            raise ValueError("x must be finite.")
        columns = []
        for name in ("lengthscale", "center"):
            value = torch.as_tensor(getattr(self, name)).detach().to(x).flatten()
            if len(value) not in (1, x.shape[-1]):
                raise ValueError(
                    f"{name} has {len(value)} entries, but x has {x.shape[-1]} columns."
                )
            columns.append(value)
        lengthscale, center = columns
        scaled = (x - center) / (lengthscale * math.sqrt(x.shape[-1]))
        return torch.cat([scaled, x.new_full((len(x), 1), math.sqrt(self.bias_variance))], -1)

    def draw_features(
        self,
        x: Tensor,
        width: int,
        latent_dim: int | None = None,
        num_steps: int = 1,
        *,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> Tensor:
        r"""Features after ``num_steps`` updates, every :math:`V` drawn in full.

        Args:
            x: Inputs, ``n x D``.
            width: Number :math:`d` of observed coordinates.
            latent_dim: Number :math:`m` of features; :func:`default_latent_dim` if None.
            num_steps: Number of updates.
            start: Root of the mean Gram matrix of the initial features, ``n x k``: these are
                ``start @ N.mT / sqrt(m)`` with a standard normal ``N``, ``m x k``. The injected
                input if None, so that :math:`\psi_0 = b`; ``torch.ones(n, 1)`` starts all inputs
                from one random vector.
            generator: Source of all random numbers; torch's default generator if None.
            on_step: Function called after each update with the number of updates done.

        Returns:
            The features, ``n x m``; ``features @ features.mT`` estimates the kernel.

        Raises:
            ValueError: an argument of the wrong shape or range.
        """
        m, z, start = self._check(x, width, latent_dim, num_steps, start)
        sigma, rho = _functions(self.link)
        # one column for each input, as in the formulas
        observations = self._draw_observations(z, width, generator)
        phi = _normal(m, start.shape[-1], generator) @ start.mT / math.sqrt(m)
        rate = self.step_size / (self.regularization * math.sqrt(m * width))
        for step in range(num_steps):
            v = _normal(width, m, generator)
            w = v @ phi
            g = observations * rho(w) - sigma(w)
            phi = (1 - self.step_size) * phi + rate * (v.mT @ g)
            on_step(step + 1)
        return phi.mT.contiguous()

    def draw_gram(
        self,
        x: Tensor,
        width: int,
        latent_dim: int | None = None,
        num_steps: int = 1,
        *,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> Tensor:
        r"""Gram matrix with the distribution of that of :meth:`draw_features`, at a lower cost.

        The features of the :math:`n` inputs are :math:`\phi = QR` with orthonormal columns
        :math:`Q`, at most :math:`n`, and only :math:`R` matters. :math:`N = VQ` is standard normal
        and independent of :math:`V` on the complement of :math:`Q`, where :math:`V^\top g` is
        normal with covariance :math:`g^\top g` between inputs and :math:`m - k` independent
        coordinates, a Wishart matrix drawn by Bartlett's decomposition. An update costs
        :math:`O((d + n) n^2)`, whatever :math:`m` is; given a generator's state the draws differ
        from those of :meth:`draw_features`.

        Args:
            x: Inputs, ``n x D``.
            width: Number :math:`d` of observed coordinates.
            latent_dim: Number :math:`m` of features; :func:`default_latent_dim` if None.
            num_steps: Number of updates.
            start: Root of the mean Gram matrix of the initial features, ``n x k``, as in
                :meth:`draw_features`.
            generator: Source of all random numbers; torch's default generator if None.
            on_step: Function called after each update with the number of updates done.

        Returns:
            The Gram matrix, ``n x n``.

        Raises:
            ValueError: an argument of the wrong shape or range.
        """
        m, z, start = self._check(x, width, latent_dim, num_steps, start)
        sigma, rho = _functions(self.link)
        observations = self._draw_observations(z, width, generator)
        root = _triangle(_wishart_root(m, start.shape[-1], generator) @ start.mT / math.sqrt(m))
        rate = self.step_size / (self.regularization * math.sqrt(m * width))
        for step in range(num_steps):
            normal = _normal(width, len(root), generator)
            w = normal @ root
            g = observations * rho(w) - sigma(w)
            inside = (1 - self.step_size) * root + rate * (normal.mT @ g)
            # on the complement of Q only the Gram matrix of g matters, so fewer rows will do
            g = _triangle(g)
            outside = rate * (_wishart_root(m - len(root), len(g), generator) @ g)
            root = _triangle(torch.cat([inside, outside]))
            on_step(step + 1)
        return root.mT @ root

    def _draw_observations(
        self, z: Tensor, width: int, generator: torch.Generator | None
    ) -> Tensor:
        """The scaled observations ``a * gamma``, ``width x n``."""
        draw = _normal(width, z.shape[-1], generator) @ z.mT
        return self.feature_scale * _OBSERVATIONS[self.features](draw)

    def _check(
        self, x: Tensor, width: int, latent_dim: int | None, num_steps: int, start: Tensor | None
    ) -> tuple[int, Tensor, Tensor]:
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width!r}.")
        m = default_latent_dim(width) if latent_dim is None else latent_dim
        if m < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim!r}.")
        if num_steps < 0:
            raise ValueError(f"num_steps must not be negative, got {num_steps!r}.")
        z = self.injected_input(x)
        if start is None:
            return m, z, z
        if start.ndim != 2 or len(start) != len(x):
            raise ValueError(f"start must be {len(x)} x k, got the shape {tuple(start.shape)}.")
        return m, z, start.detach().to(z)


def _functions(link: Any) -> tuple[_Function, _Function]:
    """The pair ``(sigma, rho)`` of a link."""
    if isinstance(link, str):
        if link not in _LINKS:
            names = ", ".join(repr(name) for name in _LINKS)
            raise ValueError(f"Unknown link {link!r}. Give one of {names}, or a pair (sigma, rho).")
        return _LINKS[link]
    pair = (link.sigma, link.rho) if hasattr(link, "sigma") and hasattr(link, "rho") else link
    if isinstance(pair, tuple) and len(pair) == 2 and all(callable(f) for f in pair):
        return pair
    raise TypeError(f"A link is a name or a pair of functions (sigma, rho), not {link!r}.")


def _normal(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _triangle(matrix: Tensor) -> Tensor:
    """A matrix of no more rows than columns with the same Gram matrix of its columns."""
    return matrix if len(matrix) <= matrix.shape[-1] else torch.linalg.qr(matrix, mode="r").R


def _wishart_root(freedom: int, size: int, generator: torch.Generator | None) -> Tensor:
    """``F`` with ``F.mT @ F`` a standard Wishart matrix, ``min(freedom, size) x size``."""
    if freedom <= size:
        return _normal(freedom, size, generator)
    # Bartlett: normal above the diagonal, chi with freedom, freedom - 1, ... on it
    half = (freedom - torch.arange(size, dtype=torch.float64)) / 2
    chi = (2 * torch._standard_gamma(half, generator=generator)).sqrt()
    return _normal(size, size, generator).triu(1) + chi.diag()
