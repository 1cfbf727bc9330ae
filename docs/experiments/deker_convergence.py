r"""Gram matrices of finite networks tend to that of the DEKer kernel as the width grows.

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

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import ClassVar, NamedTuple

import torch
from gpytorch.kernels import RBFKernel
from joblib import delayed
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.stats import t as student
from torch import Tensor

from gp_deq.benchmarks.command import script
from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option, plus_minus
from gp_deq.benchmarks.runs import Key, Row, one_thread, spread
from gp_deq.kernels import DEKerKernel
from gp_deq.plotting import COLORS, MARKERS, plain_log_axis, style
from gp_deq.simulation import FeatureSGD, default_latent_dim

_REGULARIZATION = 6.0
_WIDTHS = (5, 10, 15, 20, 30, 45, 65, 100, 150, 200, 300, 400, 500)


@dataclass(frozen=True)
class ConvergenceConfig(Configuration):
    """The networks that are simulated.

    Args:
        widths: The numbers ``d`` of observed coordinates.
        seeds: Number of draws at each width.
        num_steps: Number of updates.
        step_sizes: Each a factor of ``sqrt(d / m) / lambda``.

    Raises:
        ValueError: A width or a number of seeds or steps is below 1, or a step size outside (0, 2).
    """

    widths: tuple[int, ...] = option(_WIDTHS, "Width d.", name="width", shown="13 from 5 to 500")
    seeds: int = option(10, "Number of draws at each width.")
    num_steps: int = option(400, "Number of gradient updates.", name="steps")
    step_sizes: tuple[float, ...] = option((1.0, 0.1), "Step size h.", name="step-size")

    presets: ClassVar = {"full": "The widths of the paper: 5, 10, ..., 500."}

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
    def full(cls) -> ConvergenceConfig:
        """The widths of the paper, 5, 10, ..., 500."""
        return cls(widths=tuple(range(5, 501, 5)))

    @property
    def keys(self) -> list[Key]:
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
        step_size: Step size of the updates.
        num_steps: Number of updates.
        width: Number ``d`` of observed coordinates.
        seed: Seed of the random numbers, together with the width.
        latent_dim: Number ``m`` of features.
        alignment: Alignment of the Gram matrix of the features with the limiting one; NaN where
            the features of all inputs are zero.
        control: Its alignment with the RBF kernel; NaN likewise.
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

    @property
    def label(self) -> str:
        """A description for the progress bar."""
        return f"d = {self.width}, step size {self.step_size:g}"


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
        step_size: Step size of the updates.
        width: Number of observed coordinates.
        latent_dim: Number of features.
        num_draws: Number of draws.
        num_zero: Number of draws in which the features of all inputs are zero.
        alignment: Alignment with the limiting matrix.
        control: Alignment with the RBF kernel.
        relative_error: Relative error of the Gram matrix.
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
        step_size: Step size of the updates.

    Returns:
        ``n x n``.
    """
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


@one_thread()
def _draw(step_size: float, num_steps: int, width: int, seed: int) -> Draw:
    """One finite network, in float64."""
    x = grid()
    limit = limiting_gram(x, step_size)
    sgd = FeatureSGD("relu", "linear", _REGULARIZATION, step_size)
    generator = torch.Generator().manual_seed(1_000_003 * seed + width)
    start = torch.ones(len(x), 1)
    gram = sgd.draw_gram(x, width, num_steps=num_steps, start=start, generator=generator)
    return Draw(
        step_size,
        num_steps,
        width,
        seed,
        latent_dim=default_latent_dim(width),
        alignment=centered_kernel_alignment(gram, limit),
        control=centered_kernel_alignment(gram, _control_gram(x)),
        relative_error=((gram - limit).norm() / limit.norm()).item(),
    )


def _run(
    config: ConvergenceConfig, keys: Iterator[Key], tell: Callable[[str], None]
) -> Iterator[Draw]:
    return spread(delayed(_draw)(*key) for key in keys)


def _interval(values: Sequence[float]) -> Interval:
    mean = fmean(values)
    if len(values) == 1 or math.isnan(mean):
        return Interval(mean, mean, mean)
    half = student.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def summarize(draws: Sequence[Draw]) -> list[Summary]:
    """Means and intervals over the draws, by step size and then width.

    Args:
        draws: The draws.

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
    """Scores of kernels that know nothing of the updates against the limiting matrix.

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
        step_size: Step size of the updates; it hardly matters.

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


