"""First and second derivatives of every kernel, and where a derivative does not exist."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable

import pytest
import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from gp_deq import DEKerKernel, DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel
from gp_deq.activations import Activation, Hermite
from gp_deq.equilibrium import Recomputed, SolverMonitor, pair_matrix

CLASSES = [DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel]
EQUILIBRIUM = [DEQNNGPKernel, DEQNTKKernel]
TRAINED = ["all", "hidden", "recurrent", "preactivation"]
TANH = Hermite(torch.tanh, 24, lipschitz=1.0)
ACTIVATIONS = ["relu", "erf", "sin", "gelu", TANH, "leaky_relu"]
NAMES = ["relu", "erf", "sin", "gelu", "tanh", "leaky_relu"]
DTYPES = [torch.float64, torch.float32]

every_class = pytest.mark.parametrize("cls", CLASSES)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS, ids=NAMES)
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])


def points(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def build(
    cls: type[Kernel],
    activation: str | Activation = "relu",
    fraction: float = 0.6,
    bias: float = 0.3,
    dtype: torch.dtype = torch.float64,
    **kwargs,
) -> Kernel:
    kernel = cls(activation, **kwargs).to(dtype)
    kernel.lengthscale = torch.full_like(kernel.lengthscale, 0.8)
    kernel.weight_variance = fraction * kernel.activation.critical_weight_variance
    kernel.bias_variance = bias
    return kernel


def as_function(
    kernel: Kernel, diag: bool = False, same: bool = False
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The kernel as a function of inputs and raw hyperparameters, and the latter's values."""
    names = [name for name, _ in kernel.named_parameters()]
    values = tuple(value.detach().clone().requires_grad_() for value in kernel.parameters())

    def function(*arguments: Tensor) -> Tensor:
        inputs, raw = arguments[: -len(names)], arguments[-len(names) :]
        pair = (inputs[0], inputs[0]) if same else inputs
        return functional_call(kernel, dict(zip(names, raw)), pair, {"diag": diag})

    # the lazy tensor that __call__ returns is for models; forward is what it evaluates
    kernel_forward = type(kernel).forward
    kernel.__class__ = type(type(kernel).__name__, (type(kernel),), {"__call__": kernel_forward})
    return function, values


def check(kernel: Kernel, *inputs: Tensor, second: bool = True, **kwargs) -> None:
    function, raw = as_function(kernel, **kwargs)
    arguments = (*(x.clone().requires_grad_() for x in inputs), *raw)
    assert gradcheck(function, arguments, eps=1e-6, atol=1e-7, rtol=1e-5, fast_mode=True)
    if second:
        assert gradgradcheck(function, arguments, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True)


# ------------------------------------------------------------------------------------------
# Finite differences
# ------------------------------------------------------------------------------------------


@every_class
@every_activation
def test_rectangle(cls: type[Kernel], activation: str | Activation) -> None:
    check(build(cls, activation), points(4, 2), points(3, 2, seed=1))


@every_class
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_diagonal_pairs(cls: type[Kernel], activation: str) -> None:
    check(build(cls, activation), points(3, 2), points(3, 2, seed=1), diag=True)


@every_class
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_variances(cls: type[Kernel], activation: str) -> None:
    """diag=True of equal inputs, where both arguments move together."""
    check(build(cls, activation), points(4, 2), diag=True, same=True)


@pytest.mark.parametrize("cls", [DEQNNGPKernel, NNGPKernel])
@every_activation
def test_square_of_smooth_kernels(cls: type[Kernel], activation: str | Activation) -> None:
    """Equal inputs: once differentiable, for ReLU too; twice for smooth activations."""
    kernel = build(cls, activation)
    check(kernel, points(4, 2), same=True, second=not kernel.activation.homogeneous)


@every_class
@pytest.mark.parametrize("activation", ["relu", "erf", TANH], ids=["relu", "erf", "tanh"])
def test_batches(cls: type[Kernel], activation: str | Activation) -> None:
    """Of inputs and of hyperparameters, broadcast against each other."""
    kernel = build(cls, activation, batch_shape=torch.Size([2]), ard_num_dims=2, center=0.25)
    check(kernel, points(1, 2, 2), points(2, 2, 2, seed=1))


@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("trained", TRAINED[1:])
@pytest.mark.parametrize("cls", [DEQNTKKernel, NTKKernel])
def test_conventions(cls: type[Kernel], trained: str, activation: str) -> None:
    check(build(cls, activation, trained=trained), points(3, 2), points(2, 2, seed=1))


