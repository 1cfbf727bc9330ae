"""Objectives on the unit cube for the benchmarks of Bayesian optimisation, to be maximised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

try:
    from botorch.test_functions import multi_objective, synthetic
    from botorch.test_functions.base import BaseTestProblem
except ImportError as error:
    raise ImportError('the problems come from BoTorch: pip install "gp_deq[bo]"') from error

__all__ = ["BENCHMARK", "TRAINING", "Problem", "known_problem", "make_problem"]


@dataclass(frozen=True)
class Problem:
    """An objective on the unit cube.

    Args:
        name: With the number of inputs.
        num_dims: Number of inputs.
        evaluate: Maps ``n x d`` in the unit cube to ``n x m``; larger is better. In float64.
        best: The largest value; None if it is not known, or with several outputs.
        reference_point: The reference point of the hypervolume, with several outputs.
    """

    name: str
    num_dims: int
    evaluate: Callable[[Tensor], Tensor]
    best: float | None = None
    reference_point: Tensor | None = None

    @property
    def num_outputs(self) -> int:
        """Number of objectives."""
        return 1 if self.reference_point is None else len(self.reference_point)


#: Sides of the part of its box on which a shifted function is evaluated, as shares of the box.
_SIDE = 0.6
#: Makes the objective of a name from the random numbers of a seed.
Maker = Callable[[str, torch.Generator], Problem]


def make_problem(name: str, seed: int) -> Problem:
    """A problem by its name; its shift or its network is drawn from the seed.

    Args:
        name: One of `BENCHMARK` or `TRAINING`.
        seed: Seed.

    Raises:
        ValueError: Unknown name.
    """
    makers = {**BENCHMARK, **TRAINING}
    if name not in makers:
        raise ValueError(f"no problem {name!r}; there are {', '.join(makers)}.")
    return makers[name](name, torch.Generator().manual_seed(seed))


@cache
def known_problem(name: str) -> Problem:
    """A problem by its name, for what does not depend on the seed.

    Args:
        name: One of `BENCHMARK` or `TRAINING`.

    Raises:
        ValueError: Unknown name.
    """
    return make_problem(name, 0)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def _shifted(make: Callable[[], synthetic.SyntheticTestFunction]) -> Maker:
    """A function of BoTorch on a random part of its box, with sides of 0.6, that has an optimum.

    On the whole box the optimum of several is the middle, which a centred kernel singles out.
    """

    def maker(name: str, generator: torch.Generator) -> Problem:
        function = make().to(torch.float64)
        low, high = function.get_buffer("bounds")
        optimizers = function._optimizers
        assert optimizers is not None
        optimum = torch.tensor(optimizers[0], dtype=torch.float64)
        relative = (optimum - low) / (high - low)
        first = (relative - _SIDE).clamp_min(0.0)
        last = relative.clamp_max(1 - _SIDE)
        start = first + (last - first) * _uniform(low.shape, generator)

        def evaluate(x: Tensor) -> Tensor:
            return -function._evaluate_true(low + (high - low) * (start + _SIDE * x)).unsqueeze(-1)

        return Problem(name, function.dim, evaluate, best=-float(function.optimal_value))

    return maker


def _plain(make: Callable[[], BaseTestProblem]) -> Maker:
    """A function of BoTorch as it is, on its box."""

    def maker(name: str, generator: torch.Generator) -> Problem:
        function = make().to(torch.float64)
        low, high = function.get_buffer("bounds")

        def evaluate(x: Tensor) -> Tensor:
            value = -function._evaluate_true(low + (high - low) * x)
            return value.reshape(len(x), -1)

        if isinstance(function, multi_objective.MultiObjectiveTestProblem):
            reference_point = -function.get_buffer("ref_point")
            return Problem(name, function.dim, evaluate, reference_point=reference_point)
        assert isinstance(function, synthetic.SyntheticTestFunction)
        return Problem(name, function.dim, evaluate, best=-float(function.optimal_value))

    return maker


def _network(num_dims: int, activation: Callable[[Tensor], Tensor], depth: int = 3) -> Maker:
    """A random network of three hidden layers of 256 units: the home ground of network kernels."""

    def maker(name: str, generator: torch.Generator) -> Problem:
        widths = [num_dims] + [256] * depth + [1]
        # inputs of the cube have coordinates of variance 1/12 around its middle
        gains = [24.0] + [2.0] * depth
        weights = [
            _normal((wide, narrow), generator) * (gain / narrow) ** 0.5
            for narrow, wide, gain in zip(widths[:-1], widths[1:], gains, strict=True)
        ]
        biases = [0.3 * _normal((wide,), generator) for wide in widths[1:]]

        def evaluate(x: Tensor) -> Tensor:
            x = x - 0.5
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                x = activation(x @ weight.T + bias)
            return x @ weights[-1].T + biases[-1]

        return Problem(name, num_dims, evaluate)

    return maker


def _polynomial(num_dims: int, num_relevant: int = 10) -> Maker:
    """Squares and products of a few of many inputs: a concave quadratic and three interactions."""

    def maker(name: str, generator: torch.Generator) -> Problem:
        relevant = torch.randperm(num_dims, generator=generator)[:num_relevant]
        optimum = 0.2 + 0.6 * _uniform((num_relevant,), generator)
        strength = 0.5 + _uniform((num_relevant,), generator)

        def evaluate(x: Tensor) -> Tensor:
            z = x[:, relevant] - optimum
            # each product is at most half of its squares, so the optimum stays
            products = (z[:, :3] * z[:, 3:6]).sum(-1, keepdim=True)
            return -(strength * z.square()).sum(-1, keepdim=True) - 0.5 * products

        return Problem(name, num_dims, evaluate, best=0.0)

    return maker


#: The problems of ``gp-deq benchmark bo``.
BENCHMARK: Mapping[str, Maker] = {
    "Branin 2": _shifted(synthetic.Branin),
    "Hartmann 6": _shifted(lambda: synthetic.Hartmann(dim=6)),
    "Levy 10": _shifted(lambda: synthetic.Levy(dim=10)),
    "Ackley 10": _shifted(lambda: synthetic.Ackley(dim=10)),
    "Rosenbrock 10": _shifted(lambda: synthetic.Rosenbrock(dim=10)),
    "StyblinskiTang 20": _shifted(lambda: synthetic.StyblinskiTang(dim=20)),
    "TrajectoryPlanning 30": _plain(synthetic.TrajectoryPlanning),
    "ReLU network 20": _network(20, torch.relu),
    "tanh network 20": _network(20, torch.tanh),
    "ReLU network 200": _network(200, torch.relu),
    "tanh network 200": _network(200, torch.tanh),
    "Polynomial 200": _polynomial(200),
    "BraninCurrin 2": _plain(multi_objective.BraninCurrin),
    "DTLZ2 6": _plain(lambda: multi_objective.DTLZ2(dim=6, num_objectives=2)),
}

#: The problems by which priors are chosen; none of them is in `BENCHMARK`.
TRAINING: Mapping[str, Maker] = {
    "SixHumpCamel 2": _shifted(synthetic.SixHumpCamel),
    "Hartmann 3": _shifted(lambda: synthetic.Hartmann(dim=3)),
    "Griewank 6": _shifted(lambda: synthetic.Griewank(dim=6, bounds=[(-10.0, 10.0)] * 6)),
    "Shekel 4": _shifted(lambda: synthetic.Shekel()),
    "DixonPrice 10": _shifted(lambda: synthetic.DixonPrice(dim=10)),
    "Powell 16": _shifted(lambda: synthetic.Powell(dim=16)),
    "Rastrigin 12": _shifted(lambda: synthetic.Rastrigin(dim=12)),
    "SiLU network 15": _network(15, torch.nn.functional.silu, depth=2),
    "sine network 60": _network(60, torch.sin, depth=1),
    "Polynomial 60": _polynomial(60, num_relevant=6),
}
