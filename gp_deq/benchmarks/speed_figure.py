"""The figure of the benchmark of speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gp_deq.benchmarks.speed import Record, Target

__all__ = ["Bar", "Series", "draw", "speed_figure"]


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


def draw(records: Sequence[Record], targets: Sequence[Target], title: str) -> Figure:
    """The figure: ratios with their targets, and times and memory against n and depth.

    The ratios are those where the heap keeps its pages, which are the less favourable ones.

    Args:
        records: Measurements.
        targets: Bounds of their ratios.
        title: Above the figure.

    Returns:
        The figure.
    """
    bounds = {target.what: target.bound for target in targets}
    bars = [
        Bar(r.kernel, r.ratio, bounds.get(f"{r.kernel}: time / Matérn-5/2, kept pages"))
        for r in records
        if r.section == "kept-pages"
    ]
    lines: dict[tuple[str, str], list[Series]] = {}
    for quantity, unit, title in (("time", "s", "time"), ("memory", "MiB", "peak memory")):
        by_n = _lines([r for r in records if r.section == f"{quantity}-n"], lambda r: r.n)
        if by_n:
            lines["n (InfiniteWidthBNN: depth 3)", f"{title} [{unit}]"] = by_n
        rows = [r for r in records if r.section == f"{quantity}-depth"]
        if rows:
            depths = sorted({r.depth for r in rows if r.depth is not None})
            flat = [Series(r.family, depths, [r.value] * len(depths)) for r in rows if not r.depth]
            deep = _lines([r for r in rows if r.depth], lambda r: r.depth or 0)
            lines[f"depth (n = {rows[0].n})", f"{title} [{unit}]"] = flat + deep
    label = "time relative to Matérn-5/2, heap kept"
    return speed_figure(bars, lines, title=title, bars_label=label)


def _lines(records: Sequence[Record], abscissa: Callable[[Record], int]) -> list[Series]:
    """One line for each kernel; in order of the abscissa."""
    series = []
    for family in dict.fromkeys(r.family for r in records):
        rows = sorted((r for r in records if r.family == family), key=abscissa)
        series.append(Series(family, [abscissa(r) for r in rows], [r.value for r in rows]))
    return series


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
        title: Title of the whole figure.
        bars_label: The quantity that the bars show.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    from gp_deq.plotting import COLORS, MARKERS, plain_log_axis, style

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
    style(axes)
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
                color=COLORS[i % len(COLORS)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                linewidth=1.3,
                linestyle="-" if i < len(COLORS) else "--",
            )
        plain_log_axis(axes, sorted({x for line in series for x in line.x}))
        axes.set_yscale("log")
        axes.set_xlabel(abscissa, fontsize=9)
        axes.set_ylabel(ordinate, fontsize=9)
        axes.tick_params(which="both", labelsize=8)
        style(axes)
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
