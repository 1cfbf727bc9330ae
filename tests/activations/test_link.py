"""The Gaussian expectations of links, and links that are none."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import LINKS, mp, orthant
from torch import Tensor

from gp_deq import DEKerKernel
from gp_deq.activations import (
    Binomial,
    ContinuousBernoulli,
    ExponentialFamilyLink,
    Gaussian,
    PairCovariance,
    Poisson,
    get_link,
)
from gp_deq.activations.link import ReLULink, product_dual

NAMES = ["relu", "identity", "logistic", "tanh", "softplus-gaussian"]


def sigmoid(u: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-u))


# sigma and rho of the smooth links
FUNCTIONS: dict[str, tuple[Callable, Callable]] = {
    "identity": (lambda u: u, np.ones_like),
    "logistic": (sigmoid, np.ones_like),
    "tanh": (np.tanh, np.ones_like),
    "softplus-gaussian": (lambda u: np.logaddexp(0, u) * sigmoid(u), sigmoid),
}


def pair(v1: float, v2: float, r: float) -> PairCovariance:
    one = torch.ones(1, 1, dtype=torch.float64)
    sqdist = v1 + v2 - 2 * r * math.sqrt(v1 * v2)
    return PairCovariance(v1 * one, v2 * one, sqdist * one, (v1 - v2) * one)


def quadrature(f: Callable, g: Callable, v1: float, v2: float, r: float) -> float:
    """E f(u) g(v), by the trapezoid rule in independent variables: exact here to rounding."""
    z = 0.0625 * np.arange(-160, 161)
    weight = np.exp(-(z[:, None] ** 2 + z**2) / 2) * 0.0625**2 / (2 * math.pi)
    u = math.sqrt(v1) * (z[:, None] + 0 * z)
    v = math.sqrt(v2) * (r * z[:, None] + math.sqrt(1 - r * r) * z)
    return float((weight * f(u) * g(v)).sum())


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("v1, v2, r", [(1.0, 1.0, 0.5), (0.3, 1.2, -0.7), (0.01, 0.8, 0.95)])
def test_smooth_links(name: str, v1: float, v2: float, r: float) -> None:
    link, (sigma, rho) = get_link(name), FUNCTIONS[name]
    given, swapped = pair(v1, v2, r), pair(v2, v1, r)
    for actual, expected in [
        (link.sigma_dual(given).cov, quadrature(sigma, sigma, v1, v2, r)),
        (link.rho_dual(given).cov, quadrature(rho, rho, v1, v2, r)),
        (link.cross(given), quadrature(rho, sigma, v1, v2, r)),
        (link.cross(swapped), quadrature(sigma, rho, v1, v2, r)),
        (link.sigma_dual(given).var1, quadrature(sigma, sigma, v1, v1, 1.0)),
        (link.rho_dual(given).var2, quadrature(rho, rho, v2, v2, 1.0)),
    ]:
        # the series of tanh at a variance of 1.2 has lost 1e-13 by degree 128
        assert abs(actual.item() - expected) < 2e-13


@pytest.mark.parametrize("v1, v2, r", [(1.0, 1.0, 0.5), (0.3, 1.2, -0.7), (1e-4, 50.0, 0.999)])
def test_relu(v1: float, v2: float, r: float) -> None:
    link, oracle, given = get_link("relu"), LINKS["relu"], pair(v1, v2, r)
    exact = mp.mpf(given.sqdist.item())
    cov = (mp.mpf(v1) + mp.mpf(v2) - exact) / 2
    arguments = (mp.mpf(v1), mp.mpf(v2), cov)
    scale = math.sqrt(v1 * v2)
    # the squared distance of the third pair has lost its angle's last digits: 50 eps/ (0.01 sin)
    tolerance = 1e-15 if v2 < 2 else 1e-11
    assert abs(link.sigma_dual(given).cov.item() - oracle.sigma(*arguments)) < tolerance * scale
    assert abs(link.rho_dual(given).cov.item() - oracle.rho(*arguments)) < tolerance
    assert abs(link.cross(given).item() - oracle.cross(*arguments)) < tolerance * math.sqrt(v2)


@pytest.mark.parametrize("name", NAMES)
def test_residual_is_what_it_is_made_of(name: str) -> None:
    """E (t rho - sigma)(t' rho - sigma), its diagonal and its squared distance."""
    link, t1, t2 = get_link(name), 0.4, 1.1
    given = pair(0.3, 1.2, 0.4)
    mean = torch.ones(1, 1, dtype=torch.float64)
    rho, sigma = link.rho_dual(given), link.sigma_dual(given)
    result = link.residual_dual(given, t1 * mean, t2 * mean)
    crossed = t1 * link.cross(given) + t2 * link.cross(pair(1.2, 0.3, 0.4))
    torch.testing.assert_close(result.cov, t1 * t2 * rho.cov - crossed + sigma.cov)
    own = link.cross(pair(0.3, 0.3, 1.0))
    torch.testing.assert_close(result.var1, t1**2 * rho.var1 - 2 * t1 * own + sigma.var1)
    torch.testing.assert_close(result.sqdist, result.var1 + result.var2 - 2 * result.cov)


def test_squared_distances_of_close_inputs() -> None:
    """Relative precision at a distance of 1e-9, where differences of covariances have no digit."""
    v1, v2, m = 1.0, 1.0 + 2.0**-30, 2.0**-58
    one = torch.ones(1, 1, dtype=torch.float64)
    given = PairCovariance(v1 * one, v2 * one, m * one, (v1 - v2) * one)
    q = (mp.sqrt(mp.mpf(v1)) - mp.sqrt(mp.mpf(v2))) ** 2
    e = (mp.mpf(m) - q) / (2 * mp.sqrt(mp.mpf(v1) * v2))
    theta = 2 * mp.asin(mp.sqrt(e / 2))
    link, t1, t2 = ReLULink(), 0.4, 0.4 + 2.0**-31
    got = link.rho_dual(given).sqdist.item()
    assert abs(got / float(1 - 2 * orthant(theta)) - 1) < 1e-14
    got = link.residual_dual(given, t1 * one, t2 * one).sqdist.item()
    oracle, cov = LINKS["relu"], (mp.mpf(v1) + v2 - m) / 2

    def entry(s: mp.mpf, t: mp.mpf, a: mp.mpf, b: mp.mpf, c: mp.mpf) -> mp.mpf:
        mixed = s * oracle.cross(a, b, c) + t * oracle.cross(b, a, c)
        return s * t * oracle.rho(a, b, c) - mixed + oracle.sigma(a, b, c)

    s, t, a, b = (mp.mpf(x) for x in (t1, t2, v1, v2))
    expected = entry(s, s, a, a, a) + entry(t, t, b, b, b) - 2 * entry(s, t, a, b, cov)
    assert abs(got / float(expected) - 1) < 1e-13


def test_product_of_independent_pairs() -> None:
    first, second = pair(0.3, 1.2, 0.4), pair(2.0, 0.7, -0.3)
    product = product_dual(first, second)
    torch.testing.assert_close(product.cov, first.cov * second.cov)
    torch.testing.assert_close(product.vardiff, product.var1 - product.var2)


@pytest.mark.parametrize(
    "name, critical",
    [("relu", 0.5**0.5), ("identity", 1.0), ("logistic", 0.25), ("tanh", 1.0)],
)
def test_critical_regularization(name: str, critical: float) -> None:
    assert get_link(name).critical_regularization == pytest.approx(critical, rel=1e-15)
    found = ExponentialFamilyLink(torch.sigmoid, torch.ones_like).critical_regularization
    assert found == pytest.approx(0.25, rel=1e-12)


def test_softplus_slope() -> None:
    u = np.linspace(-20, 40, 600001)
    slope = np.gradient(FUNCTIONS["softplus-gaussian"][0](u), u).max()
    assert get_link("softplus-gaussian").critical_regularization == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_links_are_pickled(name: str) -> None:
    link, given = get_link(name), pair(0.5, 0.8, 0.3)
    copied = pickle.loads(pickle.dumps(link))
    assert repr(copied) == repr(link)
    assert torch.equal(copied.cross(given), link.cross(given))
    assert get_link(link) is link


@pytest.mark.parametrize("name", NAMES)
def test_links_are_derivatives_of_likelihoods(name: str) -> None:
    """sigma = (A o R)' and rho = R', with A and R of the family that the link names."""
    link = get_link(name)
    assert link.family is not None
    eta = torch.linspace(-6, 6, 40, dtype=torch.float64, requires_grad=True)  # not at the kink
    parameter = eta if link.natural_parameter is None else link.natural_parameter(eta)
    (rho,) = torch.autograd.grad(parameter.sum(), eta, retain_graph=True)
    (sigma,) = torch.autograd.grad(link.family.log_partition(parameter).sum(), eta)
    if name == "relu":
        torch.testing.assert_close(sigma, eta.relu())
        torch.testing.assert_close(rho, (eta > 0).double())
    else:
        torch.testing.assert_close(link.sigma(eta), sigma)
        torch.testing.assert_close(link.rho(eta), rho)


def test_families_are_links() -> None:
    given = pair(0.5, 0.8, 0.3)
    assert torch.equal(get_link(Gaussian()).cross(given), get_link("identity").cross(given))
    link, one = get_link(Binomial(7)), get_link("logistic")
    assert link.critical_regularization == 7 / 4
    torch.testing.assert_close(link.sigma_dual(given).cov, 49 * one.sigma_dual(given).cov)
    link = ExponentialFamilyLink.from_family("continuous-bernoulli")
    assert link.critical_regularization == 1 / 12
    mean = ContinuousBernoulli().mean
    direct = ExponentialFamilyLink(mean, torch.ones_like)
    assert direct.critical_regularization == pytest.approx(1 / 12, rel=1e-9)
    assert torch.equal(link.cross(given), direct.cross(given))
    assert torch.equal(pickle.loads(pickle.dumps(link)).cross(given), link.cross(given))
    x = torch.linspace(-1, 2, 5, dtype=torch.float64).unsqueeze(-1)
    one, two = (DEKerKernel(link).double()(x).to_dense() for link in (Gaussian(), "identity"))
    assert torch.equal(one, two)
    with pytest.raises(ValueError, match=r"sigma of bounded slope.*from_family\(Poisson\(\)\)"):
        DEKerKernel(get_link(Poisson()))


def test_natural_parameters_are_differentiated() -> None:
    """Without a slope it comes from automatic differentiation."""
    softplus = torch.nn.functional.softplus
    link = ExponentialFamilyLink.from_family(Gaussian(), softplus)
    named, given = get_link("softplus-gaussian"), pair(0.5, 0.8, 0.3)
    assert repr(link) == "ExponentialFamilyLink.from_family(Gaussian(), softplus)" == repr(named)
    assert link.critical_regularization == pytest.approx(named.critical_regularization, rel=1e-9)
    for copied in (link, pickle.loads(pickle.dumps(link))):
        torch.testing.assert_close(copied.cross(given), named.cross(given))
        torch.testing.assert_close(copied.sigma_dual(given), named.sigma_dual(given))
    eta = torch.tensor([-1.3, 0.2, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(link.sigma, eta)
    assert torch.autograd.gradgradcheck(link.sigma, eta)
    with pytest.raises(ValueError, match="Unknown family 'gauss'"):
        ExponentialFamilyLink.from_family("gauss")


def test_pair_of_functions() -> None:
    link = get_link((torch.tanh, torch.ones_like))
    assert repr(link) == "ExponentialFamilyLink(sigma=tanh, rho=ones_like)"


def number(eta: Tensor) -> float:
    return 1.0


@pytest.mark.parametrize("role", ["sigma", "rho"])
@pytest.mark.parametrize(
    "bad, error, message",
    [
        (3.0, TypeError, "elementwise torch function, not 3.0"),
        (None, TypeError, "elementwise torch function, not None"),
        (torch.sum, TypeError, "same shape"),
        (number, TypeError, "same shape"),
        (torch.log, ValueError, "not finite"),
    ],
)
def test_function_that_is_none(role: str, bad: object, error: type, message: str) -> None:
    functions = {"sigma": torch.tanh, "rho": torch.ones_like, role: bad}
    with pytest.raises(error, match=rf"{role} of a link.*{message}"):
        ExponentialFamilyLink(**functions)


def test_unknown_link() -> None:
    with pytest.raises(ValueError, match="'rleu'") as error:
        get_link("rleu")
    assert all(f"'{name}'" in str(error.value) for name in NAMES)
    for bad in (3, None, torch.tanh, (torch.tanh,)):
        with pytest.raises(TypeError, match="pair of functions"):
            get_link(bad)


@pytest.mark.parametrize("critical", [-1.0, float("nan")])
def test_bad_critical_regularization(critical: float) -> None:
    with pytest.raises(ValueError, match=r"critical_regularization must .* got"):
        ExponentialFamilyLink(torch.tanh, torch.ones_like, critical_regularization=critical)
