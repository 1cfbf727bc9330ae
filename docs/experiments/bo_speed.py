"""Seconds of a fit and of a step of Bayesian optimisation with each surrogate.

The surrogates take turns, so what slows the machine for a while slows all; ratios are those of
medians. A fit learns the hyperparameters from a random tanh network of 20 inputs; a step fits the
function of Levy of 10 inputs and maximises LogEI with the budget of ``gp-deq benchmark bo``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from gp_deq.benchmarks.bo import BOConfig, maximize_acquisition
from gp_deq.benchmarks.command import script
from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option
from gp_deq.benchmarks.problems import Problem, make_problem
from gp_deq.benchmarks.runs import Key, Row
from gp_deq.benchmarks.surrogates import SURROGATES, Surrogate, fit_surrogate
from gp_deq.benchmarks.timing import conditions, interleaved_times

#: The surrogate to which the others are compared.
DEFAULT = "BoTorch default"
_SURROGATES = ("DEQ-NNGP", "DEQ-NNGP affine", "DEKer", DEFAULT)


@dataclass(frozen=True)
class Sizes(Configuration):
    """How much is measured.

    Args:
        surrogates: Names of surrogates, the default of BoTorch among them.
        rounds: How often each surrogate is timed, after a round that is not.
        fit_size: Observations of 20 inputs for the fit.
        step_size: Observations of 10 inputs for the step.
    """

    surrogates: tuple[str, ...] = option(_SURROGATES, "Surrogate.")
    rounds: int = option(5, "How often each is timed.")
    fit_size: int = option(200, "Observations for the fit.")
    step_size: int = option(50, "Observations for the step.")

    def __post_init__(self) -> None:
        for name in self.surrogates:
            if SURROGATES.get(name) is None:
                raise ValueError(f"{name!r} is not a surrogate that is fitted.")
        if DEFAULT not in self.surrogates:
            raise ValueError(f"{DEFAULT} has to be among the surrogates.")

    @property
    def sizes(self) -> dict[str, int]:
        """Observations of each measurement."""
        return {"fit": self.fit_size, "step": self.step_size}

    @property
    def keys(self) -> list[Key]:
        """Measurement, surrogate and number of observations of every row."""
        return [(what, name, n) for what, n in self.sizes.items() for name in self.surrogates]


@dataclass(frozen=True)
class Time(Row):
    """A measurement; a row of the CSV file.

    Args:
        what: "fit" or "step".
        surrogate: Its name.
        n: Number of observations.
        num_dims: Number of inputs.
        seconds: Median of the times.
        ratio: To BoTorch's default.
    """

    what: str
    surrogate: str
    n: int
    num_dims: int
    seconds: float
    ratio: float

    keys = ("what", "surrogate", "n")


def _make(name: str) -> Surrogate:
    make = SURROGATES[name]
    assert make is not None
    return make


def _fit(name: str, problem: Problem, x: Tensor, y: Tensor) -> None:
    torch.manual_seed(0)
    fit_surrogate(_make(name), x, y)


def _step(name: str, problem: Problem, x: Tensor, y: Tensor) -> None:
    torch.manual_seed(0)
    model = fit_surrogate(_make(name), x, y)
    maximize_acquisition(model, problem, x, y, BOConfig())


def _data(name: str, num_observations: int) -> tuple[Problem, Tensor, Tensor]:
    problem = make_problem(name, seed=0)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(num_observations, problem.num_dims, dtype=torch.float64, generator=generator)
    return problem, x, problem.evaluate(x)


def _run(config: Sizes, keys: Iterator[Key], tell: Callable[[str], None]) -> Iterator[Time]:
    missing = {what for what, *_ in keys}
    functions = {"fit": ("tanh network 20", _fit), "step": ("Levy 10", _step)}
    for what in config.sizes:
        if what not in missing:
            continue
        name, function = functions[what]
        n = config.sizes[what]
        problem, x, y = _data(name, n)
        steps = {name: partial(function, name, problem, x, y) for name in config.surrogates}
        found = interleaved_times(steps, config.rounds, on_step=tell)
        medians = {name: median(times) for name, times in found.items()}
        for name, seconds in medians.items():
            yield Time(what, name, n, problem.num_dims, seconds, seconds / medians[DEFAULT])


def _tables(config: Sizes, times: Sequence[Time]) -> Iterator[Table | str]:
    yield conditions()
    for what in dict.fromkeys(time.what for time in times):
        group = [time for time in times if time.what == what]
        title = f"{what}, n = {group[0].n}, d = {group[0].num_dims}"
        rows = [[time.surrogate, f"{time.seconds:.3f}", f"{time.ratio:.2f}"] for time in group]
        yield Table(title, ["surrogate", "seconds", "ratio"], rows, what)


EXPERIMENT = Experiment(
    name="bo-speed", configuration=Sizes, row=Time, run=_run, tables=_tables, timing=True
)


if __name__ == "__main__":
    script(__file__)
