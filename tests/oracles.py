"""Many-digit reference values that share no code with the package.

Everything is derived from first principles in mpmath: the Gaussian expectations from orthant
moments and Gaussian integrals (``test_check_values.py`` checks them against quadrature), the
equilibria by bracketed root finding that uses no derivative, the kernels from their definitions.
Inputs and hyperparameters are doubles (or floats) taken exactly as given.

The kernels:  ``u = sqrt(w/N) W phi(u) + U x + beta``, ``f = V phi(u)/sqrt(N)``,
``Sigma = w G(Sigma) + b``, ``b = s + bias_variance``,
``s = (1/d) sum_j (x_j - center_j)(x'_j - center_j)/lengthscale_j^2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import mpmath
import numpy as np

DIGITS = 60
mp = mpmath.MPContext()  # a context of our own: the precision of mpmath.mp stays untouched
mp.dps = DIGITS

Real = mpmath.ctx_mp_python._mpf
TRAINED = ("all", "hidden", "recurrent", "preactivation")


class Injected(NamedTuple):
    """Covariances of the injected input of two points: variances and covariance."""

    b11: Real
    b22: Real
    b12: Real


class Equilibrium(NamedTuple):
    """A pair of pre-activations, the dual G and the derivative's dual P."""

    v1: Real
    v2: Real
    c: Real
    G: Real
    P: Real


# ------------------------------------------------------------------------------------------
# Gaussian expectations
# ------------------------------------------------------------------------------------------


def _angle(v1: Real, v2: Real, c: Real) -> Real:
    """Angle whose cosine is the correlation, the cosine limited to [-1, 1]."""
    return mp.acos(max(mp.mpf(-1), min(mp.mpf(1), c / mp.sqrt(v1 * v2))))


def orthant(theta: Real) -> Real:
    """P(X > 0, Y > 0) of a centred Gaussian pair at angle theta."""
    return (mp.pi - theta) / (2 * mp.pi)


def orthant_product(theta: Real) -> Real:
    """E[X Y; X > 0, Y > 0] of a pair of unit variances (Cho & Saul's first arc-cosine)."""
    return (mp.sin(theta) + (mp.pi - theta) * mp.cos(theta)) / (2 * mp.pi)


def orthant_square(theta: Real) -> Real:
    """E[X^2; X > 0, Y > 0] of a pair of unit variances."""
    return (mp.pi - theta + mp.sin(theta) * mp.cos(theta)) / (2 * mp.pi)


