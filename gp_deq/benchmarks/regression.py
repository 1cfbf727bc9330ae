"""Regression on real data sets, kernel against kernel: ``gp-deq benchmark regression``.

Every run takes one data set, one kernel and one random 80/20 split, standardised by its training
part, and scores the predictions of the test part. There are two protocols.

``likelihood``: an exact GP with one lengthscale for each input and learned noise, fitted by
marginal likelihood. Every kernel starts from its defaults, lengthscales in the same units for all,
and as often again from there plus a standard normal draw on each unconstrained parameter; the
largest marginal likelihood wins. A trial step with an indefinite matrix ends a fit where it is,
whatever the kernel.

``ridge``: kernel ridge regression with one lengthscale, chosen by five-fold cross-validation on the
training part. Every kernel has the same number of settings, the points of a Sobol sequence in a box
of its hyperparameters, and each setting the same ridges. The intervals of its predictions have the
width of the cross-validated error.

NNGP and NTK are families whose depth is chosen like a hyperparameter, on the training part: by
likelihood every depth has as many starts as another kernel, by ridge all depths share the settings
of one. Beside them stand both at depth 3, with settings of their own. I-BNN is BoTorch's kernel of
depth 3, which has no lengthscales.
"""

import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike

import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel
from torch import Tensor
from torch.quasirandom import SobolEngine

from gp_deq.benchmarks.runs import Row, RunFile, run_missing
from gp_deq.datasets import Split, load, train_test_split
from gp_deq.kernels import DEKerKernel, DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel
from gp_deq.kernels.constraints import AboveRounding

try:
    from botorch.models.kernels import InfiniteWidthBNNKernel
    from botorch.optim.fit import fit_gpytorch_mll_scipy

    from gp_deq.benchmarks.bo import FAILURES
    from gp_deq.benchmarks.demo import Metrics, make_model, predictive_metrics
except ImportError as error:
    raise ImportError(
        'the benchmark fits with BoTorch and compares with its kernels: pip install "gp_deq[bo]"'
    ) from error
try:
    from joblib import delayed
except ImportError as error:
    raise ImportError(f'the benchmark needs {error.name}: pip install "gp_deq[cli]"') from error

__all__ = ["DATASETS", "KERNELS", "PROTOCOLS", "RegressionConfig", "Result", "run_regression"]

#: Makes a kernel with so many lengthscales, or with one for None.
Maker = Callable[[int | None], Kernel]


def _depths(kernel_class: type[Kernel]) -> tuple[Maker, ...]:
    return tuple(
        lambda dims, depth=depth: kernel_class(depth=depth, ard_num_dims=dims)
        for depth in range(1, 6)
    )


#: The kernels by name; those with several makers choose among them on the training part.
KERNELS: Mapping[str, tuple[Maker, ...]] = {
    "DEKer relu": (lambda dims: DEKerKernel(ard_num_dims=dims),),
    "DEKer tanh": (lambda dims: DEKerKernel(link="tanh", ard_num_dims=dims),),
    "DEQ-NNGP relu": (lambda dims: DEQNNGPKernel(ard_num_dims=dims),),
    "DEQ-NNGP erf": (lambda dims: DEQNNGPKernel(activation="erf", ard_num_dims=dims),),
    "DEQ-NTK relu": (lambda dims: DEQNTKKernel(ard_num_dims=dims),),
    "DEQ-NTK erf": (lambda dims: DEQNTKKernel(activation="erf", ard_num_dims=dims),),
    "NNGP": _depths(NNGPKernel),
    "NTK": _depths(NTKKernel),
    "NNGP, depth 3": _depths(NNGPKernel)[2:3],
    "NTK, depth 3": _depths(NTKKernel)[2:3],
    "RBF": (lambda dims: RBFKernel(ard_num_dims=dims, lengthscale_constraint=AboveRounding()),),
    "Matérn-5/2": (
        lambda dims: MaternKernel(2.5, ard_num_dims=dims, lengthscale_constraint=AboveRounding()),
    ),
    "I-BNN": (lambda dims: InfiniteWidthBNNKernel(depth=3),),
}

