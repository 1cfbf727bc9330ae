"""How the priors of `gp_deq.bayesopt` were chosen: the best values that optimisation finds.

The models of ``bo_priors.py`` optimise its training problems, from the same initial points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from bo_priors import CANDIDATES, check_names, make_kernel
from botorch.models import SingleTaskGP
from joblib import delayed
from torch import Tensor

from gp_deq.benchmarks.bo import BOConfig, optimize
from gp_deq.benchmarks.command import script
from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option
from gp_deq.benchmarks.problems import TRAINING, make_problem
from gp_deq.benchmarks.runs import Key, Row, spread


@dataclass(frozen=True)
class Optimization(Configuration):
    """The models and the problems that they optimise.

    Args:
        models: Names in `CANDIDATES`.
        problems: Names in `gp_deq.benchmarks.problems`.
        steps: Evaluations after the initial points.
        seeds: Number of repetitions.

    Raises:
        ValueError: A model or problem is unknown, or a problem has several outputs.
    """

    models: tuple[str, ...] = option(tuple(CANDIDATES), "Kernel and priors.", shown="all")
    problems: tuple[str, ...] = option(tuple(TRAINING), "Problem.", shown="the training problems")
    steps: int = option(20, "Evaluations after the initial ones.")
    seeds: int = option(2, "Number of repetitions.")

    def __post_init__(self) -> None:
        check_names(self.models, self.problems)

    @property
    def keys(self) -> list[Key]:
        """Model, problem, seed and number of steps of every run."""
        return [
            (name, problem, seed, self.steps)
            for seed in range(self.seeds)
            for problem in self.problems
            for name in self.models
        ]


@dataclass(frozen=True)
class Optimum(Row):
    """An optimisation; a row of the CSV file.

    Args:
        model: One of `CANDIDATES`.
        problem: Its name.
        seed: Seed of the initial points.
        steps: Evaluations after the initial points.
        start: The best value of the initial points.
        best: The best value.
        share: Share of the coordinates of the other points that are at a bound of the cube.
        seconds: Seconds of a step.
        failures: Number of steps that failed.
    """

    model: str
    problem: str
    seed: int
    steps: int
    start: float
    best: float
    share: float
    seconds: float
    failures: int

    keys = ("model", "problem", "seed", "steps")


def _optimize(name: str, problem: str, seed: int, steps: int) -> Optimum:
    def make(x: Tensor, y: Tensor) -> SingleTaskGP:
        return SingleTaskGP(x, y, covar_module=make_kernel(name, x.shape[-1]))

    history = optimize(make_problem(problem, seed), make, BOConfig(num_steps=steps), seed)
    seconds = sum(history.seconds) / steps
    chosen = history.x[-steps:]
    share = float(((chosen < 1e-6) | (chosen > 1 - 1e-6)).double().mean())
    start, best = history.y[:-steps].max().item(), history.y.max().item()
    return Optimum(name, problem, seed, steps, start, best, share, seconds, len(history.failures))


def _run(
    config: Optimization, keys: Iterator[Key], tell: Callable[[str], None]
) -> Iterator[Optimum]:
    return spread(delayed(_optimize)(*key) for key in keys)


def _tables(config: Optimization, rows: Sequence[Optimum]) -> Iterator[Table]:
    """Means: the rank of the best value among the models on the same problem and seed, the share
    of coordinates at a bound, and the share of runs that found more than the initial points.
    """
    if rows:
        runs = pd.DataFrame(map(vars, rows))
        runs["rank"] = runs.groupby(["problem", "seed"]).best.rank(ascending=False)
        runs["improved"] = (runs.best > runs.start).astype(float)
        columns = ["rank", "share", "improved", "seconds", "failures"]
        means = runs.groupby("model")[columns].mean().sort_values("rank")
        yield Table.of("Optimisation", means, ".3f")


EXPERIMENT = Experiment(
    name="bo-priors-optimize", configuration=Optimization, row=Optimum, run=_run, tables=_tables
)


if __name__ == "__main__":
    script(__file__)
