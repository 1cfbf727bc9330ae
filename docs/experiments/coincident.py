r"""Close inputs under the DEKer kernel: what the value at identical inputs is the limit of.

Two unit vectors approach each other. After finitely many stochastic gradient updates the
correlation of their features tends to one, but slowly: :math:`1 - r` falls like the angle to the
power :math:`2^{1 - T}`. At the fixed point it tends to a number :math:`r_c` below one that depends
on the regularization and the features alone, while an input with itself has the correlation one.

The figure in the documentation is drawn, and its table of :math:`r_c` printed, by::

    python docs/experiments/coincident.py --output docs/figures/deker_coincident.png
"""

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure

from gp_deq.kernels import DEKerKernel
from gp_deq.plotting import COLORS, save_figure, style

#: From about 1e-12 to a right angle, thirty to a decade.
DEFAULT_ANGLES = tuple(math.pi / 2 * 10.0 ** (k / 30) for k in range(-366, 1))
_TABLE = (0.75, 1.0, 1.5, 2.0, 4.0)


@dataclass(frozen=True)
class CoincidentCurves:
    """Correlations of two unit vectors.

    Args:
        angles: Between them, increasing.
        fixed: For each regularization, the correlations at the fixed point.
        limits: For each of these, the limit for identical inputs, :math:`r_c`.
        updated: For each number of updates, the correlations at ``regularization``.
        regularization: The regularization of ``updated``, and one of those of ``fixed``.
    """

    angles: tuple[float, ...]
    fixed: dict[float, tuple[float, ...]]
    limits: dict[float, float]
    updated: dict[int, tuple[float, ...]]
    regularization: float


def _kernel(features: str, regularization: float, num_steps: int | None = None) -> DEKerKernel:
    kernel = DEKerKernel(features=features, num_steps=num_steps, coincident="sgd").double()
    kernel.initialize(
        lengthscale=1.0, regularization=regularization, feature_scale=1.0, bias_variance=0.0
    )
    return kernel


def coincident_correlation(regularization: float, features: str = "relu") -> float:
    """The correlation of two inputs as they become identical, at the fixed point.

    Args:
        regularization: Above its critical value, the square root of a half.
        features: "relu" or "linear".

    Returns:
        :math:`r_c`, the same for any other hyperparameters and inputs.
    """
    kernel = _kernel(features, regularization)
    x = torch.ones(1, 1, dtype=torch.float64)
    with torch.no_grad():
        return (1 - kernel.nugget(x) / kernel(x, diag=True)).item()


def correlation_against_angle(
    angles: Sequence[float] = DEFAULT_ANGLES,
    fixed: Sequence[float] = (0.75, 1.0, 2.0, 4.0),
    updated: Sequence[int] = (1, 2, 3, 4, 5),
    regularization: float = 1.0,
    features: str = "relu",
) -> CoincidentCurves:
    """Correlations of the features of two unit vectors, link "relu", no bias.

    Args:
        angles: Between the inputs, positive.
        fixed: Regularizations of the fixed points.
        updated: Numbers of updates.
        regularization: That of the kernels with a number of updates.
        features: "relu" or "linear".

    Returns:
        The correlations.
    """
    angle = torch.tensor(tuple(angles), dtype=torch.float64)
    # s(x, x) is 1 at lengthscale 1
    second = math.sqrt(2) * torch.stack((angle.cos(), angle.sin()), -1)
    first = math.sqrt(2) * torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    def correlations(kernel: DEKerKernel) -> tuple[float, ...]:
        with torch.no_grad():
            value = kernel(first, second).to_dense().squeeze(0)
            return tuple((value / kernel(first, diag=True)).tolist())

    return CoincidentCurves(
        angles=tuple(angles),
        fixed={lam: correlations(_kernel(features, lam)) for lam in fixed},
        limits={lam: coincident_correlation(lam, features) for lam in fixed},
        updated={
            steps: correlations(_kernel(features, regularization, steps)) for steps in updated
        },
        regularization=regularization,
    )


