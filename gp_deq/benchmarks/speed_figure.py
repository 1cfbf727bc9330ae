"""The figure of the benchmark of speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from gp_deq.benchmarks.speed import Record, Target

__all__ = ["draw"]

#: Name, abscissae and ordinates of a line; lines of one name share a colour.
_Line = tuple[str, Sequence[float], Sequence[float]]


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
    from matplotlib.figure import Figure

    bars = [record for record in records if record.section == "kept-pages"]
    panels = _panels(records)
    rows = max(1, (len(panels) + 1) // 2)
    figure = Figure(figsize=(14.0, max(3.6 * rows, 0.32 * len(bars) + 2.0)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(rows, 3, width_ratios=(1.25, 1.0, 1.0))
    _draw_ratios(figure.add_subplot(grid[:, 0]), bars, targets)
    labels = list(dict.fromkeys(label for lines in panels.values() for label, *_ in lines))
    handles: dict[str, Line2D] = {}
    for k, ((abscissa, ordinate), lines) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[k // 2, 1 + k % 2])
        handles |= _draw_lines(axes, lines, labels)
        axes.set_xlabel(abscissa, fontsize=9)
        axes.set_ylabel(ordinate, fontsize=9)
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


def _panels(records: Sequence[Record]) -> dict[tuple[str, str], list[_Line]]:
    """Lines by the names of their axes."""
    panels: dict[tuple[str, str], list[_Line]] = {}
    for section, ordinate in (("time", "time [s]"), ("memory", "peak memory [MiB]")):
        by_n = _lines([r for r in records if r.section == f"{section}-n"], lambda r: r.n)
        if by_n:
            panels["n (InfiniteWidthBNN: depth 3)", ordinate] = by_n
        rows = [r for r in records if r.section == f"{section}-depth"]
        if rows:
            depths = sorted({r.depth for r in rows if r.depth is not None})
            flat = [(r.family, depths, [r.value] * len(depths)) for r in rows if not r.depth]
            deep = _lines([r for r in rows if r.depth], lambda r: r.depth or 0)
            panels[f"depth (n = {rows[0].n})", ordinate] = [*flat, *deep]
    return panels


def _lines(records: Sequence[Record], abscissa: Callable[[Record], int]) -> list[_Line]:
    """One line for each kernel; in order of the abscissa."""
    lines: list[_Line] = []
    for family in dict.fromkeys(r.family for r in records):
        rows = sorted((r for r in records if r.family == family), key=abscissa)
        lines.append((family, [abscissa(r) for r in rows], [r.value for r in rows]))
    return lines


def _draw_ratios(axes: Axes, bars: Sequence[Record], targets: Sequence[Target]) -> None:
    from gp_deq.plotting import style

    bounds = {target.what: target.bound for target in targets}
    ends = []
    for i, bar in enumerate(bars):
        bound = bounds.get(f"{bar.kernel}: time / Matérn-5/2, kept pages")
        met = bound is None or bar.ratio <= bound
        axes.barh(i, bar.ratio, color="0.72" if bound is None else "#0072B2" if met else "#D55E00")
        if bound is not None:
            axes.plot([bound] * 2, [i - 0.45, i + 0.45], color="black", linewidth=2)
        ends.append(max(bar.ratio, bound or 0.0))
        axes.text(ends[-1], i, f"  {bar.ratio:.2f}", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [bar.kernel for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.14 * max(ends, default=1.0))
    axes.set_xlabel("time relative to Matérn-5/2, heap kept; black: target", fontsize=9)
    axes.tick_params(labelsize=8)
    style(axes)
    axes.grid(visible=False, axis="y")


def _draw_lines(axes: Axes, lines: Sequence[_Line], labels: Sequence[str]) -> dict[str, Line2D]:
    """Lines on log axes; returns a handle for the legend by label."""
    from gp_deq.plotting import COLORS, MARKERS, plain_log_axis, style

    handles = {}
    for label, x, y in lines:
        i = labels.index(label)
        (handles[label],) = axes.plot(
            x,
            y,
            color=COLORS[i % len(COLORS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            linewidth=1.3,
            linestyle="-" if i < len(COLORS) else "--",
        )
    plain_log_axis(axes, sorted({value for _, x, _ in lines for value in x}))
    axes.set_yscale("log")
    axes.tick_params(which="both", labelsize=8)
    style(axes)
    return handles
