"""Deep-equilibrium Gaussian processes beside three baselines on a real data set: ``gp-deq demo``.

Every model is an exact GP on standardised data: constant mean, learned Gaussian noise, and one
`ScaleKernel` around the kernel, without priors. All are treated alike: the kernel starts from the
defaults of its class, the noise variance from 0.1, and the output scale such that the mean prior
variance of the training inputs is 1; then the same call of BoTorch's ``fit_gpytorch_mll`` learns
everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel
from torch import Tensor

from gp_deq.benchmarks.depth import EXPERIMENT as DEPTH
from gp_deq.benchmarks.depth import Correlation, DepthConfig, draw_depth
from gp_deq.benchmarks.experiment import Table, plus_minus
from gp_deq.datasets import Dataset, Split, load_diabetes, train_test_split
from gp_deq.kernels import DEQNNGPKernel, DEQNTKKernel
from gp_deq.metrics import COLLAPSED_R2, Metrics, predictive_metrics

try:
    from botorch.fit import fit_gpytorch_mll
    from botorch.models.kernels import InfiniteWidthBNNKernel
except ImportError as error:
    raise ImportError(
        'the demo fits with BoTorch and compares with its kernels: pip install "gp_deq[bo]"'
    ) from error

from gp_deq.tables import make_model, scalar_hyperparameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KERNELS", "DemoResult", "FitResult", "draw", "fit_and_evaluate", "run_demo", "tables"]


KERNELS: Mapping[str, Callable[[int], Kernel]] = {
    "DEQ-NNGP relu": lambda d: DEQNNGPKernel(ard_num_dims=d),
    "DEQ-NNGP erf": lambda d: DEQNNGPKernel(activation="erf", ard_num_dims=d),
    "DEQ-NTK relu": lambda d: DEQNTKKernel(ard_num_dims=d),
    "RBF": lambda d: RBFKernel(ard_num_dims=d),
    "Matérn-5/2": lambda d: MaternKernel(2.5, ard_num_dims=d),
    "InfiniteWidthBNN (3)": lambda d: InfiniteWidthBNNKernel(depth=3),
}
"""The kernels compared, each built for a number of input dimensions."""

_DRAWN = ("DEQ-NNGP relu", "DEQ-NNGP erf", "Matérn-5/2")


@dataclass(frozen=True)
class FitResult:
    """One kernel fitted to one split, in the original units of the target.

    Args:
        kernel: A key of `KERNELS`.
        seed: Seed of the split.
        metrics: Scores of the test part.
        fit_seconds: Wall time of the optimisation.
        mean: Predictive means of the test targets.
        std: Predictive standard deviations of the test targets, noise included.
        target: The test targets.
        relevance: ``1 / lengthscale**2`` normalised to sum 1, one for each input, or None for a
            kernel without ARD.
        hyperparameters: The learned values of the scalar ones.
    """

    kernel: str
    seed: int
    metrics: Metrics
    fit_seconds: float
    mean: Tensor
    std: Tensor
    target: Tensor
    relevance: Tensor | None
    hyperparameters: Mapping[str, float]

    @property
    def collapsed(self) -> bool:
        """Whether the model has explained its targets as all noise."""
        return self.metrics.r2 < COLLAPSED_R2


@dataclass(frozen=True)
class DemoResult:
    """All that the demo's table and figure show.

    Args:
        dataset: The data.
        fits: One for each seed and kernel.
        depth: Correlations of two inputs against depth.
    """

    dataset: Dataset
    fits: Sequence[FitResult]
    depth: Sequence[Correlation]

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels, in the order they were fitted."""
        return list(dict.fromkeys(fit.kernel for fit in self.fits))

    def of_kernel(self, kernel: str) -> list[FitResult]:
        """The fits of one kernel.

        Args:
            kernel: Its name.

        Returns:
            One fit for each seed.
        """
        return [fit for fit in self.fits if fit.kernel == kernel]


def fit_and_evaluate(name: str, kernel: Kernel, split: Split, seed: int = 0) -> FitResult:
    """Learn the hyperparameters by marginal likelihood and score the predictions.

    Args:
        name: Name of the kernel in the result.
        kernel: The kernel, at its initial values and without an output scale.
        split: Standardised data.
        seed: Seed of the split, for the record.

    Returns:
        Scores and predictions, in the original units of the target.
    """
    mll = make_model(kernel, split.train_x, split.train_y)
    start = time.perf_counter()
    fit_gpytorch_mll(mll)
    seconds = time.perf_counter() - start
    mll.eval()
    with torch.no_grad():
        prediction = mll.likelihood(mll.model(split.test_x))
        mean = split.y_mean + split.y_std * prediction.mean
        std = split.y_std * prediction.variance.sqrt()
        target = split.y_mean + split.y_std * split.test_y
        relevance = None
        if kernel.has_lengthscale and kernel.ard_num_dims is not None:
            precision = kernel.lengthscale.flatten().square().reciprocal()
            relevance = precision / precision.sum()
    return FitResult(
        kernel=name,
        seed=seed,
        metrics=predictive_metrics(mean, std, target),
        fit_seconds=seconds,
        mean=mean,
        std=std,
        target=target,
        relevance=relevance,
        hyperparameters=scalar_hyperparameters(mll.model),
    )


