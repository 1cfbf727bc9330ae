"""Bayesian optimisation with DEQ kernels, BoTorch's default and other baselines.

For a problem and a seed all surrogates start from the same scrambled Sobol points. Each step fits
the surrogate to all observations (outcomes standardised, noise inferred), maximises an acquisition
function with the same budget for all (LogEI; qLogEHVI for several outputs) and evaluates the point.
A step whose fit or acquisition fails evaluates the next Sobol point instead, whatever the
surrogate, and the failure is recorded; the surrogate "random" does so at every step.
"""

import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor
from torch.quasirandom import SobolEngine

from gp_deq.benchmarks.problems import BENCHMARK, Problem, known_problem, make_problem
from gp_deq.benchmarks.surrogates import FAILURES, SURROGATES, Surrogate, fit_surrogate

try:
    from botorch.acquisition import AcquisitionFunction, LogExpectedImprovement
    from botorch.acquisition.multi_objective import qLogExpectedHypervolumeImprovement
    from botorch.exceptions.warnings import BotorchWarning
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.optim import optimize_acqf
    from botorch.sampling import SobolQMCNormalSampler
    from botorch.utils.multi_objective.box_decompositions import (
        DominatedPartitioning,
        NondominatedPartitioning,
    )
except ImportError as error:
    raise ImportError('the benchmark optimises with BoTorch: pip install "gp_deq[bo]"') from error

try:
    from joblib import delayed
except ImportError as error:
    raise ImportError(f'the benchmark needs {error.name}: pip install "gp_deq[cli]"') from error

from gp_deq.benchmarks import bo_results
from gp_deq.benchmarks.experiment import Configuration, Experiment, option
from gp_deq.benchmarks.runs import Key, Row, one_thread, spread

__all__ = ["EXPERIMENT", "FAILURES", "REGRET_FLOOR", "SURROGATES", "BOConfig", "History", "Run"]
__all__ += ["maximize_acquisition", "optimize", "run_bo"]

#: Regrets below it count as it; known optimal values have about as many digits.
REGRET_FLOOR = 1e-6


@dataclass(frozen=True)
class BOConfig(Configuration):
    """The problems, the surrogates and their budget.

    Args:
        problems: Names in `gp_deq.benchmarks.problems`.
        surrogates: Names in `SURROGATES`.
        seeds: Number of seeds; each draws the problem and the initial points.
        num_steps: Number of evaluations after the initial points.
        num_restarts: Number of restarts of the maximisation of the acquisition function.
        raw_samples: Points from which the restarts are taken.
        max_iterations: Most iterations of each restart.

    Raises:
        ValueError: A number is below 1, or a problem or surrogate is unknown or there is none.
    """

    problems: tuple[str, ...] = option(tuple(BENCHMARK), "Objectives.", shown="all")
    surrogates: tuple[str, ...] = option(tuple(SURROGATES), "Models.", shown="all")
    seeds: int = option(10, "Number of repetitions.")
    num_steps: int = option(50, "Evaluations after the initial ones.", name="steps")
    num_restarts: int = option(4, "Restarts of the acquisition's maximisation.", name="restarts")
    raw_samples: int = option(128, "Points from which the restarts are taken.")
    max_iterations: int = option(100, "Most iterations of each restart.")

    presets: ClassVar = {"quick": "Seconds, to see that it runs."}

    def __post_init__(self) -> None:
        for name in ("seeds", "num_steps", "num_restarts", "raw_samples", "max_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.problems or not self.surrogates:
            raise ValueError("There must be at least one problem and one surrogate.")
        for problem in self.problems:
            known_problem(problem)
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
        num_restarts: Number of restarts of the maximisation of the acquisition function.
        raw_samples: Points from which the restarts are taken.
        max_iterations: Most iterations of each restart.
        fit_seconds: Seconds of all fits together.
        acquisition_seconds: Seconds of all maximisations of the acquisition function together.
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
    def label(self) -> str:
        """A description for the progress bar."""
        return f"{self.problem}, {self.surrogate}"

    @property
    def scores(self) -> np.ndarray:
        """After each evaluation, what is compared; larger is better.

        Decimal logarithms of the regrets, negated, where the best value is known, or else values.
        """
        trace = np.array(self.trace)
        best = known_problem(self.problem).best
        return trace if best is None else -np.log10(np.maximum(best - trace, REGRET_FLOOR))


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
        model: The fitted surrogate.
        problem: The objective.
        x: Inputs so far, ``n x d``.
        y: Values so far, ``n x m``.
        config: The budget.
        seed: Seed of the samples behind the hypervolume improvement.

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
    with one_thread(), torch.random.fork_rng(devices=()), warnings.catch_warnings():
        for category in (BotorchWarning, NumericalWarning):
            warnings.simplefilter("ignore", category)
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class History:
    """The points that an optimisation evaluated.

    Args:
        x: Points of the unit cube, the initial ones first.
        y: Their values.
        seconds: Seconds of all fits, and of all maximisations of the acquisition function.
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
        make: One of `SURROGATES`.
        config: The budget.
        seed: Seed of the initial points and all other random numbers.
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


def _run(config: BOConfig, keys: Iterator[Key], tell: Callable[[str], None]) -> Iterator[Run]:
    return spread(delayed(_optimize)(config, *key[:3]) for key in keys)


EXPERIMENT = Experiment(
    name="bo",
    configuration=BOConfig,
    row=Run,
    run=_run,
    tables=lambda config, runs: bo_results.tables(runs, config.surrogates),
    figure=lambda config, runs: bo_results.draw(bo_results.complete(runs, config.surrogates)),
)

run_bo = EXPERIMENT.collect