#: The data sets of the paper.
DATASETS = ("diabetes", "yacht", "energy-heating", "energy-cooling", "concrete", "wine")
PROTOCOLS = ("likelihood", "ridge")
#: Ridges in units of the variance of the kernel about its mean over the training inputs.
_RIDGES = tuple(10.0**power for power in range(-8, 1))
_FOLDS = 5
_TEST_FRACTION = 0.2
_MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Result(Row):
    """A kernel on a split of a data set; a row of the CSV file.

    Args:
        protocol: One of `PROTOCOLS`.
        dataset: Its name.
        kernel: One of `KERNELS`.
        seed: Of the split.
        budget: Number of starts or of settings.
        rmse: Root mean squared error of the test targets, in their units; NaN if all starts failed.
        nlpd: Mean negative log predictive density of the test targets, in nats.
        coverage: Share of the test targets inside their central 95 % intervals.
        seconds: Of the fit, the choice and the predictions.
        failures: Number of starts, or of settings and ridges, that failed numerically.
        chosen: Index of the maker chosen; for a family of depths, the depth less one.
        ridge: The ridge chosen, in the units of `_RIDGES`; 0 for ``likelihood``.
    """

    protocol: str
    dataset: str
    kernel: str
    seed: int
    budget: int
    rmse: float
    nlpd: float
    coverage: float
    seconds: float
    failures: int
    chosen: int
    ridge: float

    keys = ("protocol", "dataset", "kernel", "seed", "budget")