def tables(config: ConvergenceConfig, draws: Sequence[Draw]) -> Iterator[Table | str]:
    """The tables and notes that the command prints.

    Args:
        config: The configuration.
        draws: Its draws.

    Yields:
        Means and intervals by step size and width, and notes.
    """
    summaries = summarize(draws)
    if not summaries:
        return
    numbers = sorted({item.num_draws for item in summaries})
    over = " to ".join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))
    over = "one draw" if over == "1" else f"mean ± 95 % interval over {over} draws"
    rows = [
        [
            f"{item.step_size:g}",
            str(item.width),
            str(item.latent_dim),
            *map(_plus_minus, (item.alignment, item.control, item.relative_error)),
        ]
        for item in summaries
    ]
    columns = ["step size", "d", "m", "alignment", "with RBF", "relative error"]
    yield Table(f"Gram matrices after {config.num_steps} updates: {over}", columns, rows)
    levels = references()
    yield f"The DEKer kernel with RBF: alignment {levels.control:.4f}."
    yield (
        f"The DEKer kernel with the linear kernel: alignment {levels.linear:.4f}, relative error "
        f"of its best multiple {levels.linear_error:.4f}."
    )
    for item in summaries:
        if item.num_zero:
            yield (
                f"Step size {item.step_size:g}, d = {item.width}: the features of all inputs are "
                f"zero in {item.num_zero} of {item.num_draws} draws, so alignment is undefined."
            )


def _plus_minus(value: Interval) -> str:
    """A mean with half the length of its interval, or a dash where it is undefined."""
    if math.isnan(value.mean):
        return "–"
    half = (value.high - value.low) / 2
    return plus_minus(value.mean, half if half > 0 else math.nan, ".4f")


def draw(summaries: Sequence[Summary], levels: References) -> Figure:
    """The figure: alignment and relative error against the width, with what to compare them with.

    Args:
        summaries: Means and intervals of the draws.
        levels: Alignments and errors to compare with.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    title = (
        "Finite networks after stochastic gradient updates: 10 × 10 grid, ReLU link, linear "
        f"features, λ = {_REGULARIZATION:g}"
    )
    if summaries[0].num_draws > 1:
        title += f"; mean and 95 % interval of {summaries[0].num_draws} draws"
    figure.suptitle(title, fontsize=10.5)
    left, right = figure.subplots(1, 2)
    steps = list(dict.fromkeys(item.step_size for item in summaries))
    for step, color, marker in zip(steps, itertools.cycle(COLORS), itertools.cycle(MARKERS)):
        group = [item for item in summaries if item.step_size == step]
        note = f"step size h = {step:g}"
        look = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.4}
        for axes, field, label, line in (
            (left, "alignment", f"with the DEKer kernel, {note}", "-"),
            (left, "control", f"with RBF (control), {note}", "--"),
            (right, "relative_error", note, "-"),
        ):
            # undefined means are left out, also where all are
            points = [(item.width, *getattr(item, field)) for item in group]
            points = [point for point in points if not math.isnan(point[1])]
            x, mean, low, high = zip(*points) if points else ((), (), (), ())
            axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(x, mean, linestyle=line, label=label, **look)
    left.axhline(1.0, color="0.4", linewidth=0.7)
    for axes, level, label, line in (
        (left, levels.linear, "limit with the linear kernel", ":"),
        (left, levels.control, "limit with RBF", "-."),
        (right, levels.linear_error, "best multiple of the linear kernel", ":"),
    ):
        axes.axhline(level, color="0.4", linewidth=1.0, linestyle=line, label=label)
    left.set_ylim(0.0, 1.04)
    left.set_ylabel("centred kernel alignment", fontsize=9)
    left.set_title("Alignment of the Gram matrices", fontsize=10)
    right.set_yscale("log")
    right.yaxis.set_major_locator(
        FixedLocator([a * 10.0**k for k in range(-6, 3) for a in (1, 2, 5)])
    )
    right.yaxis.set_minor_locator(NullLocator())
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.set_ylabel("relative error (Frobenius norm)", fontsize=9)
    right.set_title("Error of the Gram matrix", fontsize=10)
    widths = sorted({item.width for item in summaries})
    lowest = min(item.relative_error.mean for item in summaries if item.width == widths[-1])
    guide = [0.8 * lowest * (widths[-1] / width) ** 0.5 for width in widths]
    right.plot(widths, guide, color="0.7", linewidth=1.2, label="slope −1/2")
    for axes in (left, right):
        plain_log_axis(axes, [a * 10.0**k for k in range(7) for a in (1, 2, 5)])
        axes.set_xlim(widths[0] / 1.1, widths[-1] * 1.1)
        axes.set_xlabel("width d (observed coordinates), $m = d^{3/2}$ features", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7.5, frameon=False, loc="best")
        style(axes)
    return figure


EXPERIMENT = Experiment(
    name="deker-convergence",
    configuration=ConvergenceConfig,
    row=Draw,
    run=_run,
    tables=tables,
    figure=lambda config, draws: draw(summarize(draws), references()) if draws else None,
)

run_convergence = EXPERIMENT.collect


if __name__ == "__main__":
    script(__file__)
