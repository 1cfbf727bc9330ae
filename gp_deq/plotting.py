"""Figures: predictions, relevances, depth, convergence, close inputs, speed, optimisation.

Every function takes plain data, returns a `matplotlib.figure.Figure` and leaves pyplot alone, so
nothing here needs a display or changes the caller's figures.
"""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
except ImportError as error:
    raise ImportError('gp_deq.plotting needs matplotlib: pip install "gp_deq[cli]"') from error

__all__ = [
    "Band",
    "Bar",
    "Panel",
    "Predictions",
    "RankPanel",
    "Series",
    "coincident_figure",
    "convergence_figure",
    "demo_figure",
    "depth_figure",
    "panels_figure",
    "predictions_figure",
    "ranks_figure",
    "relevance_figure",
    "save_figure",
    "speed_figure",
]

# Okabe and Ito's palette, told apart by colour-blind readers; the yellow is left out.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
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


class Bar(NamedTuple):
    """One bar of a comparison, with the value it should not exceed.

    Args:
        label: Its name.
        value: Its length.
        target: The bound, drawn as a tick; None where there is none.
    """

    label: str
    value: float
    target: float | None = None


class Series(NamedTuple):
    """One line of a plot.

    Args:
        label: Its name in the legend; lines of the same name share one colour in a figure.
        x: Abscissae.
        y: Ordinates.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]


class Band(NamedTuple):
    """One line of a plot with a confidence interval around it.

    Args:
        label: Its name in the legend.
        x: Abscissae.
        mean: Ordinates.
        low: Lower ends of the intervals.
        high: Upper ends of the intervals.
    """

    label: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class Panel(NamedTuple):
    """One of several plots with lines of the same names.

    Args:
        title: Above it.
        label: Of its ordinates.
        bands: Its lines.
        log: Whether the ordinates are on a log axis.
    """

    title: str
    label: str
    bands: Sequence[Band]
    log: bool = False


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 110) -> None:
    """Write a figure, without a timestamp, so that equal figures give equal files.

    Args:
        figure: The figure.
        path: Where to; the suffix says which format.
        dpi: Pixels per inch.
    """
    figure.savefig(path, dpi=dpi)


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def _plain_log_axis(axes: Axes, ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_predictions(
    axes: Axes, predictions: Predictions, title: str, unit: str, color: str
) -> None:
    """Targets against the rank of their predicted mean, with the 95 % intervals as a band."""
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
    _style(axes)


def _palette(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in order."""
    return {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(dict.fromkeys(names))}


def _draw_relevances(
    axes: Axes,
    relevances: Mapping[str, Tensor],
    feature_names: Sequence[str],
    colors: Mapping[str, str],
) -> None:
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
    _style(axes)
    axes.grid(visible=False, axis="x")


def _draw_depth(
    axes: Axes,
    depths: Sequence[int],
    feed_forward: Mapping[float, Sequence[float]],
    injected: Mapping[float, Sequence[float]],
    equilibrium: Mapping[float, float],
    critical: float,
) -> None:
    weights = sorted({*feed_forward, *injected, *equilibrium})
    colors = dict(zip(weights, itertools.cycle(_COLORS)))
    right = max(depths)
    for w, value in equilibrium.items():
        axes.axhline(
            value, color=colors[w], linewidth=5, alpha=0.25, label=f"equilibrium, w = {w:g}"
        )
    for w, values in injected.items():
        axes.plot(
            depths,
            values,
            color=colors[w],
            marker="o",
            markersize=3.5,
            linewidth=1.2,
            label=f"finite depth, input injected, w = {w:g}",
        )
    for w, values in feed_forward.items():
        note = " (critical)" if w == critical else ""
        axes.plot(
            depths,
            values,
            color=colors[w],
            linestyle="--",
            marker="s",
            markersize=3.5,
            linewidth=1.2,
            label=f"feed-forward, w = {w:g}{note}",
        )
    _plain_log_axis(axes, [4**k for k in range(20) if 4**k <= right])
    axes.set_xlim(min(depths) * 0.9, right * 1.1)
    top = 1.0
    low = min(min(v) for v in (*feed_forward.values(), *injected.values()))
    axes.set_ylim(min(low, *equilibrium.values()) - 0.06, top + 0.03)
    axes.axhline(1.0, color="0.4", linewidth=0.7)
    axes.set_xlabel("depth", fontsize=9)
    axes.set_ylabel("correlation of the two outputs", fontsize=9)
    axes.set_title("Two orthogonal inputs in ReLU networks of growing depth", fontsize=10)
    axes.tick_params(labelsize=8)
    _style(axes)


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
    colors = _palette(panels)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for i, (title, predictions) in enumerate(panels.items()):
        _draw_predictions(axes[i], predictions, title, unit, colors[title])
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
    _draw_relevances(figure.subplots(), relevances, feature_names, _palette(relevances))
    return figure