class Activation:
    """Reference for one activation: the function, its slope, and both duals."""

    name: str
    lipschitz: Real

    @property
    def critical(self) -> Real:
        """The largest weight variance with an equilibrium for every input."""
        return 1 / self.lipschitz**2

    def phi(self, u: Real) -> Real:
        raise NotImplementedError

    def slope(self, u: Real) -> Real:
        raise NotImplementedError

    def G(self, v1: Real, v2: Real, c: Real) -> Real:
        """E phi(u) phi(v)."""
        raise NotImplementedError

    def P(self, v1: Real, v2: Real, c: Real) -> Real:
        """E phi'(u) phi'(v)."""
        raise NotImplementedError

    def variance_slope(self, v1: Real, v2: Real, c: Real) -> Real:
        """dG/dv1 at fixed covariance: a central difference, exact to about 1e-36 relative.

        Differences need |c| < sqrt(v1 v2) by more than the step.
        """
        h = v1 * mp.mpf(10) ** (-DIGITS // 3)
        return (self.G(v1 + h, v2, c) - self.G(v1 - h, v2, c)) / (2 * h)

    # What solves an equilibrium; the quadrature activations have their own, faster ways.
    def solve_variance(self, w: Real, b: Real) -> Real:
        if b == 0 and self.phi(mp.mpf(0)) == 0:
            return mp.mpf(0)
        upper = b + 1
        while upper - w * self.G(upper, upper, upper) - b < 0:
            upper *= 4
        return bracketed_root(lambda v: v - w * self.G(v, v, v) - b, b, upper)

    def solve_covariance(self, w: Real, v1: Real, v2: Real, b12: Real) -> Real:
        bound = mp.sqrt(v1 * v2)
        return bracketed_root(lambda c: c - w * self.G(v1, v2, c) - b12, -bound, bound)


class Identity(Activation):
    name = "identity"
    lipschitz = mp.mpf(1)

    def phi(self, u: Real) -> Real:
        return u

    def slope(self, u: Real) -> Real:
        return mp.mpf(1)

    def G(self, v1: Real, v2: Real, c: Real) -> Real:
        return c

    def P(self, v1: Real, v2: Real, c: Real) -> Real:
        return mp.mpf(1)


class LeakyReLU(Activation):
    """p relu(u) - n relu(-u): orthant moments of (u, v), (-u, -v), (u, -v) and (-u, v)."""

    def __init__(self, negative_slope: float, positive_slope: float = 1.0) -> None:
        self.name = "leaky_relu" if negative_slope else "relu"
        self.p, self.n = mp.mpf(positive_slope), mp.mpf(negative_slope)
        self.lipschitz = max(abs(self.p), abs(self.n))

    @property
    def critical(self) -> Real:
        return 2 / (self.p**2 + self.n**2)  # G(v, v, v) = v (p^2 + n^2)/2: exact

    def phi(self, u: Real) -> Real:
        return self.p * u if u > 0 else self.n * u

    def slope(self, u: Real) -> Real:
        return self.p if u > 0 else self.n

    def G(self, v1: Real, v2: Real, c: Real) -> Real:
        if v1 == 0 or v2 == 0:
            return mp.mpf(0)
        th = _angle(v1, v2, c)
        same, other = orthant_product(th), orthant_product(mp.pi - th)
        return mp.sqrt(v1 * v2) * ((self.p**2 + self.n**2) * same - 2 * self.p * self.n * other)

    def P(self, v1: Real, v2: Real, c: Real) -> Real:
        th = _angle(v1, v2, c)
        return (self.p**2 + self.n**2) * orthant(th) + 2 * self.p * self.n * orthant(mp.pi - th)


class Erf(Activation):
    """Williams (1997): the determinant of I + 2 Sigma."""

    name = "erf"
    lipschitz = 2 / mp.sqrt(mp.pi)

    def phi(self, u: Real) -> Real:
        return mp.erf(u)

    def slope(self, u: Real) -> Real:
        return 2 / mp.sqrt(mp.pi) * mp.exp(-u * u)

    def G(self, v1: Real, v2: Real, c: Real) -> Real:
        return 2 / mp.pi * mp.asin(2 * c / mp.sqrt((1 + 2 * v1) * (1 + 2 * v2)))

    def P(self, v1: Real, v2: Real, c: Real) -> Real:
        return 4 / mp.pi / mp.sqrt((1 + 2 * v1) * (1 + 2 * v2) - 4 * c * c)


class Sine(Activation):
    """sin u sin v = (cos(u - v) - cos(u + v))/2 and E cos X = exp(-var X/2)."""

    name = "sin"
    lipschitz = mp.mpf(1)

    def phi(self, u: Real) -> Real:
        return mp.sin(u)

    def slope(self, u: Real) -> Real:
        return mp.cos(u)

    def G(self, v1: Real, v2: Real, c: Real) -> Real:
        return (mp.exp(c - (v1 + v2) / 2) - mp.exp(-c - (v1 + v2) / 2)) / 2

    def P(self, v1: Real, v2: Real, c: Real) -> Real:
        return (mp.exp(c - (v1 + v2) / 2) + mp.exp(-c - (v1 + v2) / 2)) / 2


class GELU(Activation):
    """u Phi(u) = E[u; u > a] for a standard normal a.

    With X = u - a and Y = v - a', (X, Y) ~ N(0, Sigma + I), the conditional mean of (u, v) is
    M (X, Y) and their conditional covariance is M, M = Sigma (Sigma + I)^-1; the rest are
    orthant moments of (X, Y).  The slope is Phi(u) + u N(u), N the normal density.
    """

    name = "gelu"
    # |slope| is largest where u (2 - u^2) N(u) = 0 with the right sign: u = sqrt 2.
    lipschitz = mp.ncdf(mp.sqrt(2)) + mp.sqrt(2) * mp.npdf(mp.sqrt(2))

    def phi(self, u: Real) -> Real:
        return u * mp.ncdf(u)

    def slope(self, u: Real) -> Real:
        return mp.ncdf(u) + u * mp.npdf(u)

    def G(self, v1: Real, v2: Real, c: Real) -> Real:
        s1, s2, det = 1 + v1, 1 + v2, (1 + v1) * (1 + v2) - c * c
        th = _angle(s1, s2, c)
        m11, m22, m12 = 1 - s2 / det, 1 - s1 / det, c / det
        xx, yy = s1 * orthant_square(th), s2 * orthant_square(th)
        xy = mp.sqrt(s1 * s2) * orthant_product(th)
        outer = m11 * m12 * xx + (m11 * m22 + m12 * m12) * xy + m12 * m22 * yy
        return m12 * orthant(th) + outer

    def P(self, v1: Real, v2: Real, c: Real) -> Real:
        s1, s2, det = 1 + v1, 1 + v2, (1 + v1) * (1 + v2) - c * c
        gauss = 1 / (2 * mp.pi * mp.sqrt(det))  # E N(u) N(v)
        return orthant(_angle(s1, s2, c)) + gauss * c * (1 / s1 + 1 / s2 + 1 / det)


class Quadrature(Activation):
    """Any odd analytic activation by the trapezoid rule in two independent normal variables.

    u = s1 (alpha z1 + beta z2), v = s2 (alpha z1 - beta z2).  For a function analytic in a
    strip of half width a the rule of step h on the real line errs by exp(a^2/2 - 2 pi a/h),
    and by exp(-2 pi^2/h^2) when the Gaussian limits it; both are put below 10^-digits.
    """

    def __init__(
        self,
        name: str,
        both: Callable[[Real], tuple[Real, Real]],
        numpy_phi: Callable[[np.ndarray], np.ndarray],
        numpy_slope: Callable[[np.ndarray], np.ndarray],
        pole: float,
        lipschitz: Real,
        digits: int = 34,
    ) -> None:
        self.name, self.both = name, both
        self.numpy_phi, self.numpy_slope = numpy_phi, numpy_slope
        self.pole, self.lipschitz, self.digits = pole, lipschitz, digits

    def phi(self, u: Real) -> Real:
        return self.both(u)[0]

    def slope(self, u: Real) -> Real:
        return self.both(u)[1]

    def _grid(self, scale: float, digits: float) -> tuple[float, int]:
        """Step, and number of nodes on each side of 0, for phi(scale z)."""
        if scale == 0:
            return math.sqrt(2 * math.pi), 0  # one node of weight 1
        logs = digits * math.log(10) + 8
        step, strip = math.pi * math.sqrt(2 / logs), self.pole / scale
        if strip < 2 * math.pi / step:
            step = min(step, 2 * math.pi * strip / (logs + strip**2 / 2))
        return step, math.ceil(math.sqrt(2 * logs) / step)

    def _nodes(self, scale: float) -> list[tuple[Real, Real]]:
        step, half = self._grid(scale, self.digits)
        if half == 0:
            return [(mp.mpf(0), mp.mpf(1))]
        points = [mp.mpf(k) * step for k in range(-half, half + 1)]
        return [(z, step * mp.npdf(z)) for z in points]

    @cache  # noqa: B019 (a handful of module-level instances)
    def duals(self, v1: Real, v2: Real, c: Real) -> tuple[Real, Real]:
        """(G, P) to `digits` digits."""
        with mp.workdps(self.digits + 8):
            s1, s2 = mp.sqrt(v1), mp.sqrt(v2)
            r = max(mp.mpf(-1), min(mp.mpf(1), c / (s1 * s2)))
            alpha, beta = mp.sqrt((1 + r) / 2), mp.sqrt((1 - r) / 2)
            big = float(max(s1, s2))
            rows, columns = self._nodes(float(alpha) * big), self._nodes(float(beta) * big)
            G = P = mp.mpf(0)
            for k, (z2, w2) in enumerate(columns[len(columns) // 2 :]):
                for z1, w1 in rows:  # (z1, z2) and (-z1, -z2) together; z2 = 0 once
                    a, b = alpha * z1, beta * z2
                    (f1, d1), (f2, d2) = self.both(s1 * (a + b)), self.both(s2 * (a - b))
                    weight = w1 * w2 * (2 if k else 1)
                    G += weight * f1 * f2
                    P += weight * d1 * d2
            return G, P

    def numpy_duals(self, v1: float, v2: float, c: float) -> tuple[float, float]:
        """(G, P) in double precision: to start from, and where doubles are enough."""
        s1, s2 = math.sqrt(v1), math.sqrt(v2)
        r = max(-1.0, min(1.0, c / (s1 * s2)))
        alpha, beta = math.sqrt((1 + r) / 2), math.sqrt((1 - r) / 2)
        (h1, n1), (h2, n2) = (self._grid(k * max(s1, s2), 17) for k in (alpha, beta))
        z1, z2 = h1 * np.arange(-n1, n1 + 1)[:, None], h2 * np.arange(-n2, n2 + 1)
        weights = h1 * h2 / (2 * math.pi) * np.exp(-(z1**2 + z2**2) / 2)
        u, v = s1 * (alpha * z1 + beta * z2), s2 * (alpha * z1 - beta * z2)
        G = (weights * self.numpy_phi(u) * self.numpy_phi(v)).sum()
        P = (weights * self.numpy_slope(u) * self.numpy_slope(v)).sum()
        return float(G), float(P)

    def G(self, v1: Real, v2: Real, c: Real) -> Real:
        if v1 == 0 or v2 == 0:
            assert self.phi(mp.mpf(0)) == 0
            return mp.mpf(0)
        return self.duals(v1, v2, c)[0]

    def P(self, v1: Real, v2: Real, c: Real) -> Real:
        return self.duals(v1, v2, c)[1]

    def solve_variance(self, w: Real, b: Real) -> Real:
        if b == 0:
            assert self.phi(mp.mpf(0)) == 0
            return b
        upper = float(b)
        while upper - float(w) * self.numpy_duals(upper, upper, upper)[0] < float(b):
            upper *= 2
        return self._solve(lambda v: (v, v, v), w, b, float(b), upper)

    def solve_covariance(self, w: Real, v1: Real, v2: Real, b12: Real) -> Real:
        if v1 == 0 or v2 == 0:
            return b12
        bound = math.sqrt(float(v1) * float(v2))
        return self._solve(lambda c: (v1, v2, c), w, b12, -bound, bound)

    def _solve(
        self, arguments: Callable[[Any], tuple], w: Real, b: Real, low: float, high: float
    ) -> Real:
        """x = w G(arguments(x)) + b: bisection in doubles, then steps of many-digit residuals.

        The slope is a double, so each step adds nine digits or more.
        """

        def residual(x: float) -> float:
            return x - float(w) * self.numpy_duals(*map(float, arguments(x)))[0] - float(b)

        lo, hi = low, high
        while (middle := (lo + hi) / 2) not in (lo, hi):
            lo, hi = (middle, hi) if residual(middle) < 0 else (lo, middle)
        scale = max(abs(low), abs(high))
        h = 1e-5 * scale
        up, down = min(lo + h, high), max(lo - h, low)
        slope = mp.mpf((residual(up) - residual(down)) / (up - down))
        if low < 0:  # a covariance: Price's theorem gives the slope to the last double digit
            slope = 1 - w * self.numpy_duals(*map(float, arguments(lo)))[1]
        x = mp.mpf(lo)
        for _ in range(10):
            step = (x - w * self.G(*arguments(x)) - b) / slope
            x -= step
            if abs(step) < 10 ** (-0.65 * self.digits) * scale:
                return x  # the slope is good to 1e-9: what is left is 10^-9 of the step
        raise ArithmeticError(f"{self.name}: the reference did not converge, last step {step}")


def hermite_coefficients(
    fn: Callable[[np.ndarray], np.ndarray], q: float, degree: int, step: float = 2.0**-9
) -> np.ndarray:
    """a_k(q) = E fn(sqrt(q) z) h_k(z), k <= degree, by the trapezoid rule on [-40, 40].

    The smooth functions of the tests have their nearest singularity at pi/2 from the real line,
    where the rule errs by exp(-2 pi (pi/2)/(sqrt(q) step)): 1e-42 for q = 10 and step 2^-5.
    A jump of the second derivative (elu) costs step^2 fn''/(12 sqrt(2 pi)) or so, 1e-7.
    The functions h_k(z) exp(-z^2/4) stay of order one on the way.
    """
    z = step * np.arange(-round(40 / step), round(40 / step) + 1)
    f = fn(math.sqrt(q) * z) * np.exp(-z * z / 4) / math.sqrt(2 * math.pi) * step
    previous, current = np.zeros_like(z), np.exp(-z * z / 4)
    result = np.empty(degree + 1)
    for k in range(degree + 1):
        result[k] = f @ current
        previous, current = (
            current,
            (z * current - math.sqrt(k) * previous) / math.sqrt(k + 1),
        )
    return result


def variance_after(fn: Callable[[np.ndarray], np.ndarray], q: float) -> float:
    """E fn(sqrt(q) z)^2 by the same rule."""
    step = 2.0**-9
    z = step * np.arange(-40 * 512, 40 * 512 + 1)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return float((fn(math.sqrt(q) * z) ** 2 * density).sum() * step)


def bracketed_root(f: Callable[[Real], Real], low: Real, high: Real) -> Real:
    """The root of an increasing f in [low, high] to the working precision less three digits.

    Chandrupatla (1997): inverse quadratic interpolation where it is safe, bisection elsewhere;
    no derivative is used, and the bracket that is left is itself the proof of the digits.
    """
    low, high = mp.mpf(low), mp.mpf(high)
    tolerance = mp.mpf(10) ** (3 - DIGITS)
    a, b = high, low
    fa, fb = f(a), f(b)
    if fa <= 0:  # the root is the end itself (identical or antipodal inputs), up to rounding
        return a
    if fb >= 0:
        return b
    c, fc, t = a, fa, mp.mpf(1) / 2
    for _ in range(500):
        x = a + t * (b - a)
        fx = f(x)
        if (fx > 0) == (fa > 0):
            c, fc = a, fa
        else:
            c, b, fc, fb = b, a, fb, fa
        a, fa = x, fx
        best = a if abs(fa) < abs(fb) else b
        # relative to the root where it is not tiny against the bracket's ends
        width = tolerance * max(abs(best), tolerance * max(abs(low), abs(high)))
        if fx == 0 or abs(b - a) <= 2 * width:
            return best
        limit = width / abs(b - a)
        xi, ph = (a - b) / (c - b), (fa - fb) / (fc - fb)
        if ph**2 < xi and (1 - ph) ** 2 < 1 - xi:
            t = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (
                fc - fb
            )
        else:
            t = mp.mpf(1) / 2
        t = min(max(limit, t), 1 - limit)
    raise ArithmeticError("the bracket did not close")


RELU, ERF, SIN, GELU_, IDENTITY = LeakyReLU(0.0), Erf(), Sine(), GELU(), Identity()
LEAKY = LeakyReLU(0.01)


def _tanh(u: Real) -> tuple[Real, Real]:
    t = mp.tanh(u)
    return t, (1 - t) * (1 + t)


TANH = Quadrature("tanh", _tanh, np.tanh, lambda u: 1 / np.cosh(u) ** 2, math.pi / 2, mp.mpf(1))
ACTIVATIONS: dict[str, Activation] = {
    "relu": RELU,
    "leaky_relu": LEAKY,
    "erf": ERF,
    "sin": SIN,
    "gelu": GELU_,
    "identity": IDENTITY,
    "tanh": TANH,
}


# ------------------------------------------------------------------------------------------
# Equilibria and kernels
# ------------------------------------------------------------------------------------------


def injected(
    x: Sequence[float],
    y: Sequence[float],
    bias_variance: float = 0.0,
    lengthscale: float | Sequence[float] = 1.0,
    center: float | Sequence[float] = 0.0,
) -> Injected:
    """b(x, x), b(y, y), b(x, y) of the exact values of the arguments."""
    d = len(x)
    scale = [mp.mpf(v) for v in ([lengthscale] * d if np.isscalar(lengthscale) else lengthscale)]
    shift = [mp.mpf(v) for v in ([center] * d if np.isscalar(center) else center)]
    p = [(mp.mpf(v) - m) / s for v, m, s in zip(x, shift, scale)]
    q = [(mp.mpf(v) - m) / s for v, m, s in zip(y, shift, scale)]
    beta = mp.mpf(bias_variance)

    def inner(left: list[Real], right: list[Real]) -> Real:
        return mp.fsum(a * b for a, b in zip(left, right)) / d + beta

    return Injected(inner(p, p), inner(q, q), inner(p, q))


@cache
def equilibrium(phi: Activation, w: Real, b: Injected) -> Equilibrium:
    """Sigma = w G(Sigma) + b for one pair: variances first, then the covariance."""
    v1 = phi.solve_variance(w, b.b11)
    v2 = v1 if b.b22 == b.b11 else phi.solve_variance(w, b.b22)
    same = b.b11 == b.b22 == b.b12
    c = v1 if same else phi.solve_covariance(w, v1, v2, b.b12)
    if v1 == 0 or v2 == 0:  # phi(0) = 0 for all of ours, and P multiplies zero in most kernels
        return Equilibrium(v1, v2, mp.mpf(0), mp.mpf(0), mp.nan)
    return Equilibrium(v1, v2, c, phi.G(v1, v2, c), phi.P(v1, v2, c))


def ntk_of(trained: str, G: Real, P: Real, sigma: Real, hidden: Real, recurrent: Real) -> Real:
    """The four conventions from G, P, Sigma, the recursion's Theta and its part from W alone."""
    return {
        "all": lambda: G + P * hidden,
        "hidden": lambda: P * hidden,
        "recurrent": lambda: G + P * recurrent,
        "preactivation": lambda: hidden,
    }[trained]()


def deq(phi: Activation, w: float, b: Injected, trained: str | None = None) -> Real:
    """DEQ-NNGP (trained None) or DEQ-NTK of a pair.

    One linear recursion Theta = T + w P Theta has the sources T = Sigma (everything inside the
    recursion is trained) or T = w G (the recurrent weights alone); the output
    f = V phi(u)/sqrt N adds G for its own weights and multiplies what comes from inside by P.
    """
    w = mp.mpf(w)
    e = equilibrium(phi, w, b)
    if trained is None:
        return e.G
    if mp.isnan(e.P):  # a zero pre-activation: every covariance is zero
        return mp.mpf(0)
    gain = 1 / (1 - w * e.P)
    return ntk_of(trained, e.G, e.P, e.c, e.c * gain, w * e.G * gain)


def finite(
    phi: Activation,
    w: float,
    s: Injected,
    bias_variance: float,
    depth: int,
    input_injection: bool = False,
    trained: str | None = None,
) -> Real:
    """NNGP (trained None) or NTK of `depth` layers; s holds s(x, x'), without the bias."""
    w, bias = mp.mpf(w), mp.mpf(bias_variance)
    s11, s22, s12 = s
    v1, v2, c = s11 + bias, s22 + bias, s12 + bias
    inject = 1 if input_injection else 0
    theta, recurrent = c, mp.mpf(0)
    for _ in range(depth - 1):
        G11, G22, G12 = phi.G(v1, v1, v1), phi.G(v2, v2, v2), phi.G(v1, v2, c)
        if trained is not None:
            P = phi.P(v1, v2, c)
        v1 = w * G11 + bias + inject * s11
        v2 = w * G22 + bias + inject * s22
        c = w * G12 + bias + inject * s12
        if trained is not None:
            theta, recurrent = c + w * P * theta, w * G12 + w * P * recurrent
    G = phi.G(v1, v2, c)
    if trained is None:
        return G
    return ntk_of(trained, G, phi.P(v1, v2, c), c, theta, recurrent)


# ------------------------------------------------------------------------------------------
# Kernels of stochastic gradient updates
# ------------------------------------------------------------------------------------------


class Link:
    """E sigma sigma, E rho rho and E rho(u) sigma(v) of a pair."""

    def sigma(self, v1: Real, v2: Real, c: Real) -> Real:
        raise NotImplementedError

    def rho(self, v1: Real, v2: Real, c: Real) -> Real:
        return mp.mpf(1)

    def cross(self, v1: Real, v2: Real, c: Real) -> Real:
        """E rho(u) sigma(v); zero for odd sigma and constant rho."""
        return mp.mpf(0)


class ReLULink(Link):
    """Orthant moments; E[v; u > 0, v > 0] = sqrt(v2) (1 + r)/(2 sqrt(2 pi))."""

    def sigma(self, v1: Real, v2: Real, c: Real) -> Real:
        return RELU.G(v1, v2, c)

    def rho(self, v1: Real, v2: Real, c: Real) -> Real:
        return orthant(_angle(v1, v2, c)) if v1 * v2 > 0 else mp.mpf(0)

    def cross(self, v1: Real, v2: Real, c: Real) -> Real:
        if v1 * v2 == 0:
            return mp.mpf(0)
        return mp.sqrt(v2) * (1 + c / mp.sqrt(v1 * v2)) / (2 * mp.sqrt(2 * mp.pi))


class IdentityLink(Link):
    def sigma(self, v1: Real, v2: Real, c: Real) -> Real:
        return c


class TanhLink(Link):
    def sigma(self, v1: Real, v2: Real, c: Real) -> Real:
        return TANH.G(v1, v2, c)


class LogisticLink(Link):
    """sigmoid(u) = (1 + tanh(u/2))/2."""

    def sigma(self, v1: Real, v2: Real, c: Real) -> Real:
        return (1 + TANH.G(v1 / 4, v2 / 4, c / 4)) / 4

    def cross(self, v1: Real, v2: Real, c: Real) -> Real:
        return mp.mpf(1) / 2


LINKS: dict[str, Link] = {
    "relu": ReLULink(),
    "identity": IdentityLink(),
    "tanh": TanhLink(),
    "logistic": LogisticLink(),
}


def deker(
    link: Link,
    features: str,
    b: Injected,
    regularization: float,
    scale: float,
    num_steps: int | None = None,
    step_size: float = 1.0,
    moments: Injected | None = None,
) -> Real:
    """psi of a pair after the updates, or the fixed point below coincidence, its stable root.

    ``moments`` are those of features of mean zero, in place of ``features``.
    """
    square, h, a = mp.mpf(regularization) ** 2, mp.mpf(step_size), mp.mpf(scale)
    if features == "relu" and moments is None:
        moments = Injected(b.b11 / 2, b.b22 / 2, RELU.G(*b))
        mu1, mu2 = mp.sqrt(b.b11 / (2 * mp.pi)), mp.sqrt(b.b22 / (2 * mp.pi))
    else:
        moments, mu1, mu2 = moments or b, mp.mpf(0), mp.mpf(0)

    def update(c: Real, m1: Real, m2: Real, v1: Real, v2: Real, psi: Real) -> Real:
        mixed = m1 * link.cross(v1, v2, psi) + m2 * link.cross(v2, v1, psi)
        return a * a * c * link.rho(v1, v2, psi) - a * mixed + link.sigma(v1, v2, psi)

    def on_diagonal(c: Real, m: Real, v: Real) -> Real:
        return update(c, m, m, v, v, v)

    v1, v2, psi = b
    if num_steps is not None:
        for _ in range(num_steps):
            old = (v1, v2, psi)
            new = (
                on_diagonal(moments.b11, mu1, v1),
                on_diagonal(moments.b22, mu2, v2),
                update(moments.b12, mu1, mu2, *old),
            )
            v1, v2, psi = ((1 - h) ** 2 * p + h * h / square * q for p, q in zip(old, new))
        return psi
    inertia = square * (2 - h) / h
    variances = []
    for c, m in ((moments.b11, mu1), (moments.b22, mu2)):
        upper = mp.mpf(1)
        while inertia * upper < on_diagonal(c, m, upper):
            upper *= 4
        tiny = mp.mpf(10) ** (-2 * DIGITS)  # where a zero input has its fixed point
        root = bracketed_root(lambda v, c=c, m=m: inertia * v - on_diagonal(c, m, v), tiny, upper)
        variances.append(mp.mpf(0) if c == 0 and on_diagonal(c, m, mp.mpf(0)) == 0 else root)
    v1, v2 = variances
    if v1 * v2 == 0:
        return mp.mpf(0)
    top = mp.sqrt(v1 * v2)

    def excess(psi: Real) -> Real:
        return inertia * psi - update(moments.b12, mu1, mu2, v1, v2, psi)

    return bracketed_root(excess, -top, top * (1 - mp.mpf(10) ** -20))
