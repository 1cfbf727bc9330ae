"""Exponential families: against 50-digit arithmetic, quadrature and sums, and random draws."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath as mp
import pytest
import torch
from families import FAMILIES

from gp_deq.activations import (
    Binomial,
    ContinuousBernoulli,
    ExponentialFamily,
    Poisson,
    get_family,
)

#: A in arbitrary precision.
PARTITION = {
    "gaussian": lambda e: e * e / 2,
    "bernoulli": lambda e: mp.log1p(mp.exp(e)),
    "signed-bernoulli": lambda e: mp.log(2 * mp.cosh(e)),
    "binomial": lambda e: 7 * mp.log1p(mp.exp(e)),
    "poisson": mp.exp,
    "continuous-bernoulli": lambda e: mp.log(mp.expm1(e) / e) if e else mp.mpf(0),
}
POINTS = [0.0, 1e-12, -1e-5, 0.3, -0.9, 1.999, 2.0, -2.001, 3.7, -8.0, 25.0, -60.0, 300.0]


def exact(name: str, order: int, eta: float) -> float:
    """A derivative of the log-partition function by a contour integral, to 30 digits."""
    with mp.workdps(60):
        fn, point = PARTITION[name], mp.mpf(eta)
        if order == 0:
            return float(fn(point))
        if name == "poisson":
            return float(mp.exp(point))
        # Cauchy's formula on a circle within the radius of analyticity, by the trapezoidal rule
        radius, count = mp.mpf("0.7"), 256
        total = mp.mpf(0)
        for j in range(count):
            root = mp.expjpi(mp.mpf(2 * j) / count)
            total += fn(point + radius * root) * root ** (-order)
        return float((total / count * mp.factorial(order) / radius**order).real)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@pytest.mark.parametrize(
    ("order", "method"),
    list(enumerate(["log_partition", "mean", "variance", "third_cumulant"])),
)
def test_derivatives_of_the_log_partition_function(
    family: ExponentialFamily, order: int, method: str
) -> None:
    """To a few rounding errors, and relative ones where the function tends to zero."""
    eta = torch.tensor(POINTS, dtype=torch.float64)
    found = getattr(family, method)(eta)
    for value, point in zip(found.tolist(), POINTS, strict=True):
        if abs(point) > 60 and family.name != "poisson":
            continue  # the contour integral has lost the tail; see the extreme arguments
        expected = exact(family.name, order, point)
        # third cumulants cancel to a twentieth at the seam of series and closed form, |eta| = 2
        assert value == pytest.approx(expected, rel=2e-14, abs=1e-29 + 2e-16 * (order == 0)), point


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_arguments(family: ExponentialFamily, dtype: torch.dtype) -> None:
    """Finite and of the right sign everywhere, as far as the value itself is; no NaN."""
    eta = torch.tensor([-1e30, -1e10, -800.0, -90.0, 90.0, 800.0, 1e10, 1e30], dtype=dtype)
    for method in ("log_partition", "mean", "std", "variance", "third_cumulant"):
        leaf = eta.clone().requires_grad_()
        value = getattr(family, method)(leaf)
        assert not value.isnan().any(), method
        if family.name not in ("poisson", "gaussian"):
            assert value.isfinite().all(), method
            (slope,) = torch.autograd.grad(value.sum(), leaf)
            assert not slope.isnan().any(), method
    mean = family.mean(eta)
    assert bool((mean[1:] >= mean[:-1]).all())
    if family.name == "continuous-bernoulli":
        assert mean[0].item() == pytest.approx(1e-30, rel=1e-6)
        assert (1 - mean[-2]).item() == pytest.approx(1e-10, abs=1e-7)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_gradcheck(family: ExponentialFamily) -> None:
    """The methods are each other's derivatives, twice."""
    eta = torch.tensor([-3.0, -1.2, -0.1, 0.0, 0.4, 1.9, 2.3, 5.0], dtype=torch.float64)
    eta.requires_grad_()
    chain = ["log_partition", "mean", "variance", "third_cumulant"]
    for lower, upper in pairwise(chain):
        (slope,) = torch.autograd.grad(
            (getattr(family, lower)(eta) + 0 * eta).sum(),
            eta,
            create_graph=True,
            materialize_grads=True,
        )
        assert torch.allclose(slope, getattr(family, upper)(eta), rtol=1e-10, atol=1e-12)
    for method in (*chain, "std"):
        fn = getattr(family, method)
        assert torch.autograd.gradgradcheck(lambda x, fn=fn: fn(x) + 0 * x.square(), eta)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@pytest.mark.parametrize("eta", [-1.3, 0.0, 0.8])
