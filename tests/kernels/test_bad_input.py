"""Every mistake gives an error that says what was given and what is allowed."""

from __future__ import annotations

import pytest
import torch
from gpytorch.constraints import GreaterThan, Interval, Positive
from gpytorch.kernels import Kernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor

from gp_deq import DEKerKernel, DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel
from gp_deq.activations import Hermite, LeakyReLU, ReLU, get_activation

CLASSES = [DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel]
EQUILIBRIUM = [DEQNNGPKernel, DEQNTKKernel]
FINITE = [NNGPKernel, NTKKernel]
every_class = pytest.mark.parametrize("cls", CLASSES)
any_class = pytest.mark.parametrize("cls", [*CLASSES, DEKerKernel])
equilibrium_class = pytest.mark.parametrize("cls", EQUILIBRIUM)
finite_class = pytest.mark.parametrize("cls", FINITE)


def points(n: int, d: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------------------
# Inputs
# ------------------------------------------------------------------------------------------


@any_class
def test_different_dimensions(cls: type[Kernel]) -> None:
    kernel = cls().double()
    with pytest.raises(ValueError, match=rf"{cls.__name__} .*3 and of 2 dimensions"):
        kernel.forward(points(4, 3), points(4, 2))
    with pytest.raises(RuntimeError, match="same number of dimensions"):
        kernel(points(4, 3), points(4, 2)).to_dense()


@any_class
def test_wrong_ard_num_dims(cls: type[Kernel]) -> None:
    kernel = cls(ard_num_dims=2).double()
    message = rf"{cls.__name__} .*ard_num_dims=2.*3 dimensions"
    with pytest.raises(RuntimeError, match=message):
        kernel.forward(points(4, 3), points(4, 3))
    with pytest.raises(RuntimeError, match=message):  # ScaleKernel calls forward
        ScaleKernel(kernel).double()(points(4, 3)).to_dense()
    with pytest.raises(RuntimeError, match=r"2 dimensionality.*Got 3"):  # GPyTorch's own message
        kernel(points(4, 3))
    kernel = cls(ard_num_dims=2, active_dims=[0, 1, 2]).double()
    with pytest.raises(RuntimeError, match="3 dimensions after active_dims"):
        kernel.forward(points(4, 3), points(4, 3))


@any_class
def test_center_of_wrong_length(cls: type[Kernel]) -> None:
    with pytest.raises(ValueError, match="center has 3 entries, but ard_num_dims is 2"):
        cls(ard_num_dims=2, center=torch.zeros(3))
    kernel = cls(center=[0.5, 0.5]).double()
    with pytest.raises(ValueError, match=rf"center of {cls.__name__} has 2 .*3 dimensions.*float"):
        kernel(points(4, 3)).to_dense()


@any_class
@pytest.mark.parametrize(
    "center", [torch.zeros(2, 2), float("nan"), [0.0, float("inf")], torch.zeros(0)], ids=repr
)
def test_bad_center(cls: type[Kernel], center: object) -> None:
    with pytest.raises(ValueError, match=r"center must be a finite float,? or a vector"):
        cls(center=center)


@any_class
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("diag", [False, True])
def test_non_finite_inputs(cls: type[Kernel], bad: float, diag: bool) -> None:
    kernel = cls().double()
    x = points(5, 2)
    broken = x.clone()
    broken[3, 1] = broken[1, 0] = bad
    for pair in ((broken, x), (x, broken)):
        with pytest.raises(ValueError, match=rf"{cls.__name__} got NaN or infinite .*2 .*rows"):
            kernel.forward(*pair, diag=diag)
    with pytest.raises(ValueError, match="NaN or infinite"):
        kernel(broken, diag=diag).sum()


@any_class
def test_large_finite_inputs_are_not_called_infinite(cls: type[Kernel]) -> None:
    """Their sum overflows, they do not."""
    x = torch.full((3, 2), 1.5e308, dtype=torch.float64)
    cls().double()._check_inputs(x, x, False)


@any_class
def test_diag_of_different_numbers_of_inputs(cls: type[Kernel]) -> None:
    with pytest.raises(ValueError, match=r"diag=True.*4 and 3"):
        cls().double().forward(points(4, 2), points(3, 2), diag=True)


@any_class
@pytest.mark.filterwarnings("ignore:The last_dim_is_batch:DeprecationWarning")
def test_last_dim_is_batch(cls: type[Kernel]) -> None:
    kernel = cls().double()
    with pytest.raises(RuntimeError, match=rf"{cls.__name__} .*last_dim_is_batch.*active_dims"):
        kernel(points(4, 2), last_dim_is_batch=True).to_dense()
    with pytest.raises(RuntimeError, match="last_dim_is_batch"):
        kernel(points(4, 2), diag=True, last_dim_is_batch=True)


@any_class
def test_batches_that_do_not_broadcast(cls: type[Kernel]) -> None:
    kernel = cls(batch_shape=torch.Size([2])).double()
    with pytest.raises(RuntimeError, match=r"shape|size|broadcast"):
        kernel.forward(torch.zeros(3, 4, 2).double(), torch.zeros(3, 4, 2).double())


# ------------------------------------------------------------------------------------------
# Hyperparameters
# ------------------------------------------------------------------------------------------


@equilibrium_class
@pytest.mark.parametrize("activation, critical", [("relu", "2"), ("erf", "0.785398"), ("sin", "1")])
def test_weight_variance_outside_its_region(
    cls: type[Kernel], activation: str, critical: str
) -> None:
    kernel = cls(activation).double()
    before = kernel.weight_variance.item()
    bound = kernel.activation.critical_weight_variance
    for value in (0.0, -0.5, bound, 1.5 * bound, float("nan"), float("inf")):
        with pytest.raises(ValueError) as error:
            kernel.weight_variance = value
        message = str(error.value)
        assert "weight_variance" in message and cls.__name__ in message
        assert f"(0, {critical})" in message  # what is allowed
        assert f"{value:g}" in message  # what was given
        assert kernel.weight_variance.item() == before
        with pytest.raises(ValueError, match="weight_variance"):
            kernel.initialize(weight_variance=value)
    with pytest.raises(ValueError, match=r"got 0\.1 to 7"):
        cls(activation, batch_shape=torch.Size([2])).weight_variance = torch.tensor(
            [[[0.1]], [[7.0]]]
        )


@finite_class
def test_weight_variance_of_finite_depth(cls: type[Kernel]) -> None:
    kernel = cls()
    kernel.weight_variance = 17.0  # any positive number
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"weight_variance .*\(0, inf\)"):
            kernel.weight_variance = value


