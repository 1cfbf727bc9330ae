r"""How far DEQ kernels are from their high-dimensional equivalents, in spectral norm.

The inputs are of two kinds. Those of Ling et al. (2024, "Deep equilibrium models are almost
equivalent to not-so-deep explicit models for high-dimensional Gaussian mixtures", ICML) obey their
theorems: two classes :math:`k = 0, 1` of :math:`n/2` inputs each, :math:`n = 0.8 p`,

.. math:: x = \frac{8 e_{8k} + (1 + 8k/\sqrt p)^{1/2}\, \xi}{\sqrt p}, \qquad \xi \sim N(0, I_p) ,

for which the errors are to fall like :math:`p^{-1/2}`. Images of digits do not: their squared norms
spread (unless each is divided by its own) and their covariance has few directions, however many
pixels they have. They measure where the equivalents stop to be of use. In both, the spread of the
squared norms is told with the errors.

Compared are the kernel of this package, whose scalars are those of each input, the form of the
theory, with the scalars of the mean norm for all, and the kernel of the matched network.

Throughout :math:`b = \sigma_b^2 X X^\top` with :math:`\sigma_b^2 = 1 - w` and :math:`w = 0.2`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
import torch
from joblib import delayed
from mnist import SCALINGS, load_mnist
from torch import Tensor

from gp_deq.benchmarks.runs import Key, Row, one_thread, spread
from gp_deq.equivalents import centered_kernel, equivalent_kernel, spectrum
from gp_deq.kernels import DEQNNGPKernel, DEQNTKKernel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WEIGHT_VARIANCE = 0.2

#: Relative errors of a comparison, with what they are the errors of.
ERRORS = {
    "mean_norm": "equivalent of G, scalars of the mean norm",
    "tangent_mean_norm": "equivalent of K (NTK), scalars of the mean norm",
    "equivalent": "equivalent of G, scalars of each input",
    "tangent": "equivalent of K, scalars of each input",
    "explicit": "matched network's G",
}


_COLORS = ("C7", "C3", "C0", "C2", "C1")


@dataclass(frozen=True)
class Comparison(Row):
    """A DEQ kernel and its equivalents on some inputs; a row of the CSV file.

    Args:
        inputs: "mixture", or one of `SCALINGS` for images.
        activation: Activation of the equilibrium, centred.
        size: Dimension p of the mixture, number n of images.
        seed: Seed of the inputs.
        spread: Standard deviation of the inputs' squared norms, over their mean.
        norm: Spectral norm of the exact matrix G.
        equivalent_error: Spectral norm of the equivalent less G.
        mean_norm_error: That of the equivalent with the scalars of the mean norm less G.
        explicit_error: That of the matched network's matrix less G; NaN without a match.
        tangent_norm: Spectral norm of the tangent kernel's matrix K, of the recurrent weights.
        tangent_error: Spectral norm of its equivalent less K.
        tangent_mean_norm_error: That of the equivalent with the scalars of the mean norm less K.
    """

    inputs: str
    activation: str
    size: int
    seed: int
    spread: float
    norm: float
    equivalent_error: float
    mean_norm_error: float
    explicit_error: float
    tangent_norm: float
    tangent_error: float
    tangent_mean_norm_error: float

    keys = ("inputs", "activation", "size", "seed")


K = TypeVar("K", DEQNNGPKernel, DEQNTKKernel)


def _scaled(kernel: K, num_dims: int) -> K:
    kernel = kernel.double()
    kernel.weight_variance = _WEIGHT_VARIANCE
    kernel.lengthscale = (num_dims * (1 - _WEIGHT_VARIANCE)) ** -0.5
    kernel.bias_variance = 0.0
    return kernel


def deq_kernel(activation: str, num_dims: int) -> DEQNNGPKernel:
    r"""The DEQ kernel with :math:`b = (1 - w) X X^\top`.

    Args:
        activation: Its name.
        num_dims: Dimensions of an input; the kernel divides by it.
    """
    return _scaled(DEQNNGPKernel(activation), num_dims)


def mixture(dimension: int, seed: int) -> Tensor:
    """Inputs of the two classes, one after the other, ``0.8 p x p``.

    Args:
        dimension: ``p``, ten or more.
        seed: Seed of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    half = round(0.4 * dimension)
    noise = torch.randn(2 * half, dimension, generator=generator, dtype=torch.float64)
    noise[half:] *= (1 + 8 / dimension**0.5) ** 0.5
    noise[:half, 0] += 8
    noise[half:, 8] += 8
    return noise / dimension**0.5


