"""Parts that several figures have in common, and the figures that several things use.

Every function takes plain data, draws with `matplotlib.figure.Figure` and leaves pyplot alone, so
nothing here needs a display or changes the caller's figures.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
except ImportError as error:
    raise ImportError('gp_deq.plotting needs matplotlib: pip install "gp_deq[cli]"') from error

__all__ = [
    "COLORS",
    "MARKERS",
    "Predictions",
    "draw_predictions",
    "draw_relevances",
    "palette",
    "plain_log_axis",
    "predictions_figure",
    "relevance_figure",
    "save_figure",
    "style",
]

#: Okabe and Ito's palette, which colour-blind readers can tell apart, without the yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
#: A marker for each colour.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_Z95 = 1.959963984540054


class Predictions(NamedTuple):
    """Gaussian predictions of observed targets.

    Args:
        target: Observed values, ``n``.
        mean: Predictive means, ``n``.
        std: Predictive standard deviations, noise included, ``n``.
    """

    target: Tensor
    mean: Tensor
    std: Tensor


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 110) -> None:
    """Write a figure, without a timestamp, so that equal figures give equal files.

    Args:
        figure: The figure.
        path: Where to; the suffix says which format.
        dpi: Pixels per inch.
    """
    figure.savefig(path, dpi=dpi)


def style(axes: Axes) -> None:
    """No frame on the right and above, and a light grid below the lines.

    Args:
        axes: Changed.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def plain_log_axis(axes: Axes, ticks: Sequence[float]) -> None:
    """A log scale of abscissae whose ticks are written as plain numbers.

    Args:
        axes: Changed.
        ticks: The only ticks.
    """
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_predictions(
    axes: Axes, predictions: Predictions, title: str, unit: str, color: str
) -> None:
    """Targets against the rank of their predicted mean, with the 95 % intervals as a band.

    Args:
        axes: Drawn into.
        predictions: The predictions.
        title: Above them.
        unit: Label of the vertical axis.
        color: Color of the line and the band; targets outside the band are red crosses.
    """
    order = torch.argsort(predictions.mean)
    target, mean, std = (value.detach().cpu()[order].numpy() for value in predictions)
    rank = range(1, len(mean) + 1)
    lower, upper = mean - _Z95 * std, mean + _Z95 * std
    inside = (target >= lower) & (target <= upper)
    axes.fill_between(rank, lower, upper, color=color, alpha=0.18, linewidth=0)
    axes.plot(rank, mean, color=color, linewidth=1.6)
    axes.scatter(
        [r for r, i in zip(rank, inside) if i], target[inside], s=9, color="0.25", linewidth=0
    )
    axes.scatter(
        [r for r, i in zip(rank, inside) if not i],
        target[~inside],
        s=22,
        color="#D00000",
        marker="x",
        linewidth=1.2,
    )
    rmse = float(((target - mean) ** 2).mean() ** 0.5)
    axes.set_title(title, fontsize=10)
    axes.text(
        0.03,
        0.97,
        f"RMSE {rmse:.3g}\n{inside.mean():.0%} inside 95 %",
        transform=axes.transAxes,
        va="top",
        fontsize=8,
    )
    axes.set_xlabel("test inputs, by predicted mean", fontsize=9)
    axes.set_ylabel(unit, fontsize=9)
    axes.tick_params(labelsize=8)
    style(axes)


def palette(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in order.

    Args:
        names: Names, which may be repeated.
    """
    return {name: COLORS[i % len(COLORS)] for i, name in enumerate(dict.fromkeys(names))}


def draw_relevances(
    axes: Axes,
    relevances: Mapping[str, Tensor],
    feature_names: Sequence[str],
    colors: Mapping[str, str],
) -> None:
    """A group of bars for each input.

    Args:
        axes: Drawn into.
        relevances: For each kernel one number for each input.
        feature_names: Names of the inputs.
        colors: A colour for each kernel.
    """
    width = 0.84 / len(relevances)
    for i, (label, relevance) in enumerate(relevances.items()):
        offset = (i - (len(relevances) - 1) / 2) * width
        axes.bar(
            [j + offset for j in range(len(feature_names))],
            relevance.detach().cpu().tolist(),
            width=0.92 * width,
            color=colors[label],
            label=label,
        )
    axes.set_xticks(range(len(feature_names)), feature_names)
    axes.set_ylabel("share of 1 / lengthscale²", fontsize=9)
    axes.set_title("Learned relevance of each input", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    axes.tick_params(labelsize=8)
    style(axes)
    axes.grid(visible=False, axis="x")


def predictions_figure(panels: Mapping[str, Predictions], unit: str = "target") -> Figure:
    """Test targets and predictions with 95 % intervals, one panel for each model.

    Inputs are sorted by their predicted mean; targets outside the interval are red crosses.

    Args:
        panels: Predictions by name of the model.
        unit: Label of the vertical axis.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(4.0 * len(panels), 3.4), layout="constrained")
    colors = palette(panels)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for i, (title, predictions) in enumerate(panels.items()):
        draw_predictions(axes[i], predictions, title, unit, colors[title])
        axes[i].label_outer()
    return figure


def relevance_figure(relevances: Mapping[str, Tensor], feature_names: Sequence[str]) -> Figure:
    """Learned relevances of the inputs, a group of bars for each input.

    Args:
        relevances: For each kernel, one number for each input, ``1 / lengthscale**2`` normalised
            to sum 1.
        feature_names: Names of the inputs.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(max(6.0, 0.9 * len(feature_names)), 3.4), layout="constrained")
    draw_relevances(figure.subplots(), relevances, feature_names, palette(relevances))
    return figure
