"""The base class of all kernels: the injected input and its hyperparameters."""

from __future__ import annotations

import difflib
import inspect
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, overload

import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
from gpytorch.priors import Prior
from torch import Tensor

from .. import settings
from ..activations import PairCovariance
from ..differentiation import opaque, transforming
from ..equilibrium import (
    ConvergenceWarning,
    PairFunction,
    PairMap,
    Recomputed,
    SolverMonitor,
    SolverReport,
    pair_matrix,
)
from .constraints import AboveRounding, Region


class Hyperparameter:
    """A hyperparameter of a kernel: its value, and a setter that keeps to its region.

    A class declares one as an attribute, and its constructor registers the raw parameter with a
    :class:`~gp_deq.kernels.constraints.Region`, a constraint and a prior:

    Args:
        doc: A description.

    Example:
        >>> import torch
        >>> from gp_deq import DEQNNGPKernel
        >>> kernel = DEQNNGPKernel()
        >>> kernel.weight_variance = 1.5
        >>> kernel.raw_weight_variance.shape
        torch.Size([1, 1])
    """

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type[NeuralKernel], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, kernel: None, owner: type[NeuralKernel]) -> Hyperparameter: ...

    @overload
    def __get__(self, kernel: NeuralKernel, owner: type[NeuralKernel]) -> Tensor: ...

    def __get__(
        self, kernel: NeuralKernel | None, owner: type[NeuralKernel]
    ) -> Tensor | Hyperparameter:
        return self if kernel is None else kernel.hyperparameter(self.name)

    def __set__(self, kernel: NeuralKernel, value: Tensor | float) -> None:
        kernel.set_hyperparameter(self.name, value)

    def register(
        self,
        kernel: NeuralKernel,
        region: Region,
        constraint: Interval | None = None,
        prior: Prior | None = None,
    ) -> None:
        """Registers the raw parameter ``raw_<name>``, its constraint and its prior.

        Args:
            kernel: The kernel, whose batch shape the parameter has.
            region: The values that it may have.
            constraint: Default: that of the region.
            prior: Default: none.

        Raises:
            ValueError: The constraint admits values outside of the region.
            TypeError: The prior is not one of GPyTorch's.
        """
        name = self.name
        if constraint is not None and not region.contains(constraint):
            raise ValueError(
                f"{name}_constraint must keep {name} in {region}, {region.note}; got {constraint}."
            )
        raw = torch.nn.Parameter(torch.zeros(*kernel.batch_shape, 1, 1))
        kernel.register_parameter(f"raw_{name}", raw)
        kernel.register_constraint(f"raw_{name}", constraint or region.constraint)
        kernel.regions[name] = region
        if prior is None:
            return
        if not isinstance(prior, Prior):
            raise TypeError(
                f"{name}_prior must be a gpytorch.priors.Prior, not {type(prior).__name__}."
            )
        kernel.register_prior(
            f"{name}_prior", prior, partial(_get, name=name), partial(_set, name=name)
        )


