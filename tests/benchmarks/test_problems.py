"""The objectives: their optimum is in the cube and where they say, and a seed fixes them."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("botorch")

from botorch.test_functions import synthetic

from gp_deq.benchmarks.problems import BENCHMARK, TRAINING, make_problem

NAMES = (*BENCHMARK, *TRAINING)
SHIFTED = [name for name in NAMES if hasattr(synthetic, name.split()[0]) and "Traj" not in name]


def _points(num_dims: int, n: int = 50) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, num_dims, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_values(name: str) -> None:
    problem = make_problem(name, 3)
    assert problem.name == name and name.endswith(f" {problem.num_dims}")
    x = _points(problem.num_dims)
    y = problem.evaluate(x)
    assert y.shape == (50, problem.num_outputs) and y.dtype == torch.float64
    assert y.isfinite().all() and (y.std(0) > 0).all()
    if problem.best is not None:
        assert y.max() <= problem.best
    one_by_one = torch.cat([problem.evaluate(row) for row in x.split(1)])
    torch.testing.assert_close(one_by_one, y)
    torch.testing.assert_close(make_problem(name, 3).evaluate(x), y, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("BraninCurrin 2",)])
def test_seed_changes_all_that_is_drawn(name: str) -> None:
    first, second = make_problem(name, 0), make_problem(name, 1)
    x = _points(first.num_dims)
    drawn = not name.startswith(("TrajectoryPlanning", "DTLZ2"))
    assert torch.equal(first.evaluate(x), second.evaluate(x)) != drawn


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SHIFTED)
def test_best_value_is_attained_in_the_cube(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = getattr(synthetic, name.split()[0])
    problem = make_problem(name, seed)
    seen: list[tuple[Tensor, Tensor]] = []
    original = function._evaluate_true

    def watching(self: synthetic.SyntheticTestFunction, x: Tensor) -> Tensor:
        seen.append((x, torch.tensor(self._optimizers, dtype=torch.float64)))
        return original(self, x)

    monkeypatch.setattr(function, "_evaluate_true", watching)
    problem.evaluate(torch.tensor([[0.0], [1.0]]).expand(2, problem.num_dims).double())
    ((low, high), optima) = seen[0]
    optimum = (optima[0] - low) / (high - low)
    # nowhere special: in the cube, and not in its middle
    assert optimum.min() >= -1e-9 and optimum.max() <= 1 + 1e-9
    assert (optimum - 0.5).abs().max() > 0.01
    assert problem.best is not None
    found = problem.evaluate(optimum.unsqueeze(0)).item()
    assert found == pytest.approx(problem.best, rel=1e-4, abs=1e-4)


def test_polynomial_depends_on_ten_inputs_and_is_concave() -> None:
    problem = make_problem("Polynomial 200", 0)
    point = torch.full((1, 200), 0.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(problem.evaluate(point).sum(), point)
    assert (gradient != 0).sum() == 10
    hessian = torch.autograd.functional.hessian(
        lambda x: problem.evaluate(x.unsqueeze(0)).sum(), point.detach()[0]
    )
    assert torch.linalg.eigvalsh(hessian).max() < 1e-12
    # a quadratic: its maximum solves a linear system
    optimum = point.detach()[0] - torch.linalg.pinv(hessian) @ gradient[0]
    assert optimum.min() >= 0 and optimum.max() <= 1
    assert problem.evaluate(optimum.unsqueeze(0)).item() == pytest.approx(0.0, abs=1e-12)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"no problem 'Branin'; there are Branin 2"):
        make_problem("Branin", 0)
