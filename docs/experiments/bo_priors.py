"""How the priors of `gp_deq.bayesopt` were chosen: ``python -m gp_deq.benchmarks.bo_priors``.

For every training problem (`gp_deq.benchmarks.problems.TRAINING`, none of them in the benchmark)
the models are fitted to data as they come up in Bayesian optimisation, half of them spread over the
cube and half close to the best of these, and judged by the negative log predictive density of
held-out points of both kinds. A fit that explains less than 5 % of their variance, where another
model explains more than 30 %, counts as collapsed; the evaluations of the likelihood that it takes
are counted too. With ``--optimize`` the models optimise the problems instead, and are judged by the
best value.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from gpytorch.kernels import Kernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from gp_deq.bayesopt.covar_modules import KERNELS, Priors, build
from gp_deq.benchmarks.bo import FAILURES, BOConfig, optimize
from gp_deq.benchmarks.problems import BENCHMARK, TRAINING, Problem, make_problem
from gp_deq.benchmarks.runs import Row, RunFile, run_with_progress

try:
    import pandas as pd
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
    from joblib import Parallel, delayed
    from rich.progress import track
except ImportError as error:
    raise ImportError('the experiment needs pip install "gp_deq[bo,cli]"') from error

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["CANDIDATES", "Fit", "compare", "compare_optimization", "summarize", "training_data"]


def _log_normal(mode: float, scale: float) -> tuple[float, float]:
    return math.log(mode) + scale**2, scale


def _candidates() -> dict[str, tuple[str, Priors] | None]:
    """Each kernel with the priors of the package, and with one thing changed."""
    result: dict[str, tuple[str, Priors] | None] = {"RBF": None, "Matérn-5/2": None}
    changes: dict[str, dict[str, Any]] = {
        "": {},
        ", lengthscale as for RBF": {"lengthscale": (math.sqrt(2), math.sqrt(3))},
        ", lengthscale 0.24 ± 0.8": {"lengthscale": _log_normal(0.24, 0.8)},
        ", lengthscale 0.24 ± 0.4": {"lengthscale": _log_normal(0.24, 0.4)},
        ", lengthscale 0.12 ± 0.2": {"lengthscale": _log_normal(0.12, 0.2)},
        ", lengthscale 0.48 ± 0.2": {"lengthscale": _log_normal(0.48, 0.2)},
        ", bias 1": {"bias_variance": (0.0, 1.0)},
        ", bias ± 0.1": {"bias_variance": (1.0, 0.1)},
        ", bias ± 2": {"bias_variance": (1.0, 2.0)},
        ", weight 0.1": {"share": 0.1},
        ", weight 0.9": {"share": 0.9},
        ", weight uniform": {"strength": 1.0},
        ", output ± 0.3": {"outputscale_scale": 0.3},
        ", output ± 2": {"outputscale_scale": 2.0},
    }
    for kernel, activation in (
        ("deq-nngp", "relu"),
        ("deq-nngp", "erf"),
        ("deq-ntk", "relu"),
        ("deq-ntk", "erf"),
        ("deker", "relu"),
        ("deker", "tanh"),
    ):
        default = KERNELS[kernel][1]._replace(activation=activation)
        for change, values in changes.items():
            name = f"{kernel} {activation}{change}"
            result[name] = kernel, default._replace(**values)
    return result


#: What is compared, by name; None for BoTorch's kernels with its own priors.
CANDIDATES: Mapping[str, tuple[str, Priors] | None] = _candidates()


def training_data(problem: Problem, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Data as in the middle of an optimisation, and held-out points.

    Args:
        problem: With one output.
        n: Number of observations.
        seed: Seed.

    Returns:
        Inputs and standardised outcomes, then 400 held-out inputs and outcomes in the same units.
    """
    generator = torch.Generator().manual_seed(seed)

    def around(best: Tensor, count: int) -> Tensor:
        noise = torch.randn(count, problem.num_dims, dtype=torch.float64, generator=generator)
        return (best + 0.1 * noise).clamp(0, 1)

    def spread(count: int) -> Tensor:
        sobol = torch.quasirandom.SobolEngine(problem.num_dims, scramble=True, seed=seed + count)
        return sobol.draw(count, dtype=torch.float64)

    first = spread(n // 2)
    best = first[problem.evaluate(first).squeeze(-1).argmax()]
    x = torch.cat([first, around(best, n - n // 2)])
    test_x = torch.cat([spread(200), around(best, 200)])
    y, test_y = problem.evaluate(x), problem.evaluate(test_x)
    mean, std = y.mean(), y.std()
    return x, (y - mean) / std, test_x, (test_y - mean) / std


def _kernel(name: str, num_dims: int) -> Kernel:
    candidate = CANDIDATES[name]
    if candidate is None:
        return get_covar_module_with_dim_scaled_prior(num_dims, use_rbf_kernel=name == "RBF")
    kernel, priors = candidate
    return build(KERNELS[kernel][0], priors, ard_num_dims=num_dims)


class _Counted(ExactMarginalLogLikelihood):
    """Counts its evaluations."""

    evaluations = 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.evaluations += 1
        return super().forward(*args, **kwargs)


@dataclass(frozen=True)
class Fit(Row):
    """A model fitted to a data set; a row of the CSV file.

    Args:
        model: Of `CANDIDATES`.
        problem: Its name.
        n: Number of observations.
        seed: Of the data.
        nlpd: Mean negative log predictive density of the held-out points, in nats.
        r2: Share of their variance that is explained.
        noise: Variance of the noise, learned.
        seconds: Of the fit.
        evaluations: Of the likelihood.
        failed: 1 if the fit failed numerically.
    """

    model: str
    problem: str
    n: int
    seed: int
    nlpd: float
    r2: float
    noise: float
    seconds: float
    evaluations: int
    failed: int

    keys = ("model", "problem", "n", "seed")


def _fit(name: str, problem_name: str, n: int, seed: int) -> Fit:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    problem = make_problem(problem_name, seed)
    x, y, test_x, test_y = training_data(problem, n, seed)
    model = SingleTaskGP(x, y, covar_module=_kernel(name, x.shape[-1]), outcome_transform=None)
    mll = _Counted(model.likelihood, model)
    start = time.perf_counter()
    failed = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit_gpytorch_mll(mll)
        except FAILURES:
            failed = True
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        posterior = model.posterior(test_x, observation_noise=True)
    residual = test_y - posterior.mean
    variance = posterior.variance
    nlpd = 0.5 * ((2 * math.pi * variance).log() + residual.square() / variance)
    return Fit(
        name,
        problem_name,
        n,
        seed,
        nlpd.mean().item(),
        1 - (residual.square().sum() / (test_y - test_y.mean()).square().sum()).item(),
        model.likelihood.noise.item(),
        seconds,
        mll.evaluations,
        int(failed),
    )


def compare(
    names: Sequence[str] = tuple(CANDIDATES),
    problems: Sequence[str] = tuple(TRAINING),
    sizes: Sequence[int] = (20, 60),
    num_seeds: int = 2,
    jobs: int = -1,
    path: str | os.PathLike[str] | None = None,
) -> DataFrame:
    """Fits every model to every data set; fits that the file already holds are taken from it.

    Args:
        names: Of `CANDIDATES`.
        problems: Of `TRAINING`.
        sizes: Numbers of observations.
        num_seeds: Number of data sets for each problem and size.
        jobs: Processes, as in joblib.
        path: Of a CSV file that receives each fit as soon as it is done; none if None.

    Returns:
        A row for each fit.

    Raises:
        ValueError: the file is not one that this function wrote.
    """
    keys = [
        (name, problem, n, seed)
        for seed in range(num_seeds)
        for problem in problems
        for n in sizes
        for name in names
    ]
    fits = run_with_progress(
        RunFile(Fit, path),
        keys,
        lambda key: delayed(_fit)(*key),
        lambda key: f"{key[1]}, {key[0]}",
        "fits",
        jobs,
    )
    return pd.DataFrame([vars(fit) for fit in fits])


def summarize(fits: DataFrame) -> DataFrame:
    """Means over all data sets of each model, best density first.

    Densities are compared with the median of the models on the same data, and clipped at two nats,
    so that one overconfident fit does not decide.
    """
    data = ["problem", "n", "seed"]
    fits = fits.copy()
    best = fits.groupby(data).r2.transform("max")
    fits["collapsed"] = (fits.r2 < 0.05) & (best > 0.3)
    fits["excess"] = (fits.nlpd - fits.groupby(data).nlpd.transform("median")).clip(-2, 2)
    fits["rank"] = fits.groupby(data).nlpd.rank()
    columns = ["excess", "rank", "r2", "collapsed", "failed", "seconds", "evaluations"]
    table = fits.groupby("model")[columns].agg(
        {c: "median" if c in ("r2", "seconds", "evaluations") else "mean" for c in columns}
    )
    return table.sort_values("excess")


def _best(name: str, problem_name: str, config: BOConfig, seed: int) -> dict[str, object]:
    def make(x: Tensor, y: Tensor) -> SingleTaskGP:
        return SingleTaskGP(x, y, covar_module=_kernel(name, x.shape[-1]))

    history = optimize(make_problem(problem_name, seed), make, config, seed)
    return {
        "model": name,
        "problem": problem_name,
        "seed": seed,
        "best": history.y.max().item(),
        "seconds": sum(history.seconds) / config.num_steps,
        "failures": len(history.failures),
    }


def compare_optimization(
    names: Sequence[str], problems: Sequence[str], num_steps: int, num_seeds: int, jobs: int = -1
) -> DataFrame:
    """Optimises every problem with every model, from the same initial points.

    Args:
        names: Of `CANDIDATES`.
        problems: Of `TRAINING`.
        num_steps: Number of evaluations after the initial points.
        num_seeds: Number of repetitions.
        jobs: Processes, as in joblib.

    Returns:
        Means for each model, best first: the rank of its best value among the models on the same
        problem and seed, the seconds of a step, and the number of failed steps.
    """
    config = BOConfig(num_steps=num_steps)
    tasks = [
        delayed(_best)(name, problem, config, seed)
        for seed in range(num_seeds)
        for problem in problems
        for name in names
    ]
    rows = Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)
    runs = pd.DataFrame(list(track(rows, "runs", total=len(tasks))))
    runs["rank"] = runs.groupby(["problem", "seed"]).best.rank(ascending=False)
    return runs.groupby("model")[["rank", "seconds", "failures"]].mean().sort_values("rank")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints it.

    Args:
        arguments: Of the command line.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="data sets for each problem and size")
    parser.add_argument(
        "--models", nargs="*", default=list(CANDIDATES), choices=CANDIDATES, metavar="MODEL"
    )
    problems = [
        name for name in {**TRAINING, **BENCHMARK} if make_problem(name, 0).num_outputs == 1
    ]
    parser.add_argument(
        "--problems",
        nargs="*",
        default=list(TRAINING),
        choices=problems,
        metavar="PROBLEM",
        help="those of the benchmark, to check",
    )
    parser.add_argument("--optimize", type=int, metavar="STEPS", help="optimise the problems")
    parser.add_argument("--jobs", type=int, default=-1, help="processes")
    parser.add_argument("--csv", help="file for the fits; those it holds are not repeated")
    options = parser.parse_args(arguments)
    names, problems, seeds, jobs = options.models, options.problems, options.seeds, options.jobs
    if options.optimize:
        table = compare_optimization(names, problems, options.optimize, seeds, jobs)
    else:
        fits = compare(names, problems, num_seeds=seeds, jobs=jobs, path=options.csv)
        table = summarize(fits)
    whole = ("display.width", 160, "display.max_rows", None, "display.max_columns", None)
    with pd.option_context(*whole):
        print(table.round(3))


if __name__ == "__main__":
    main()
