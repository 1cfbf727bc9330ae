r"""Digits by random features of equilibrium networks and of the networks matched to them.

After the experiments of Ling et al. (2024, "Deep equilibrium models are almost equivalent to
not-so-deep explicit models for high-dimensional Gaussian mixtures", ICML), with random weights and
a ridge classifier in the place of training. For a network of width :math:`m`, the features of
"equilibrium" are :math:`z/\sqrt m` at

.. math:: z = \varphi(W z + U x) - \operatorname E\varphi(\tau\xi), \qquad
    W_{ij} \sim N(0, w/m), \quad U_{ij} \sim N(0, 1 - w), \quad \xi \sim N(0, 1) ,

found by iteration; those of "matched" come from the explicit network of the same
high-dimensional kernel; those of "one layer" from :math:`\varphi(U x)` less its mean, where nothing
was matched. At width 0 the three are infinitely wide: kernel ridge regression with their limiting
kernels. The images have mean zero and a mean squared norm of one. Digits are recognised about as
well with many kernels, so the distance of the features' inner products from the DEQ kernel is
measured besides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import pandas as pd
import torch
from equivalents_spectra import deq_kernel
from gpytorch.kernels import Kernel
from joblib import delayed
from matplotlib.figure import Figure
from mnist import Images, load_mnist
from torch import Tensor
from torch.nn.functional import one_hot

from gp_deq.activations import Activation
from gp_deq.benchmarks.command import script
from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option
from gp_deq.benchmarks.runs import Key, Row, one_thread, spread
from gp_deq.equivalents import Centered, ExplicitKernel, centered_kernel, match_explicit
from gp_deq.equivalents.coefficients import gaussian_moments
from gp_deq.kernels import DEQNNGPKernel

#: The networks.
FEATURES = ("equilibrium", "matched", "one layer")

#: In units of the mean squared norm of the features.
_RIDGES = tuple(10.0**power for power in range(-4, 3))
_TOLERANCE = 1e-5
_MAX_ITERATIONS = 300
_REPEATS = 3
_COMPARED = 500


@dataclass(frozen=True)
class Settings(Configuration):
    """The images and the networks.

    Args:
        num_train: Images to learn from; the last fifth chooses the ridge.
        num_test: Images to be scored on.
        activations: Activations of the equilibria.
        widths: Widths of the networks.
        seeds: Number of draws of the weights.
    """

    num_train: int = option(5000, "Images to learn from.")
    num_test: int = option(2000, "Images to be scored on.")
    activations: tuple[str, ...] = option(("relu", "tanh"), "Activation.")
    widths: tuple[int, ...] = option(tuple(2**power for power in range(5, 13)), "Width.")
    seeds: int = option(3, "Number of draws of the weights.")

    @property
    def keys(self) -> list[Key]:
        """Numbers of images, activation, features, width and seed; infinite networks first."""
        limits = product([0], self.activations, FEATURES, [0])
        finite = product(sorted(self.widths), self.activations, FEATURES, range(self.seeds))
        return [
            (self.num_train, self.num_test, activation, features, width, seed)
            for width, activation, features, seed in (*limits, *finite)
        ]


@dataclass(frozen=True)
class Score(Row):
    """A classifier; a row of the CSV file.

    Args:
        num_train: Images to learn from.
        num_test: Images to be scored on.
        activation: Activation of the equilibrium.
        features: One of `FEATURES`.
        width: Width of the network; 0 for an infinite one.
        seed: Seed of its weights.
        accuracy: Share of the test images that it recognises.
        ridge: The ridge that was chosen.
        distance: Spectral norm of the features' inner products, between 500 test images, less the
            DEQ kernel, over that of the DEQ kernel: what accuracies do not tell.
        seconds: To compute the features of all test images, the least of three times; NaN for an
            infinite network.
    """

    num_train: int
    num_test: int
    activation: str
    features: str
    width: int
    seed: int
    accuracy: float
    ridge: float
    distance: float
    seconds: float

    keys = ("num_train", "num_test", "activation", "features", "width", "seed")


@cache
def digits(settings: Settings) -> Images:
    """The first training images, and test images of a random choice that is always the same.

    They are standardised by the training part.

    Args:
        settings: The configuration.
    """
    images = load_mnist()
    order = torch.randperm(len(images.test_y), generator=torch.Generator().manual_seed(0))
    chosen = order[: settings.num_test]
    train_x = images.train_x[: settings.num_train]
    mean = train_x.mean(0)
    scale = (train_x - mean).square().sum(-1).mean().sqrt()
    return Images(
        (train_x - mean) / scale,
        images.train_y[: settings.num_train],
        (images.test_x[chosen] - mean) / scale,
        images.test_y[chosen],
    )


def equilibrium(
    activation: Callable[[Tensor], Tensor], recurrent: Tensor, injected: Tensor
) -> Tensor:
    """The fixed point of a random layer, by iteration from zero.

    Args:
        activation: Activation of the layer.
        recurrent: Weights of the state, ``m x m``.
        injected: The part that the input adds, ``n x m``.

    Raises:
        RuntimeError: the iteration did not converge.
    """
    state = torch.zeros_like(injected)
    for _ in range(_MAX_ITERATIONS):
        previous, state = state, activation(state @ recurrent.mT + injected)
        if (state - previous).norm() <= _TOLERANCE * state.norm():
            return state
    raise RuntimeError("The random equilibrium network has not settled; is w below critical?")


def _one_layer(kernel: DEQNNGPKernel, X: Tensor) -> Activation:
    """The activation less its mean at the first layer."""
    variance = X.square().mean() / kernel.lengthscale.square().squeeze()
    mean = gaussian_moments(kernel.activation, variance.sqrt()).mean
    return Centered(kernel.activation, mean.item())


def _network(name: str, kernel: DEQNNGPKernel, X: Tensor, width: int) -> Callable[[Tensor], Tensor]:
    """A random network in single precision.

    Args:
        name: One of `FEATURES`.
        kernel: The DEQ kernel.
        X: Training images, for the mean square.
        width: Width of its layers.
    """
    num_dims = X.shape[-1]
    if name == "matched":
        return match_explicit(kernel, X).module(num_dims, width).float()
    single = torch.float32
    weights = torch.randn(width, num_dims, dtype=single)
    weights /= num_dims**0.5 * float(kernel.lengthscale)
    if name == "one layer":
        plain = _one_layer(kernel, X)
        return lambda x: plain(x @ weights.mT) / width**0.5
    activation = centered_kernel(kernel, X).activation
    recurrent = torch.randn(width, width, dtype=single)
    recurrent *= (float(kernel.weight_variance) / width) ** 0.5
    return lambda x: equilibrium(activation, recurrent, x @ weights.mT) / width**0.5


def _limit(name: str, kernel: DEQNNGPKernel, X: Tensor) -> Kernel:
    """The kernel to which the inner products of a network's features tend."""
    if name == "equilibrium":
        return centered_kernel(kernel, X)
    if name == "matched":
        return match_explicit(kernel, X).kernel()
    limit = ExplicitKernel([_one_layer(kernel, X)]).double()
    limit.lengthscale, limit.bias_variance = kernel.lengthscale, 0.0
    return limit


