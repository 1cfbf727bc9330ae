r"""The correlation of two inputs against depth: feed-forward kernels collapse, equilibria do not.

Two orthogonal inputs of equal norm enter ReLU networks of growing depth. Without input injection
the correlation of their outputs tends to 1 for every weight variance up to the critical one (and
beyond it), so a deep kernel can no longer tell them apart. When the input enters at every layer
it converges to the correlation of the deep-equilibrium kernel, which is below 1 and is obtained
at once, without a depth to choose.

The figure in the documentation is drawn by::

    python -m gp_deq.benchmarks.depth --output docs/figures/depth_collapse.png
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gp_deq.kernels import DEQNNGPKernel, NNGPKernel

__all__ = ["DEFAULT_DEPTHS", "DepthCurves", "correlation_against_depth"]

DEFAULT_DEPTHS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024)
_BIAS_VARIANCE = 0.1


@dataclass(frozen=True)
class DepthCurves:
    """Correlations of one pair of inputs.

    Args:
        depths: The depths at which the finite kernels were evaluated.
        feed_forward: For each weight variance, the correlations without input injection.
        injected: For each weight variance, the correlations with input injection.
        equilibrium: For each weight variance, the correlation at the fixed point.
    """

    depths: tuple[int, ...]
    feed_forward: dict[float, tuple[float, ...]]
    injected: dict[float, tuple[float, ...]]
    equilibrium: dict[float, float]


def _correlation(kernel: torch.nn.Module, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        matrix = kernel(inputs).to_dense()
    return (matrix[0, 1] / (matrix[0, 0] * matrix[1, 1]).sqrt()).item()


def correlation_against_depth(
    depths: Sequence[int] = DEFAULT_DEPTHS,
    feed_forward: Sequence[float] = (1.0, 2.0),
    injected: Sequence[float] = (1.0, 1.9),
) -> DepthCurves:
    """Correlations of two orthogonal inputs, bias variance 0.1, under ReLU kernels.

    Args:
        depths: Depths of the finite kernels.
        feed_forward: Weight variances of the kernels without input injection; 2 is critical.
        injected: Weight variances, below 2, of the kernels with input injection and of the
            equilibria.

    Returns:
        The correlations.
    """
    # Two orthogonal inputs with s(x, x) = 1 at lengthscale 1.
    inputs = 2.0**0.5 * torch.eye(2, dtype=torch.float64)

    def finite(weight_variance: float, depth: int, input_injection: bool) -> float:
        kernel = NNGPKernel(depth=depth, input_injection=input_injection).double()
        kernel.initialize(
            lengthscale=1.0, weight_variance=weight_variance, bias_variance=_BIAS_VARIANCE
        )
        return _correlation(kernel, inputs)

    def equilibrium(weight_variance: float) -> float:
        kernel = DEQNNGPKernel().double()
        kernel.initialize(
            lengthscale=1.0, weight_variance=weight_variance, bias_variance=_BIAS_VARIANCE
        )
        return _correlation(kernel, inputs)

    return DepthCurves(
        depths=tuple(depths),
        feed_forward={w: tuple(finite(w, depth, False) for depth in depths) for w in feed_forward},
        injected={w: tuple(finite(w, depth, True) for depth in depths) for w in injected},
        equilibrium={w: equilibrium(w) for w in injected},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the correlations and save the figure.

    Args:
        arguments: Command-line arguments; those of the process if None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gp_deq.benchmarks.depth",
        description="Correlation of two inputs against the depth of a ReLU network.",
    )
    parser.add_argument("--output", default="depth_collapse.png", help="where the figure goes")
    options = parser.parse_args(arguments)

    from gp_deq.plotting import depth_figure, save_figure

    curves = correlation_against_depth()
    columns = {f"feed-forward {w:g}": curve for w, curve in curves.feed_forward.items()}
    columns |= {f"injected {w:g}": curve for w, curve in curves.injected.items()}
    print("depth  " + "  ".join(columns))
    for i, depth in enumerate(curves.depths):
        print(
            f"{depth:5d}  "
            + "  ".join(f"{curve[i]:{len(name)}.6f}" for name, curve in columns.items())
        )
    print("equilibrium: " + ", ".join(f"{w:g}: {rho:.6f}" for w, rho in curves.equilibrium.items()))
    figure = depth_figure(curves.depths, curves.feed_forward, curves.injected, curves.equilibrium)
    save_figure(figure, options.output)
    print(f"figure: {options.output}")


if __name__ == "__main__":
    main()
