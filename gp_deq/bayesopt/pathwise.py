r"""Feature maps for BoTorch's pathwise samples of models with the kernels of this package.

BoTorch's ``draw_kernel_feature_paths`` and ``draw_matheron_paths`` import them on first use, and so
accept these kernels, alone or in a :class:`gpytorch.kernels.ScaleKernel`.

The kernels are limits of wide random networks, and a network of finite width is a feature map:
inner products of its last activations tend to the kernel, with an error of :math:`O(1/\sqrt N)` at
width :math:`N`. A network with tied weights is not suitable: near the critical weight variance its
errors grow like :math:`1/((1 - w/w_{\text{critical}})\sqrt N)`, and iterating a ReLU layer need not
converge (at width 1024 it did not from 0.9 of the critical value on). The networks here have the
same kernel in the limit, and small errors:

* Layers have independent weights, one matrix with fresh random signs, so that their fluctuations
  average out. The covariance of wide layers has the same fixed point as with tied weights.
* The first layer already has the variance of the equilibrium, so that only correlations have to
  converge: a few layers for smooth activations at any weight variance, 100 for ReLU near its
  critical one.
* The variance of every layer in the limit is known, and each layer is scaled to have it, as are the
  features. The variance of a path is therefore exactly the kernel's.

Over a base kernel the network sits on random features of that kernel, which BoTorch makes for
radial basis function and Matern kernels, scaled or not; for other bases there are Nystrom features
of the whole kernel.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch
from botorch.sampling.pathwise.features.generators import GenKernelFeatures, gen_kernel_features
from botorch.sampling.pathwise.features.maps import FeatureMap
from botorch.sampling.pathwise.utils import FeatureSelector
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from linear_operator import to_dense
from torch import Tensor
from torch.quasirandom import SobolEngine

from .. import settings
from ..activations import PairCovariance, safe_sqrt
from ..equilibrium import ConvergenceWarning, SolverMonitor, equilibrium, equilibrium_variance
from ..kernels import DEQNNGPKernel, DEQNTKKernel, NeuralKernel, NNGPKernel, WeightedKernel

#: Error of correlations, or of tangent kernels relative to their variances, at which a network is
#: deep enough: far below the error of 1/sqrt(N) from a finite width, 0.03 with a thousand features.
DEPTH_TOLERANCE = 1e-3
#: Largest depth. For ReLU's correlations it leaves 0.005 at most, however near criticality.
MAX_DEPTH = 100
#: Error of a tangent kernel above which the largest depth warns: more than that of the finite width
#: from 400 features on.
WARN_TOLERANCE = 0.05


class _KernelFeatureMap(FeatureMap):
    """Features of a kernel, as functions of the inputs in its ``active_dims``."""

    input_transform: torch.nn.Module
    output_transform: torch.nn.Module

    def __init__(self, kernel: Kernel, num_outputs: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.batch_shape = kernel.batch_shape
        self.num_outputs = num_outputs
        dims = kernel.active_dims
        # modules, as BoTorch chains them with those of a ScaleKernel
        self.input_transform = torch.nn.Identity() if dims is None else FeatureSelector(dims)
        self.output_transform = torch.nn.Identity()


class NetworkFeatureMap(_KernelFeatureMap):
    r"""Activations of the last layer of a random network, for a covariance.

    With the scaled inputs :math:`z`, or random features of a base kernel in their place, orthogonal
    :math:`U` and standard normal :math:`W`, a bias of variance ``bias_variance`` in :math:`b`, and
    random signs :math:`\epsilon_l`, the layers are

    .. math::
        u_1 = \sqrt{v_1}\, \operatorname{unit}(b), \qquad b = Uz + \text{bias}, \qquad
        u_{l+1} = \sqrt{v_{l+1}}\, \operatorname{unit}\Bigl(\sqrt{\tfrac wN}\, W
        (\epsilon_l \circ \varphi(u_l)) + b\Bigr) .

    Here ``unit`` scales a vector to a mean square of one, :math:`v_l` is the variance of the layer
    in the limit, and :math:`\varphi(u_l)` has been scaled to its variance too. The features are
    :math:`\varphi(u)/\sqrt N` of the last layer.

    Args:
        kernel: A :class:`~gp_deq.kernels.DEQNNGPKernel`, or a :class:`~gp_deq.kernels.NNGPKernel`,
            whose :math:`b` after the first layer is the bias alone without ``input_injection``.
            Hyperparameters are read at every evaluation, but the depth of the network is chosen
            here once.
        num_inputs: Number of inputs, unless the kernel has ``active_dims``.
        num_outputs: Number of features.
        width: Width of the network. Default: the number of features.
    """

    kernel: WeightedKernel
    base_features: FeatureMap | None
    bias: Tensor
    input_weight: Tensor
    signs: Tensor
    weight: Tensor

    def __init__(
        self, kernel: WeightedKernel, num_inputs: int, num_outputs: int, width: int | None = None
    ) -> None:
        super().__init__(kernel, num_outputs)
        self.width = width or num_outputs
        self.depth = kernel.depth - 1 if isinstance(kernel, NNGPKernel) else _depths(kernel)[0]
        num_inputs = num_inputs if kernel.active_dims is None else len(kernel.active_dims)
        self.base_features = None
        if kernel.base_kernel is not None:
            # an even number, as they are pairs of a sine and a cosine, and one less than the width
            num_base = max(2, (self.width - 1) // 2 * 2)
            self.base_features = gen_kernel_features(kernel.base_kernel, num_inputs, num_base)
            num_inputs = num_base
        inputs = self._orthonormal(num_inputs + 1) * math.sqrt(self.width)
        self.register_buffer("bias", inputs[..., :1, :])
        self.register_buffer("input_weight", inputs[..., 1:, :])
        self.register_buffer("weight", self._normal(self.width, self.width))
        self.register_buffer("signs", self._normal(self.depth, self.width).sign())

    def forward(self, x: Tensor) -> Tensor:
        """The features, ``... x n x num_outputs``.

        Args:
            x: Inputs, ``... x n x d``.
        """
        u, variance = self._pre_activations(x)
        return self._activations(u, variance) / math.sqrt(self.width)

    def _pre_activations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations of the last layer, and their variances in the limit."""
        kernel = self.kernel
        z = kernel._scale(x) if self.base_features is None else self.base_features(x)
        bias = safe_sqrt(kernel.bias_variance) * self.bias
        first = injected = z @ self.input_weight + bias
        if isinstance(kernel, NNGPKernel) and not kernel.input_injection:
            injected = bias
        variances = self._variances(z.square().sum(-1, keepdim=True) + kernel.bias_variance)
        variance = next(variances)
        u = _rescale(first, variance)
        for sign in self.signs.unbind(-2):
            activations = self._activations(u, variance)
            variance = next(variances)
            u = _rescale(self._layer(activations, sign) + injected, variance)
        return u, variance

    def _variances(self, injected: Tensor) -> Iterator[Tensor]:
        """Variances of the pre-activations in the limit, from the first layer on without end."""
        kernel = self.kernel
        weight_variance = kernel.weight_variance
        variance, added = injected, injected
        if not isinstance(kernel, NNGPKernel):
            variance = equilibrium_variance(
                kernel.activation, weight_variance, injected, SolverMonitor()
            )
            while True:
                yield variance
        if not kernel.input_injection:
            added = kernel.bias_variance
        while True:
            yield variance
            variance = weight_variance * kernel.activation.diagonal(variance) + added

    def _layer(self, signals: Tensor, sign: Tensor) -> Tensor:
        scale = (self.kernel.weight_variance / self.width).sqrt()
        return scale * (signals * sign.unsqueeze(-2)) @ self.weight

    def _activations(self, u: Tensor, variance: Tensor) -> Tensor:
        activation = self.kernel.activation
        return _rescale(activation(u), activation.diagonal(variance))

    def _normal(self, *shape: int) -> Tensor:
        kernel = self.kernel
        return torch.randn(*kernel.batch_shape, *shape, dtype=kernel.dtype, device=kernel.device)

    def _orthonormal(self, rows: int) -> Tensor:
        """Orthonormal rows, ``rows x width``; more than ``width`` rows are normal instead."""
        normal = self._normal(self.width, rows)
        if rows <= self.width:
            return torch.linalg.qr(normal).Q.mT
        return normal.mT / math.sqrt(self.width)