@pytest.mark.parametrize("cls", [NNGPKernel, NTKKernel])
def test_injection_and_depth(cls: type[Kernel]) -> None:
    kernel = build(cls, "relu", fraction=1.3, depth=5, input_injection=True)
    check(kernel, points(3, 2), points(2, 2, seed=1))


@pytest.mark.parametrize("cls", EQUILIBRIUM)
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_close_to_critical(cls: type[Kernel], activation: str) -> None:
    """At .999999 of the critical weight variance: by the inputs, the bias and the lengthscale,
    and by w itself with a step that stays inside the region."""
    kernel = build(cls, activation, fraction=0.999999, bias=0.3)
    x1, x2 = points(3, 2), points(2, 2, seed=1)
    scale = kernel.forward(x1, x1, diag=True).mean().item()
    w = kernel.weight_variance.detach()
    gap = kernel.activation.critical_weight_variance - w.item()

    def function(
        x1: Tensor, x2: Tensor, lengthscale: Tensor, bias: Tensor, shift: Tensor
    ) -> Tensor:
        z1, z2 = (x / (lengthscale * 2**0.5) for x in (x1, x2))
        exact = kernel.center, lengthscale.detach(), x1.detach(), x2.detach()
        values = [w + gap * shift, bias, *exact]
        return kernel._evaluate(z1, z2, values, SolverMonitor()) / scale

    arguments = [x1, x2, kernel.lengthscale.detach(), kernel.bias_variance.detach()]
    arguments.append(torch.zeros(1, 1, dtype=torch.float64))
    leaves = tuple(value.clone().requires_grad_() for value in arguments)
    assert gradcheck(function, leaves, eps=1e-5, atol=1e-6, rtol=1e-4, fast_mode=True)
    assert gradgradcheck(function, leaves, eps=1e-5, atol=1e-5, rtol=1e-3)


# ------------------------------------------------------------------------------------------
# The fast path against the reference
# ------------------------------------------------------------------------------------------


def gradients(value: Tensor, upstream: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((value * upstream).sum(), leaves))


@pytest.mark.parametrize("cls", EQUILIBRIUM)
@every_activation
@pytest.mark.parametrize("fraction", [0.01, 0.6, 0.995])
@pytest.mark.parametrize("shape", ["square", "rectangle", "batch", "tiles"])
def test_fast_path_and_reference(
    cls: type[Kernel], activation: str | Activation, fraction: float, shape: str
) -> None:
    check_fast_path(build(cls, activation, fraction, ard_num_dims=3), fraction, shape)


@pytest.mark.parametrize("trained", TRAINED[1:])
@every_activation
@pytest.mark.parametrize("shape", ["square", "rectangle"])
def test_fast_path_of_tangent_kernels(
    trained: str, activation: str | Activation, shape: str
) -> None:
    kernel = build(DEQNTKKernel, activation, 0.9, ard_num_dims=3, trained=trained)
    check_fast_path(kernel, 0.9, shape)


def check_fast_path(kernel: Kernel, fraction: float, shape: str) -> None:
    if shape == "batch":
        kernel = kernel.expand_batch(2, 2)
        kernel.raw_weight_variance.data = kernel.raw_weight_variance.data.contiguous()
        kernel.raw_weight_variance.data[1, 0] -= 1.0
    leading = {"batch": (2, 1, 9), "tiles": (300,)}.get(shape, (12,))
    x1 = points(*leading, 3).requires_grad_()
    x2 = points(*leading[:-1], 7, 3, seed=1).requires_grad_()
    symmetric = shape in ("square", "tiles")
    pair = (x1, x1) if symmetric else (x1, x2)
    leaves = [x1, *([] if symmetric else [x2]), *kernel.parameters()]

    fast = kernel.forward(*pair)
    upstream = points(*fast.shape, seed=2)
    monitor = SolverMonitor()
    reference = kernel._pair_function(monitor)
    z1, z2 = kernel._scale(x1), None if symmetric else kernel._scale(x2)
    values = kernel.weight_variance, kernel.bias_variance
    slow = pair_matrix(lambda *given: Recomputed(reference, given), reference, z1, z2, values)
    assert monitor.report().converged and kernel.solver_report.converged
    assert not isinstance(kernel._pair_map(SolverMonitor(), *values), Recomputed)
    accuracy = 1e-13 / (1 - fraction)
    torch.testing.assert_close(fast, slow, rtol=0, atol=accuracy * slow.abs().max().item())
    found = gradients(slow, upstream, leaves)
    for actual, expected in zip(gradients(fast, upstream, leaves), found, strict=True):
        assert actual.shape == expected.shape
        error = (actual - expected).abs().max() / expected.abs().max()
        assert error < 1e-8
    if not symmetric:
        # an acquisition function asks for this one alone
        (alone,) = gradients(kernel.forward(x1, x2.detach()), upstream, [x1])
        assert (alone - found[0]).abs().max() / found[0].abs().max() < 1e-8


