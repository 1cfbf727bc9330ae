"""The kernel of an infinitely wide deep equilibrium network at initialisation."""

from __future__ import annotations

from collections.abc import Hashable

from ..equilibrium import Layer, ReadOut
from .weighted import EquilibriumKernel


class DEQNNGPKernel(EquilibriumKernel):
    r"""Covariance of the outputs of an infinitely wide deep equilibrium network (DEQ-NNGP).

    The network is infinitely deep, with weights shared by all layers and the input injected into
    each. The covariance :math:`\Sigma` of its pre-activations solves

    .. math::
        \Sigma = w\, G(\Sigma) + b, \qquad k(x, x') = G(\Sigma)(x, x'),

    where :math:`G(\Sigma) = \operatorname E \varphi(u)\varphi(v)` for :math:`(u, v) \sim \mathcal
    N(0, \Sigma)`, and the injected input has the covariance

    .. math::
        b(x, x') = \frac1d \sum_j \frac{(x_j - \mathtt{center}_j)(x'_j - \mathtt{center}_j)}
        {\mathtt{lengthscale}_j^2} + \mathtt{bias\_variance} .

    With a ``base_kernel`` the network sits on that kernel's features in place of an affine map, and
    :math:`b(x, x') = \mathtt{base\_kernel}(x, x') + \mathtt{bias\_variance}`. Over a stationary
    base kernel this kernel is stationary. It then has no lengthscale and no center of its own, and
    the variance of its input is that of the base kernel, a :class:`gpytorch.kernels.ScaleKernel`
    for one that is learned.

    For weight variances :math:`w` below a critical value, 2 for ReLU, the solution exists and is
    unique ([Gao2023]_ prove the limit of wide networks). The kernel has no depth to choose and
    does not degenerate, and with ``bias_variance > 0`` it is strictly positive definite for every
    activation that is not a polynomial.

    .. note::
        This kernel has no output scale: wrap it in a :class:`gpytorch.kernels.ScaleKernel`. It is
        not stationary: standardise the inputs, or set ``center`` to their middle (0.5 for inputs in
        the unit cube).

    Args:
        activation: "relu" (default), "leaky_relu", "erf", "sin", "gelu", "identity", "tanh",
            "sigmoid", "silu", "elu", "softplus", an :class:`~gp_deq.activations.Activation`, or any
            elementwise torch function.
        center: Subtracted from the inputs; a float or one entry for each dimension that
            ``active_dims`` leaves. Default 0.
        base_kernel: Any GPyTorch kernel of one output; see above. With one, ``ard_num_dims`` and
            the prior and constraint of ``lengthscale`` belong to it.
        weight_variance_prior: Prior on ``weight_variance``.
        weight_variance_constraint: Default: between zero and the critical value, neither attained.
        bias_variance_prior: Prior on ``bias_variance``.
        bias_variance_constraint: Default: zero or more.
        ard_num_dims: Number of lengthscales, one for each input dimension. Default: one for all.
        batch_shape: Shape of a batch of kernels, each with its own hyperparameters.
        active_dims: Input dimensions to use. Default: all.
        lengthscale_prior: Prior on ``lengthscale``.
        lengthscale_constraint: Default: at least 1e-4, as a kernel matrix of smaller lengthscales
            has rounding errors beyond the noise of standardised targets.

    Attributes:
        weight_variance: :math:`w`, ``*batch_shape x 1 x 1``. Initially half of the critical value.
        bias_variance: ``*batch_shape x 1 x 1``.
        lengthscale: ``*batch_shape x 1 x d``.
        solver_report: :class:`~gp_deq.equilibrium.SolverReport` of the last evaluation.

    Raises:
        ValueError: The activation is unknown or its slope is not bounded, or a hyperparameter is
            set outside its region.

    Example:
        >>> import torch
        >>> from gpytorch.kernels import ScaleKernel
        >>> from gp_deq import DEQNNGPKernel
        >>> kernel = ScaleKernel(DEQNNGPKernel(ard_num_dims=3)).double()
        >>> kernel.base_kernel.weight_variance = 1.5
        >>> x = torch.randn(10, 3, dtype=torch.float64)
        >>> kernel(x).shape
        torch.Size([10, 10])
        >>> kernel.base_kernel.solver_report.converged
        True

        Over a Matern kernel:

        >>> from gpytorch.kernels import MaternKernel
        >>> base = ScaleKernel(MaternKernel(2.5, ard_num_dims=3))
        >>> kernel = ScaleKernel(DEQNNGPKernel("erf", base_kernel=base)).double()
        >>> kernel.base_kernel.is_stationary
        True
        >>> kernel(x).shape
        torch.Size([10, 10])
    """

    def _read_out(self, layer: Layer) -> ReadOut:
        return ReadOut(layer.dual)

    def _structure(self) -> tuple[Hashable, ...]:
        return ()
