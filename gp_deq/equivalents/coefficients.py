r"""The few numbers through which a DEQ kernel depends on its activation in high dimension.

For the equilibrium :math:`\Sigma = w\,G(\Sigma) + b` of inputs of a Gaussian mixture with many
dimensions, a centred activation and no bias, Ling et al. (2024) [Ling2024]_ prove that kernel
and tangent kernel tend in spectral norm to matrices with :math:`b`, its elementwise square and its
diagonal in them, and some scalars. See the page "Explicit equivalents" of the documentation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import settings
from ..activations import Activation, get_activation
from ..activations.gradients import value_and_slope
from ..activations.hermite import gaussian_quadrature, panel_halvings
from ..equilibrium import ConvergenceWarning, SolverMonitor, newton
from ..equilibrium.implicit import implicit_root
from ..kernels import DEQNNGPKernel, DEQNTKKernel

__all__ = ["HighDimensionalCoefficients", "Moments", "gaussian_moments"]
__all__ += ["high_dimensional_coefficients"]


class Moments(NamedTuple):
    r"""Gaussian expectations of an activation at :math:`\tau z`, each of the shape of ``tau``.

    With :math:`\tilde\varphi = \varphi - \operatorname E\varphi(\tau z)`:

    Args:
        mean: :math:`\operatorname E\varphi`.
        variance: :math:`\operatorname E\tilde\varphi^2`.
        slope: :math:`\operatorname E\varphi'`.
        curvature: :math:`\operatorname E\varphi''`.
        square_slope: :math:`\operatorname E\varphi'^2`.
        square_curvature: :math:`\operatorname E(\tilde\varphi^2)''`.
    """

    mean: Tensor
    variance: Tensor
    slope: Tensor
    curvature: Tensor
    square_slope: Tensor
    square_curvature: Tensor

    @property
    def g1(self) -> Tensor:
        r""":math:`(\operatorname E\varphi')^2`."""
        return self.slope.square()

    @property
    def g2(self) -> Tensor:
        r""":math:`(\operatorname E\varphi'')^2`."""
        return self.curvature.square()


def gaussian_moments(activation: Activation, tau: Tensor) -> Moments:
    r"""Expectations by quadrature, the derivatives of the activation by partial integration.

    :math:`\operatorname E\varphi' = \operatorname E[z\varphi]/\tau`,
    :math:`\operatorname E\varphi'' = \operatorname E[(z^2-1)\varphi]/\tau^2` and
    :math:`\operatorname E(\tilde\varphi^2)'' = \operatorname E[(z^2-1)\tilde\varphi^2]/\tau^2`, so
    that a kink is no trouble.

    Args:
        activation: Defined by its ``__call__``.
        tau: Positive, of any shape. Curvatures lose digits where the activation is nearly linear at
            its scale: with softplus all below 1e-8.

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
    moments = Moments(
        mean,
        square[..., 0],
        first / wide,
        root2 * second / wide.square(),
        slope.square() @ table[:, 0],
        root2 * square[..., 2] / wide.square(),
    )
    if not all(bool(moment.isfinite().all()) for moment in moments):
        largest = tau.max().item()
        raise ValueError(f"{activation!r} has an infinite Gaussian expectation up to {largest:g}.")
    return Moments(*(moment.to(tau.dtype) for moment in moments))


class HighDimensionalCoefficients(NamedTuple):
    r"""Scalars of the equivalents, in units of the injected covariance ``b``.

    .. math::
        \bar G = \alpha_1 b + \alpha_2 \chi\chi^\top + \alpha_3 (b \circ b - D)
            + (\gamma^2 - \beta_0\alpha_1) I , \qquad \chi_i = b_{ii} - \beta_0 ,

    where :math:`\beta_0` is the mean of :math:`b_{ii}` and ``D`` the diagonal of the squares. The
    tangent kernel of the recurrent weights has ``beta_1`` to ``beta_3`` and ``kappa`` in their
    place.

    Args:
        tau: Root of the variance of the pre-activations.
        gamma: Root of the variance of the centred activations.
        alpha_1: Of ``b``.
        alpha_2: Of :math:`\chi\chi^\top`.
        alpha_3: Of ``b``'s square.
        alpha_4: By what ``chi`` grows on its way into the pre-activations.
        beta_1: Of ``b`` in the tangent kernel.
        beta_2: Of :math:`\chi\chi^\top` there.
        beta_3: Of ``b``'s square there.
        kappa: In the place of ``gamma`` there.
        input_variance: What ``b`` is a multiple of in `paper_scaling`.
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
        r"""With respect to :math:`XX^\top` where :math:`b = \sigma_b^2 XX^\top`.

        :math:`\alpha_1, \alpha_4, \beta_1` times :math:`\sigma_b^2` and the others of the second
        order times :math:`\sigma_b^4`.
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
    is explicit, with the expectations of :class:`Moments`:

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
        weight_variance: :math:`w`; not for a kernel.
        input_variance: :math:`\sigma_b^2`, of which ``b`` is a multiple.
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
        given = isinstance(weight_variance, Tensor)
        weight = torch.as_tensor(weight_variance, dtype=None if given else torch.float64)
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
    r"""Root of the variance of the pre-activations, :math:`\tau`.

    :math:`\tau^2 = w \operatorname E(\varphi(\tau z) - c)^2 + b`, by Newton's method in a bracket.

    Args:
        activation: The activation.
        weight: ``w``, a scalar.
        injected: ``b``, of any shape.
        constant: ``c``, a scalar. Default: the mean of the activation at :math:`\tau`.

    Warns:
        ConvergenceWarning: the step did not come below the tolerance.
    """
    parameters = (weight, injected) if constant is None else (weight, injected, constant)

    def excess(
        v: Tensor, weight: Tensor, injected: Tensor, constant: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        moments = gaussian_moments(activation, v.sqrt())
        # the derivative of a Gaussian expectation by its variance is half that of the second
        # derivative; a mean that is subtracted at each v anew does not show in the first order
        square, bend = moments.variance, moments.square_curvature / 2
        if constant is not None:
            offset = moments.mean - constant
            square, bend = square + offset.square(), bend + offset * moments.curvature
        return v - weight * square - injected, 1 - weight * bend

    with torch.no_grad():
        lower, upper = injected.clone(), 2 * injected
        while bool((short := excess(upper, *parameters)[0] < 0).any()):
            lower, upper = torch.where(short, upper, lower), torch.where(short, 2 * upper, upper)
        root = newton(
            lambda v: excess(v, *parameters),
            upper,
            lower,
            upper,
            upper,
            16 * torch.finfo(upper.dtype).eps,
            monitor := SolverMonitor(),
        )
    report = monitor.report()
    if not report.converged and settings.warn_not_converged.value():
        warnings.warn(
            f"The variance of {activation!r} did not converge in {report.iterations} iterations: "
            f"relative step {report.residual:.1e}. Raise gp_deq.settings.max_solver_iterations.",
            ConvergenceWarning,
            stacklevel=3,
        )
    return implicit_root(root, excess, *parameters).sqrt()