@pytest.mark.parametrize("activation", ["gelu", "erf"])
def test_far_out_tangent_kernels_take_the_reference(activation: str) -> None:
    """Where squared distances to rounding of the variances are not enough."""
    kernel = build(DEQNTKKernel, activation)
    x = points(1, 3, 2)
    values = kernel.weight_variance.unsqueeze(0), kernel.bias_variance.unsqueeze(0)
    for distance, known in ((50.0, True), (1000.0, False)):
        pairs = kernel._pair_map(SolverMonitor(), *values)
        assert (pairs.inputs(kernel._scale(distance * x), None) is not None) is known


@pytest.mark.parametrize("cls", EQUILIBRIUM)
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_graph_of_the_backward_pass_changes_nothing(cls: type[Kernel], activation: str) -> None:
    """create_graph=True takes another way, with the same result."""
    kernel, x = build(cls, activation), points(6, 2).requires_grad_()
    leaves = [x, *kernel.parameters()]
    once = torch.autograd.grad(kernel.forward(x, x).square().sum(), leaves)
    again = torch.autograd.grad(kernel.forward(x, x).square().sum(), leaves, create_graph=True)
    for first, second in zip(once, again, strict=True):
        torch.testing.assert_close(first, second.detach(), rtol=1e-9, atol=1e-10)


# ------------------------------------------------------------------------------------------
# Where derivatives do not exist, or formulas divide zero by zero
# ------------------------------------------------------------------------------------------


def degenerate_points(dtype: torch.dtype) -> Tensor:
    """Duplicates, zeros, antipodes, collinear rows."""
    rows = [[0.75, -0.5], [0.75, -0.5], [0.0, 0.0], [-0.75, 0.5], [1.5, -1.0], [-3.0, 2.0]]
    rows += [[0.0, 0.0], [0.0, 1e-3], [0.0, -1e-3], [0.75, -0.5 + 1e-6]]
    return torch.tensor(rows, dtype=dtype)


@every_class
@pytest.mark.parametrize("bias", [0.0, 0.3])
@both_dtypes
@every_activation
def test_finite_at_degenerate_inputs(
    cls: type[Kernel], bias: float, dtype: torch.dtype, activation: str | Activation
) -> None:
    kernel = build(cls, activation, bias=bias, dtype=dtype)
    parameters = list(kernel.parameters())
    for same, diag in itertools.product((True, False), (True, False)):
        x1 = degenerate_points(dtype).requires_grad_()
        x2 = x1 if same else degenerate_points(dtype).flip(0).requires_grad_()
        leaves = [x1, *parameters] if same else [x1, x2, *parameters]
        value = kernel.forward(x1, x2, diag=diag)
        assert bool(value.isfinite().all())
        first = torch.autograd.grad(value.sum(), leaves, create_graph=True)
        assert all(bool(gradient.isfinite().all()) for gradient in first)
        plain = torch.autograd.grad(kernel.forward(x1, x2, diag=diag).sum(), leaves)
        assert all(bool(gradient.isfinite().all()) for gradient in plain)


@every_class
@every_activation
def test_zero_input_on_one_side(cls: type[Kernel], activation: str | Activation) -> None:
    """A block of the matrix of all inputs together."""
    kernel = build(cls, activation, bias=0.0)
    x = torch.cat((torch.zeros(1, 2, dtype=torch.float64), points(4, 2)))
    whole = kernel.forward(x, x)
    for rows, columns in ((x[:1], x[1:]), (x[1:], x[:1]), (x[:1], x[:1]), (x, x[1:])):
        part = kernel.forward(rows, columns)
        first, second = len(x) - len(rows) if len(rows) == 4 else 0, int(len(columns) == 4)
        expected = whole[first : first + len(rows), second : second + len(columns)]
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-14 * whole.max().item())