class TangentFeatureMap(NetworkFeatureMap):
    r"""Random products of activations and sensitivities of a network, for a tangent kernel.

    A sensitivity is the derivative of an output of the network with respect to a pre-activation.
    With :math:`D = \varphi'(u)` in the last layer and a vector :math:`\eta` of signs, the
    sensitivities are the equilibrium of

    .. math::
        h = \sqrt{\tfrac wN}\, W (\epsilon'_l \circ D \circ h) + \eta, \qquad
        \operatorname E h h' = \frac{1}{1 - wP}, \qquad
        \operatorname E (Dh)(Dh)' = \frac{P}{1 - wP},

    independent of the pre-activations, whose covariance is :math:`\Sigma`; variances of the layers
    are exact as in :class:`NetworkFeatureMap`. A kernel that is a product of two,
    :math:`\operatorname E(g g')\operatorname E(y y')` for two of these vectors, has the random
    features :math:`\psi_j = (a_j \cdot g)(b_j \cdot y)/\sqrt M` with rows :math:`a_j` and
    :math:`b_j` of independent orthogonal matrices, as :math:`\operatorname E (a_j \cdot g)(a_j
    \cdot g') = g \cdot g'/N`. The pairs are those of the table at
    :class:`~gp_deq.kernels.DEQNTKKernel`:

    ================= ======================================================================
    ``trained``       features
    ================= ======================================================================
    "all"             one half as in :class:`NetworkFeatureMap`, the other as for "hidden"
    "hidden"          ``(D h) u``
    "recurrent"       ``h phi(u)``
    "preactivation"   ``h u``
    ================= ======================================================================

    For ReLU the slope :math:`D` is a step function, and paths have small jumps where the functions
    that they approximate have no derivative.

    Args:
        kernel: The tangent kernel.
        num_inputs: Number of inputs, unless the kernel has ``active_dims``.
        num_outputs: Number of features; at least two for "all".
    """

    kernel: DEQNTKKernel
    start: Tensor
    back_signs: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, kernel: DEQNTKKernel, num_inputs: int, num_outputs: int) -> None:
        products = num_outputs // 2 if kernel.trained == "all" else num_outputs
        width = max(products, num_outputs - products)
        super().__init__(kernel, num_inputs, num_outputs, width)
        self.register_buffer("start", self._normal(1, width).sign())
        self.register_buffer("back_signs", self._normal(self._back_depth(), width).sign())
        self.register_buffer("left", self._orthonormal(products).mT)
        self.register_buffer("right", self._orthonormal(products).mT)

    def forward(self, x: Tensor) -> Tensor:
        """The features, ``... x n x num_outputs``.

        Args:
            x: Inputs, ``... x n x d``.
        """
        trained = self.kernel.trained
        u, variance = self._pre_activations(x)
        activations = self._activations(u, variance)
        sensitivity, read_out = self._sensitivities(u, variance)
        left = read_out if trained in ("all", "hidden") else sensitivity
        right = activations if trained == "recurrent" else u
        size = left.square().mean(-1, keepdim=True) * right.square().mean(-1, keepdim=True)
        products = _rescale((left @ self.left) * (right @ self.right), size)
        products = products / math.sqrt(products.shape[-1])
        if trained != "all":
            return products
        return torch.cat((activations / math.sqrt(self.width), products), -1)

    def _sensitivities(self, u: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Sensitivities to the pre-activations, ``h``, and these times the slopes, ``D h``."""
        activation = self.kernel.activation
        square_slope = activation.derivative_diagonal(variance)
        size = 1 / (1 - self.kernel.weight_variance * square_slope)
        slope = torch.func.jvp(activation, (u,), (torch.ones_like(u),))[1]
        slope = _rescale(slope, square_slope)
        sensitivity = self.start * size.sqrt()
        for sign in self.back_signs.unbind(-2):
            layer = self._layer(slope * sensitivity, sign)
            sensitivity = _rescale(layer + self.start, size)
        return sensitivity, _rescale(slope * sensitivity, square_slope * size)

    def _back_depth(self) -> int:
        _, depth, left = _depths(self.kernel)
        if left > WARN_TOLERANCE and settings.warn_not_converged.value():
            warnings.warn(
                f"The network of depth {depth} for {type(self.kernel).__name__} did not converge "
                "at close inputs, as weight_variance is nearly critical: its kernel is too large "
                f"there by {left:.0%} of the variance. Give map_generator=gp_deq.bayesopt."
                "gen_nystrom_features to BoTorch's draw_kernel_feature_paths.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return depth


class NystromFeatureMap(_KernelFeatureMap):
    r"""Nyström features :math:`k(x, Z) R` with landmarks :math:`Z` and :math:`RR^\top = k(Z, Z)^+`.

    :math:`R` is made from the eigenvectors of :math:`k(Z, Z)` whose eigenvalues exceed rounding,
    ``M eps`` times the largest; the others give features that are zero. At the landmarks inner
    products are the kernel. Elsewhere variances are too small by :meth:`residual`, the variance of
    a Gaussian process given its values at the landmarks.

    Args:
        kernel: Any kernel, whose hyperparameters must not be changed afterwards.
        landmarks: Landmarks, ``M x d``, after ``active_dims``.
    """

    landmarks: Tensor
    root: Tensor

    def __init__(self, kernel: Kernel, landmarks: Tensor) -> None:
        super().__init__(kernel, landmarks.shape[-2])
        self.register_buffer("landmarks", landmarks)
        with torch.no_grad():
            values, vectors = torch.linalg.eigh(to_dense(kernel.forward(landmarks, landmarks)))
            rounding = torch.finfo(values.dtype).eps * len(landmarks) * values[..., -1:]
            scales = torch.where(values > rounding, values.clamp_min(rounding).rsqrt(), 0.0)
            self.register_buffer("root", vectors * scales.unsqueeze(-2))

    def forward(self, x: Tensor) -> Tensor:
        """The features, ``... x n x num_outputs``.

        Args:
            x: Inputs, ``... x n x d``.
        """
        landmarks = self.landmarks.expand(*x.shape[:-2], *self.landmarks.shape)
        return to_dense(self.kernel.forward(x, landmarks)) @ self.root

    def residual(self, x: Tensor) -> Tensor:
        """Kernel's variances less those of the features, ``... x n``; zero at landmarks.

        Args:
            x: Inputs, ``... x n x d``.
        """
        x = self.input_transform(x)
        return self.kernel.forward(x, x, diag=True) - self.forward(x).square().sum(-1)


@GenKernelFeatures.register(NeuralKernel)
def gen_nystrom_features(kernel: Kernel, *, num_inputs: int, num_outputs: int) -> NystromFeatureMap:
    """Nyström features of any kernel, with Sobol points of the unit cube as landmarks.

    They are the default for the kernels of this package without a network of their own,
    :class:`~gp_deq.kernels.DEKerKernel` and :class:`~gp_deq.kernels.NTKKernel`. For other kernels,
    and for sums of kernels, give this function to BoTorch as ``map_generator``. Inputs have to be
    scaled to the unit cube.

    Args:
        kernel: Any kernel.
        num_inputs: Number of inputs, unless the kernel has ``active_dims``.
        num_outputs: Number of features and of landmarks.

    Returns:
        The feature map, with the present hyperparameters of the kernel.

    Example:
        >>> import torch
        >>> from gp_deq import DEKerKernel
        >>> from gp_deq.bayesopt import gen_nystrom_features
        >>> features = gen_nystrom_features(DEKerKernel(center=0.5), num_inputs=2, num_outputs=64)
        >>> features(torch.rand(5, 2)).shape
        torch.Size([5, 64])
    """
    dims = num_inputs if kernel.active_dims is None else len(kernel.active_dims)
    landmarks = SobolEngine(dims, scramble=True).draw(num_outputs, dtype=kernel.dtype)
    return NystromFeatureMap(kernel, landmarks.to(kernel.device))


@GenKernelFeatures.register(DEQNNGPKernel)
@GenKernelFeatures.register(NNGPKernel)
def _gen_network_features(
    kernel: WeightedKernel, *, num_inputs: int, num_outputs: int
) -> _KernelFeatureMap:
    if not _has_features(kernel.base_kernel):
        return gen_nystrom_features(kernel, num_inputs=num_inputs, num_outputs=num_outputs)
    return NetworkFeatureMap(kernel, num_inputs, num_outputs)


@GenKernelFeatures.register(DEQNTKKernel)
def _gen_tangent_features(
    kernel: DEQNTKKernel, *, num_inputs: int, num_outputs: int
) -> _KernelFeatureMap:
    if not _has_features(kernel.base_kernel):
        return gen_nystrom_features(kernel, num_inputs=num_inputs, num_outputs=num_outputs)
    return TangentFeatureMap(kernel, num_inputs, num_outputs)


def _has_features(base_kernel: Kernel | None) -> bool:
    """Whether there is an affine map instead, or BoTorch has random features of the kernel."""
    while isinstance(base_kernel, ScaleKernel):
        base_kernel = base_kernel.base_kernel
    return base_kernel is None or type(base_kernel) in (RBFKernel, MaternKernel)


def _depths(kernel: WeightedKernel) -> tuple[int, int, float]:
    """Numbers of layers for pre-activations and for sensitivities, and the error of the latter.

    The recursions of the covariances are iterated on a grid of pairs: inputs of equal
    variances 0.1, 1 and 10 before the bias, and angles of 0.01 to 1 times pi. The error of a pair
    is that of its correlation, and for sensitivities that of the tangent kernel relative to its
    variance.
    """
    activation = kernel.activation
    with torch.no_grad():
        weight, bias = (
            value.reshape(-1, 1, 1, 1) for value in (kernel.weight_variance, kernel.bias_variance)
        )
        inputs = torch.tensor([0.1, 1.0, 10.0]).to(bias).reshape(-1, 1, 1)
        angles = math.pi * torch.logspace(-2, 0, 32).to(bias)
        versine = 2 * (angles / 2).sin().square()
        var = bias + inputs
        injected = PairCovariance(var, var, 2 * var * versine, torch.zeros_like(var))
        fixed_point = equilibrium(activation, weight, injected)
        target, variance = fixed_point.versine, fixed_point.var1
        depth = 0
        while depth < MAX_DEPTH and bool(((versine - target).abs() > DEPTH_TOLERANCE).any()):
            pair = fixed_point._replace(sqdist=2 * variance * versine)
            versine = (weight * activation.dual(pair).sqdist + injected.sqdist) / (2 * variance)
            depth += 1
        # The sensitivities start as one vector for all inputs: their covariance is the variance.
        # Its error falls by the factor ``slope`` with each layer.
        slope = weight * activation.derivative_dual(fixed_point)
        variance = 1 / (1 - weight * activation.derivative_diagonal(variance))
        left = (1 - 1 / ((1 - slope) * variance)).abs()
        back_depth = 0
        while back_depth < MAX_DEPTH and bool((left > DEPTH_TOLERANCE).any()):
            left = slope.abs() * left
            back_depth += 1
    return depth, back_depth, float(left.max())


def _rescale(vectors: Tensor, square: Tensor) -> Tensor:
    """``vectors`` scaled to the mean square ``square``, ``... x n x 1``; zero vectors stay zero."""
    found = vectors.square().mean(-1, keepdim=True)
    return vectors * safe_sqrt(square / found.masked_fill(found == 0, 1.0))
