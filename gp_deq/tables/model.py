"""A Gaussian process with the encoding of its table, and their file."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import gpytorch
import torch
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

import gp_deq
from gp_deq.datasets import Columns, Split, Table, TableError, describe_rows

from .exact_gp import make_model
from .kernels import make_kernel, weak_prior

_FORMAT = "gp_deq table model"
_VERSION = 1
_CHUNK = 1000
"""Rows predicted at a time, whose covariance with 5000 training rows is 40 MB."""

NUMERICAL_ERRORS = (NanError, NotPSDError, torch.linalg.LinAlgError)
"""Errors of a covariance matrix that cannot be factorised."""

Z95 = 1.959963984540054
"""Quantile 0.975 of the standard normal distribution, at which the central 95 % end."""


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

    @property
    def finite(self) -> Tensor:
        """Whether mean and standard deviation are finite, ``n``."""
        return self.mean.isfinite() & self.std.isfinite()


class Scaling(NamedTuple):
    """Means and standard deviations by which inputs and target are standardised.

    Args:
        x_mean: Means of the inputs, ``d``.
        x_std: Standard deviations of the inputs, ``d``.
        y_mean: Mean of the target.
        y_std: Standard deviation of the target.
    """

    x_mean: Tensor
    x_std: Tensor
    y_mean: float
    y_std: float

    @classmethod
    def of(cls, split: Split) -> Scaling:
        """The scaling of a split.

        Args:
            split: Split that is standardised by its training part.

        Returns:
            The means and standard deviations of the training part.
        """
        return cls(split.x_mean, split.x_std, split.y_mean, split.y_std)


@dataclass(frozen=True)
class TableModel:
    """An exact Gaussian process of a table.

    Args:
        kernel: Name of the kernel, a key of `KERNELS`.
        activation: Activation of the kernel; None where it has none.
        columns: Encoding of the table.
        scaling: Means and standard deviations of inputs and target.
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
            table: Table with all the input columns, in any order; others are ignored.

        Returns:
            One prediction for each row, which does not depend on the other rows.

        Raises:
            TableError: A column or cell is missing, is not a number, or is an unknown category; or
                a prediction is not finite.
        """
        X = self.columns.encode(table)
        try:
            prediction = self.predict_inputs(X)
        except NUMERICAL_ERRORS as error:
            raise TableError(f"{table.name}: the model cannot predict it ({error})") from error
        bad = table.cells.index[~prediction.finite.numpy()]
        if len(bad):
            raise TableError(
                f"{table.name}: the predictions are not finite in {describe_rows(bad)}; are the "
                "inputs in the units of the fit?"
            )
        return prediction

    def predict_inputs(self, X: Tensor) -> Prediction:
        """Predict the target for encoded inputs.

        Args:
            X: Encoded inputs, ``n x d``, as `Columns.encode` gives them.

        Returns:
            One prediction for each row; infinite or NaN where an input is too large to compute
            with.
        """
        x = (X - self.scaling.x_mean) / self.scaling.x_std
        self.mll.eval()
        # debug(False): GPyTorch warns if the rows are those of the fit
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
            path: Path of the file, which :meth:`load` reads.
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
            path: Path of a file that :meth:`save` wrote.

        Returns:
            The model, whose predictions are those of the saved one.

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
        train_x, train_y = data["train_x"], data["train_y"]
        columns, scaling = Columns.from_json(data["columns"]), Scaling(**data["scaling"])
        n, d = len(train_y), len(columns.feature_names)
        _require_finite(train_x, (n, d))
        _require_finite(train_y, (n,))
        _require_finite(scaling.x_mean, (d,))
        _require_finite(scaling.x_std, (d,))
        for figure in (scaling.y_mean, scaling.y_std):
            if not (isinstance(figure, float) and math.isfinite(figure)):
                raise ValueError(f"expected a finite number, got {figure!r}")
        if not (n and d and (scaling.x_std > 0).all() and scaling.y_std > 0):
            raise ValueError("no rows, no inputs, or a standard deviation that is not positive")
        mll = make_table_model(data["kernel"], data["activation"], train_x, train_y)
        mll.load_state_dict(data["state"])
        # load_state_dict accepts NaN
        for parameter in mll.parameters():
            _require_finite(parameter, tuple(parameter.shape))
        return cls(data["kernel"], data["activation"], columns, scaling, mll)


def make_table_model(
    kernel: str, activation: str | None, train_x: Tensor, train_y: Tensor
) -> ExactMarginalLogLikelihood:
    """A Gaussian process at its initial values, and its marginal likelihood.

    Args:
        kernel: Name of the kernel, a key of `KERNELS`.
        activation: Activation of the kernel; None where it has none.
        train_x: Standardised inputs, ``n x d``.
        train_y: Standardised targets, ``n``.

    Returns:
        The marginal likelihood, whose ``model`` is the Gaussian process.
    """
    mll = make_model(make_kernel(kernel, train_x.shape[1], activation), train_x, train_y)
    covar = mll.model.covar_module
    covar.register_prior("outputscale_prior", weak_prior().to(train_x), "outputscale")
    return mll


def _require_finite(values: object, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless they are finite numbers of double precision in this shape."""
    if (
        not isinstance(values, Tensor)
        or values.layout != torch.strided
        or values.dtype != torch.float64
        or values.shape != shape
        or not values.isfinite().all()
    ):
        raise ValueError(f"expected finite numbers of float64 in the shape {shape}")


def _load(file: BinaryIO) -> object:
    """Tensors and plain data in a file of torch; None if the file is another or has other data."""
    # the first bytes of a zip file, by which torch too recognises its files
    if file.read(4) != b"PK\x03\x04":
        return None
    file.seek(0)
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except Exception:  # on a foreign file the unpickler may raise any error
        return None


def exact() -> gpytorch.settings.max_cholesky_size:
    """Context in which matrices of any size are factorised.

    Beyond ``max_cholesky_size`` GPyTorch would iterate, with results that depend on random numbers.
    """
    return gpytorch.settings.max_cholesky_size(1_000_000)