@every_class
@both_dtypes
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_finite_for_all_zero_inputs(cls: type[Kernel], dtype: torch.dtype, activation: str) -> None:
    for bias in (0.0, 1.0):
        kernel = build(cls, activation, bias=bias, dtype=dtype)
        x = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
        value = kernel.forward(x, x)
        value.sum().backward()
        assert bool(value.isfinite().all()) and bool(x.grad.isfinite().all())
        assert bool((x.grad == 0).all())  # by symmetry
        assert bool((value == value[0, 0]).all())
        assert all(bool(p.grad.isfinite().all()) for p in kernel.parameters())
        if bias == 0.0:
            assert bool((value == 0).all())


def symmetric_difference(function: Callable[[Tensor], Tensor], x: Tensor, step: float) -> Tensor:
    """Gradient of a scalar function by central differences, at ``x`` of shape ``1 x d``."""
    slopes = []
    for j in range(x.shape[-1]):
        move = torch.zeros_like(x)
        move[..., j] = step
        slopes.append((function(x + move) - function(x - move)).item() / (2 * step))
    return torch.tensor([slopes], dtype=x.dtype)


@pytest.mark.parametrize("cls", [DEQNTKKernel, NTKKernel])
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_subgradient_at_the_cusp(cls: type[Kernel], trained: str, activation: str) -> None:
    """k(x, y) at y = x behaves like smooth + |y - x|: its gradient is that of the smooth part,
    which is what the symmetric difference sees."""
    kernel = build(cls, activation, trained=trained)
    x = torch.tensor([[0.75, -0.5]], dtype=torch.float64)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kernel.forward(x, y).sum(), y)
    expected = symmetric_difference(lambda z: kernel.forward(x, z).detach(), x, 1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    # the same beside the cusp, on either side, differs by twice the cusp's slope
    direction = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    sides = []
    for sign in (1, -1):
        z = (x + sign * 1e-7 * direction).requires_grad_()
        (slope,) = torch.autograd.grad(kernel.forward(x, z).sum(), z)
        sides.append((slope * direction).sum().item())
    assert sides[1] - sides[0] > 1e-2
    assert abs(sum(sides) / 2 - (gradient * direction).sum().item()) < 1e-4
    # as a row of a matrix and with diag=True it is the same
    both = torch.cat((x, x)).requires_grad_()
    (rows,) = torch.autograd.grad(kernel.forward(x, both).sum(), both)
    torch.testing.assert_close(rows, gradient.expand(2, 2), rtol=1e-9, atol=1e-10)
    (pair,) = torch.autograd.grad(kernel.forward(x, y, diag=True).sum(), y)
    torch.testing.assert_close(pair, gradient, rtol=1e-9, atol=1e-10)


@every_class
@pytest.mark.parametrize("activation", ["relu", "erf", "sin", "gelu"])
def test_gradient_at_coincident_inputs(cls: type[Kernel], activation: str) -> None:
    """As the symmetric difference, also where both arguments are the same tensor."""
    kernel = build(cls, activation)
    x = torch.tensor([[0.75, -0.5]], dtype=torch.float64)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kernel.forward(x, y).sum(), y)
    expected = symmetric_difference(lambda z: kernel.forward(x, z).detach(), x, 1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    # k(x, x) changes by both arguments
    (total,) = torch.autograd.grad(kernel.forward(y, y).sum(), y)
    torch.testing.assert_close(total, 2 * gradient, rtol=1e-8, atol=1e-10)
    expected = symmetric_difference(lambda z: kernel.forward(z, z).detach(), x, 1e-6)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "erf", "sin"])
@pytest.mark.parametrize("cls", [DEQNNGPKernel, NNGPKernel])
def test_gradient_at_antipodes(cls: type[Kernel], activation: str) -> None:
    """Without bias, where the angle of x and -x is exactly pi."""
    kernel = build(cls, activation, bias=0.0)
    x = torch.tensor([[0.75, -0.5]], dtype=torch.float64)
    y = (-x).requires_grad_()
    (gradient,) = torch.autograd.grad(kernel.forward(x, y).sum(), y)
    expected = symmetric_difference(lambda z: kernel.forward(x, z).detach(), -x, 1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["erf", "sin", "gelu", TANH], ids=NAMES[1:5])