def run_demo(
    seeds: Sequence[int] = (0,),
    kernels: Sequence[str] | None = None,
    on_fit: Callable[[str], None] = lambda description: None,
) -> DemoResult:
    """Fit every kernel to every split of the diabetes data.

    Args:
        seeds: One 80/20 split each.
        kernels: Keys of `KERNELS`; all of them if None.
        on_fit: Called with the name of the kernel after each fit.

    Returns:
        The fits, and the correlations against depth.
    """
    dataset = load_diabetes()
    num_dims = dataset.X.shape[-1]
    fits = []
    for seed in seeds:
        split = train_test_split(dataset, test_fraction=0.2, seed=seed)
        for name in KERNELS if kernels is None else kernels:
            fits.append(fit_and_evaluate(name, KERNELS[name](num_dims), split, seed))
            on_fit(name)
    return DemoResult(dataset=dataset, fits=fits, depth=DEPTH.collect(DepthConfig()))


def tables(result: DemoResult) -> Iterator[Table | str]:
    """The tables and notes that the command prints.

    Args:
        result: The result of `run_demo`.

    Yields:
        The scores of the kernels, and notes.
    """
    seeds = len(result.of_kernel(result.kernels[0]))
    splits = "one random split" if seeds == 1 else f"{seeds} random splits, mean ± standard error"
    rows = []
    for kernel in result.kernels:
        fits = result.of_kernel(kernel)
        rows.append(
            [
                kernel + (" (all noise)" if any(fit.collapsed for fit in fits) else ""),
                _mean([fit.metrics.rmse for fit in fits], ".2f"),
                _mean([fit.metrics.nlpd for fit in fits], ".3f"),
                _mean([100 * fit.metrics.coverage for fit in fits], ".1f") + " %",
                _mean([fit.metrics.r2 for fit in fits], ".3f"),
                _mean([fit.fit_seconds for fit in fits], ".1f"),
            ]
        )
    columns = ["kernel", "RMSE", "NLPD", "inside 95 %", "R²", "fit, s"]
    yield Table(f"{result.dataset.name}: 80/20, {splits}", columns, rows)
    yield (
        "Scores of the test part, in the units of the target. NLPD: negative log predictive\n"
        "density of the (noisy) targets, in nats. Inside 95 %: coverage of the central 95 % "
        "intervals."
    )
    collapsed = [fit for fit in result.fits if fit.collapsed]
    for fit in collapsed:
        yield (
            f"{fit.kernel}, split {fit.seed}: collapsed to all noise "
            f"(test R² {fit.metrics.r2:.3f} < {COLLAPSED_R2})."
        )
    if not collapsed:
        yield f"No fit collapsed to all noise (test R² below {COLLAPSED_R2})."
    yield "Learned on the first split (standardised units):"
    for kernel in result.kernels:
        values = result.of_kernel(kernel)[0].hyperparameters
        yield f"  {kernel}: " + ", ".join(f"{name} {value:.3g}" for name, value in values.items())


def _mean(values: Sequence[float], form: str) -> str:
    """The mean of the values, with its standard error where there are several."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return plus_minus(fmean(values), error, form)


def draw(result: DemoResult) -> Figure:
    """The figure: predictions of three kernels above, relevances and correlation by depth below.

    Args:
        result: The result of `run_demo`; the first split is shown.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    from gp_deq.plotting import Predictions, draw_predictions, draw_relevances, palette

    first = [result.of_kernel(kernel)[0] for kernel in result.kernels]
    shown = [fit for fit in first if fit.kernel in _DRAWN] or first[:3]
    relevances = {fit.kernel: fit.relevance for fit in first if fit.relevance is not None}
    colors = palette((*relevances, *(fit.kernel for fit in shown)))
    figure = Figure(figsize=(13.0, 8.0), layout="constrained")
    title = f"gp-deq demo: {result.dataset.name}, {len(first[0].target)} test inputs"
    figure.suptitle(title, fontsize=12)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.0, 1.05))[:, 0]
    panels = above.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, fit in zip(panels, shown, strict=True):
        predictions = Predictions(fit.target, fit.mean, fit.std)
        draw_predictions(axes, predictions, fit.kernel, "disease progression", colors[fit.kernel])
        axes.label_outer()
    left, right = below.subplots(1, 2, width_ratios=(1.15, 1.0))
    draw_relevances(left, relevances, result.dataset.feature_names, colors)
    draw_depth(right, result.depth)
    right.legend(fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none", loc="best")
    return figure
