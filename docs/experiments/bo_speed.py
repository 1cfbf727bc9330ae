"""Seconds of a fit and of a step with each surrogate: ``python -m gp_deq.benchmarks.bo_speed``.

The surrogates take turns, so what slows the machine for a while slows all; ratios are those of
medians. A fit learns the hyperparameters from a random tanh network of 20 inputs; a step fits the
function of Levy of 10 inputs and maximises LogEI with the budget of ``gp-deq benchmark bo``.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor

from gp_deq.benchmarks.bo import (
    SURROGATES,
    BOConfig,
    Surrogate,
    fit_surrogate,
    maximize_acquisition,
)
from gp_deq.benchmarks.problems import Problem, make_problem
from gp_deq.benchmarks.speed import conditions, interleaved_times

__all__ = ["DEFAULT", "main", "measure"]

#: The surrogate to which the others are compared.
DEFAULT = "BoTorch default"
_SURROGATES = ("DEQ-NNGP", "DEQ-NNGP erf", "DEKer", DEFAULT)


def _make(name: str) -> Surrogate:
    make = SURROGATES[name]
    assert make is not None
    return make


def _fit(name: str, x: Tensor, y: Tensor) -> None:
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


def measure(
    rounds: int = 5, fit_size: int = 200, step_size: int = 50
) -> Mapping[str, Mapping[str, float]]:
    """Time the fits and the steps.

    Args:
        rounds: How often each is timed, after a round that is not.
        fit_size: Observations of 20 inputs for the fit.
        step_size: Observations of 10 inputs for the step.

    Returns:
        For each measurement the median seconds by surrogate.
    """
    _, x, y = _data("tanh network 20", fit_size)
    problem, x10, y10 = _data("Levy 10", step_size)
    sections = {
        f"fit, n = {fit_size}, d = 20": {name: partial(_fit, name, x, y) for name in _SURROGATES},
        f"step, n = {step_size}, d = 10": {
            name: partial(_step, name, problem, x10, y10) for name in _SURROGATES
        },
    }
    return {
        title: {name: median(times) for name, times in interleaved_times(steps, rounds).items()}
        for title, steps in sections.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the medians and their ratios to BoTorch's default.

    Args:
        arguments: Command-line arguments; those of the process if None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gp_deq.benchmarks.bo_speed",
        description="Seconds of a fit and of a step of Bayesian optimisation.",
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    parser.add_argument("--fit-size", type=int, default=200, help="observations for the fit")
    parser.add_argument("--step-size", type=int, default=50, help="observations for the step")
    options = parser.parse_args(arguments)
    print(conditions())
    results = measure(options.rounds, options.fit_size, options.step_size)
    for title, seconds in results.items():
        print(title)
        for name, value in seconds.items():
            print(f"  {name:16s} {value:8.3f} s   {value / seconds[DEFAULT]:6.2f}")


if __name__ == "__main__":
    main()
