r"""The few numbers through which a DEQ kernel depends on its activation in high dimension.

For the equilibrium :math:`\Sigma = w\,G(\Sigma) + b` of inputs of a Gaussian mixture with many
dimensions, a centred activation and no bias, Ling et al. (2024) [Ling2024]_ prove that the kernel
matrix and that of the tangent kernel tend in spectral norm to combinations of :math:`b`, its
elementwise square and its diagonal, with some scalars as coefficients. See the page "Explicit
equivalents" of the documentation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import settings
from ..activations import (
    Activation,
    gaussian_quadrature,
    get_activation,
    panel_halvings,
    value_and_slope,
)
from ..equilibrium import ConvergenceWarning, SolverMonitor, implicit_root, newton
from ..kernels import DEQNNGPKernel, DEQNTKKernel

__all__ = [
    "GaussianMoments",
    "HighDimensionalCoefficients",
    "equilibrium_scale",
    "gaussian_moments",
    "high_dimensional_coefficients",
]


class GaussianMoments(NamedTuple):
    r"""Expectations of an activation at :math:`\tau z`, ``z`` standard normal.

    Each has the shape of ``tau``; :math:`\tilde\varphi = \varphi - \operatorname E\varphi(\tau
    z)`.

    Args:
        mean: Mean of the activation, :math:`\operatorname E\varphi`.
        variance: Its variance, :math:`\operatorname E\tilde\varphi^2`.
        slope: Mean of its derivative, :math:`\operatorname E\varphi'`.
        curvature: Mean of its second derivative, :math:`\operatorname E\varphi''`.
        square_slope: Mean of its squared derivative, :math:`\operatorname E\varphi'^2`.
        square_curvature: Mean of the second derivative of the centred square,
            :math:`\operatorname E(\tilde\varphi^2)''`.
    """

    mean: Tensor
    variance: Tensor
    slope: Tensor
    curvature: Tensor
    square_slope: Tensor
    square_curvature: Tensor

    @property
    def g1(self) -> Tensor:
        r"""Square of the mean derivative, :math:`(\operatorname E\varphi')^2`."""
        return self.slope.square()

    @property
    def g2(self) -> Tensor:
        r"""Square of the mean second derivative, :math:`(\operatorname E\varphi'')^2`."""
        return self.curvature.square()


def gaussian_moments(activation: Activation, tau: Tensor) -> GaussianMoments:
    r"""Gaussian expectations of an activation and of its derivatives, by quadrature.

    Partial integration gives :math:`\operatorname E\varphi' = \operatorname E[z\varphi]/\tau`,
    :math:`\operatorname E\varphi'' = \operatorname E[(z^2-1)\varphi]/\tau^2` and
    :math:`\operatorname E(\tilde\varphi^2)'' = \operatorname E[(z^2-1)\tilde\varphi^2]/\tau^2`, so
    the activation need not be differentiable everywhere.

    Args:
        activation: The activation, as a function of the pre-activation.
        tau: Positive scales of the pre-activation, of any shape. Second derivatives lose digits
            where the activation is nearly linear at its scale: with softplus they lose all of them
            below 1e-8.

    Returns:
        The expectations, each in the shape of ``tau``.

    Raises:
        ValueError: an expectation is not finite.
    """
    wide = tau.double()
    nodes, table = gaussian_quadrature(2, panel_halvings(wide), wide.device)
    value, slope = value_and_slope(activation, wide.unsqueeze(-1) * nodes)
    # E phi h_k with h_1 = z and h_2 = (z^2 - 1) / sqrt 2
    mean, first, second = (value @ table).unbind(-1)
    square = (value - mean.unsqueeze(-1)).square() @ table
    root2 = 2**0.5
    moments = GaussianMoments(
        mean,
        square[..., 0],
        first / wide,
        root2 * second / wide.square(),
        slope.square() @ table[:, 0],
        root2 * square[..., 2] / wide.square(),
    )
    if not all(bool(value.isfinite().all()) for value in moments):
        largest = tau.max().item()
        raise ValueError(f"{activation!r} has an infinite Gaussian expectation up to {largest:g}.")
    return GaussianMoments(*(value.to(tau.dtype) for value in moments))


class HighDimensionalCoefficients(NamedTuple):
    r"""Coefficients of the equivalents, for a matrix ``b`` of injected covariances.

    .. math::
        \bar G = \alpha_1 b + \alpha_2 \chi\chi^\top + \alpha_3 (b \circ b - D)
            + (\gamma^2 - \beta_0\alpha_1) I , \qquad \chi_i = b_{ii} - \beta_0 ,

    where :math:`\beta_0` is the mean of :math:`b_{ii}` and ``D`` the diagonal of the squares. The
    tangent kernel of the recurrent weights has ``beta_1`` to ``beta_3`` and ``kappa`` in their
    place.

    Args:
        tau: Root of the variance of the pre-activations.
        gamma: Root of the variance of the centred activations.
        alpha_1: Coefficient of ``b``.
        alpha_2: Coefficient of :math:`\chi\chi^\top`.
        alpha_3: Coefficient of the elementwise square of ``b``.
        alpha_4: Derivative of the variance of the pre-activations with respect to :math:`b_{ii}`.
        beta_1: Coefficient of ``b`` in the tangent kernel.
        beta_2: Coefficient of :math:`\chi\chi^\top` in the tangent kernel.
        beta_3: Coefficient of the elementwise square of ``b`` in the tangent kernel.
        kappa: Root of the diagonal of the tangent kernel, in the place of ``gamma``.
        input_variance: Factor :math:`\sigma_b^2` of :math:`b = \sigma_b^2 XX^\top`, which
            `paper_scaling` moves into the coefficients.
    """

    tau: Tensor
    gamma: Tensor
    alpha_1: Tensor
    alpha_2: Tensor
    alpha_3: Tensor
    alpha_4: Tensor
    beta_1: Tensor
    beta_2: Tensor
    beta_3: Tensor
    kappa: Tensor
    input_variance: Tensor

    def paper_scaling(self) -> HighDimensionalCoefficients:
        r"""The coefficients of :math:`XX^\top` instead of :math:`b = \sigma_b^2 XX^\top`.

        :math:`\alpha_1, \alpha_4, \beta_1` are multiplied by :math:`\sigma_b^2`, the other
        coefficients by :math:`\sigma_b^4`.
        """
        unit = self.input_variance
        return self._replace(
            alpha_1=unit * self.alpha_1,
            alpha_2=unit**2 * self.alpha_2,
            alpha_3=unit**2 * self.alpha_3,
            alpha_4=unit * self.alpha_4,
            beta_1=unit * self.beta_1,
            beta_2=unit**2 * self.beta_2,
            beta_3=unit**2 * self.beta_3,
            input_variance=torch.ones_like(unit),
        )


def high_dimensional_coefficients(
    kernel_or_activation: DEQNNGPKernel
    | DEQNTKKernel
    | str
    | Activation
    | Callable[[Tensor], Tensor],
    weight_variance: float | Tensor | None = None,
    input_variance: float | Tensor = 1.0,
    tau0: float | Tensor = 1.0,
) -> HighDimensionalCoefficients:
    r"""Solves the scalar equations of Ling et al. (2024), theorems 1 and 2.

    First :math:`\tau^2 = w \operatorname E\tilde\varphi^2(\tau z) + \sigma_b^2\tau_0^2`; the rest
    is explicit, with :class:`GaussianMoments`:

    .. math::
        \alpha_1 = \frac{g_1}{1 - w g_1}, \quad \alpha_4 = \frac1{1 - w g_4/2}, \quad
        \alpha_2 = \frac{g_2\alpha_4^2}{4(1 - w g_1)}, \quad
        \alpha_3 = \frac{g_2(1 + w\alpha_1)^2}{2(1 - w g_1)},

    .. math::
        \beta_1 = \frac{\alpha_1}{1 - w g_1}, \quad \beta_2 = \frac{\alpha_2}{1 - w g_1}, \quad
        \beta_3 = \frac{\alpha_3 + \beta_1 w g_2 (1 + w\alpha_1)}{1 - w g_1}, \quad
        \kappa^2 = \frac{\gamma^2}{1 - w \operatorname E\varphi'^2} .

    Args:
        kernel_or_activation: A DEQ kernel, whose activation and weight variance are taken, or an
            activation by name, object or function.
        weight_variance: Weight variance :math:`w`; None for a kernel, which has its own.
        input_variance: Factor :math:`\sigma_b^2` of :math:`b = \sigma_b^2 XX^\top`.
        tau0: Root of the mean squared norm of an input, so that :math:`\beta_0 = \sigma_b^2
            \tau_0^2`.

    Returns:
        Scalar tensors, differentiable with respect to ``weight_variance``, ``input_variance`` and
        ``tau0``.

    Raises:
        ValueError: the weight variance is missing, given twice, or not between zero and its
            critical value; ``input_variance`` or ``tau0`` is not positive; or the activation has an
            infinite expectation.

    Example:
        >>> found = high_dimensional_coefficients("relu", 0.1, input_variance=0.9)
        >>> [round(a.item(), 5) for a in found.paper_scaling()[2:5]]
        [0.23077, 0.03802, 0.07464]
    """
    if isinstance(kernel_or_activation, DEQNNGPKernel | DEQNTKKernel):
        if weight_variance is not None:
            raise ValueError("A kernel has its weight variance; give none.")
        activation = kernel_or_activation.activation
        weight = kernel_or_activation.weight_variance
    else:
        if weight_variance is None:
            raise ValueError("Give a weight variance for the activation.")
        activation = get_activation(kernel_or_activation)
        floating = isinstance(weight_variance, Tensor) and weight_variance.is_floating_point()
        weight = torch.as_tensor(weight_variance, dtype=None if floating else torch.float64)
    if weight.numel() != 1:
        raise ValueError("Give one weight variance, or one kernel, and not a batch of them.")
    weight = weight.reshape(())
    critical = activation.critical_weight_variance
    if not 0 < weight.item() < critical:
        raise ValueError(
            f"weight_variance must be between 0 and {critical:g} for {activation!r}, got "
            f"{weight.item():g}."
        )
    unit, tau0 = (
        torch.as_tensor(value, dtype=weight.dtype, device=weight.device)
        for value in (input_variance, tau0)
    )
    for name, value in (("input_variance", unit), ("tau0", tau0)):
        if not (bool(value > 0) and bool(value.isfinite())):
            raise ValueError(f"{name} must be positive, got {value.item():g}.")
    tau = equilibrium_scale(activation, weight, unit * tau0.square())
    moments = gaussian_moments(activation, tau)
    gap = 1 - weight * moments.g1
    alpha_1 = moments.g1 / gap
    alpha_4 = 1 / (1 - weight * moments.square_curvature / 2)
    alpha_2 = moments.g2 * alpha_4.square() / (4 * gap)
    alpha_3 = moments.g2 * (1 + weight * alpha_1).square() / (2 * gap)
    beta_1 = alpha_1 / gap
    return HighDimensionalCoefficients(
        tau,
        moments.variance.sqrt(),
        alpha_1,
        alpha_2,
        alpha_3,
        alpha_4,
        beta_1,
        alpha_2 / gap,
        (alpha_3 + beta_1 * weight * moments.g2 * (1 + weight * alpha_1)) / gap,
        (moments.variance / (1 - weight * moments.square_slope)).sqrt(),
        unit,
    )


def equilibrium_scale(
    activation: Activation, weight: Tensor, injected: Tensor, constant: Tensor | None = None
) -> Tensor:
    r"""Standard deviation :math:`\tau` of the pre-activations.

    It solves :math:`\tau^2 = w \operatorname E(\varphi(\tau z) - c)^2 + b`, by Newton's method in a
    bracket.

    Args:
        activation: The activation.
        weight: Weight variance ``w``, a scalar.
        injected: Injected variances ``b``, of any shape.
        constant: Constant ``c``, a scalar. Default: the mean of the activation at :math:`\tau`.

    Returns:
        The standard deviations, of the shape of ``injected``.

    Warns:
        ConvergenceWarning: the step did not come below the tolerance.
    """
    parameters = (weight, injected) if constant is None else (weight, injected, constant)

    def excess(
        v: Tensor, weight: Tensor, injected: Tensor, constant: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        moments = gaussian_moments(activation, v.sqrt())
        # the derivative of a Gaussian expectation with respect to its variance is half the
        # expectation of the second derivative (Price's theorem); that of the mean drops out where
        # the mean itself is subtracted
        square, slope = moments.variance, moments.square_curvature / 2
        if constant is not None:
            offset = moments.mean - constant
            square, slope = square + offset.square(), slope + offset * moments.curvature
        return v - weight * square - injected, 1 - weight * slope

    with torch.no_grad():
        lower, upper = injected.clone(), 2 * injected
        while bool((short := excess(upper, *parameters)[0] < 0).any()):
            lower, upper = torch.where(short, upper, lower), torch.where(short, 2 * upper, upper)
        # the expectations are sums over 500 to 900 nodes, right to about 16 eps
        root = newton(
            lambda v, _: excess(v, *parameters),
            upper,
            lower,
            upper,
            upper,
            16 * torch.finfo(upper.dtype).eps,
            monitor := SolverMonitor(),
        ).point
    report = monitor.report()
    if not report.converged and settings.warn_not_converged.value():
        warnings.warn(
            f"The variance of {activation!r} did not converge in {report.iterations} iterations: "
            f"relative step {report.residual:.1e}. Raise gp_deq.settings.max_solver_iterations.",
            ConvergenceWarning,
            stacklevel=3,
        )
    return implicit_root(root, excess, *parameters).sqrt()