@any_class
@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf")])
def test_bias_variance_outside_its_region(cls: type[Kernel], value: float) -> None:
    kernel = cls()
    with pytest.raises(ValueError, match=rf"bias_variance of {cls.__name__} .*\[0, inf.*got"):
        kernel.bias_variance = value
    assert kernel.bias_variance.isfinite().all()


@equilibrium_class
@pytest.mark.parametrize(
    "constraint",
    [Interval(0.1, 2.0), Interval(0.0, 5.0), Positive(), GreaterThan(0.1), Interval(-0.5, 1.0)],
    ids=["critical", "beyond", "positive", "greater", "negative"],
)
def test_constraint_that_leaves_the_region(cls: type[Kernel], constraint: Interval) -> None:
    with pytest.raises(ValueError, match=r"weight_variance_constraint .*\(0, 2\).*got") as error:
        cls(weight_variance_constraint=constraint)
    assert str(constraint) in str(error.value)


@equilibrium_class
def test_constraint_is_judged_by_the_activation(cls: type[Kernel]) -> None:
    constraint = Interval(0.1, 0.9)
    cls("relu", weight_variance_constraint=constraint)
    cls("sin", weight_variance_constraint=constraint)
    with pytest.raises(ValueError, match=r"\(0, 0\.785398\)"):
        cls("erf", weight_variance_constraint=constraint)


