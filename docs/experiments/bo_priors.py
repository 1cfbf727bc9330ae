"""How the priors of `gp_deq.bayesopt` were chosen: predictive densities.

For every training problem (`gp_deq.benchmarks.problems.TRAINING`, none of them in the benchmark)
the models are fitted to data as they come up in Bayesian optimisation, half of them spread over the
cube and half close to the best of these, and judged by the negative log predictive density of
held-out points of both kinds. A fit that explains less than 5 % of their variance, where another
model explains more than 30 %, counts as collapsed; the evaluations of the likelihood that it takes
are counted too. ``bo_priors_optimize.py`` judges the same models by optimisation.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from joblib import delayed
from torch import Tensor

from gp_deq.bayesopt.covar_modules import KERNELS, BasePriors, Priors, build
from gp_deq.benchmarks.command import script
from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option
from gp_deq.benchmarks.problems import TRAINING, Problem, known_problem, make_problem
from gp_deq.benchmarks.runs import Key, Row, one_thread, spread
from gp_deq.benchmarks.surrogates import FAILURES

#: Name of a kernel, its priors and its base.
Candidate = tuple[str, Priors | BasePriors, str]


def _log_normal(mode: float, scale: float) -> tuple[float, float]:
    return math.log(mode) + scale**2, scale


def _candidates() -> dict[str, Candidate | None]:
    """Each kernel with the priors of the package, and with one thing changed."""
    result: dict[str, Candidate | None] = {
        "RBF": None,
        "Matérn-5/2": None,
        "Matérn-5/2 scaled": None,
    }
    for base in ("matern", "rbf"):
        for activation in ("relu", "erf"):
            name = f"deq-nngp {activation} over {base}"
            result[name] = "deq-nngp", BasePriors(activation), base
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
            result[name] = kernel, default._replace(**values), "affine"
    return result


#: The models by name; None for BoTorch's kernels with its own priors.
CANDIDATES: Mapping[str, Candidate | None] = _candidates()


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


def make_kernel(name: str, num_dims: int) -> Kernel:
    candidate = CANDIDATES[name]
    if candidate is None:
        plain = get_covar_module_with_dim_scaled_prior(num_dims, use_rbf_kernel=name == "RBF")
        if not name.endswith("scaled"):
            return plain
        # with the prior on the output scale that the kernels of the package have
        return ScaleKernel(
            plain,
            outputscale_prior=LogNormalPrior(0.0, 1.0),
            outputscale_constraint=GreaterThan(1e-6, initial_value=1.0),
        )
    kernel, priors, base = candidate
    return build(KERNELS[kernel][0], priors, ard_num_dims=num_dims, base=base)


class _Counted(ExactMarginalLogLikelihood):
    """Counts its evaluations."""

    evaluations = 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.evaluations += 1
        return super().forward(*args, **kwargs)


@dataclass(frozen=True)
class Comparison(Configuration):
    """The models and the data.

    Args:
        models: Names in `CANDIDATES`.
        problems: Names in `gp_deq.benchmarks.problems`; those of the benchmark, to check.
        sizes: Numbers of observations.
        seeds: Number of data sets for each problem and size.

    Raises:
        ValueError: A model or problem is unknown, or a problem has several outputs.
    """

    models: tuple[str, ...] = option(tuple(CANDIDATES), "Kernel and priors.", shown="all")
    problems: tuple[str, ...] = option(tuple(TRAINING), "Problem.", shown="the training problems")
    sizes: tuple[int, ...] = option((20, 60), "Number of observations.")
    seeds: int = option(2, "Data sets for each problem and size.")

    def __post_init__(self) -> None:
        check_names(self.models, self.problems)

    @property
    def keys(self) -> list[Key]:
        """Model, problem, size and seed of every fit."""
        return [
            (name, problem, n, seed)
            for seed in range(self.seeds)
            for problem in self.problems
            for n in self.sizes
            for name in self.models
        ]


def check_names(models: Sequence[str], problems: Sequence[str]) -> None:
    """Refuse models and problems that cannot be compared.

    Raises:
        ValueError: A model or problem is unknown, or a problem has several outputs.
    """
    for name in models:
        if name not in CANDIDATES:
            raise ValueError(f"no model {name!r}; there are {'; '.join(CANDIDATES)}.")
    for name in problems:
        if known_problem(name).num_outputs > 1:
            raise ValueError(f"{name} has several outputs.")


@dataclass(frozen=True)
class Fit(Row):
    """A model fitted to a data set; a row of the CSV file.

    Args:
        model: One of `CANDIDATES`.
        problem: Its name.
        n: Number of observations.
        seed: Seed of the data.
        nlpd: Mean negative log predictive density of the held-out points, in nats.
        r2: Share of their variance that is explained.
        noise: Variance of the noise, learned.
        seconds: Seconds of the fit.
        evaluations: Evaluations of the likelihood.
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


@one_thread()
def _fit(name: str, problem_name: str, n: int, seed: int) -> Fit:
    torch.manual_seed(seed)
    problem = make_problem(problem_name, seed)
    x, y, test_x, test_y = training_data(problem, n, seed)
    model = SingleTaskGP(x, y, covar_module=make_kernel(name, x.shape[-1]), outcome_transform=None)
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


def summarize(fits: pd.DataFrame) -> pd.DataFrame:
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


def _run(config: Comparison, keys: Iterator[Key], tell: Callable[[str], None]) -> Iterator[Fit]:
    return spread(delayed(_fit)(*key) for key in keys)


def _tables(config: Comparison, fits: Sequence[Fit]) -> Iterator[Table]:
    if fits:
        yield Table.of("Fits", summarize(pd.DataFrame(map(vars, fits))), ".3f")


EXPERIMENT = Experiment(
    name="bo-priors", configuration=Comparison, row=Fit, run=_run, tables=_tables
)


if __name__ == "__main__":
    script(__file__)