def coincident_figure(
    angles: Sequence[float],
    fixed: Mapping[float, Sequence[float]],
    limits: Mapping[float, float],
    updated: Mapping[int, Sequence[float]],
    regularization: float,
) -> Figure:
    """Correlation of two inputs against their angle: at the fixed point, and after updates.

    Args:
        angles: Angles of the inputs, positive and increasing.
        fixed: For each regularization, the correlations at the fixed point.
        limits: For each regularization, the limit of these correlations.
        updated: For each number of updates, the correlations.
        regularization: The regularization of ``updated``; its fixed point is drawn for comparison.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(12.4, 4.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    both = [-angle for angle in reversed(angles)] + list(angles)
    colors = dict(zip(fixed, itertools.cycle(COLORS)))
    for lam, values in fixed.items():
        label = f"$\\lambda$ = {lam:g}"
        curve = [*reversed(values), *values]
        left.plot(both, curve, color=colors[lam], linewidth=1.5, label=label)
        left.plot([0.0], [limits[lam]], color=colors[lam], marker="o", markersize=5.5)
    left.plot([], [], color="0.3", marker="o", markersize=5.5, linestyle="", label='"continuous"')
    ring = {"marker": "o", "markersize": 6.5, "markerfacecolor": "white", "linestyle": ""}
    left.plot([0.0], [1.0], color="0.3", markeredgewidth=1.4, label='"sgd", any $\\lambda$', **ring)
    left.set_title("Fixed point", fontsize=10)

    shades = dict(zip(updated, itertools.cycle(COLORS)))
    for steps, values in updated.items():
        line = {"color": shades[steps], "linewidth": 1.5}
        middle.plot(both, [*reversed(values), *values], label=f"T = {steps}", **line)
        slope = f"1/{2 ** (steps - 1)}" if steps > 1 else "1"
        distances = [1 - value for value in values]
        right.plot(angles, distances, label=f"T = {steps}, slope {slope}", **line)
    if regularization in fixed:
        values = fixed[regularization]
        line = {"color": "black", "linewidth": 1.5, "linestyle": "--", "label": "fixed point"}
        middle.plot(both, [*reversed(values), *values], **line)
        right.plot(angles, [1 - value for value in values], **line)
    middle.set_title(f"After T updates, $\\lambda$ = {regularization:g}", fontsize=10)
    right.set_title("The same near zero, log axes", fontsize=10)
    for axes in (left, middle):
        axes.set_xlim(-1.55, 1.55)
        axes.set_xlabel("angle of the inputs", fontsize=9)
        axes.set_ylabel("correlation r of the features", fontsize=9)
    low = min(min(values) for values in (*fixed.values(), *updated.values()))
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
        style(axes)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the limits and the rates, and save the figure.

    Args:
        arguments: Command-line arguments; those of the process if None.
    """
    parser = argparse.ArgumentParser(
        description="Correlation of close inputs under the DEKer kernel.",
    )
    parser.add_argument("--output", default="deker_coincident.png", help="where the figure goes")
    options = parser.parse_args(arguments)

    print("limit for identical inputs")
    print("regularization  " + "  ".join(f"{lam:7g}" for lam in _TABLE))
    for features in ("relu", "linear"):
        row = "  ".join(f"{coincident_correlation(lam, features):.5f}" for lam in _TABLE)
        print(f"{features:14s}  {row}")
    curves = correlation_against_angle()
    print("updates  1 - r at angle 1e-10  local power   2^(1 - T)")
    for steps in curves.updated:
        near = correlation_against_angle((1e-11, 1e-10), fixed=(), updated=(steps,))
        low, high = (1 - r for r in near.updated[steps])
        print(
            f"{steps:7d}  {high:20.3e}  {math.log10(high / low):11.4f}  {2.0 ** (1 - steps):9.4f}"
        )
    figure = coincident_figure(
        curves.angles, curves.fixed, curves.limits, curves.updated, curves.regularization
    )
    save_figure(figure, options.output)
    print(f"figure: {options.output}")


if __name__ == "__main__":
    main()