def depth_figure(
    depths: Sequence[int],
    feed_forward: Mapping[float, Sequence[float]],
    injected: Mapping[float, Sequence[float]],
    equilibrium: Mapping[float, float],
    critical: float = 2.0,
) -> Figure:
    """Correlation of two inputs against depth, lines by weight variance.

    Args:
        depths: Depths of the finite kernels.
        feed_forward: Correlations without input injection.
        injected: Correlations with input injection.
        equilibrium: Correlation at the fixed point.
        critical: The critical weight variance, marked in the legend.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    _draw_depth(axes, depths, feed_forward, injected, equilibrium, critical)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure


def demo_figure(
    panels: Mapping[str, Predictions],
    relevances: Mapping[str, Tensor],
    feature_names: Sequence[str],
    depth: tuple[
        Sequence[int],
        Mapping[float, Sequence[float]],
        Mapping[float, Sequence[float]],
        Mapping[float, float],
    ],
    unit: str = "target",
    title: str = "",
) -> Figure:
    """The demo's figure: predictions above, relevances and depth below.

    Args:
        panels: As in `predictions_figure`.
        relevances: As in `relevance_figure`.
        feature_names: As in `relevance_figure`.
        depth: The first four arguments of `depth_figure`.
        unit: As in `predictions_figure`.
        title: Of the whole figure.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(13.0, 8.0), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=12)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.0, 1.05))[:, 0]
    colors = _palette((*relevances, *panels))
    axes = above.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for i, (name, predictions) in enumerate(panels.items()):
        _draw_predictions(axes[i], predictions, name, unit, colors[name])
        axes[i].label_outer()
    left, right = below.subplots(1, 2, width_ratios=(1.15, 1.0))
    _draw_relevances(left, relevances, feature_names, colors)
    _draw_depth(right, *depth, critical=2.0)
    right.legend(fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none", loc="best")
    return figure


def speed_figure(
    bars: Sequence[Bar],
    lines: Mapping[tuple[str, str], Sequence[Series]],
    title: str = "",
    bars_label: str = "time relative to Matérn-5/2",
) -> Figure:
    """Times and memory: bars on the left, lines on log axes on the right.

    Args:
        bars: Ratios to a reference, with their targets.
        lines: For each panel ``(abscissa, ordinate)`` its lines.
        title: Of the whole figure.
        bars_label: What the bars measure.

    Returns:
        The figure.
    """
    rows = max(1, (len(lines) + 1) // 2)
    figure = Figure(figsize=(14.0, max(3.6 * rows, 0.32 * len(bars) + 2.0)), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(rows, 3, width_ratios=(1.25, 1.0, 1.0))
    axes = figure.add_subplot(grid[:, 0])
    for i, bar in enumerate(bars):
        met = bar.target is None or bar.value <= bar.target
        axes.barh(
            i, bar.value, color="0.72" if bar.target is None else "#0072B2" if met else "#D55E00"
        )
        if bar.target is not None:
            axes.plot([bar.target] * 2, [i - 0.45, i + 0.45], color="black", linewidth=2)
        end = bar.value if bar.target is None else max(bar.value, bar.target)
        axes.text(end, i, f"  {bar.value:.2f}", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.14 * max([max(b.value, b.target or 0.0) for b in bars], default=1.0))
    axes.set_xlabel(bars_label + "; black: target", fontsize=9)
    axes.tick_params(labelsize=8)
    _style(axes)
    axes.grid(visible=False, axis="y")

    labels = list(dict.fromkeys(s.label for series in lines.values() for s in series))
    handles = {}
    for k, ((abscissa, ordinate), series) in enumerate(lines.items()):
        axes = figure.add_subplot(grid[k // 2, 1 + k % 2])
        for line in series:
            i = labels.index(line.label)
            (handles[line.label],) = axes.plot(
                line.x,
                line.y,
                color=_COLORS[i % len(_COLORS)],
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=4,
                linewidth=1.3,
                linestyle="-" if i < len(_COLORS) else "--",
            )
        _plain_log_axis(axes, sorted({x for line in series for x in line.x}))
        axes.set_yscale("log")
        axes.set_xlabel(abscissa, fontsize=9)
        axes.set_ylabel(ordinate, fontsize=9)
        axes.tick_params(which="both", labelsize=8)
        _style(axes)
    if handles:
        figure.legend(
            [handles[label] for label in labels],
            labels,
            loc="outside lower center",
            ncols=min(5, len(labels)),
            fontsize=8,
            frameon=False,
        )
    return figure


def _draw_band(
    axes: Axes, band: Band, color: str, marker: str, label: str, line: str = "-"
) -> None:
    axes.fill_between(band.x, band.low, band.high, color=color, alpha=0.2, linewidth=0)
    axes.plot(
        band.x,
        band.mean,
        color=color,
        marker=marker,
        markersize=4,
        linewidth=1.4,
        linestyle=line,
        label=label,
    )


def convergence_figure(
    alignments: Sequence[Band],
    controls: Sequence[Band],
    errors: Sequence[Band],
    alignment_levels: Mapping[str, float],
    error_levels: Mapping[str, float],
    title: str = "",
) -> Figure:
    """Alignment with the limiting matrix and with a control, and relative error, against width.

    Args:
        alignments: Alignment with the limiting matrix, a line for each setting.
        controls: Alignment with the control, for the same settings.
        errors: Relative error of the Gram matrix, for the same settings.
        alignment_levels: Alignments to compare with, a horizontal line for each label.
        error_levels: Relative errors to compare with, likewise.
        title: Of the whole figure.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10.5)
    left, right = figure.subplots(1, 2)
    for i, (alignment, control, error) in enumerate(zip(alignments, controls, errors)):
        color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
        _draw_band(left, alignment, color, marker, f"with the DEKer kernel, {alignment.label}")
        _draw_band(left, control, color, marker, f"with RBF (control), {control.label}", "--")
        _draw_band(right, error, color, marker, error.label)
    left.axhline(1.0, color="0.4", linewidth=0.7)
    for axes, levels in ((left, alignment_levels), (right, error_levels)):
        for (label, level), line in zip(levels.items(), itertools.cycle((":", "-."))):
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
    widths = sorted({x for band in (*alignments, *errors) for x in band.x})
    if widths:
        low = min(band.mean[-1] for band in errors if band.x)
        guide = [0.8 * low * (widths[-1] / x) ** 0.5 for x in widths]
        right.plot(widths, guide, color="0.7", linewidth=1.2, label="slope −1/2")
    for axes in (left, right):
        _plain_log_axis(
            axes,
            [a * 10.0**k for k in range(7) for a in (1, 2, 5)],
        )
        if widths:
            axes.set_xlim(widths[0] / 1.1, widths[-1] * 1.1)
        axes.set_xlabel("width d (observed coordinates), $m = d^{3/2}$ features", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7.5, frameon=False, loc="best")
        _style(axes)
    return figure


def coincident_figure(
    angles: Sequence[float],
    settled: Mapping[float, Sequence[float]],
    limits: Mapping[float, float],
    updated: Mapping[int, Sequence[float]],
    regularization: float,
) -> Figure:
    """Correlation of two inputs against their angle: at the fixed point, and after updates.

    Args:
        angles: Of the inputs, positive and increasing.
        settled: For each regularization, the correlations at the fixed point.
        limits: For each regularization, the limit of these correlations.
        updated: For each number of updates, the correlations.
        regularization: That of ``updated``; its fixed point is drawn for comparison.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(12.4, 4.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    both = [-angle for angle in reversed(angles)] + list(angles)
    colors = dict(zip(settled, itertools.cycle(_COLORS)))
    for lam, values in settled.items():
        label = f"$\\lambda$ = {lam:g}"
        curve = [*reversed(values), *values]
        left.plot(both, curve, color=colors[lam], linewidth=1.5, label=label)
        left.plot([0.0], [limits[lam]], color=colors[lam], marker="o", markersize=5.5)
    left.plot([], [], color="0.3", marker="o", markersize=5.5, linestyle="", label='"continuous"')
    ring = {"marker": "o", "markersize": 6.5, "markerfacecolor": "white", "linestyle": ""}
    left.plot([0.0], [1.0], color="0.3", markeredgewidth=1.4, label='"sgd", any $\\lambda$', **ring)
    left.set_title("Fixed point", fontsize=10)

    shades = dict(zip(updated, itertools.cycle(_COLORS)))
    for steps, values in updated.items():
        line = {"color": shades[steps], "linewidth": 1.5}
        middle.plot(both, [*reversed(values), *values], label=f"T = {steps}", **line)
        slope = f"1/{2 ** (steps - 1)}" if steps > 1 else "1"
        distances = [1 - value for value in values]
        right.plot(angles, distances, label=f"T = {steps}, slope {slope}", **line)
    if regularization in settled:
        values = settled[regularization]
        line = {"color": "black", "linewidth": 1.5, "linestyle": "--", "label": "fixed point"}
        middle.plot(both, [*reversed(values), *values], **line)
        right.plot(angles, [1 - value for value in values], **line)
    middle.set_title(f"After T updates, $\\lambda$ = {regularization:g}", fontsize=10)
    right.set_title("The same near zero, log axes", fontsize=10)
    for axes in (left, middle):
        axes.set_xlim(-1.55, 1.55)
        axes.set_xlabel("angle of the inputs", fontsize=9)
        axes.set_ylabel("correlation r of the features", fontsize=9)
    low = min(min(values) for values in (*settled.values(), *updated.values()))
    for axes in (left, middle):
        axes.set_ylim(min(low - 0.02, 0.0), 1.05)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlim(min(angles), max(angles))
    right.set_ylim(1e-8, 2.0)
    right.set_xlabel("angle of the inputs", fontsize=9)
    right.set_ylabel("1 − r", fontsize=9)
    for axes in (left, middle, right):
        axes.tick_params(which="both", labelsize=8)
        axes.legend(fontsize=8, frameon=False, loc="best")
        _style(axes)
    return figure


def _draw_last_interval(axes: Axes, band: Band, color: str, place: int) -> None:
    """The interval at the last abscissa, moved to the right by its place."""
    x = band.x[-1] + (0.02 + 0.02 * place) * (band.x[-1] - band.x[0] or 1.0)
    axes.vlines(x, band.low[-1], band.high[-1], color=color, linewidth=1.2)
    axes.scatter(x, band.mean[-1], color=color, s=5)


def panels_figure(panels: Sequence[Panel], abscissa: str, title: str = "") -> Figure:
    """Lines with confidence intervals, several panels under one legend.

    The intervals of more than four lines would hide one another: they are drawn behind the end of
    the lines alone, side by side.

    Args:
        panels: At least one.
        abscissa: What the abscissae of all are.
        title: Of the whole figure.

    Returns:
        The figure.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(4.0 * columns, 6.4), 3.1 * rows + 0.9), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    labels = list(dict.fromkeys(band.label for panel in panels for band in panel.bands))
    handles = {}
    for k, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, k + 1)
        for band in panel.bands:
            i = labels.index(band.label)
            color = _COLORS[i % len(_COLORS)]
            if len(labels) > 4:
                _draw_last_interval(axes, band, color, i)
            else:
                axes.fill_between(band.x, band.low, band.high, color=color, alpha=0.1, linewidth=0)
            (handles[band.label],) = axes.plot(
                band.x,
                band.mean,
                color=color,
                linewidth=1.6,
                linestyle="-" if i < len(_COLORS) else "--",
            )
        if panel.log:
            axes.set_yscale("log")
        # of the lines alone: the intervals of two or three repetitions dwarf them
        transform = axes.transScale.inverted().transform
        ends = axes.transScale.transform(
            [(band.x[0], end(band.mean)) for band in panel.bands for end in (min, max)]
        )[:, 1]
        margin = 0.12 * (ends.max() - ends.min()) or 1.0
        axes.set_ylim(*transform([(0.0, ends.min() - margin), (0.0, ends.max() + margin)])[:, 1])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel(abscissa, fontsize=9)
        axes.set_ylabel(panel.label, fontsize=9)
        axes.tick_params(which="both", labelsize=8)
        _style(axes)
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=min(5, len(labels)),
        fontsize=9,
        frameon=False,
    )
    return figure


class RankPanel(NamedTuple):
    """Mean ranks of several methods.

    Args:
        title: Above them.
        ranks: By method, 1 the best.
        critical_difference: Ranks that differ by less are not told apart.
    """

    title: str
    ranks: Mapping[str, float]
    critical_difference: float


def ranks_figure(panels: Sequence[RankPanel], title: str = "") -> Figure:
    """Mean ranks with bars of half the critical difference: methods whose bars overlap are alike.

    Args:
        panels: One for each score.
        title: Of the whole figure.

    Returns:
        The figure.
    """
    longest = max((len(panel.ranks) for panel in panels), default=1)
    figure = Figure(figsize=(4.6 * len(panels), 0.3 * longest + 1.4), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    colors = _palette(sorted(name for panel in panels for name in panel.ranks))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        names = sorted(panel.ranks, key=lambda name: panel.ranks[name])
        half = panel.critical_difference / 2
        for i, name in enumerate(names):
            axes.errorbar(panel.ranks[name], i, xerr=half, fmt="o", color=colors[name], capsize=3)
        best = panel.ranks[names[0]]
        axes.axvspan(best - half, best + half, color="0.92", zorder=0)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("mean rank (1 is best) ± half the critical difference", fontsize=8)
        axes.tick_params(labelsize=8)
        _style(axes)
    return figure
