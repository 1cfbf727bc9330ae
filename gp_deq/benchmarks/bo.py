"""Bayesian optimisation with one kernel or another: ``gp-deq benchmark bo``.

For a problem and a seed all surrogates start from the same scrambled Sobol points. Each step fits
the surrogate to all observations (outcomes standardised, noise inferred), maximises an acquisition
function with the same budget for all (LogEI; qLogEHVI for several outputs) and evaluates the point.
A step whose fit or acquisition fails evaluates the next Sobol point instead, whatever the
surrogate, and the failure is recorded; the surrogate "random" does so at every step.

Beside the kernels of this package and BoTorch's default run the Matérn kernel with the same
dimension-scaled prior, a linear kernel, and BoTorch's ``InfiniteWidthBNNKernel`` (I-BNN) twice: as
it was published, and fitted, centred and with an output scale, but without priors.
"""

import math
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from gpytorch.kernels import Kernel, LinearKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood, SumMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor
from torch.quasirandom import SobolEngine

from gp_deq.benchmarks.problems import BENCHMARK, Problem, make_problem

try:
    from botorch.acquisition import AcquisitionFunction, LogExpectedImprovement
    from botorch.acquisition.multi_objective import qLogExpectedHypervolumeImprovement
    from botorch.exceptions.errors import BotorchError, ModelFittingError
    from botorch.exceptions.warnings import BotorchWarning
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.models.kernels import InfiniteWidthBNNKernel
    from botorch.models.transforms.input import AffineInputTransform
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
    from botorch.optim import optimize_acqf
    from botorch.sampling import SobolQMCNormalSampler
    from botorch.utils.multi_objective.box_decompositions import (
        DominatedPartitioning,
        NondominatedPartitioning,
    )
except ImportError as error:
    raise ImportError('the benchmark optimises with BoTorch: pip install "gp_deq[bo]"') from error

try:
    import pandas as pd
    from joblib import delayed
except ImportError as error:
    raise ImportError(f'the benchmark needs {error.name}: pip install "gp_deq[cli]"') from error

from gp_deq.bayesopt import get_covar_module
from gp_deq.benchmarks.runs import Row, RunFile, run_missing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FAILURES",
    "REGRET_FLOOR",
    "SURROGATES",
    "BOConfig",
    "History",
    "Run",
    "complete",
    "draw",
    "final_table",
    "fit_surrogate",
    "maximize_acquisition",
    "optimize",
    "rank_table",
    "read_csv",
    "run_bo",
]

#: Makes the model of one output from inputs in the unit cube, ``n x d``, and values, ``n x 1``.
Surrogate = Callable[[Tensor, Tensor], SingleTaskGP]

#: Problem, surrogate, seed and `BOConfig.budget`: a run is a function of them.
Key = tuple[str, str, int, int, int, int, int]
#: Regrets below it count as it; known optimal values have about as many digits.
REGRET_FLOOR = 1e-6
#: Constants of I-BNN in Li, Rudner and Wilson (2024): weight variance, bias variance, depth.
_IBNN = 10.0, 1.6, 3
#: What a numerical failure of a fit or an acquisition raises.
FAILURES = (ArithmeticError, RuntimeError, ValueError, BotorchError, ModelFittingError)


def _deq(kernel: str, activation: str | None = None) -> Surrogate:
    def make(x: Tensor, y: Tensor) -> SingleTaskGP:
        covar_module = get_covar_module(kernel, ard_num_dims=x.shape[-1], activation=activation)
        return SingleTaskGP(x, y, covar_module=covar_module)

    return make


def _matern(x: Tensor, y: Tensor) -> SingleTaskGP:
    covar_module = get_covar_module_with_dim_scaled_prior(x.shape[-1], use_rbf_kernel=False)
    return SingleTaskGP(x, y, covar_module=covar_module)


def _centred(kernel: Kernel, x: Tensor, y: Tensor) -> SingleTaskGP:
    """The kernel on inputs mapped to [-1, 1], with an output scale such that it starts near 1."""
    typical = torch.full((1, x.shape[-1]), 3**-0.5)
    covar_module = ScaleKernel(kernel)
    with torch.no_grad():
        covar_module.outputscale = 1 / float(kernel(typical, diag=True))
    half = torch.full((x.shape[-1],), 0.5).to(x)
    return SingleTaskGP(
        x,
        y,
        covar_module=covar_module,
        input_transform=AffineInputTransform(x.shape[-1], coefficient=half, offset=half),
    )