def _rows(kernel: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    """A matrix, some rows at a time to save memory."""
    return torch.cat([kernel(rows, x2).to_dense() for rows in x1.split(500)])


#: The system (A + r I) C = B for the rows to learn from, and the map from C to other rows' scores.
System = Callable[[slice, slice], tuple[Tensor, Tensor, Tensor]]


def _primal(features: Tensor, targets: Tensor) -> System:
    def system(learn: slice, score: slice) -> tuple[Tensor, Tensor, Tensor]:
        rows = features[learn]
        return rows.mT @ rows, rows.mT @ targets[learn], features[score]

    return system


def _dual(matrix: Tensor, targets: Tensor) -> System:
    return lambda learn, score: (matrix[learn, learn], targets[learn], matrix[score, learn])


def classify(system: System, train_y: Tensor, test_y: Tensor) -> tuple[float, float]:
    """Learn from the training rows, which come before the test rows.

    Args:
        system: The system of all rows.
        train_y: Digits, ``n``; the last fifth chooses the ridge.
        test_y: Digits, ``m``.

    Returns:
        The share of right digits of the test rows, and the ridge.
    """
    count = len(train_y)
    cut = count * 4 // 5

    def accuracies(learn: slice, score: slice, y: Tensor, ridges: Sequence[float]) -> list[float]:
        matrix, right, scores = system(learn, score)
        unit = matrix.trace() / learn.stop
        found = []
        for ridge in ridges:
            regularized = matrix.clone()
            regularized.diagonal().add_(ridge * unit)
            solved = torch.cholesky_solve(right, torch.linalg.cholesky(regularized))
            found.append(((scores @ solved).argmax(-1) == y).double().mean().item())
        return found

    validated = accuracies(slice(cut), slice(cut, count), train_y[cut:], _RIDGES)
    ridge = _RIDGES[validated.index(max(validated))]
    (accuracy,) = accuracies(slice(count), slice(count, None), test_y, [ridge])
    return accuracy, ridge


@torch.no_grad()
@one_thread()
def run(settings: Settings, activation: str, features: str, width: int, seed: int) -> Score:
    """Learn and score a classifier.

    Args:
        settings: The configuration.
        activation: Activation of the equilibrium.
        features: One of `FEATURES`.
        width: Width of the network; 0 for an infinite one.
        seed: Seed of its weights.
    """
    data = digits(settings)
    x = torch.cat([data.train_x, data.test_x])
    some = data.test_x[:_COMPARED]
    kernel = deq_kernel(activation, x.shape[-1])
    targets = one_hot(data.train_y, 10).double() - 0.1
    seconds = math.nan
    if width:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            network = _network(features, kernel, data.train_x, width)
        seconds = _seconds(network, data.test_x.float())
        found = network(x.float()).double()
        system = _primal(found, targets)
        found = found[len(data.train_x) :][:_COMPARED]
        matrix = found @ found.mT
    else:
        limit = _limit(features, kernel, data.train_x)
        system = _dual(_rows(limit, x, data.train_x), targets)
        matrix = limit(some).to_dense()
    accuracy, ridge = classify(system, data.train_y, data.test_y)
    exact = centered_kernel(kernel, data.train_x)(some).to_dense()
    distance = torch.linalg.matrix_norm(matrix - exact, 2) / torch.linalg.matrix_norm(exact, 2)
    return Score(
        settings.num_train,
        settings.num_test,
        activation,
        features,
        width,
        seed,
        accuracy,
        ridge,
        distance.item(),
        seconds,
    )


def _seconds(network: Callable[[Tensor], Tensor], x: Tensor) -> float:
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        network(x)
        times.append(time.perf_counter() - start)
    return min(times)


def summarize(scores: Sequence[Score]) -> pd.DataFrame:
    """Means and standard deviations over seeds, and median times.

    Args:
        scores: Scores of any number of seeds.
    """
    table = pd.DataFrame([vars(score) for score in scores])
    groups = table.groupby(["activation", "features", "width"])
    return groups.agg(
        accuracy=("accuracy", "mean"),
        sd=("accuracy", "std"),
        distance=("distance", "mean"),
        milliseconds=("seconds", lambda seconds: 1000 * seconds.median()),
        ridge=("ridge", "median"),
        seeds=("seed", "count"),
    )


def draw(scores: Sequence[Score], figure: Figure) -> None:
    """Accuracies, distances and times against the width, a column for each activation.

    Args:
        scores: Scores of any number of seeds.
        figure: Drawn into.
    """
    table = summarize(scores)
    activations = list(dict.fromkeys(score.activation for score in scores))
    widths = sorted({score.width for score in scores if score.width})
    grid = figure.subplots(3, len(activations), squeeze=False, sharex=True, sharey="row")
    for column, activation in zip(grid.T, activations, strict=True):
        top, middle, bottom = column
        for color, features in zip(("black", "C1", "C0"), FEATURES, strict=True):
            found = table.loc[activation, features]
            limit, found = found[found.index == 0], found[found.index > 0]
            style = {"color": color, "marker": "o", "markersize": 3}
            spread = found.sd.fillna(0.0)
            top.errorbar(found.index, found.accuracy, spread, label=features, capsize=2, **style)
            middle.plot(found.index, found.distance, **style)
            bottom.plot(found.index, found.milliseconds, **style)
            for axes, value in (
                (top, limit.accuracy),
                (middle, limit.distance[limit.distance > 0]),
            ):
                for level in value:
                    axes.axhline(level, color=color, linestyle=":", linewidth=1)
        top.axhline(math.nan, color="0.4", linestyle=":", linewidth=1, label="infinitely wide")
        top.set(title=activation, xscale="log")
        middle.set_yscale("log")
        bottom.set(xlabel="width", yscale="log")
        bottom.set_xticks(widths, [str(width) for width in widths])
        for axes in column:
            axes.minorticks_off()
            axes.grid(alpha=0.2)
    grid[0, 0].set_ylabel("accuracy on test images")
    grid[1, 0].set_ylabel("distance from the DEQ kernel / its norm")
    grid[2, 0].set_ylabel("milliseconds for the features")
    grid[0, 0].legend(fontsize=8)


def _run(config: Settings, keys: Iterator[Key], tell: Callable[[str], None]) -> Iterator[Score]:
    return spread(delayed(run)(config, *key[2:]) for key in keys)


def _figure(config: Settings, scores: Sequence[Score]) -> Figure | None:
    if not scores:
        return None
    figure = Figure(figsize=(9, 9.5), layout="constrained")
    draw(scores, figure)
    return figure


def _tables(config: Settings, scores: Sequence[Score]) -> Iterator[Table]:
    if scores:
        yield Table.of("Digits", summarize(scores))


EXPERIMENT = Experiment(
    name="equivalents-classification",
    configuration=Settings,
    row=Score,
    run=_run,
    tables=_tables,
    figure=_figure,
    prepare=lambda config: load_mnist(),
)


if __name__ == "__main__":
    script(__file__)
