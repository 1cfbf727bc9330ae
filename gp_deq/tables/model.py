"""A Gaussian process with the encoding of its table, and the file that keeps both."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import gpytorch
import torch
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

import gp_deq
from gp_deq.benchmarks.demo import make_model
from gp_deq.datasets import Columns, Split, Table

from .kernels import make_kernel, weak_prior

_FORMAT = "gp_deq table model"
_VERSION = 1
_CHUNK = 1000
"""Rows predicted at a time, which bounds the memory."""

Z95 = 1.959963984540054
"""The central 95 % of a Gaussian end at so many standard deviations."""


class ModelFileError(ValueError):
    """A file that is not a model of this version; the message names it."""


class Prediction(NamedTuple):
    """Gaussian predictions of observations, in the units of the target.

    Args:
        mean: Means, ``n``.
        std: Standard deviations, noise included, ``n``.
    """

    mean: Tensor
    std: Tensor

    @property
    def lower(self) -> Tensor:
        """Lower ends of the central 95 % intervals, ``n``."""
        return self.mean - Z95 * self.std

    @property
    def upper(self) -> Tensor:
        """Upper ends of the central 95 % intervals, ``n``."""
        return self.mean + Z95 * self.std


class Scaling(NamedTuple):
    """What standardises inputs and targets, and takes predictions back.

    Args:
        x_mean: Of each input, ``d``.
        x_std: Of each input, ``d``.
        y_mean: Of the target.
        y_std: Of the target.
    """

    x_mean: Tensor
    x_std: Tensor
    y_mean: float
    y_std: float

    @classmethod
    def of(cls, split: Split) -> Scaling:
        """That of a split.

        Args:
            split: Standardised by its training part.
        """
        return cls(split.x_mean, split.x_std, split.y_mean, split.y_std)


@dataclass(frozen=True)
class TableModel:
    """An exact Gaussian process of a table.

    Args:
        kernel: A key of `KERNELS`.
        activation: Its activation, None where it has none.
        columns: How a table is encoded.
        scaling: What standardises inputs and target.
        mll: Marginal likelihood, whose model is the Gaussian process.
    """

    kernel: str
    activation: str | None
    columns: Columns
    scaling: Scaling
    mll: ExactMarginalLogLikelihood

    def predict(self, table: Table) -> Prediction:
        """Predict the target for each row of a table.

        Args:
            table: With all the input columns, in any order; others are ignored.

        Returns:
            One prediction for each row.

        Raises:
            TableError: A column or cell is missing, is not a number, or is an unknown category.
        """
        return self.predict_inputs(self.columns.encode(table))

    def predict_inputs(self, X: Tensor) -> Prediction:
        """Predict the target for encoded inputs.

        Args:
            X: ``n x d``, as `Columns.encode` gives them.

        Returns:
            One prediction for each row.
        """
        x = (X - self.scaling.x_mean) / self.scaling.x_std
        self.mll.eval()
        # without the warning that some rows are those of the fit
        with torch.no_grad(), exact(), gpytorch.settings.debug(False):
            parts = [self.mll.likelihood(self.mll.model(part)) for part in x.split(_CHUNK)]
            mean = torch.cat([part.mean for part in parts])
            std = torch.cat([part.variance for part in parts]).sqrt()
        return Prediction(self.scaling.y_mean + self.scaling.y_std * mean, self.scaling.y_std * std)

    def condition_on(self, X: Tensor, y: Tensor) -> TableModel:
        """The model with the same hyperparameters and standardisation and other data.

        Args:
            X: Encoded inputs, ``n x d``.
            y: Targets, ``n``.

        Returns:
            A new model.
        """
        scaling = self.scaling
        train_x = (X - scaling.x_mean) / scaling.x_std
        train_y = (y - scaling.y_mean) / scaling.y_std
        mll = make_table_model(self.kernel, self.activation, train_x, train_y)
        mll.load_state_dict(self.mll.state_dict())
        return TableModel(self.kernel, self.activation, self.columns, scaling, mll)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a file.

        Args:
            path: The file, which :meth:`load` reads.
        """
        model = self.mll.model
        torch.save(
            {
                "format": _FORMAT,
                "version": _VERSION,
                "gp_deq": gp_deq.__version__,
                "kernel": self.kernel,
                "activation": self.activation,
                "columns": self.columns.to_json(),
                "scaling": self.scaling._asdict(),
                "train_x": model.train_inputs[0],
                "train_y": model.train_targets,
                "state": dict(self.mll.state_dict()),
            },
            path,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TableModel:
        """Read a model from a file.

        Only tensors and plain data are read, so a file from elsewhere cannot run code.

        Args:
            path: The file that :meth:`save` wrote.

        Returns:
            The model, which predicts what the saved one did.

        Raises:
            ModelFileError: The file is missing, is not a model of a table, is one of another
                version of the format, or is damaged.
        """
        name = os.fspath(path)
        try:
            with open(name, "rb") as file:
                data = _load(file)
        except OSError as error:
            raise ModelFileError(f"{name}: cannot be read ({error.strerror})") from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ModelFileError(f"{name}: not a model that gp-deq fit wrote")
        if data.get("version") != _VERSION:
            raise ModelFileError(
                f"{name}: version {data.get('version')} of the format, written by gp_deq "
                f"{data.get('gp_deq')}, but gp_deq {gp_deq.__version__} reads version {_VERSION}; "
                "fit again"
            )
        try:
            return cls._from_data(data)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ModelFileError(f"{name}: the model in it is damaged") from error

    @classmethod
    def _from_data(cls, data: dict[str, Any]) -> TableModel:
        mll = make_table_model(data["kernel"], data["activation"], data["train_x"], data["train_y"])
        mll.load_state_dict(data["state"])
        return cls(
            data["kernel"],
            data["activation"],
            Columns.from_json(data["columns"]),
            Scaling(**data["scaling"]),
            mll,
        )


def make_table_model(
    kernel: str, activation: str | None, train_x: Tensor, train_y: Tensor
) -> ExactMarginalLogLikelihood:
    """A Gaussian process at its initial values, and its marginal likelihood.

    Args:
        kernel: A key of `KERNELS`.
        activation: Its activation, None where it has none.
        train_x: Standardised inputs, ``n x d``.
        train_y: Standardised targets, ``n``.

    Returns:
        The marginal likelihood, whose ``model`` is the Gaussian process.
    """
    mll = make_model(make_kernel(kernel, train_x.shape[1], activation), train_x, train_y)
    covar = mll.model.covar_module
    covar.register_prior("outputscale_prior", weak_prior().to(train_x), "outputscale")
    return mll


def _load(file: BinaryIO) -> object:
    """Tensors and plain data of a file of torch; None if it is not one, or holds anything else."""
    if not zipfile.is_zipfile(file):
        return None
    file.seek(0)
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except Exception:  # what the unpickler raises depends on where a foreign file leads it
        return None


def exact() -> gpytorch.settings.max_cholesky_size:
    """Factorise matrices of any size, where GPyTorch would iterate and depend on random numbers."""
    return gpytorch.settings.max_cholesky_size(1_000_000)