def _ibnn() -> InfiniteWidthBNNKernel:
    weight_var, bias_var, depth = _IBNN
    kernel = InfiniteWidthBNNKernel(depth)
    kernel.weight_var = weight_var
    kernel.bias_var = bias_var
    return kernel


def _fitted_ibnn(x: Tensor, y: Tensor) -> SingleTaskGP:
    """Centred, with an output scale; learned without priors from the published constants."""
    return _centred(_ibnn(), x, y)


def _fixed_ibnn(x: Tensor, y: Tensor) -> SingleTaskGP:
    """As published: on the unit cube, without an output scale; mean and noise are learned."""
    return SingleTaskGP(x, y, covar_module=_ibnn().requires_grad_(False))


def _linear(x: Tensor, y: Tensor) -> SingleTaskGP:
    """One variance for each input, with a prior as wide as BoTorch's on lengthscales."""
    num_dims = x.shape[-1]
    median = 3 / num_dims
    prior = LogNormalPrior(math.log(median), math.sqrt(3))
    kernel = LinearKernel(ard_num_dims=num_dims, variance_prior=prior)
    kernel.variance = median
    return _centred(kernel, x, y)


#: The surrogates by name; None evaluates Sobol points.
SURROGATES: Mapping[str, Surrogate | None] = {
    "DEQ-NNGP": _deq("deq-nngp"),
    "DEQ-NNGP erf": _deq("deq-nngp", "erf"),
    "DEQ-NTK": _deq("deq-ntk"),
    "DEKer": _deq("deker"),
    "BoTorch default": SingleTaskGP,
    "Matérn-5/2": _matern,
    "I-BNN fitted": _fitted_ibnn,
    "I-BNN fixed": _fixed_ibnn,
    "linear": _linear,
    "random": None,
}


