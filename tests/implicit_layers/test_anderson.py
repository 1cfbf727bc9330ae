"""Anderson's acceleration: fixed points that are known, and what makes it fail."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gp_deq.equilibrium import SolverMonitor
from gp_deq.implicit_layers.anderson import anderson


def solve(layer, start: Tensor, tolerance: float = 1e-12, limit: int = 500, damping: float = 1.0):
    monitor = SolverMonitor()
    return anderson(layer, start, tolerance, limit, monitor, damping), monitor.report()


def matrix(norm: float, n: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(n, n, dtype=torch.float64, generator=generator)
    return norm * drawn / torch.linalg.matrix_norm(drawn, 2)


def test_linear_problems_take_fewer_steps_than_the_iteration() -> None:
    vectors = torch.linalg.qr(matrix(1.0)).Q
    W = vectors * torch.linspace(-0.95, 0.95, 12).double() @ vectors.T
    b = torch.arange(24, dtype=torch.float64).reshape(2, 12)
    found, report = solve(lambda z: z @ W.T + b, torch.zeros_like(b))
    expected = torch.linalg.solve(torch.eye(12).double() - W, b.T).T
    # the residual is 1e-12 relative, and the inverse amplifies it by 1 / (1 - 0.95) at most
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
    z, steps = torch.zeros_like(b), 0
    while (z - expected).norm() > 1e-10 * expected.norm():
        z, steps = z @ W.T + b, steps + 1
    assert report.converged and report.iterations < steps / 2


def test_converges_where_the_plain_iteration_diverges() -> None:
    """A negative definite matrix of norm 20, damped."""
    drawn = matrix(1.0)
    W = -20 * drawn @ drawn.T
    b = torch.ones(1, 12, dtype=torch.float64)
    found, report = solve(lambda z: (z @ W + b).tanh(), torch.zeros_like(b), damping=2 / 22)
    assert report.converged
    assert torch.allclose((found @ W + b).tanh(), found, atol=1e-11)


def test_problems_do_not_touch_each_other() -> None:
    """One in a hundred is not a number; the others come out as by themselves."""
    W = matrix(0.9)
    b = torch.arange(36, dtype=torch.float64).reshape(3, 12).cos()

    def layer(z: Tensor) -> Tensor:
        return (z @ W.T + b[: len(z)]).tanh()

    together, _ = solve(layer, torch.zeros_like(b))
    alone, _ = solve(layer, torch.zeros_like(b[:1]))
    assert torch.allclose(together[:1], alone, atol=1e-11)

    def broken(z: Tensor) -> Tensor:
        value = layer(z)
        value[1] = math.nan
        return value

    partly, report = solve(broken, torch.zeros_like(b), limit=100)
    assert not report.converged and report.residual == math.inf
    assert torch.allclose(partly[[0, 2]], together[[0, 2]], atol=1e-10)


def test_no_fixed_point_is_reported() -> None:
    start = torch.zeros(1, 2, dtype=torch.float64)
    _, report = solve(lambda z: z + 1, start, limit=50)
    assert not report.converged and report.iterations == 50 and report.residual > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_tiny_and_huge_problems(dtype: torch.dtype, scale: float) -> None:
    """Squares of these overflow, or vanish, in float32."""
    b = scale * torch.linspace(-1, 1, 6, dtype=dtype).reshape(1, -1)
    found, report = solve(lambda z: b - 0.9 * z.flip(-1), torch.zeros_like(b), 1e-6)
    # z = b - 0.9 flip(z), and b is odd: z (1 - 0.9) = b
    assert report.converged and torch.allclose(found / scale, 10 * b / scale, rtol=1e-4)


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 4, 3), (2, 0)])
def test_shapes(shape: tuple[int, ...]) -> None:
    start = torch.zeros(shape, dtype=torch.float64)
    found, report = solve(lambda z: 0.5 * z + 1, start)
    assert found.shape == shape and report.converged
    assert torch.allclose(found, torch.full_like(found, 2.0))


def test_memory_does_not_grow_with_iterations() -> None:
    """Steps of 4 MB; a hundred kept iterates would be 400 MB more than ten."""
    peaks = []
    for limit in (10, 100):
        held: list[int] = []

        def layer(z: Tensor, held: list[int] = held) -> Tensor:
            held.append(_resident())
            return (z + 1).sin() * 1.5

        solve(layer, torch.zeros(1, 500_000, dtype=torch.float64), 1e-300, limit)
        peaks.append(max(held))
    assert peaks[1] - peaks[0] < 100e6


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096