def inputs(name: str, size: int, seed: int) -> Tensor:
    """Inputs of an experiment.

    Args:
        name: "mixture", or one of `SCALINGS` for images; their mean squared norm is one.
        size: Dimension p of the mixture, number n of images.
        seed: Seed of the noise, or of the choice of images.
    """
    if name == "mixture":
        return mixture(size, seed)
    images = SCALINGS[name](load_mnist().train_x)
    generator = torch.Generator().manual_seed(seed)
    chosen = images[torch.randperm(len(images), generator=generator)[:size]]
    return chosen / chosen.square().sum(-1).mean().sqrt()


@one_thread()
def compare(name: str, activation: str, size: int, seed: int) -> Comparison:
    """Compare a DEQ kernel and its tangent kernel with their equivalents.

    Args:
        name: Name of the inputs.
        activation: Its name.
        size: Size of the inputs.
        seed: Seed of the inputs.
    """
    X = inputs(name, size, seed)
    num_dims = X.shape[-1]
    kernel = deq_kernel(activation, num_dims)
    tangent_kernel = _scaled(DEQNTKKernel(activation, trained="recurrent"), num_dims)
    found, tangent = spectrum(kernel, X), spectrum(tangent_kernel, X)
    squares = X.square().sum(-1)
    return Comparison(
        name,
        activation,
        size,
        seed,
        (squares.std() / squares.mean()).item(),
        found.norm,
        found.equivalent_error,
        _mean_norm_error(kernel, X),
        found.explicit_error,
        tangent.norm,
        tangent.equivalent_error,
        _mean_norm_error(tangent_kernel, X),
    )


@torch.no_grad()
def _mean_norm_error(kernel: DEQNNGPKernel | DEQNTKKernel, X: Tensor) -> float:
    r"""Distance of the exact matrix from the theory's form without labels.

    :math:`\alpha_1 b + \alpha_2\chi\chi^\top + \alpha_3(b \circ b - \mathrm{diag}(b_{ii}^2)) +
    (\gamma^2 - \beta_0\alpha_1) I`, or :math:`\beta` and :math:`\kappa` for a tangent kernel.
    """
    equivalent = equivalent_kernel(kernel, X)
    found, level = equivalent.coefficients(), equivalent.level()
    first, second, third, whole = found.alpha_1, found.alpha_2, found.alpha_3, found.gamma
    if isinstance(kernel, DEQNTKKernel):
        first, second, third, whole = found.beta_1, found.beta_2, found.beta_3, found.kappa
    b = (1 - _WEIGHT_VARIANCE) * X @ X.mT
    chi = b.diagonal() - level
    form = first * b + second * torch.outer(chi, chi) + third * b.square()
    form.diagonal().add_(whole.square() - level * first - third * b.diagonal().square())
    return torch.linalg.matrix_norm(centered_kernel(kernel, X)(X).to_dense() - form, 2).item()


def _frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """With relative errors under the names of `ERRORS`."""
    table = pd.DataFrame([vars(comparison) for comparison in comparisons])
    table["equivalent"] = table.equivalent_error / table.norm
    table["explicit"] = table.explicit_error / table.norm
    table["mean_norm"] = table.mean_norm_error / table.norm
    table["tangent"] = table.tangent_error / table.tangent_norm
    table["tangent_mean_norm"] = table.tangent_mean_norm_error / table.tangent_norm
    return table