@dataclass(frozen=True)
class BOConfig:
    """What is optimised, by what and how long.

    Args:
        problems: Names in `gp_deq.benchmarks.problems`.
        surrogates: Names in `SURROGATES`.
        seeds: Number of seeds; each draws the problem and the initial points.
        num_steps: Number of evaluations after the initial points.
        num_restarts: Of the maximisation of the acquisition function.
        raw_samples: Points from which the restarts are taken.
        max_iterations: Of each restart.

    Raises:
        ValueError: a number below 1, no or an unknown problem or surrogate.
    """

    problems: tuple[str, ...] = tuple(BENCHMARK)
    surrogates: tuple[str, ...] = tuple(SURROGATES)
    seeds: int = 10
    num_steps: int = 50
    num_restarts: int = 4
    raw_samples: int = 128
    max_iterations: int = 100

    def __post_init__(self) -> None:
        for name in ("seeds", "num_steps", "num_restarts", "raw_samples", "max_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.problems or not self.surrogates:
            raise ValueError("There must be at least one problem and one surrogate.")
        for problem in self.problems:
            _problem(problem)
        for surrogate in self.surrogates:
            if surrogate not in SURROGATES:
                raise ValueError(f"no surrogate {surrogate!r}; there are {', '.join(SURROGATES)}.")

    @classmethod
    def quick(cls) -> "BOConfig":
        """Seconds instead of hours, to see that it runs."""
        return cls(
            problems=("Branin 2", "BraninCurrin 2"),
            surrogates=("DEQ-NNGP", "BoTorch default", "random"),
            seeds=2,
            num_steps=3,
            num_restarts=2,
            raw_samples=16,
            max_iterations=20,
        )

    @property
    def budget(self) -> tuple[int, int, int, int]:
        """The numbers that runs need in common to be compared."""
        return self.num_steps, self.num_restarts, self.raw_samples, self.max_iterations

    @property
    def keys(self) -> list[Key]:
        """The keys of every run; one seed is complete before the next begins."""
        return [
            (problem, surrogate, seed, *self.budget)
            for seed in range(self.seeds)
            for problem in self.problems
            for surrogate in self.surrogates
        ]


@dataclass(frozen=True)
class Run(Row):
    """One optimisation; a row of the CSV file.

    Args:
        problem: Its name.
        surrogate: Its name.
        seed: Seed.
        num_steps: Number of evaluations after the initial points.
        num_restarts: Of the maximisation of the acquisition function.
        raw_samples: Points from which the restarts are taken.
        max_iterations: Of each restart.
        fit_seconds: Of all fits together.
        acquisition_seconds: Of all maximisations of the acquisition function together.
        failures: For each step that failed, what failed and the name of its exception.
        trace: After each evaluation the best value so far, or the hypervolume.
    """

    problem: str
    surrogate: str
    seed: int
    num_steps: int
    num_restarts: int
    raw_samples: int
    max_iterations: int
    fit_seconds: float
    acquisition_seconds: float
    failures: tuple[str, ...]
    trace: tuple[float, ...]

    keys = (
        "problem",
        "surrogate",
        "seed",
        "num_steps",
        "num_restarts",
        "raw_samples",
        "max_iterations",
    )
    parsers: ClassVar = {
        "failures": lambda cell: tuple(cell.split()),
        "trace": lambda cell: tuple(map(float, cell.split())),
    }
    formats: ClassVar = {"failures": " ".join, "trace": lambda trace: " ".join(map(repr, trace))}

    @property
    def num_initial(self) -> int:
        """Number of initial points."""
        return len(self.trace) - self.num_steps

    @property
    def score(self) -> float:
        """Decimal logarithm of the final regret, negated, or the final value; larger is better."""
        return float(_scores(self)[-1])


@cache
def _problem(name: str) -> Problem:
    """What does not depend on the seed of a problem."""
    return make_problem(name, 0)


def _scores(run: Run) -> np.ndarray:
    """After each evaluation, what is compared: larger is better."""
    trace = np.array(run.trace)
    best = _problem(run.problem).best
    return trace if best is None else -np.log10(np.maximum(best - trace, REGRET_FLOOR))


def fit_surrogate(make: Surrogate, x: Tensor, y: Tensor) -> SingleTaskGP | ModelListGP:
    """Learn the hyperparameters of a surrogate; several outputs are independent.

    Args:
        make: Of `SURROGATES`.
        x: Inputs in the unit cube, ``n x d``.
        y: Values, ``n x m``.

    Returns:
        The model.
    """
    models = [make(x, column) for column in y.split(1, dim=-1)]
    if len(models) == 1:
        fit_gpytorch_mll(ExactMarginalLogLikelihood(models[0].likelihood, models[0]))
        return models[0]
    model = ModelListGP(*models)
    fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
    return model


def maximize_acquisition(
    model: SingleTaskGP | ModelListGP,
    problem: Problem,
    x: Tensor,
    y: Tensor,
    config: BOConfig,
    seed: int = 0,
) -> Tensor:
    """The point that the acquisition function asks for.

    Args:
        model: Of `fit_surrogate`.
        problem: The objective.
        x: Inputs so far, ``n x d``.
        y: Values so far, ``n x m``.
        config: For the budget.
        seed: Of the samples behind the hypervolume improvement.

    Returns:
        ``1 x d``.
    """
    acquisition: AcquisitionFunction
    if problem.reference_point is None:
        acquisition = LogExpectedImprovement(model, best_f=y.max())
    else:
        reference = problem.reference_point.to(y)
        acquisition = qLogExpectedHypervolumeImprovement(
            model,
            ref_point=reference,
            partitioning=NondominatedPartitioning(reference, y),
            sampler=SobolQMCNormalSampler(torch.Size([128]), seed=seed),
        )
    candidate, _ = optimize_acqf(
        acquisition,
        bounds=torch.stack([torch.zeros_like(x[0]), torch.ones_like(x[0])]),
        q=1,
        num_restarts=config.num_restarts,
        raw_samples=config.raw_samples,
        options={"maxiter": config.max_iterations},
    )
    return candidate


def _trace(problem: Problem, y: Tensor) -> tuple[float, ...]:
    if problem.reference_point is None:
        return tuple(y[:, 0].cummax(0).values.tolist())
    reference = problem.reference_point.to(y)
    return tuple(
        DominatedPartitioning(reference, y[: i + 1]).compute_hypervolume().item()
        for i in range(len(y))
    )


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """Random numbers of a seed, one thread, and no word about single precision or jitter."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=()), warnings.catch_warnings():
            for category in (BotorchWarning, NumericalWarning):
                warnings.simplefilter("ignore", category)
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class History:
    """What an optimisation evaluated.

    Args:
        x: Points of the unit cube, the initial ones first.
        y: Their values.
        seconds: Of all fits and of all maximisations of the acquisition function.
        failures: For each step that failed, what failed and the name of its exception.
    """

    x: Tensor
    y: Tensor
    seconds: tuple[float, float]
    failures: tuple[str, ...]


def optimize(problem: Problem, make: Surrogate | None, config: BOConfig, seed: int) -> History:
    """One optimisation, on one thread.

    Args:
        problem: The objective.
        make: Of `SURROGATES`.
        config: For the budget.
        seed: Of the initial points and all other random numbers.
    """
    num_initial = max(5, min(2 * problem.num_dims, 20))
    sobol = SobolEngine(problem.num_dims, scramble=True, seed=seed)
    points = sobol.draw(num_initial + config.num_steps, dtype=torch.float64)
    seconds = {"fit": 0.0, "acquisition": 0.0}
    failures = []
    x = points[:num_initial]
    y = problem.evaluate(x)
    with _alone(seed):
        for fallback in points[num_initial:].split(1):
            candidate = fallback
            if make is not None:
                stage, start = "fit", time.perf_counter()
                try:
                    model = fit_surrogate(make, x, y)
                    seconds[stage] += time.perf_counter() - start
                    stage, start = "acquisition", time.perf_counter()
                    candidate = maximize_acquisition(model, problem, x, y, config, seed)
                except FAILURES as error:
                    failures.append(f"{stage}:{type(error).__name__}")
                seconds[stage] += time.perf_counter() - start
            x = torch.cat([x, candidate])
            y = torch.cat([y, problem.evaluate(candidate)])
    return History(x, y, (seconds["fit"], seconds["acquisition"]), tuple(failures))


def _optimize(config: BOConfig, name: str, surrogate: str, seed: int) -> Run:
    """One run, with the budget of ``config``."""
    problem = make_problem(name, seed)
    history = optimize(
        problem, SURROGATES[surrogate], config, zlib.crc32(f"{name}/{seed}".encode())
    )
    return Run(
        name,
        surrogate,
        seed,
        *config.budget,
        *history.seconds,
        failures=history.failures,
        trace=_trace(problem, history.y),
    )


def run_bo(
    config: BOConfig,
    path: str | os.PathLike[str] | None = None,
    minutes: float = math.inf,
    on_run: Callable[[str], None] = lambda description: None,
) -> list[Run]:
    """Optimise; runs that the file already holds are taken from it.

    Runs are spread by joblib: one after the other unless the caller sets a backend or a number of
    jobs with :func:`joblib.parallel_config`. Each uses one thread. A run is a function of problem,
    surrogate, seed and budget, but for its times.

    Args:
        config: What to run.
        path: Of a CSV file that receives each run as soon as it is done; none if None.
        minutes: No run is started later than this; those in progress are finished.
        on_run: Called with a description after each run, those from the file included.

    Returns:
        The finished runs of ``config``, in the order of its keys.

    Raises:
        ValueError: the file is not one that this function wrote.
    """
    return run_missing(
        RunFile(Run, path),
        config.keys,
        lambda key: delayed(_optimize)(config, *key[:3]),
        lambda key: f"{key[0]}, {key[1]}",
        minutes,
        on_run,
    )


def read_csv(path: str | os.PathLike[str]) -> list[Run]:
    """The runs in a file of `run_bo`.

    Args:
        path: Of the file.

    Returns:
        The runs, without one that was being written when the benchmark was stopped; none if there
        is no file.

    Raises:
        ValueError: the file is of another origin.
    """
    return RunFile(Run, path).read()


def complete(runs: Sequence[Run], surrogates: Iterable[str]) -> list[Run]:
    """The runs of those problems and seeds that all surrogates have finished.

    Args:
        runs: Of `run_bo`.
        surrogates: Names.

    Returns:
        Some of the runs.
    """
    wanted = set(surrogates)
    found: dict[tuple[str, int], set[str]] = {}
    for run in runs:
        found.setdefault((run.problem, run.seed), set()).add(run.surrogate)
    return [run for run in runs if wanted <= found[run.problem, run.seed]]


def _frame(runs: Sequence[Run]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "problem": [run.problem for run in runs],
            "num_dims": [_problem(run.problem).num_dims for run in runs],
            "surrogate": [run.surrogate for run in runs],
            "seed": [run.seed for run in runs],
            "score": [run.score for run in runs],
            "seconds": [
                (run.fit_seconds + run.acquisition_seconds) / run.num_steps for run in runs
            ],
            "failures": [len(run.failures) for run in runs],
        }
    )


def final_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Final results by problem and surrogate.

    Args:
        runs: Of `complete`.

    Returns:
        A row for each problem; for each surrogate its "mean", and under "sem" the standard error,
        of the decimal logarithm of the final regret where the best value is known, otherwise of the
        final value or hypervolume.
    """
    frame = _frame(runs)
    known = frame["problem"].map(lambda name: _problem(name).best is not None)
    frame["final"] = frame["score"].where(~known, -frame["score"])
    groups = frame.groupby(["problem", "surrogate"], sort=False)["final"]
    return groups.agg(["mean", "sem"]).unstack("surrogate")[["mean", "sem"]]


def rank_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Ranks of the surrogates, and what a step costs.

    Ranks are among the surrogates on one problem with one seed, 1 the best, ties sharing their mean
    rank; they are averaged over the seeds of a problem, then over problems.

    Args:
        runs: Of `complete`.

    Returns:
        A row for each surrogate with its mean ranks "all", "d < 10" and "d >= 10" (NaN where there
        is no such problem), the mean "seconds" of a step and the number of "failures".
    """
    frame = _frame(runs)
    frame["rank"] = frame.groupby(["problem", "seed"])["score"].rank(ascending=False)
    by_problem = frame.groupby(["surrogate", "num_dims", "problem"], sort=False)["rank"].mean()
    ranks = by_problem.reset_index(["num_dims", "problem"])
    parts = {
        "all": ranks,
        "d < 10": ranks[ranks["num_dims"] < 10],
        "d >= 10": ranks[ranks["num_dims"] >= 10],
    }
    surrogates = frame.groupby("surrogate", sort=False)
    return pd.DataFrame(
        {
            **{name: part.groupby("surrogate")["rank"].mean() for name, part in parts.items()},
            "seconds": surrogates["seconds"].mean(),
            "failures": surrogates["failures"].sum(),
        }
    ).reindex(frame["surrogate"].unique())


def draw(runs: Sequence[Run]) -> "Figure":
    """The figure: regret, best value or hypervolume against evaluations, a panel for each problem.

    Args:
        runs: Of `complete`.

    Returns:
        The figure.
    """
    from scipy.stats import t

    from gp_deq.plotting import Band, Panel, panels_figure

    panels = []
    for name in dict.fromkeys(run.problem for run in runs):
        problem, bands = _problem(name), []
        regret = problem.best is not None
        for surrogate in dict.fromkeys(run.surrogate for run in runs):
            group = [run for run in runs if (run.problem, run.surrogate) == (name, surrogate)]
            first = group[0].num_initial
            scores = np.stack([_scores(run) for run in group])[:, first - 1 :]
            mean, half = scores.mean(0), np.zeros(scores.shape[1])
            if len(group) > 1:
                half = t.ppf(0.975, len(group) - 1) * scores.std(0, ddof=1) / len(group) ** 0.5
            curves = np.stack([mean, mean - half, mean + half])
            curves = 10.0**-curves if regret else curves
            evaluations = range(first, first + scores.shape[1])
            bands.append(Band(surrogate, list(evaluations), *curves.tolist()))
        label = "best value" if problem.num_outputs == 1 else "hypervolume"
        seeds = f"{len(group)} seed{'s' * (len(group) > 1)}"
        label = "simple regret" if regret else label
        panels.append(Panel(f"{name}, {seeds}", label, bands, log=regret))
    return panels_figure(panels, "evaluations", "Bayesian optimisation: mean and 95 % interval")
