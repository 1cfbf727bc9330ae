r"""Finite networks tend to the kernel of the infinite one: ``gp-deq benchmark deker-convergence``.

Section 4.1 of Tsuchida and Ong (2023, "Stochastic gradient updates yield deep equilibrium
kernels", TMLR). On the 10 x 10 grid on :math:`[-5, 5]^2` the features of all inputs take 400
stochastic gradient updates (ReLU link, linear features without bias, :math:`\lambda = 6`,
:math:`m = \lfloor d^{3/2} \rfloor`). Their Gram matrix is compared with that of `DEKerKernel` by
linear centred kernel alignment, and as a control with an RBF kernel of lengthscale 1, to which
nothing converges; its alignment tends to that of the limit with the control. Alignment is blind to
scale and a weak test here: the linear kernel of the inputs, which knows nothing of the updates, has
0.977 with the limit. So the relative error of the Gram matrix is measured as well.

All inputs start from one random vector, as in the authors' code. From :math:`\psi_0 = b` the
features of collinear inputs would stay collinear, which is a fixed point too, but a repelling one.

Two step sizes are measured. At :math:`h = 1` an update forgets the features: once the responses of
an input are all negative, of chance :math:`2^{-d}` at an update, its features are zero and stay so.
At :math:`d = 5` that befalls every input within 400 updates, and the alignment is undefined.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

import torch
from gpytorch.kernels import RBFKernel
from torch import Tensor

from gp_deq.benchmarks.runs import Row, RunFile
from gp_deq.simulation import FeatureSGD, default_latent_dim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ConvergenceConfig",
    "Draw",
    "Interval",
    "References",
    "Summary",
    "centered_kernel_alignment",
    "draw",
    "grid",
    "limiting_gram",
    "read_csv",
    "references",
    "run_convergence",
    "summarize",
]

_REGULARIZATION = 6.0


@dataclass(frozen=True)
class ConvergenceConfig:
    """What is simulated.

    Args:
        widths: The numbers ``d`` of observed coordinates.
        seeds: Number of draws at each width.
        num_steps: Number of updates.
        step_sizes: Each a factor of ``sqrt(d / m) / lambda``.

    Raises:
        ValueError: a width, number of seeds or of steps below 1, or a step size outside (0, 2).
    """

    widths: tuple[int, ...] = (5, 10, 15, 20, 30, 45, 65, 100, 150, 200, 300, 400, 500)
    seeds: int = 10
    num_steps: int = 400
    step_sizes: tuple[float, ...] = (1.0, 0.1)

    def __post_init__(self) -> None:
        for name, value in (
            ("width", min(self.widths, default=0)),
            ("number of seeds", self.seeds),
            ("number of steps", self.num_steps),
        ):
            if value < 1:
                raise ValueError(f"The {name} must be at least 1, got {value}.")
        if not self.step_sizes or not all(0 < step < 2 for step in self.step_sizes):
            raise ValueError(f"Step sizes must be between 0 and 2, got {self.step_sizes}.")

    @classmethod
    def full(cls) -> "ConvergenceConfig":
        """The widths of the paper, 5, 10, ..., 500."""
        return cls(widths=tuple(range(5, 501, 5)))

    @property
    def keys(self) -> list[tuple[float, int, int, int]]:
        """Step size, number of steps, width and seed of every draw, in the order they are made."""
        return [
            (step, self.num_steps, width, seed)
            for seed in range(self.seeds)
            for width in self.widths
            for step in self.step_sizes
        ]


@dataclass(frozen=True)
class Draw(Row):
    """One finite network against the infinite one; a row of the CSV file.

    Args:
        step_size: Of the updates.
        num_steps: Their number.
        width: Number ``d`` of observed coordinates.
        seed: Of the random numbers, together with the width.
        latent_dim: Number ``m`` of features.
        alignment: Of the Gram matrix of the features with the limiting one; NaN where the
            features of all inputs are zero.
        control: With the RBF kernel; NaN likewise.
        relative_error: Frobenius norm of the difference to the limiting matrix, relative to its.
    """

    step_size: float
    num_steps: int
    width: int
    seed: int
    latent_dim: int
    alignment: float
    control: float
    relative_error: float

    keys = ("step_size", "num_steps", "width", "seed")


class Interval(NamedTuple):
    """A mean over draws with its 95 % confidence interval (Student's t).

    Args:
        mean: NaN where a draw is undefined.
        low: Lower end; the mean for a single draw.
        high: Upper end; the mean for a single draw.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """The draws of one width and step size.

    Args:
        step_size: Of the updates.
        width: Number of observed coordinates.
        latent_dim: Number of features.
        num_draws: Number of draws.
        num_zero: Of those, how many have no feature left that is not zero.
        alignment: With the limiting matrix.
        control: With the RBF kernel.
        relative_error: Of the Gram matrix.
    """

    step_size: float
    width: int
    latent_dim: int
    num_draws: int
    num_zero: int
    alignment: Interval
    control: Interval
    relative_error: Interval


def grid(side: int = 10) -> Tensor:
    """The inputs: a square grid on ``[-5, 5]^2``.

    Args:
        side: Number of points on a side.

    Returns:
        ``side**2 x 2``.
    """
    line = torch.linspace(-5.0, 5.0, side, dtype=torch.float64)
    return torch.cartesian_prod(line, line)


def centered_kernel_alignment(first: Tensor, second: Tensor) -> float:
    r"""Linear centred kernel alignment of two Gram matrices.

    .. math::
        \frac{\langle HKH, HLH \rangle_F}{\|HKH\|_F \|HLH\|_F}, \qquad H = I - \tfrac1n 1 1^\top

    (Cortes, Mohri and Rostamizadeh, 2012; Kornblith et al., 2019).

    Args:
        first: Symmetric matrix, ``n x n``.
        second: Symmetric matrix, ``n x n``.

    Returns:
        At most 1, attained where the centred matrices are proportional; NaN where one is zero.

    Raises:
        ValueError: the shapes differ or are not square.
    """
    if first.shape != second.shape or first.ndim != 2 or first.shape[0] != first.shape[1]:
        raise ValueError(
            "Alignment needs two square matrices of one shape, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    a, b = (
        k - k.mean(-1, keepdim=True) - k.mean(-2, keepdim=True) + k.mean() for k in (first, second)
    )
    scale = a.norm() * b.norm()
    return ((a * b).sum() / scale).item() if scale > 0 else math.nan


def limiting_gram(x: Tensor, step_size: float = 1.0) -> Tensor:
    """The matrix of the infinite network in equilibrium, identical features on the diagonal.

    Args:
        x: Inputs, ``n x D``.
        step_size: Of the updates.

    Returns:
        ``n x n``.
    """
    from gp_deq.kernels import DEKerKernel

    kernel = DEKerKernel(
        link="relu", features="linear", num_steps=None, step_size=step_size, coincident="sgd"
    ).to(x)
    kernel.initialize(
        lengthscale=1.0, bias_variance=0.0, regularization=_REGULARIZATION, feature_scale=1.0
    )
    with torch.no_grad():
        return kernel(x).to_dense()


def _control_gram(x: Tensor) -> Tensor:
    kernel = RBFKernel().to(x)
    kernel.lengthscale = 1.0
    with torch.no_grad():
        return kernel(x).to_dense()


def run_convergence(
    config: ConvergenceConfig,
    path: str | os.PathLike[str] | None = None,
    on_draw: Callable[[str], None] = lambda description: None,
) -> list[Draw]:
    """Draw the finite networks, in float64; draws that the file already holds are taken from it.

    Args:
        config: What to simulate.
        path: Of a CSV file that receives each draw as soon as it is done; none if None.
        on_draw: Called with a description after each draw, those from the file included.

    Returns:
        The draws of ``config``, in the order of its keys.

    Raises:
        ValueError: the file is not one that this function wrote.
    """
    file = RunFile(Draw, path)
    done = file.open()
    x = grid()
    control = _control_gram(x)
    limits = {step: limiting_gram(x, step) for step in config.step_sizes}
    for key in config.keys:
        if key not in done:
            step_size, num_steps, width, seed = key
            sgd = FeatureSGD("relu", "linear", _REGULARIZATION, step_size)
            generator = torch.Generator().manual_seed(1_000_003 * seed + width)
            start = torch.ones(len(x), 1)
            gram = sgd.draw_gram(x, width, num_steps=num_steps, start=start, generator=generator)
            limit = limits[step_size]
            done[key] = Draw(
                *key,
                latent_dim=default_latent_dim(width),
                alignment=centered_kernel_alignment(gram, limit),
                control=centered_kernel_alignment(gram, control),
                relative_error=((gram - limit).norm() / limit.norm()).item(),
            )
            file.append(done[key])
        on_draw(f"d = {key[2]}, step size {key[0]:g}")
    return [done[key] for key in config.keys]


def read_csv(path: str | os.PathLike[str]) -> list[Draw]:
    """The draws in a file of `run_convergence`.

    Args:
        path: Of the file.

    Returns:
        The draws, without one that was being written when a run was stopped; none if there is no
        file.

    Raises:
        ValueError: the file is of another origin.
    """
    return RunFile(Draw, path).read()


def _interval(values: Sequence[float]) -> Interval:
    mean = fmean(values)
    if len(values) == 1 or math.isnan(mean):
        return Interval(mean, mean, mean)
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def summarize(draws: Sequence[Draw]) -> list[Summary]:
    """Means and intervals over the draws, by step size and then width.

    Args:
        draws: Of `run_convergence`.

    Returns:
        One summary for each step size and width.
    """
    groups: dict[tuple[float, int], list[Draw]] = {}
    for item in draws:
        groups.setdefault((-item.step_size, item.width), []).append(item)
    return [
        Summary(
            step_size=group[0].step_size,
            width=width,
            latent_dim=group[0].latent_dim,
            num_draws=len(group),
            num_zero=sum(math.isnan(item.alignment) for item in group),
            alignment=_interval([item.alignment for item in group]),
            control=_interval([item.control for item in group]),
            relative_error=_interval([item.relative_error for item in group]),
        )
        for (_, width), group in sorted(groups.items())
    ]


class References(NamedTuple):
    """What kernels that know nothing of the updates attain against the limiting matrix.

    Args:
        control: Alignment of the RBF control, to which that of the draws with it tends.
        linear: Alignment of the linear kernel of the inputs.
        linear_error: Relative error of the multiple of the linear kernel that comes nearest.
    """

    control: float
    linear: float
    linear_error: float


def references(step_size: float = 1.0) -> References:
    """How much the numbers of the draws mean.

    Args:
        step_size: Of the updates; it hardly matters.

    Returns:
        The references.
    """
    x = grid()
    limit, linear = limiting_gram(x, step_size), x @ x.mT
    cosine = (limit * linear).sum() / (limit.norm() * linear.norm())
    return References(
        control=centered_kernel_alignment(limit, _control_gram(x)),
        linear=centered_kernel_alignment(limit, linear),
        linear_error=(1 - cosine.square()).sqrt().item(),
    )


def draw(summaries: Sequence[Summary], levels: References) -> "Figure":
    """The figure: alignment and relative error against the width.

    Args:
        summaries: Of `summarize`.
        levels: Of `references`.

    Returns:
        The figure.
    """
    from gp_deq.plotting import Band, convergence_figure

    def band(label: str, field: str, group: Sequence[Summary]) -> Band:
        points = [(item.width, getattr(item, field)) for item in group]
        points = [(width, value) for width, value in points if not math.isnan(value.mean)]
        widths, intervals = [p[0] for p in points], [p[1] for p in points]
        return Band(label, widths, *([i[k] for i in intervals] for k in range(3)))

    alignments, controls, errors = [], [], []
    for step in dict.fromkeys(item.step_size for item in summaries):
        group = [item for item in summaries if item.step_size == step]
        note = f"step size h = {step:g}"
        alignments.append(band(note, "alignment", group))
        controls.append(band(note, "control", group))
        errors.append(band(note, "relative_error", group))
    title = (
        "Finite networks after stochastic gradient updates: 10 × 10 grid, ReLU link, linear "
        f"features, λ = {_REGULARIZATION:g}"
    )
    if summaries[0].num_draws > 1:
        title += f"; mean and 95 % interval of {summaries[0].num_draws} draws"
    return convergence_figure(
        alignments,
        controls,
        errors,
        {"limit with the linear kernel": levels.linear, "limit with RBF": levels.control},
        {"best multiple of the linear kernel": levels.linear_error},
        title,
    )