@every_class
def test_mixed_second_derivative_at_coincident_inputs(
    cls: type[Kernel], activation: str | Activation
) -> None:
    """The covariance of the gradient of a sample path, for smooth activations."""
    kernel = build(cls, activation)
    x = torch.tensor([[0.75, -0.5]], dtype=torch.float64)

    def mixed(first: Tensor, second: Tensor) -> Tensor:
        a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
        (slope,) = torch.autograd.grad(kernel.forward(a, b).sum(), a, create_graph=True)
        return torch.stack([torch.autograd.grad(s, b, retain_graph=True)[0] for s in slope[0]])

    at_point = mixed(x, x).squeeze(1)
    nearby = mixed(x, x + 1e-5).squeeze(1)
    assert bool(at_point.isfinite().all())
    torch.testing.assert_close(at_point, nearby, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(at_point, at_point.mT, rtol=1e-8, atol=1e-9)
    assert bool((torch.linalg.eigvalsh(at_point) > 0).all())


EVERY_ACTIVATION = [
    *("relu", "leaky_relu", "identity", "erf", "sin", "gelu"),
    *("tanh", "sigmoid", "silu", "elu", "softplus"),
]
COINCIDENT = [
    *(
        (cls, activation, {})
        for cls in (DEQNNGPKernel, NNGPKernel)
        for activation in EVERY_ACTIVATION
    ),
    *(
        (cls, activation, {"trained": trained})
        for cls in (DEQNTKKernel, NTKKernel)
        for activation in EVERY_ACTIVATION
        for trained in TRAINED
    ),
    *(
        (DEKerKernel, link, {"features": "linear", "num_steps": steps})
        for link in ("identity", "logistic", "tanh", "softplus-gaussian")
        for steps in (None, 3)
    ),
]
COINCIDENT_NAMES = [
    "-".join([cls.__name__, name, *(str(value) for value in kwargs.values())])
    for cls, name, kwargs in COINCIDENT
]


def first_and_mixed(kernel: Kernel, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of k(x[i], y[i]) with respect to x[i], and to x[i] and y[i], for each i."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = kernel.forward(x, y, diag=True).sum()
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    rows = [torch.autograd.grad(row.sum(), y, retain_graph=True)[0] for row in slope.unbind(-1)]
    return slope.detach(), torch.stack(rows, -2)


@pytest.mark.parametrize(
    "count", [30, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize(("cls", "name", "kwargs"), COINCIDENT, ids=COINCIDENT_NAMES)
def test_derivatives_at_coincident_inputs_are_limits(
    cls: type[Kernel], name: str, kwargs: dict[str, str | int | None], count: int
) -> None:
    """At every point the mean of those a step h = 1e-4 to either side, whatever rounding does.

    The mean differs by h^2 times two further derivatives, which are below 1e3 here. A kink makes a
    cusp |x - x'| of a tangent kernel and of second derivatives, and then it differs by h.
    """
    kernel = cls(name, **kwargs).double()
    kernel.lengthscale, kernel.bias_variance = 0.8, 0.3
    homogeneous = name in ("relu", "leaky_relu")
    if cls is not DEKerKernel:
        kernel.weight_variance = 0.6 * kernel.activation.critical_weight_variance
    x = points(count, 2)
    x[1::2] *= 0.05
    step = 1e-4 * torch.nn.functional.normalize(points(count, 2, seed=1), dim=-1)
    near = zip(
        first_and_mixed(kernel, x, x + step), first_and_mixed(kernel, x, x - step), strict=True
    )
    for order, (at, (above, below)) in enumerate(zip(first_and_mixed(kernel, x, x), near)):
        assert bool(at.isfinite().all())
        cusp = homogeneous and order + ("trained" in kwargs)
        if cusp == 2:
            continue  # the mixed derivative does not exist
        tolerance = 1e-3 if cusp else 1e-5
        limit = (above + below) / 2
        assert (at - limit).abs().max() <= tolerance * limit.abs().max()


@every_class
@pytest.mark.parametrize("name", ["erf", "tanh", "sigmoid", "silu", "softplus"])
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_derivatives_at_variance_zero_are_limits(cls: type[Kernel], name: str, both: bool) -> None:
    """Without a bias and at the centre: with and without a graph, and the second derivatives.

    The limit is the mean of both sides at h = 1e-5, which differs by h^2 times two further
    derivatives and by rounding over h.
    """
    kernel = build(cls, name, bias=0.0)
    hyperparameters = [kernel.raw_lengthscale, kernel.raw_weight_variance]
    x, y = points(3, 2), points(2, 2, seed=1)
    x[1] = 0.0
    if both:
        y[0] = 0.0

    def derivatives(shift: float, graph: bool) -> list[Tensor]:
        direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
        moved = [t + shift * direction * (t == 0).all(-1, True) for t in (x, y)]
        leaves = [t.clone().requires_grad_() for t in moved]
        value = kernel.forward(*leaves)
        upstream = points(*value.shape, seed=2)
        first = torch.autograd.grad((value * upstream).sum(), leaves, create_graph=graph)
        if not graph:
            return list(first)
        total = sum((slope * slope.detach().cos()).sum() for slope in first)
        return [*first, *torch.autograd.grad(total, [*leaves, *hyperparameters])]

    near = zip(derivatives(1e-5, True), derivatives(-1e-5, True), strict=True)
    limit = [(above + below).detach() / 2 for above, below in near]
    found = derivatives(0.0, True)
    plain = derivatives(0.0, False)
    for actual, expected in zip(found + plain, limit + limit[:2], strict=True):
        assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("steps", [None, 1, 3])
@pytest.mark.parametrize("link", ["identity", "logistic", "tanh", "softplus-gaussian"])
def test_links_at_variance_zero(link: str, steps: int | None) -> None:
    """The first update starts from the injected variance, zero at the centre without a bias."""
    kernel = DEKerKernel(link, features="linear", num_steps=steps).double()
    kernel.bias_variance = 0.0
    x, y = points(3, 2), points(2, 2, seed=1)
    x[1] = 0.0

    def slope(shift: float, graph: bool) -> Tensor:
        moved = x.clone()
        moved[1] += shift * torch.tensor([0.6, 0.8], dtype=torch.float64)
        leaf = moved.requires_grad_()
        value = kernel.forward(leaf, y)
        upstream = points(*value.shape, seed=2)
        (found,) = torch.autograd.grad((value * upstream).sum(), leaf, create_graph=graph)
        return found.detach()

    limit = (slope(1e-5, False) + slope(-1e-5, False)) / 2
    for graph in (False, True):
        assert (slope(0.0, graph) - limit).abs().max() <= 1e-8 * limit.abs().max()


# ------------------------------------------------------------------------------------------
# Memory
# ------------------------------------------------------------------------------------------


class Kept:
    """A tensor that a graph keeps for its backward pass, as long as the graph lives."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(kernel: Kernel, x: Tensor) -> tuple[int, int]:
    """Bytes that the graph of an evaluated kernel keeps, and iterations of the solver."""
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        entry = Kept(tensor)
        kept.add(entry)
        return entry

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda entry: entry.tensor):
        value = kernel.forward(x, x)
    gc.collect()
    storages = [entry.tensor.untyped_storage() for entry in kept]
    total = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    value.sum().backward()
    return total, kernel.solver_report.iterations


@pytest.mark.parametrize("cls", EQUILIBRIUM)
@pytest.mark.parametrize("activation", ["relu", "erf", "softplus"])
def test_memory_does_not_depend_on_iterations(cls: type[Kernel], activation: str) -> None:
    n = 256
    x = points(n, 3).requires_grad_()
    sizes, iterations = [], []
    for fraction in (1e-8, 0.1, 0.999):
        size, count = saved_bytes(build(cls, activation, fraction, bias=1e-3), x)
        sizes.append(size)
        iterations.append(count)
    if activation != "relu":
        assert iterations[-1] > iterations[0]  # so the comparison says something
    # the series of the angle has one to forty coefficients, not one for each pair
    assert max(sizes) - min(sizes) <= 8 * 40
    # a few matrices; one evaluated layer with a graph would already be more than ten
    assert max(sizes) < 5 * 8 * n * n


@pytest.mark.parametrize("injection", [False, True], ids=["feed-forward", "injected"])
@pytest.mark.parametrize("cls", [NNGPKernel, NTKKernel])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_one_layer(cls: type[Kernel], activation: str, injection: bool) -> None:
    """A single layer does not use the weight variance, whose gradient is then zero."""
    kernel = build(cls, activation, depth=1, input_injection=injection)
    x = points(4, 2).requires_grad_()
    kernel.forward(x, x).square().sum().backward()
    assert bool(x.grad.isfinite().all()) and bool((x.grad != 0).any())
    assert bool((kernel.raw_lengthscale.grad != 0).all())
    gradient = kernel.raw_weight_variance.grad
    assert gradient is None or bool((gradient == 0).all())
    first = torch.autograd.grad(kernel.forward(x, x).sum(), x, create_graph=True)[0]
    first.square().sum().backward()


@pytest.mark.parametrize("cls", [NNGPKernel, NTKKernel])
def test_memory_does_not_depend_on_depth(cls: type[Kernel]) -> None:
    x = points(64, 3).requires_grad_()
    sizes = [saved_bytes(build(cls, depth=depth), x)[0] for depth in (1, 3, 20)]
    assert max(sizes) == min(sizes)