@finite_class
def test_constraint_of_finite_depth(cls: type[Kernel]) -> None:
    cls(weight_variance_constraint=GreaterThan(0.5))
    with pytest.raises(ValueError, match=r"weight_variance_constraint must keep .*positive"):
        cls(weight_variance_constraint=Interval(-1.0, 1.0))


@every_class
@pytest.mark.parametrize("name", ["lengthscale", "weight_variance", "bias_variance"])
@pytest.mark.parametrize("prior", ["gamma", 1.0, GaussianLikelihood()], ids=["str", "1", "module"])
def test_prior_that_is_no_prior(cls: type[Kernel], name: str, prior: object) -> None:
    with pytest.raises(TypeError, match=rf"Prior.*{type(prior).__name__}"):
        cls(**{f"{name}_prior": prior})


# ------------------------------------------------------------------------------------------
# Construction
# ------------------------------------------------------------------------------------------


@any_class
def test_unknown_keyword(cls: type[Kernel]) -> None:
    with pytest.raises(TypeError, match="weight_varaince_prior"):
        cls(weight_varaince_prior=None)


@every_class
def test_unknown_activation(cls: type[Kernel]) -> None:
    with pytest.raises(ValueError, match="'rleu'") as error:
        cls("rleu")
    for name in ("relu", "leaky_relu", "erf", "sin", "gelu", "identity", "tanh", "softplus"):
        assert f"'{name}'" in str(error.value)


@every_class
@pytest.mark.parametrize("activation", [3, None, 0.5, ["relu"]], ids=repr)
def test_activation_of_wrong_type(cls: type[Kernel], activation: object) -> None:
    with pytest.raises(TypeError, match="a name, an Activation or a function") as error:
        cls(activation)
    assert repr(activation) in str(error.value)


def test_activation_class_instead_of_instance() -> None:
    with pytest.raises(TypeError, match=r"ReLU\(\)"):
        get_activation(ReLU)


def square(u: Tensor) -> Tensor:
    return u**2


@pytest.mark.parametrize("activation", [torch.exp, square], ids=["exp", "square"])
def test_activation_of_unbounded_slope(activation: object) -> None:
    name = activation.__name__
    for cls in EQUILIBRIUM:
        with pytest.raises(ValueError, match=rf"{cls.__name__} .*bounded.*{name}.*NNGPKernel"):
            cls(activation)
    kernel = NNGPKernel(activation, depth=1).double()
    x = 0.1 * points(3, 2)
    with torch.no_grad():
        matrix = kernel(x).to_dense()
    assert bool(matrix.isfinite().all())
    if activation is square:
        # E u^2 v^2 = v1 v2 + 2 c^2
        z = x / (kernel.lengthscale * 2**0.5)
        cov = (z @ z.mT + kernel.bias_variance).detach()
        expected = cov.diagonal()[:, None] * cov.diagonal() + 2 * cov.square()
        torch.testing.assert_close(matrix, expected)


def test_function_that_is_no_activation() -> None:
    with pytest.raises(TypeError, match="tensor of the same shape"):
        get_activation(torch.sum)
    with pytest.raises(TypeError, match="tensor of the same shape"):
        Hermite(lambda u: 1.0)
    with pytest.raises(ValueError, match="not finite"):
        Hermite(torch.log)


@pytest.mark.parametrize("degree", [0, -1, 2.5])
def test_bad_degree(degree: float) -> None:
    with pytest.raises(ValueError, match=rf"degree .*at least 1, got {degree}"):
        Hermite(torch.tanh, degree)


@pytest.mark.parametrize("slope", [float("nan"), float("inf")])
def test_bad_negative_slope(slope: float) -> None:
    with pytest.raises(ValueError, match="negative_slope must be finite"):
        LeakyReLU(slope)