class NeuralKernel(Kernel):
    r"""A kernel of an infinitely wide network of an affine function of the input.

    The input enters by its covariance

    .. math::
        b(x, x') = \frac1d \sum_j \frac{(x_j - \mathtt{center}_j)(x'_j - \mathtt{center}_j)}
        {\mathtt{lengthscale}_j^2} + \mathtt{bias\_variance} .

    A subclass names its hyperparameters and gives :meth:`_pair`, the kernel as a function of that
    covariance. Everything else, shapes, blocks and the record of the solver, is here.
    """

    has_lengthscale = True
    #: Names of the hyperparameters that :meth:`_pair` takes, in its order.
    hyperparameter_names: tuple[str, ...] = ("weight_variance", "bias_variance")

    bias_variance = Hyperparameter("Variance of the injected bias, ``*batch_shape x 1 x 1``.")

    def __init__(
        self,
        center: float | Sequence[float] | Tensor = 0.0,
        *,
        bias_variance_prior: Prior | None = None,
        bias_variance_constraint: Interval | None = None,
        ard_num_dims: int | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: Sequence[int] | Tensor | None = None,
        lengthscale_prior: Prior | None = None,
        lengthscale_constraint: Interval | None = None,
        **unknown: Any,
    ) -> None:
        for name in unknown:
            raise TypeError(self._unknown_argument(name))
        super().__init__(
            ard_num_dims=ard_num_dims,
            batch_shape=batch_shape,
            active_dims=active_dims,
            lengthscale_prior=lengthscale_prior,
            lengthscale_constraint=lengthscale_constraint or AboveRounding(),
        )
        self.solver_report = SolverReport(iterations=0, residual=0.0, converged=True)
        self.regions: dict[str, Region] = {}
        if self.has_lengthscale:
            self._register_center(center)
        NeuralKernel.bias_variance.register(
            self, Region.not_negative(), bias_variance_constraint, bias_variance_prior
        )

    @property
    def is_stationary(self) -> bool:
        """False: the kernel depends on where the inputs lie around :attr:`center`."""
        return False

    @property
    @abstractmethod
    def _nonlinearity(self) -> object:
        """The activation or the link, for messages."""

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor:
        """Covariance of the pairs of ``x1`` and ``x2``.

        Args:
            x1: ``... x n x d``.
            x2: ``... x m x d``.
            diag: Only the pairs of equal index, for which ``n`` equals ``m``.
            last_dim_is_batch: Not supported.
            **params: Ignored, as in GPyTorch.

        Returns:
            ``... x n x m``, or ``... x n`` with ``diag``.
        """
        if last_dim_is_batch:
            raise RuntimeError(
                f"{type(self).__name__} does not support last_dim_is_batch, which GPyTorch has "
                "deprecated; sum or multiply kernels with different active_dims instead."
            )
        x1, x2 = self._floating(x1), self._floating(x2)
        self._check_inputs(x1, x2, diag)
        z1, z2, values = self._arguments(x1, x2, diag)

        def evaluate(*tensors: Tensor) -> Tensor:
            first, *others = tensors
            second = None if z2 is None else others.pop(0)
            monitor = SolverMonitor()
            value = self._evaluate(first, second, others, monitor)
            self._report(monitor, value)
            return value

        value = opaque(evaluate, *(x for x in (z1, z2, *values) if x is not None))
        return value.squeeze(-1).squeeze(-1) if diag else value

    def _arguments(
        self, x1: Tensor, x2: Tensor, diag: bool
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Scaled inputs, the second None where they are the first again, and hyperparameters.

        With ``diag`` each pair is a 1 x 1 matrix of its own.
        """
        hyperparameters = [getattr(self, name) for name in self.hyperparameter_names]
        z1 = self._scale(x1)
        if not diag:
            return z1, None if same_inputs(x1, x2) else self._scale(x2), hyperparameters
        return (
            z1.unsqueeze(-2),
            self._scale(x2).unsqueeze(-2),
            [value.unsqueeze(-1) for value in hyperparameters],
        )

    @abstractmethod
    def _pair(
        self, injected: PairCovariance, monitor: SolverMonitor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The kernel, ``... x n x m``, of the covariance of the injected input.

        Args:
            injected: That covariance.
            monitor: Collects the record of the solves.
            *args: The hyperparameters named by ``hyperparameter_names``, each ``... x 1 x 1``.
            **kwargs: Not used.
        """

    def _pair_function(self, monitor: SolverMonitor) -> PairFunction:
        def function(z1: Tensor, z2: Tensor, *hyperparameters: Tensor) -> Tensor:
            injected = PairCovariance.from_inputs(z1, z2, hyperparameters[-1])
            return self._pair(injected, monitor, *hyperparameters)

        return function

    def _pair_map(self, monitor: SolverMonitor, *hyperparameters: Tensor) -> PairMap:
        """The kernel for blocks of pairs; by default :meth:`_pair`, recomputed for gradients."""
        return Recomputed(self._pair_function(monitor), hyperparameters)

    def _evaluate(
        self,
        z1: Tensor,
        z2: Tensor | None,
        hyperparameters: Sequence[Tensor],
        monitor: SolverMonitor,
    ) -> Tensor:
        make_map, reference = partial(self._pair_map, monitor), self._pair_function(monitor)
        return pair_matrix(make_map, reference, z1, z2, hyperparameters)

    def _floating(self, x: Tensor) -> Tensor:
        """The inputs; integers and booleans as numbers of the kernel's precision."""
        return x if x.is_floating_point() else x.to(self.dtype)

    def _scale(self, x: Tensor) -> Tensor:
        x = self._floating(x)
        return (x - self.center.to(x)) / (self.lengthscale * math.sqrt(x.shape[-1]))

    def _check_inputs(self, x1: Tensor, x2: Tensor, diag: bool) -> None:
        name, dims = type(self).__name__, x1.shape[-1]
        if x2.shape[-1] != dims:
            raise ValueError(
                f"{name} got inputs of {dims} and of {x2.shape[-1]} dimensions; they must agree."
            )
        if self.ard_num_dims is not None and self.ard_num_dims != dims:
            raise RuntimeError(
                f"{name} was made with ard_num_dims={self.ard_num_dims}, but its inputs have "
                f"{dims} dimensions{' after active_dims' if self.active_dims is not None else ''}."
            )
        if self.has_lengthscale and self.center.shape[-1] not in (1, dims):
            raise ValueError(
                f"The center of {name} has {self.center.shape[-1]} entries, but its inputs have "
                f"{dims} dimensions; give a float or one entry for each dimension."
            )
        if diag and x1.shape[-2] != x2.shape[-2]:
            raise ValueError(
                f"diag=True pairs the inputs one by one, but there are {x1.shape[-2]} and "
                f"{x2.shape[-2]} of them."
            )
        if transforming():
            # their values cannot be looked at
            return
        for x in (x1, x2) if x2 is not x1 else (x1,):
            # a sum is finite unless an entry is not, or nearly overflows
            if not math.isfinite(x.detach().sum().item()) and not bool(x.isfinite().all()):
                bad = int((~x.isfinite()).any(-1).sum())
                raise ValueError(f"{name} got NaN or infinite inputs, in {bad} of its rows.")

    def _report(self, monitor: SolverMonitor, value: Tensor) -> None:
        self.solver_report = report = monitor.report()
        if report.converged or not settings.warn_not_converged.value():
            return
        names = [*self.hyperparameter_names, *(["lengthscale"] if self.has_lengthscale else [])]
        ranges = ", ".join(f"{name} {_range(getattr(self, name))}" for name in names)
        warnings.warn(
            f"{type(self).__name__} ({self._nonlinearity!r}) did not converge in "
            f"{report.iterations} iterations: relative step {report.residual:.1e}, tolerance "
            f"{settings.solver_tolerance.value(value.dtype):.1e}, at {ranges}. Raise "
            "gp_deq.settings.max_solver_iterations or scale the inputs.",
            ConvergenceWarning,
            stacklevel=3,
        )

    def _register_center(self, center: float | Sequence[float] | Tensor) -> None:
        # in double precision, whatever the dtype of the parameters is now: 0.1 must stay 0.1
        value = torch.as_tensor(center, dtype=torch.float64)
        if value.dim() > 1 or value.numel() == 0 or not bool(value.isfinite().all()):
            raise ValueError(
                "center must be a finite float, or a vector with an entry for each dimension, not "
                f"{center!r}."
            )
        if self.ard_num_dims is not None and value.numel() not in (1, self.ard_num_dims):
            raise ValueError(
                f"center has {value.numel()} entries, but ard_num_dims is {self.ard_num_dims}."
            )
        # with the batch dimensions, as GPyTorch indexes and expands buffers like parameters
        self.register_buffer("center", value.reshape(1, -1).repeat(*self.batch_shape, 1, 1))

    def hyperparameter(self, name: str) -> Tensor:
        """A hyperparameter by its name, ``*batch_shape x 1 x 1``."""
        return getattr(self, f"raw_{name}_constraint").transform(getattr(self, f"raw_{name}"))

    def set_hyperparameter(self, name: str, value: Tensor | float) -> None:
        """Set a hyperparameter by its name.

        Args:
            name: Its name, also ``"lengthscale"``.
            value: Broadcasts to its shape.

        Raises:
            ValueError: The value is not finite, not in the hyperparameter's region or not allowed
                by its constraint. The error is a RuntimeError too.
        """
        raw = getattr(self, f"raw_{name}")
        constraint = getattr(self, f"raw_{name}_constraint")
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        region = self.regions.get(name) or Region.of(constraint)
        if not (region.includes(value) and constraint.check(value)):
            raise _OutOfBoundsError(
                f"{name} of {type(self).__name__} ({self._nonlinearity!r}) must lie in "
                f"{region}, got {_range(value)}, out of bounds of its current constraints."
            )
        self.initialize(**{f"raw_{name}": constraint.inverse_transform(value)})

    def _set_lengthscale(self, value: Tensor | float) -> None:
        # GPyTorch's own rounds a float to the default dtype first
        self.set_hyperparameter("lengthscale", value)

    @classmethod
    def _unknown_argument(cls, name: str) -> str:
        """Message about an argument that no constructor of the class takes."""
        constructors = [inspect.signature(base) for base in cls.__mro__[: -len(Kernel.__mro__)]]
        known = {known for signature in constructors for known in signature.parameters}
        known -= {"args", "kwargs", "unknown"}
        close = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean {close[0]}?" if close else f"It has {', '.join(sorted(known))}."
        return f"{cls.__name__} has no argument {name!r}. {hint}"

    def __getitem__(self, index: Any) -> NeuralKernel:
        """Kernel of a part of the batch; unlike GPyTorch's, right with ``active_dims`` too."""
        return self._without_active_dims(lambda kernel: Kernel.__getitem__(kernel, index))

    def expand_batch(self, *sizes: Any) -> NeuralKernel:
        """Kernel of a larger batch shape; unlike GPyTorch's, right with ``active_dims`` too."""
        return self._without_active_dims(lambda kernel: Kernel.expand_batch(kernel, *sizes))

    def _without_active_dims(self, change: Callable[[Kernel], Kernel]) -> NeuralKernel:
        # GPyTorch indexes and expands active_dims as if it had batch dimensions
        if self.active_dims is None:
            return change(self)
        bare = deepcopy(self)
        bare.active_dims = None
        changed = change(bare)
        changed.active_dims = self.active_dims.clone()
        return changed


class _OutOfBoundsError(ValueError, RuntimeError):
    """A ValueError that is GPyTorch's too.

    When BoTorch tries a fit again it samples the priors, and samples again after a RuntimeError
    that says "out of bounds of its current constraints".
    """


def same_inputs(x1: Tensor, x2: Tensor) -> bool:
    """Whether the inputs are equal, and their gradients need not be told apart."""
    if x1 is x2 or transforming():
        return x1 is x2
    separate = torch.is_grad_enabled() and (x1.requires_grad or x2.requires_grad)
    return not separate and x1.shape == x2.shape and torch.equal(x1, x2)


def _get(module: NeuralKernel, name: str) -> Tensor:
    return getattr(module, name)


def _set(module: NeuralKernel, value: Tensor, name: str) -> None:
    setattr(module, name, value)


def _range(value: Tensor) -> str:
    low, high = float(value.detach().min()), float(value.detach().max())
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
