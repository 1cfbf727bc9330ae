"""Surrogates with a deep-equilibrium kernel."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from botorch.models import SingleTaskGP
from botorch.models.transforms.input import InputTransform
from botorch.models.transforms.outcome import OutcomeTransform
from botorch.utils.datasets import SupervisedDataset
from botorch.utils.types import DEFAULT, _DefaultType
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.likelihoods import Likelihood
from gpytorch.means import Mean
from torch import Tensor

from ..activations import Activation
from .covar_modules import get_covar_module


class DEQSingleTaskGP(SingleTaskGP):
    """BoTorch's :class:`~botorch.models.gp_regression.SingleTaskGP` with a deep-equilibrium kernel.

    Only the kernel differs from BoTorch's model: it is that of :func:`get_covar_module`, one for
    each output and each batch of data. Inputs belong in the unit cube, if need be by
    ``input_transform=Normalize(d)``; outcomes are standardised unless ``outcome_transform`` says
    otherwise.

    Args:
        train_X: Inputs, ``*batch_shape x n x d``.
        train_Y: Outcomes, ``*batch_shape x n x m``, of m outputs that are modelled independently.
        train_Yvar: Variances of the noise, in the shape of ``train_Y``. Default: one variance for
            each output, which is inferred.
        kernel: Name of the kernel, "deq-nngp" (default), "deq-ntk" or "deker".
        activation: Activation, for "deker" the link; "relu" by default.
        likelihood: Likelihood. Default: Gaussian with BoTorch's prior on its noise, or with fixed
            noise.
        mean_module: Mean. Default: a constant.
        outcome_transform: Transform of the outcomes, None for none. Default:
            :class:`~botorch.models.transforms.outcome.Standardize`.
        input_transform: Transform of the inputs. Default: none.
        base: What the network sits on, "matern" (default), "rbf" or "affine"; for "deker" only the
            last. See :func:`get_covar_module`.

    Raises:
        ValueError: The kernel is unknown, or the activation cannot be used with it.
        botorch.exceptions.errors.InputDataError: The data contain NaN, or their dtypes differ.
        botorch.exceptions.errors.BotorchTensorDimensionError: ``train_Y`` has no output dimension.

    Example:
        >>> import torch
        >>> from botorch.fit import fit_gpytorch_mll
        >>> from gpytorch.mlls import ExactMarginalLogLikelihood
        >>> from gp_deq.bayesopt import DEQSingleTaskGP
        >>> X = torch.linspace(0, 1, 9, dtype=torch.float64).unsqueeze(-1)
        >>> model = DEQSingleTaskGP(X, (6 * X).sin())
        >>> _ = fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        >>> round(model.posterior(X[:1] + 0.3).mean.item(), 1)  # sin(1.8)
        1.0
    """

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        train_Yvar: Tensor | None = None,
        kernel: str = "deq-nngp",
        activation: str | Activation | Callable[[Tensor], Tensor] | None = None,
        likelihood: Likelihood | None = None,
        mean_module: Mean | None = None,
        outcome_transform: OutcomeTransform | _DefaultType | None = DEFAULT,
        input_transform: InputTransform | None = None,
        base: str | None = None,
    ) -> None:
        # the kernel is set afterwards: with a covar_module BoTorch does not check how the data are
        # scaled
        super().__init__(
            train_X,
            train_Y,
            train_Yvar,
            likelihood=likelihood,
            mean_module=mean_module,
            outcome_transform=outcome_transform,
            input_transform=input_transform,
        )
        num_dims = self.covar_module.ard_num_dims
        self.covar_module = get_covar_module(
            kernel, num_dims, batch_shape=self._aug_batch_shape, activation=activation, base=base
        ).to(train_X)
        # dimensions of outputs from the right, by which BoTorch's subset_output indexes parameters
        del self._subset_batch_dict["covar_module.raw_lengthscale"]
        for path, kernel_module in self.covar_module.named_modules(prefix="covar_module"):
            if isinstance(kernel_module, Kernel):
                dim = -1 if isinstance(kernel_module, ScaleKernel) else -3
                names = [name for name, _ in kernel_module.named_parameters(recurse=False)]
                names += ["center"] if "center" in dict(kernel_module.named_buffers()) else []
                self._subset_batch_dict |= {f"{path}.{name}": dim for name in names}

    def subset_output(self, idcs: list[int]) -> DEQSingleTaskGP:
        """The model of some of the outputs.

        Args:
            idcs: Indices of the outputs.

        Returns:
            A copy with the hyperparameters of these outputs.
        """
        # in training mode train_inputs are the untransformed inputs
        whole = deepcopy(self).train()
        # BoTorch shortens the batch shape once for each parameter of a kernel, which for nested
        # kernels, whose shape is that of all of them, fails half way; one of no shape is left alone
        for kernel in _kernels(whole):
            kernel.batch_shape = torch.Size()
        model: Any = super(DEQSingleTaskGP, whole).subset_output(idcs)
        for kernel in _kernels(model):
            kernel.batch_shape = model._aug_batch_shape
        model.train(self.training)
        return model

    @classmethod
    def construct_inputs(
        cls,
        training_data: SupervisedDataset,
        *,
        kernel: str = "deq-nngp",
        activation: str | Activation | Callable[[Tensor], Tensor] | None = None,
        base: str | None = None,
    ) -> dict[str, Any]:
        """Arguments of the model for a data set of BoTorch, as Ax asks for them.

        Args:
            training_data: Data set of BoTorch.
            kernel: Name of the kernel, see the class.
            activation: Activation or link, see the class.
            base: What the network sits on, see the class.

        Returns:
            Keyword arguments of the class.

        Example:
            >>> import torch
            >>> from botorch.utils.datasets import SupervisedDataset
            >>> from gp_deq.bayesopt import DEQSingleTaskGP
            >>> X = torch.rand(5, 2, dtype=torch.float64)
            >>> data = SupervisedDataset(
            ...     X, X.sum(-1, keepdim=True), feature_names=["a", "b"], outcome_names=["y"])
            >>> model = DEQSingleTaskGP(**DEQSingleTaskGP.construct_inputs(data, kernel="deq-ntk"))
        """
        inputs = super().construct_inputs(training_data=training_data)
        return {**inputs, "kernel": kernel, "activation": activation, "base": base}


def _kernels(model: SingleTaskGP) -> list[Kernel]:
    return [module for module in model.covar_module.modules() if isinstance(module, Kernel)]
