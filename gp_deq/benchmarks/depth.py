"""The correlation of two inputs against depth: feed-forward kernels collapse, equilibria do not.

Two orthogonal inputs of equal norm enter ReLU networks of growing depth. Without input injection
the correlation of their outputs tends to 1 for every weight variance up to the critical one (and
beyond it), so a deep kernel can no longer tell them apart. When the input enters at every layer
it converges to the correlation of the deep-equilibrium kernel, which is below 1 and is obtained
at once, without a depth to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option
from gp_deq.benchmarks.runs import Key, Row
from gp_deq.kernels import DEQNNGPKernel, NNGPKernel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["EXPERIMENT", "Correlation", "DepthConfig", "draw", "draw_depth"]

_DEPTHS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024)
_BIAS_VARIANCE = 0.1
_CRITICAL = 2.0


@dataclass(frozen=True)
class DepthConfig(Configuration):
    """The networks.

    Args:
        depths: Depths of the finite networks.
        feed_forward: Weight variances of the networks without input injection; 2 is critical.
        injected: Weight variances, below 2, of the networks with input injection and of the
            equilibria.
    """

    depths: tuple[int, ...] = option(_DEPTHS, "Depth.", name="depth", shown="20 from 1 to 1024")
    feed_forward: tuple[float, ...] = option((1.0, _CRITICAL), "Weight variance without injection.")
    injected: tuple[float, ...] = option((1.0, 1.9), "Weight variance with injection, below 2.")

    @property
    def keys(self) -> list[Key]:
        """Network, weight variance and depth of every row."""
        finite = {"feed-forward": self.feed_forward, "injected": self.injected}
        keys: list[Key] = [
            (network, w, depth)
            for network, variances in finite.items()
            for w in variances
            for depth in self.depths
        ]
        return keys + [("equilibrium", w, 0) for w in self.injected]


@dataclass(frozen=True)
class Correlation(Row):
    """The correlation of the two outputs of a network; a row of the CSV file.

    Args:
        network: "feed-forward", "injected" or "equilibrium".
        weight_variance: Its weight variance.
        depth: Its depth; 0 for an equilibrium.
        correlation: The correlation.
    """

    network: str
    weight_variance: float
    depth: int
    correlation: float

    keys = ("network", "weight_variance", "depth")


def _correlation(network: str, weight_variance: float, depth: int) -> float:
    """ReLU, bias variance 0.1."""
    kernel: NNGPKernel | DEQNNGPKernel
    if network == "equilibrium":
        kernel = DEQNNGPKernel().double()
    else:
        kernel = NNGPKernel(depth=depth, input_injection=network == "injected").double()
    kernel.initialize(
        lengthscale=1.0, weight_variance=weight_variance, bias_variance=_BIAS_VARIANCE
    )
    # two orthogonal inputs with s(x, x) = 1 at lengthscale 1
    inputs = 2.0**0.5 * torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        matrix = kernel(inputs).to_dense()
    return (matrix[0, 1] / (matrix[0, 0] * matrix[1, 1]).sqrt()).item()


def _run(
    config: DepthConfig, keys: Iterator[Key], tell: Callable[[str], None]
) -> Iterator[Correlation]:
    for network, weight_variance, depth in keys:
        value = _correlation(network, weight_variance, depth)  # type: ignore[arg-type]
        yield Correlation(network, weight_variance, depth, value)  # type: ignore[arg-type]


def _lines(rows: Iterable[Correlation]) -> dict[tuple[str, float], dict[int, float]]:
    """Correlations by depth, for each network and weight variance."""
    lines: dict[tuple[str, float], dict[int, float]] = {}
    for row in rows:
        lines.setdefault((row.network, row.weight_variance), {})[row.depth] = row.correlation
    return lines


def _tables(config: DepthConfig, rows: Sequence[Correlation]) -> Iterator[Table | str]:
    lines = _lines(rows)
    names = [f"{network} {w:g}" for network, w in lines if network != "equilibrium"]
    finite = [line for (network, _), line in lines.items() if network != "equilibrium"]
    cells = [
        [str(depth), *(f"{line[depth]:.6f}" if depth in line else "–" for line in finite)]
        for depth in config.depths
    ]
    yield Table("Correlation of two orthogonal inputs", ["depth", *names], cells)
    for (network, w), line in lines.items():
        if network == "equilibrium":
            yield f"Equilibrium, w = {w:g}: {line[0]:.6f}."


def draw_depth(axes: Axes, rows: Sequence[Correlation]) -> None:
    """Correlation against depth, a colour for each weight variance.

    Args:
        axes: Drawn into.
        rows: Correlations of finite networks and of equilibria.
    """
    from gp_deq.plotting import palette, plain_log_axis, style

    lines = _lines(rows)
    colors = palette(str(w) for w in sorted({w for _, w in lines}))
    depths = sorted({row.depth for row in rows if row.depth})
    looks: dict[str, tuple[str, dict[str, Any]]] = {
        "equilibrium": ("equilibrium", {"linewidth": 5, "alpha": 0.25}),
        "injected": ("finite depth, input injected", {"marker": "o", "linestyle": "-"}),
        "feed-forward": ("feed-forward", {"marker": "s", "linestyle": "--"}),
    }
    for chosen, (name, look) in looks.items():
        for (network, w), line in lines.items():
            if network != chosen:
                continue
            note = " (critical)" if network == "feed-forward" and w == _CRITICAL else ""
            options = {"color": colors[str(w)], "label": f"{name}, w = {w:g}{note}"} | look
            if network == "equilibrium":
                axes.axhline(line[0], **options)
            else:
                axes.plot(list(line), list(line.values()), markersize=3.5, linewidth=1.2, **options)
    plain_log_axis(axes, [4**k for k in range(20) if 4**k <= depths[-1]])
    axes.set_xlim(depths[0] * 0.9, depths[-1] * 1.1)
    axes.set_ylim(min(row.correlation for row in rows) - 0.06, 1.03)
    axes.axhline(1.0, color="0.4", linewidth=0.7)
    axes.set_xlabel("depth", fontsize=9)
    axes.set_ylabel("correlation of the two outputs", fontsize=9)
    axes.set_title("Two orthogonal inputs in ReLU networks of growing depth", fontsize=10)
    axes.tick_params(labelsize=8)
    style(axes)


def draw(rows: Sequence[Correlation]) -> Figure:
    """The figure: correlation of two inputs against depth.

    Args:
        rows: Correlations of finite networks and of equilibria.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    draw_depth(figure.subplots(), rows)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure


EXPERIMENT = Experiment(
    name="depth",
    configuration=DepthConfig,
    row=Correlation,
    run=_run,
    tables=_tables,
    figure=lambda config, rows: draw(rows) if rows else None,
)
