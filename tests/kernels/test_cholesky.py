"""Matrices as a Gaussian process needs them: factorisable, symmetric, consistent.

Rounding each entry of an n x n kernel matrix by eps of the variances moves its eigenvalues by
eps n times the largest entry at most, typically by eps sqrt(n): with n = 400 the exact least
eigenvalue, positive but as small as it likes, appears anywhere above -1e-14 of the largest one.
"""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from botorch.models.kernels.infinite_width_bnn import InfiniteWidthBNNKernel
from gpytorch.kernels import Kernel
from torch import Tensor

from gp_deq import DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel

EPS = 2.0**-52
TRAINED = ["all", "hidden", "recurrent", "preactivation"]
FRACTION_NAMES = ["relu", "leaky_relu", "erf", "sin", "gelu", "tanh"]


def build(kind: str, name: str, fraction: float, bias: float) -> Kernel:
    """kind: "nngp" or one of TRAINED."""
    cls, options = (DEQNNGPKernel, {}) if kind == "nngp" else (DEQNTKKernel, {"trained": kind})
    kernel = cls(activation=name, **options).double()
    kernel.lengthscale = 1.0
    kernel.weight_variance = fraction * kernel.activation.critical_weight_variance
    kernel.bias_variance = bias
    return kernel


def with_near_duplicates(distance: float, d: int = 6, n: int = 200) -> Tensor:
    """n standard normal points and for each another one at the given distance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    direction = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return torch.cat((x, x + distance * torch.nn.functional.normalize(direction, dim=-1)))


def jitter_needed(matrix: Tensor) -> float:
    """Smallest power of ten, in units of the mean variance, that a Cholesky needs (0: none)."""
    mean = matrix.diagonal().mean()
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    for relative in (0.0, *(10.0**k for k in range(-16, 0))):
        _, info = torch.linalg.cholesky_ex(matrix + relative * mean * eye)
        if info.item() == 0:
            return relative
    return 1.0


@pytest.mark.parametrize("distance", [1e-6, 1e-4, 1e-3])
@pytest.mark.parametrize("name", FRACTION_NAMES)
@pytest.mark.parametrize("kind", ["nngp", *TRAINED])
def test_cholesky_with_near_duplicates(kind: str, name: str, distance: float) -> None:
    """No more jitter than 1e-13 of the mean variance, in 2 dimensions and in 6.

    In two dimensions 200 points are dense: what is left of a smooth kernel's variance at a point
    after its neighbours have explained it is below eps, and so are squared NNGP distances of pairs
    1e-6 apart, 1e-13 or so.  Such a factorisation is up to rounding, n eps = 9e-14 at worst.
    """
    for d in (2, 6):
        if name == "tanh" and d == 6:
            continue  # four seconds a matrix, and the easier case
        with torch.no_grad():
            matrix = build(kind, name, 0.5, 0.1)(with_near_duplicates(distance, d)).to_dense()
        assert jitter_needed(matrix) <= 1e-13


@pytest.mark.parametrize(("kind", "distance"), [("nngp", 1e-4), ("nngp", 1e-3), ("all", 1e-6)])
@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.99])
def test_cholesky_without_jitter(kind: str, distance: float, fraction: float) -> None:
    """None at all for ReLU where squared kernel distances stay above n eps of the variance.

    At 1e-4 the NNGP's are 1e-9; the NTK has a cusp, its own are 1e-6 at 1e-6 already.
    """
    for d in (2, 6):
        with torch.no_grad():
            matrix = build(kind, "relu", fraction, 0.1)(with_near_duplicates(distance, d))
        assert jitter_needed(matrix.to_dense().detach()) == 0.0


@pytest.mark.parametrize(("weight", "bias"), [(2.0, 0.1), (math.log(2), math.log(2)), (10.0, 5.0)])
@pytest.mark.parametrize("distance", [1e-6, 1e-4, 1e-3])
def test_the_clamped_twin_needs_jitter(distance: float, weight: float, bias: float) -> None:
    """The same points through BoTorch's clamped formula need 1e-11 at least, 1e-6 often.

    The distance form of the very same kernel needs at most 1e-13.
    """
    x = with_near_duplicates(distance, 2)
    peer = InfiniteWidthBNNKernel(depth=3).double()
    peer.weight_var, peer.bias_var = weight, bias
    twin = NNGPKernel(depth=3).double()
    twin.lengthscale, twin.weight_variance, twin.bias_variance = weight**-0.5, weight, bias
    with torch.no_grad():
        theirs, ours = peer(x).to_dense(), weight * twin(x).to_dense() + bias
    assert jitter_needed(theirs) >= 1e-11
    assert jitter_needed(ours) <= 1e-13


SWEEP = list(itertools.product((1e-3, 0.5, 0.95, 0.9999), (1e-6, 1.0, 1e3)))


@pytest.mark.parametrize("kind", ["nngp", *TRAINED])
@pytest.mark.parametrize("name", FRACTION_NAMES)
def test_eigenvalues_over_hyperparameters(name: str, kind: str) -> None:
    """Least eigenvalue >= -1e-14 of the largest, on points and near duplicates together."""
    points = with_near_duplicates(1e-4, d=3, n=20)
    x = torch.cat((points, points[:20] + 1e-6, 2 * points[:20], points[:5], torch.zeros(1, 3)))
    for fraction, bias in SWEEP:
        with torch.no_grad():
            values = torch.linalg.eigvalsh(build(kind, name, fraction, bias)(x).to_dense())
        # entries err by 64 eps/(1 - fraction) of the variances at worst near criticality; but
        # those errors are smooth in the inputs, what breaks the sign is the independent rounding
        assert values[0] >= -1e-14 * values[-1], (fraction, bias, (values[0] / values[-1]).item())


@pytest.mark.parametrize("n", [5, 64, 300])
@pytest.mark.parametrize("name", FRACTION_NAMES)
@pytest.mark.parametrize("kind", ["nngp", "all"])
def test_symmetric_to_the_bit(kind: str, name: str, n: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for dtype in (torch.float64, torch.float32):
        x = torch.randn(n, 3, generator=generator, dtype=dtype)
        kernel = build(kind, name, 0.9, 0.1).to(dtype)
        for argument in (x, torch.stack((x, 2 * x))):
            matrix = kernel(argument).to_dense().detach()
            assert torch.equal(matrix, matrix.mT)


KERNELS = [
    pytest.param(lambda name, k=kind: build(k, name, 0.9, 0.1), id=kind)
    for kind in ["nngp", *TRAINED]
]
KERNELS += [
    pytest.param(lambda name: NNGPKernel(depth=3, activation=name).double(), id="finite-nngp"),
    pytest.param(lambda name: NTKKernel(depth=3, activation=name).double(), id="finite-ntk"),
]


@pytest.mark.parametrize("name", FRACTION_NAMES)
@pytest.mark.parametrize("make", KERNELS)
def test_diagonals_agree(make, name: str) -> None:
    """diag=True is the diagonal of the matrix, and pairs x1[i] with x2[i].

    Two evaluations of the same well-conditioned formulas differ by a few roundings, which the
    equilibrium multiplies by 1/(1 - .9): 16 eps times 10 of the mean of the two variances.
    """
    kernel = make(name)
    x, y = with_near_duplicates(0.3, d=3, n=30).split(30)
    y[:3], y[3], x[4], y[5] = x[:3], 0.0, 0.0, -x[5]
    with torch.no_grad():
        square, cross = kernel(x).to_dense(), kernel(x, y).to_dense()
        own, paired, other = kernel(x, diag=True), kernel(x, y, diag=True), kernel(y, diag=True)
    assert own.shape == paired.shape == (30,)
    room = 160 * EPS
    assert ((own - square.diagonal()).abs() <= room * own).all()
    assert ((paired - cross.diagonal()).abs() <= room * (own + other) / 2).all()
    # identical inputs: the elementwise value is the variance
    assert ((paired - own)[:3].abs() <= room * own[:3]).all()


def test_no_warning_on_the_way() -> None:
    """Neither the solver nor GPyTorch has anything to say about an ordinary matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build("all", "erf", 0.9, 0.1)(with_near_duplicates(1e-3)).to_dense()