def summarize(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Means over seeds: spread of squared norms, norms of G and K, errors and relative errors.

    Args:
        comparisons: Comparisons with any number of seeds.
    """
    groups = _frame(comparisons).groupby(["inputs", "activation", "size"], sort=False)
    return groups.agg(
        spread=("spread", "mean"),
        G=("norm", "mean"),
        mean_norm=("mean_norm_error", "mean"),
        mean_norm_sd=("mean_norm_error", "std"),
        error=("equivalent_error", "mean"),
        sd=("equivalent_error", "std"),
        network=("explicit_error", "mean"),
        K=("tangent_norm", "mean"),
        K_mean_norm=("tangent_mean_norm_error", "mean"),
        K_mean_norm_sd=("tangent_mean_norm_error", "std"),
        K_error=("tangent_error", "mean"),
        K_sd=("tangent_error", "std"),
        seeds=("seed", "count"),
    )


def slopes(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Slopes of the logarithms of spread and relative errors against that of the size.

    Args:
        comparisons: Comparisons of two sizes or more.
    """
    names = {"spread": "spread of squared norms", **ERRORS}
    means = _frame(comparisons).groupby(["inputs", "activation", "size"], sort=False)
    means = np.log(means[list(names)].mean().reset_index("size"))
    return means.groupby(["inputs", "activation"], sort=False).apply(
        lambda table: pd.Series(
            {label: np.polyfit(table["size"], table[name], 1)[0] for name, label in names.items()}
        )
    )


def draw_errors(comparisons: Sequence[Comparison], figure: Figure) -> None:
    """Relative errors against the dimension, a panel for each activation; a dot for each seed.

    Args:
        comparisons: Comparisons on mixtures.
        figure: Drawn into.
    """
    activations = list(dict.fromkeys(c.activation for c in comparisons))
    panels = figure.subplots(1, len(activations), squeeze=False, sharey=True)[0]
    for axes, activation in zip(panels, activations, strict=True):
        table = _frame([c for c in comparisons if c.activation == activation])
        means = table.groupby("size")[list(ERRORS)].mean()
        for color, (name, label) in zip(_COLORS, ERRORS.items(), strict=True):
            axes.plot(table["size"], table[name], ".", color=color, markersize=4, alpha=0.5)
            axes.plot(means.index, means[name], color=color, label=label)
        guide = means["mean_norm"].iloc[0] * (means.index / means.index[0]) ** -0.5
        axes.plot(means.index, guide, "k:", label=r"slope $-1/2$")
        axes.set(xscale="log", yscale="log", title=activation, xlabel="dimension p, n = 0.8 p")
        axes.set_xticks(means.index, [str(size) for size in means.index])
        axes.minorticks_off()
        axes.grid(alpha=0.2)
    panels[0].set_ylabel("spectral norm of the error / of the kernel")
    panels[-1].legend(fontsize=8, loc="lower left")


def draw_spectra(comparisons: Sequence[Comparison], figure: Figure) -> None:
    """Eigenvalues on the most images, a panel for each activation and scaling.

    The matrices are computed again, for the CSV file has no eigenvalues.

    Args:
        comparisons: Comparisons on images.
        figure: Drawn into.
    """
    panels = {
        activation: {c.inputs: c for c in sorted(group, key=lambda c: (c.size, -c.seed))}
        for activation, group in groupby(
            sorted(comparisons, key=lambda c: c.activation), key=lambda c: c.activation
        )
    }
    columns = max(map(len, panels.values()))
    grid = figure.subplots(len(panels), columns, squeeze=False, sharex=True)
    for row, (activation, chosen) in zip(grid, panels.items(), strict=True):
        for axes, c in zip(row, chosen.values()):
            X = inputs(c.inputs, c.size, c.seed)
            found = spectrum(deq_kernel(activation, X.shape[-1]), X)
            found.draw(axes)
            # an equivalent's smallest eigenvalues may be near zero, or less
            axes.set_ylim(bottom=0.3 * found.exact[-1].item())
            axes.set_title(f"{activation}, {c.inputs}: squared norms 1 ± {c.spread:.2f}")
            axes.grid(alpha=0.2)


def keys(
    names: Iterable[str], activations: Iterable[str], sizes: Iterable[int], seeds: int
) -> list[Key]:
    """Inputs, activation, size and seed of every comparison.

    Args:
        names: Names of the inputs.
        activations: Names of the activations.
        sizes: Sizes of the inputs.
        seeds: Number of seeds.
    """
    return list(product(names, activations, sorted(sizes), range(seeds)))


def run(
    config: object, missing: Iterator[Key], tell: Callable[[str], None]
) -> Iterator[Comparison]:
    """Compare where there is no comparison yet.

    Args:
        config: Not needed.
        missing: Keys of the comparisons.
        tell: Not needed.
    """
    return spread(delayed(compare)(*key) for key in missing)
