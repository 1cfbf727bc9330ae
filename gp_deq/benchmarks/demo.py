"""Deep-equilibrium Gaussian processes beside three baselines on a real data set: ``gp-deq demo``.

Every model is an exact GP on standardised data: constant mean, learned Gaussian noise, and one
`ScaleKernel` around the kernel, without priors. All are treated alike: the kernel starts from the
defaults of its class, the noise variance from 0.1, and the output scale such that the mean prior
variance of the training inputs is 1; then the same call of BoTorch's ``fit_gpytorch_mll`` learns
everything.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gpytorch
import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from gp_deq.benchmarks.depth import DepthCurves, correlation_against_depth
from gp_deq.datasets import Dataset, Split, load_diabetes, train_test_split
from gp_deq.kernels import DEQNNGPKernel, DEQNTKKernel

try:
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.kernels import InfiniteWidthBNNKernel
except ImportError as error:
    raise ImportError(
        'the demo fits with BoTorch and compares with its kernels: pip install "gp_deq[bo]"'
    ) from error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLLAPSED_R2",
    "KERNELS",
    "DemoResult",
    "FitResult",
    "Metrics",
    "draw",
    "fit_and_evaluate",
    "make_model",
    "predictive_metrics",
    "run_demo",
    "scalar_hyperparameters",
]

COLLAPSED_R2 = 0.05
"""A fit whose posterior mean explains less than this share of the test variance is "all noise"."""


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
class Metrics:
    """How well Gaussian predictions matched the observed targets.

    Args:
        rmse: Root mean squared error of the means.
        nlpd: Mean negative log predictive density of the observed (noisy) targets, in nats.
        coverage: Share of the targets inside their central 95 % intervals.
        r2: One minus the squared error relative to that of the targets' own mean.
    """

    rmse: float
    nlpd: float
    coverage: float
    r2: float


@dataclass(frozen=True)
class FitResult:
    """One kernel fitted to one split, in the original units of the target.

    Args:
        kernel: A key of `KERNELS`.
        seed: Of the split.
        metrics: On the test part.
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
        depth: Correlation of two inputs against depth.
    """

    dataset: Dataset
    fits: Sequence[FitResult]
    depth: DepthCurves

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


def predictive_metrics(mean: Tensor, std: Tensor, target: Tensor) -> Metrics:
    """Score Gaussian predictions of observed targets.

    Args:
        mean: Predictive means, ``n``.
        std: Predictive standard deviations of the observations, noise included, ``n``.
        target: The observed targets, ``n``.

    Returns:
        The four scores, in the units of the arguments.
    """
    error = target - mean
    log_density = -0.5 * ((error / std).square() + math.log(2 * math.pi)) - std.log()
    half_width = math.sqrt(2) * torch.special.erfinv(torch.tensor(0.95, dtype=torch.float64)).item()
    return Metrics(
        rmse=error.square().mean().sqrt().item(),
        nlpd=-log_density.mean().item(),
        coverage=(error.abs() <= half_width * std).double().mean().item(),
        r2=1 - (error.square().sum() / (target - target.mean()).square().sum()).item(),
    )


def make_model(kernel: Kernel, train_x: Tensor, train_y: Tensor) -> ExactMarginalLogLikelihood:
    """An exact GP at the initial values that all kernels share, and its marginal likelihood.

    Args:
        kernel: The kernel, without an output scale.
        train_x: Standardised inputs, ``n x d``.
        train_y: Standardised targets, ``n``.

    Returns:
        The marginal likelihood, whose ``model`` is the GP.
    """
    covar = ScaleKernel(kernel).to(train_x)
    likelihood = GaussianLikelihood().to(train_x)
    likelihood.noise = 0.1
    with torch.no_grad():
        covar.outputscale = 1 / kernel(train_x, diag=True).mean()
    model = SingleTaskGP(
        train_x,
        train_y.unsqueeze(-1),
        likelihood=likelihood,
        covar_module=covar,
        outcome_transform=None,
    )
    return ExactMarginalLogLikelihood(likelihood, model)


def scalar_hyperparameters(model: gpytorch.Module) -> dict[str, float]:
    """The learned value of every hyperparameter that has only one.

    Args:
        model: Of a marginal likelihood.

    Returns:
        Values by name.
    """
    values = {}
    for name, raw, constraint in model.named_parameters_and_constraints():
        if raw.numel() == 1 and constraint is not None:
            path, _, leaf = name.rpartition(".")
            short = leaf.removeprefix("raw_")
            values[short] = getattr(model.get_submodule(path), short).item()
    return values


def fit_and_evaluate(name: str, kernel: Kernel, split: Split, seed: int = 0) -> FitResult:
    """Learn the hyperparameters by marginal likelihood and score the predictions.

    Args:
        name: Name of the kernel in the result.
        kernel: The kernel, at its initial values and without an output scale.
        split: Standardised data.
        seed: Of the split, for the record.

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
    return DemoResult(dataset=dataset, fits=fits, depth=correlation_against_depth())


def draw(result: DemoResult) -> "Figure":
    """The figure: predictions of three kernels, relevances, and correlation against depth.

    Args:
        result: Of `run_demo`; the first split is shown.

    Returns:
        The figure.
    """
    from gp_deq.plotting import Predictions, demo_figure

    first = [result.of_kernel(kernel)[0] for kernel in result.kernels]
    shown = [fit for fit in first if fit.kernel in _DRAWN] or first[:3]
    depth = result.depth
    return demo_figure(
        {fit.kernel: Predictions(fit.target, fit.mean, fit.std) for fit in shown},
        {fit.kernel: fit.relevance for fit in first if fit.relevance is not None},
        result.dataset.feature_names,
        (depth.depths, depth.feed_forward, depth.injected, depth.equilibrium),
        unit="disease progression",
        title=f"gp-deq demo: {result.dataset.name}, {len(first[0].target)} test inputs",
    )