def test_densities_have_mass_one_and_the_right_mean(family: ExponentialFamily, eta: float) -> None:
    point = torch.tensor(eta, dtype=torch.float64)
    if family.name == "gaussian":
        targets = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    elif family.name == "continuous-bernoulli":
        targets = torch.linspace(0, 1, 4001, dtype=torch.float64)
    elif family.name == "signed-bernoulli":
        targets = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    else:
        last = {"bernoulli": 1, "binomial": 7, "poisson": 60}[family.name]
        targets = torch.arange(last + 1.0, dtype=torch.float64)
    family.check(targets)
    density = family.log_prob(targets, point).exp()

    def total(values: torch.Tensor) -> float:
        if targets.numel() > 100:
            return torch.trapezoid(values, targets).item()
        return values.sum().item()

    # the trapezoidal rule with 4000 steps is exact to 1e-7 on these
    assert total(density) == pytest.approx(1.0, rel=1e-7)
    mean = total(density * targets)
    assert mean == pytest.approx(family.mean(point).item(), rel=1e-6, abs=1e-9)
    spread = total(density * (targets - mean) ** 2)
    assert spread == pytest.approx(family.variance(point).item(), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_samples(family: ExponentialFamily) -> None:
    """Means within four standard errors."""
    eta = torch.tensor([-1.0, 0.0, 1.5], dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = family.sample(eta, (20_000,))
    assert drawn.shape == (20_000, 3)
    family.check(drawn)
    error = (drawn.mean(0) - family.mean(eta)).abs()
    assert bool((error < 4 * family.std(eta) / math.sqrt(20_000)).all())


def test_samples_far_out() -> None:
    eta = torch.tensor([-1e4, -1e-6, 1e4], dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        continuous = ContinuousBernoulli().sample(eta, (20_000,))
        counts = Poisson().sample(torch.tensor([45.0, 100.0], dtype=torch.float64), (100,))
    error = (continuous.mean(0) - ContinuousBernoulli().mean(eta)).abs()
    assert bool((error < 4 * ContinuousBernoulli().std(eta) / math.sqrt(20_000)).all())
    Poisson().check(counts)
    # rates of 3e19 and 3e43
    spread = torch.tensor([45.0, 100.0]).double().exp().sqrt() / 10
    assert bool(
        ((counts - counts.new_tensor([45.0, 100.0]).exp()).mean(0).abs() < 4 * spread).all()
    )


@pytest.mark.parametrize(
    ("family", "bad"),
    [
        ("gaussian", math.nan),
        ("bernoulli", 0.5),
        ("bernoulli", -1.0),
        ("signed-bernoulli", 0.0),
        (Binomial(3), 4.0),
        (Binomial(3), 1.5),
        ("poisson", -1.0),
        ("poisson", math.inf),
        ("continuous-bernoulli", 1.01),
    ],
)
def test_targets_outside_the_support(family: str | ExponentialFamily, bad: float) -> None:
    targets = torch.tensor([[1.0, 1.0], [1.0, bad]])
    with pytest.raises(ValueError, match=r"Targets of .* at \[1, 1\]"):
        get_family(family).check(targets)


def test_names() -> None:
    assert isinstance(get_family("poisson"), Poisson)
    family = Binomial(3)
    assert get_family(family) is family and repr(family) == "Binomial(3)"
    with pytest.raises(ValueError, match="number of trials"):
        get_family("binomial")
    with pytest.raises(ValueError, match="Unknown family 'cauchy'"):
        get_family("cauchy")
    with pytest.raises(TypeError, match="not 3"):
        get_family(3)  # type: ignore[arg-type]
    for count in (0, 1.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive integer"):
            Binomial(count)  # type: ignore[arg-type]


def test_continuous_bernoulli_tail_of_the_variance() -> None:
    """1 / eta^2 far out."""
    eta = torch.tensor([-1e8, 300.0, 1e5], dtype=torch.float64)
    assert torch.allclose(
        ContinuousBernoulli().variance(eta), eta.square().reciprocal(), rtol=1e-14
    )