@dataclass(frozen=True)
class RegressionConfig:
    """What is compared.

    Args:
        protocol: One of `PROTOCOLS`.
        datasets: Names for :func:`gp_deq.datasets.load`.
        kernels: Names in `KERNELS`.
        seeds: Number of splits of each data set.
        budget: Number of starts (``likelihood``) or of settings (``ridge``) for each kernel.

    Raises:
        ValueError: an unknown protocol, data set or kernel, or a number below 1.
    """

    protocol: str = "likelihood"
    datasets: tuple[str, ...] = DATASETS
    kernels: tuple[str, ...] = tuple(KERNELS)
    seeds: int = 5
    budget: int = 2

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"no protocol {self.protocol!r}; there are {', '.join(PROTOCOLS)}.")
        for kernel in self.kernels:
            if kernel not in KERNELS:
                raise ValueError(f"no kernel {kernel!r}; there are {', '.join(KERNELS)}.")
        for name in ("seeds", "budget"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.datasets or not self.kernels:
            raise ValueError("There must be at least one data set and one kernel.")

    @property
    def keys(self) -> list[tuple[str, str, str, int, int]]:
        """The keys of every run; one seed is complete before the next begins."""
        return [
            (self.protocol, dataset, kernel, seed, self.budget)
            for seed in range(self.seeds)
            for dataset in self.datasets
            for kernel in self.kernels
        ]


def run_regression(
    config: RegressionConfig,
    path: str | PathLike[str] | None = None,
    minutes: float = math.inf,
    on_run: Callable[[str], None] = lambda description: None,
) -> list[Result]:
    """Fit and score; runs that the file already holds are taken from it.

    Args:
        config: What to run.
        path: Of a CSV file that receives each run as soon as it is done; none if None.
        minutes: No run is started later than this; those in progress are finished.
        on_run: Called with a description after each run, those from the file included.

    Returns:
        The finished runs of ``config``, in the order of its keys. Two runs of one key differ in
        their times alone.

    Raises:
        ValueError: the file is not one that this function wrote, or there is no such data set.
        FileNotFoundError: a data set is not at hand and cannot be downloaded.
    """
    for name in config.datasets:
        load(name)  # here, so that processes do not download side by side
    return run_missing(
        RunFile(Result, path),
        config.keys,
        lambda key: delayed(_run)(*key),
        lambda key: f"{key[1]}, {key[2]}",
        minutes,
        on_run,
    )


def _run(protocol: str, dataset: str, kernel: str, seed: int, budget: int) -> Result:
    torch.set_num_threads(1)
    split = train_test_split(load(dataset), _TEST_FRACTION, seed)
    fit = fit_by_likelihood if protocol == "likelihood" else fit_by_ridge
    start = time.perf_counter()
    random_seed = zlib.crc32(f"{dataset}/{seed}".encode())
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(random_seed)
        predictions = fit(KERNELS[kernel], split, budget)
    seconds = time.perf_counter() - start
    metrics = _score(predictions, split)
    return Result(
        protocol,
        dataset,
        kernel,
        seed,
        budget,
        metrics.rmse,
        metrics.nlpd,
        metrics.coverage,
        seconds,
        predictions.failures,
        predictions.chosen,
        predictions.ridge,
    )


@dataclass(frozen=True)
class Predictions:
    """Standardised predictions of the test targets.

    Args:
        mean: Means, ``n``.
        std: Standard deviations, noise included, ``n``.
        chosen: Index of the maker chosen.
        ridge: The ridge chosen.
        failures: Number of starts, or of settings and ridges, that failed.
    """

    mean: Tensor
    std: Tensor
    chosen: int = 0
    ridge: float = 0.0
    failures: int = 0

    @classmethod
    def none(cls, split: Split) -> "Predictions":
        """NaN, where nothing could be fitted."""
        nan = torch.full_like(split.test_y, math.nan)
        return cls(nan, nan)


def _score(predictions: Predictions, split: Split) -> Metrics:
    """In the units of the target."""
    if bool(predictions.mean.isnan().any()):
        return Metrics(math.nan, math.nan, math.nan, math.nan)
    return predictive_metrics(
        split.y_mean + split.y_std * predictions.mean,
        split.y_std * predictions.std,
        split.y_mean + split.y_std * split.test_y,
    )


def fit_by_likelihood(makers: Sequence[Maker], split: Split, starts: int) -> Predictions:
    """An exact GP, its hyperparameters learned by marginal likelihood.

    Args:
        makers: Of kernels to choose from.
        split: The data.
        starts: Number of starts of each kernel, the first of them from its defaults.

    Returns:
        The predictions; NaN if every start failed.
    """
    best, result, failures = -math.inf, Predictions.none(split), 0
    for index, maker in enumerate(makers):
        for start in range(starts):
            kernel = _start(maker, split, perturb=start > 0)
            try:
                value, mean, std = _learn(kernel, split)
            except FAILURES:
                value = math.nan
            failures += math.isnan(value)
            if value > best:
                best, result = value, Predictions(mean, std, index)
    return replace(result, failures=failures)


def _learn(kernel: Kernel, split: Split) -> tuple[float, Tensor, Tensor]:
    """Marginal likelihood at its maximum, means and standard deviations of the test targets."""
    mll = make_model(kernel, split.train_x, split.train_y)
    # not fit_gpytorch_mll, which discards a fit that ended in a line search
    fit_gpytorch_mll_scipy(mll, options={"maxiter": _MAX_ITERATIONS})
    with torch.no_grad():
        mll.train()
        value = float(mll(mll.model(*mll.model.train_inputs), split.train_y))
        mll.eval()
        prediction = mll.likelihood(mll.model(split.test_x))
        return value, prediction.mean, prediction.variance.sqrt()


def _start(maker: Maker, split: Split, perturb: bool) -> Kernel:
    num_dims = split.train_x.shape[-1]
    kernel = maker(num_dims).to(split.train_x)
    if isinstance(kernel, RBFKernel | MaternKernel):
        kernel.lengthscale = kernel.lengthscale.detach() * _unit(kernel, num_dims)
    if perturb:
        with torch.no_grad():
            for parameter in kernel.parameters():
                parameter.add_(torch.randn_like(parameter))
    return kernel


def _unit(kernel: Kernel, num_dims: int) -> float:
    """A lengthscale of one: the kernels of this package divide squared distances by ``d``."""
    return math.sqrt(num_dims) if isinstance(kernel, RBFKernel | MaternKernel) else 1.0


def fit_by_ridge(makers: Sequence[Maker], split: Split, settings: int) -> Predictions:
    """Kernel ridge regression, chosen by cross-validation.

    Args:
        makers: Of kernels to choose from.
        split: The data.
        settings: Number of settings, all makers together.

    Returns:
        The predictions, their standard deviation that of the cross-validated errors; NaN if every
        setting failed.
    """
    x, y = split.train_x, split.train_y
    folds = torch.randperm(len(y)).chunk(_FOLDS)
    best, result, failures = math.inf, Predictions.none(split), 0
    for index, kernel in _settings(makers, x.shape[-1], settings):
        kernel = kernel.to(x)
        with torch.no_grad():
            matrix = kernel(x).to_dense()
        scale = float(matrix.diagonal().mean() - matrix.mean())
        for ridge in _RIDGES:
            error = cross_validated_error(matrix, y, ridge * scale, folds)
            failures += math.isinf(error)
            if error < best:
                mean = _ridge_mean(kernel, matrix, split, ridge * scale)
                std = torch.full_like(mean, math.sqrt(error))
                best, result = error, Predictions(mean, std, index, ridge)
    return replace(result, failures=failures)


def _ridge_mean(kernel: Kernel, matrix: Tensor, split: Split, ridge: float) -> Tensor:
    regularized = matrix.clone()
    regularized.diagonal().add_(ridge)
    weights = torch.cholesky_solve(split.train_y.unsqueeze(-1), torch.linalg.cholesky(regularized))
    with torch.no_grad():
        return (kernel(split.test_x, split.train_x).to_dense() @ weights).squeeze(-1)


def cross_validated_error(
    matrix: Tensor, y: Tensor, ridge: float, folds: Sequence[Tensor]
) -> float:
    r"""Mean squared error of held-out targets.

    With :math:`A = (K + r I)^{-1}` the residuals of the held-out rows :math:`f` of a model of the
    others are :math:`A_{ff}^{-1} (A y)_f`, from the inverse of a matrix in blocks: one
    factorisation for all folds.

    Args:
        matrix: ``K``, ``n x n``.
        y: Targets, ``n``.
        ridge: ``r``, positive.
        folds: Indices that together are all rows.

    Returns:
        The error; infinite if the matrix is not positive definite in floating point.
    """
    regularized = matrix.clone()
    regularized.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(regularized)
    if int(info) != 0:
        return math.inf
    inverse = torch.cholesky_inverse(factor)
    weights = inverse @ y
    squares = y.new_zeros(())
    for fold in folds:
        residual = torch.linalg.solve(inverse[fold[:, None], fold], weights[fold])
        squares = squares + residual.square().sum()
    error = float(squares) / len(y)
    return error if math.isfinite(error) else math.inf


def _settings(makers: Sequence[Maker], num_dims: int, count: int) -> Iterator[tuple[int, Kernel]]:
    """Points of a Sobol sequence in the box of hyperparameters, as kernels."""
    names = [name for name in _BOX if getattr(makers[0](None), name, None) is not None]
    points = SobolEngine(1 + len(names), scramble=True, seed=0).draw(count, dtype=torch.float64)
    for which, *coordinates in points.tolist():
        index = int(which * len(makers))
        kernel = makers[index](None).double()
        for name, coordinate in zip(names, coordinates, strict=True):
            setattr(kernel, name, _BOX[name](kernel, num_dims, coordinate))
        yield index, kernel


def _between(low: float, high: float, coordinate: float) -> float:
    """Log-uniform."""
    return low * (high / low) ** coordinate


def _lengthscale(kernel: Kernel, num_dims: int, coordinate: float) -> float:
    return _between(0.25, 8.0, coordinate) * _unit(kernel, num_dims)


def _weight_variance(kernel: Kernel, num_dims: int, coordinate: float) -> float:
    if isinstance(kernel, DEQNNGPKernel | DEQNTKKernel):
        return (0.02 + 0.96 * coordinate) * kernel.activation.critical_weight_variance
    return _between(0.5, 4.0, coordinate)


def _regularization(kernel: DEKerKernel, num_dims: int, coordinate: float) -> float:
    return kernel.critical_regularization / math.sqrt(0.02 + 0.96 * coordinate)


def _log(low: float, high: float) -> Callable[[Kernel, int, float], float]:
    return lambda kernel, num_dims, coordinate: _between(low, high, coordinate)


#: Value of a hyperparameter at a coordinate in [0, 1], for a kernel and a number of inputs.
_BOX: Mapping[str, Callable[..., float]] = {
    "lengthscale": _lengthscale,
    "weight_variance": _weight_variance,
    "bias_variance": _log(0.01, 10.0),
    "regularization": _regularization,
    "feature_scale": _log(0.1, 10.0),
    "weight_var": _log(0.5, 20.0),
    "bias_var": _log(0.01, 10.0),
}