@finite_class
@pytest.mark.parametrize("depth", [0, -2, 1.5, True])
def test_bad_depth(cls: type[Kernel], depth: object) -> None:
    with pytest.raises(ValueError, match=rf"depth .*at least 1, got {depth}"):
        cls(depth=depth)


@finite_class
@pytest.mark.parametrize("depth", ["3", None])
def test_depth_of_wrong_type(cls: type[Kernel], depth: object) -> None:
    with pytest.raises((TypeError, ValueError), match="depth"):
        cls(depth=depth)


@pytest.mark.parametrize("cls", [DEQNTKKernel, NTKKernel])
@pytest.mark.parametrize("trained", ["foo", None, "ALL"])
def test_bad_trained(cls: type[Kernel], trained: object) -> None:
    with pytest.raises(ValueError, match="trained") as error:
        cls(trained=trained)
    for name in ("all", "hidden", "recurrent", "preactivation"):
        assert f"'{name}'" in str(error.value)
    assert repr(trained) in str(error.value)


# ------------------------------------------------------------------------------------------
# Integers, and arguments of another kernel
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [*CLASSES, DEKerKernel])
@pytest.mark.parametrize("integer", [torch.int64, torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("diag", [False, True])
def test_integer_inputs_are_numbers(
    cls: type[Kernel], integer: torch.dtype, dtype: torch.dtype, diag: bool
) -> None:
    """Drawn by torch.randint, say; a center of 0.5 is not rounded to an integer."""
    kernel = cls(center=0.5, ard_num_dims=2).to(dtype)
    x1 = torch.tensor([[0, 1], [3, 2], [1, 1]]).to(integer)
    x2 = torch.tensor([[1, 0], [2, 2], [1, 1]]).to(integer)
    for first, second in ((x1, x2), (x1, x1), (x1, x2.to(dtype))):
        found = kernel(first, second, diag=diag)
        expected = kernel(first.to(dtype), second.to(dtype), diag=diag)
        found, expected = (x if diag else x.to_dense() for x in (found, expected))
        assert found.dtype == dtype and torch.equal(found, expected)


def test_integer_inputs_of_features() -> None:
    """A kernel as features of DEKer sees them as numbers too."""
    kernel = DEKerKernel(features=RBFKernel(), center=0.5).double()
    x = torch.arange(6).reshape(3, 2)
    assert torch.equal(kernel(x).to_dense(), kernel(x.double()).to_dense())
    assert torch.equal(kernel.nugget(x), kernel.nugget(x.double()))


@pytest.mark.parametrize(
    ("cls", "other"), [(DEQNNGPKernel, "NNGPKernel"), (DEQNTKKernel, "NTKKernel")]
)
@pytest.mark.parametrize("argument", [{"depth": 3}, {"input_injection": True}], ids=str)
def test_depth_of_an_infinitely_deep_network(cls: type[Kernel], other: str, argument: dict) -> None:
    with pytest.raises(TypeError, match=rf"no depth to choose.*{other}\(depth="):
        cls(**argument)


@pytest.mark.parametrize("cls", [*CLASSES, DEKerKernel])
@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("ard_num_dim", "ard_num_dims"),
        ("ard_dims", "ard_num_dims"),
        ("active_dim", "active_dims"),
        ("lengthscale_priors", "lengthscale_prior"),
        ("centre", "center"),
    ],
)
def test_misspelt_argument(cls: type[Kernel], name: str, close: str) -> None:
    with pytest.raises(TypeError, match=rf"{cls.__name__} has no argument '{name}'.*{close}"):
        cls(**{name: 3})


def test_argument_of_no_kernel() -> None:
    with pytest.raises(TypeError, match=r"no argument 'foo'\. It has activation, active_dims"):
        DEQNNGPKernel(foo=1)
