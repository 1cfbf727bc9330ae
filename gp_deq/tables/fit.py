"""Fit a Gaussian process to a table: split, learn, score on held-out rows, keep all rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from botorch.exceptions import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from linear_operator.utils.errors import NanError
from torch import Tensor

from gp_deq.datasets import (
    Columns,
    Dataset,
    Table,
    TableError,
    split_rows,
    standardized_split,
)
from gp_deq.metrics import COLLAPSED_R2, Metrics, predictive_metrics

from .exact_gp import scalar_hyperparameters
from .kernels import kernel_label, resolve_activation
from .model import (
    NUMERICAL_ERRORS,
    Prediction,
    Scaling,
    TableModel,
    exact,
    make_table_model,
)

CANDIDATES: Sequence[tuple[str, str | None]] = (
    ("deq-nngp", "relu"),
    ("deq-nngp", "erf"),
    ("deq-ntk", "relu"),
    ("deker", "relu"),
    ("rbf", None),
    ("matern", None),
)
"""Kernels and activations that ``kernel="auto"`` compares."""

_FEWEST_ROWS = 10
"""Fewest rows of a table, a choice: a fifth of them are the two test rows that R² needs."""

_VALIDATION_FRACTION = 0.2
"""Share of the training rows on which ``kernel="auto"`` compares, as the default share of tests."""

_FAILURES = (ModelFittingError, *NUMERICAL_ERRORS)
"""Errors of a kernel that does not suit the data, in the fit or in predictions."""


@dataclass(frozen=True)
class FitConfig:
    """Configuration of :func:`fit_table`.

    Args:
        kernel: Name of the kernel, "deq-nngp", "deq-ntk", "deker", "rbf" or "matern"; or "auto" for
            the one of `CANDIDATES` with the largest predictive density on a fifth of the training
            rows, which is held out for the comparison and used for the final fit.
        activation: Activation of the kernel, for "deker" the link; "relu" by default. Not to be
            given for "auto".
        test_fraction: Share of the rows that are held out.
        seed: Seed of the split.
        max_rows: Largest number of rows to learn on; from more a random subset is taken. The
            default, 5000, is a matrix of 200 MB, and time grows with its third power.
        train_only: Whether to return the model that was scored, instead of one that has seen the
            test rows too.
    """

    kernel: str = "deq-nngp"
    activation: str | None = None
    test_fraction: float = 0.2
    seed: int = 0
    max_rows: int = 5000
    train_only: bool = False

    @property
    def candidates(self) -> Sequence[tuple[str, str | None]]:
        """Kernels to compare, with their activations: one, or `CANDIDATES` for "auto"."""
        if self.kernel != "auto":
            return ((self.kernel, resolve_activation(self.kernel, self.activation)),)
        if self.activation is not None:
            raise ValueError("the kernel 'auto' comes with its activation; do not give one")
        return CANDIDATES

    @property
    def num_fits(self) -> int:
        """How often hyperparameters are learned."""
        return len(self.candidates) + (len(self.candidates) > 1)


@dataclass(frozen=True)
class Candidate:
    """A kernel that was compared by ``kernel="auto"``.

    Args:
        kernel: Name of the kernel, a key of `KERNELS`.
        activation: Activation of the kernel; None where it has none.
        nlpd: Mean negative log predictive density on the validation rows; infinite where the fit
            failed or its predictions are not finite.
    """

    kernel: str
    activation: str | None
    nlpd: float

    @property
    def label(self) -> str:
        """Name of the kernel and its activation."""
        return kernel_label(self.kernel, self.activation)

    @property
    def fitted(self) -> bool:
        """Whether the hyperparameters could be learned and the predictions are finite."""
        return math.isfinite(self.nlpd)


@dataclass(frozen=True)
class TableFit:
    """A fitted model and its scores on the rows that were held out.

    Args:
        dataset: Data of the whole table.
        model: Model for predictions, which has seen ``model_rows``.
        train_rows: Indices of the rows that the hyperparameters were learned on.
        test_rows: Indices of the rows that were held out.
        model_rows: Indices of the rows that ``model`` is conditioned on.
        prediction: Predictions of the test rows by the model that has seen only the training rows.
        metrics: Scores of these predictions.
        baseline: Scores of predicting the mean and standard deviation of the training targets.
        candidates: Kernels that ``kernel="auto"`` compared, best first; empty for a given kernel.
        hyperparameters: Learned values of the scalar hyperparameters, in standardised units.
        lengthscales: Learned lengthscales, one for each input, in standardised units.
        config: Configuration of the fit.
        seconds: Wall time of all the fits.
    """

    dataset: Dataset
    model: TableModel
    train_rows: Tensor
    test_rows: Tensor
    model_rows: Tensor
    prediction: Prediction
    metrics: Metrics
    baseline: Metrics
    candidates: Sequence[Candidate]
    hyperparameters: dict[str, float]
    lengthscales: Tensor
    config: FitConfig
    seconds: float

    @property
    def label(self) -> str:
        """Name of the kernel and its activation."""
        return kernel_label(self.model.kernel, self.model.activation)

    @property
    def relevance(self) -> dict[str, float]:
        """Share of each column in the sum of ``1 / lengthscale**2`` over all inputs."""
        precision = self.lengthscales.square().reciprocal()
        columns = self.model.columns.inputs
        parts = precision.split([len(column.feature_names) for column in columns])
        total = precision.sum()
        return {column.name: (part.sum() / total).item() for column, part in zip(columns, parts)}

    @property
    def warnings(self) -> list[str]:
        """Sentences that a reader of the predictions has to know, none if all went well."""
        found = []
        n, limit = len(self.dataset.y), self.config.max_rows
        if n - len(self.test_rows) > limit or (n > limit and not self.config.train_only):
            found.append(
                f"Of {n} rows, a random {len(self.train_rows)} of the {n - len(self.test_rows)} "
                f"training rows were learned on, and the saved model has seen "
                f"{len(self.model_rows)}. --max-rows raises the limit of {limit}; time grows with "
                "its third power."
            )
        if self.metrics.r2 < COLLAPSED_R2 and math.isfinite(self.metrics.r2):
            found.append(
                f"The model explains next to nothing of the held-out targets (R² "
                f"{self.metrics.r2:.3f} < {COLLAPSED_R2}): it takes them for noise. Do not use it "
                "to tell rows apart."
            )
        return found


def fit_table(
    table: Table,
    columns: Columns,
    config: FitConfig | None = None,
    on_fit: Callable[[str], None] = lambda description: None,
) -> TableFit:
    """Learn from a part of a table, score on the rest, and make a model of all of it.

    The model is an exact Gaussian process on inputs and targets that are standardised by the
    training rows: constant mean, Gaussian noise, and a kernel with an output scale and one
    lengthscale for each input, all learned by marginal likelihood, with weak priors, from the
    training rows. It is scored on the test rows; the model to use keeps what was learned and is
    conditioned on all rows.

    Args:
        table: Table of the data.
        columns: Encoding of the columns, such as ``Columns.infer(table, target)``.
        config: Kernel, split and limits. Default: ``FitConfig()``.
        on_fit: Function called with the name of the kernel after each fit.

    Returns:
        The model, its scores and its predictions of the test rows.

    Raises:
        TableError: The table cannot be used, has too few rows, or no kernel can be fitted to it.
        ValueError: The kernel or the activation is unknown, or they do not go together.

    Example:
        >>> import pandas as pd
        >>> from gp_deq.datasets import Columns, Table
        >>> x = [0.1 * i for i in range(40)]
        >>> cells = pd.DataFrame({"x": x, "y": [(v - 2) ** 2 for v in x]}).astype(str)
        >>> table = Table("parabola", cells)
        >>> fit = fit_table(table, Columns.infer(table, "y"), FitConfig(kernel="rbf"))
        >>> fit.metrics.r2 > 0.99
        True
        >>> round(fit.model.predict(Table("new", cells[20:21])).mean.item(), 1)
        0.0
    """
    config = FitConfig() if config is None else config
    start = time.perf_counter()
    candidates = config.candidates
    dataset = columns.dataset(table)
    n = len(dataset.y)
    num_test = round(n * config.test_fraction)
    if n < _FEWEST_ROWS or num_test < 2 or n - num_test < _FEWEST_ROWS // 2:
        raise TableError(
            f"{table.name}: {n} rows, {num_test} of them held out, are too few; a fit needs "
            f"{_FEWEST_ROWS} rows, 2 for the test and {_FEWEST_ROWS // 2} to learn on"
        )
    train, test = split_rows(n, config.test_fraction, config.seed)
    train = train[: config.max_rows]
    if bool((dataset.y[train] == dataset.y[train[0]]).all()):
        raise TableError(
            f'{table.name}: the target "{columns.target}" is {dataset.y[train[0]].item():g} in all '
            f"of the {len(train)} rows to learn on; try another seed"
        )

    compared: list[Candidate] = []
    kernel, activation = candidates[0]
    if len(candidates) > 1:
        compared = _compare(dataset, columns, candidates, train, config.seed, on_fit)
        if not compared[0].fitted:
            raise TableError(
                f"{table.name}: none of the kernels could be fitted; see whether inputs repeat "
                "each other"
            )
        kernel, activation = compared[0].kernel, compared[0].activation
    try:
        scored = _learn(dataset, columns, kernel, activation, train)
        prediction = scored.predict_inputs(dataset.X[test])
        if not prediction.finite.all():
            raise NanError("predictions of the test rows are not finite")
    except _FAILURES as error:
        raise TableError(
            f"{table.name}: {kernel_label(kernel, activation)} could not be fitted ({error}); try "
            "another kernel, or see whether inputs repeat each other"
        ) from error
    on_fit(kernel_label(kernel, activation))

    model, rows = scored, train
    if not config.train_only:
        # training rows first: with fewer rows than all, the model keeps those it was learned on
        rows = torch.cat([train, test])[: config.max_rows]
        model = scored.condition_on(dataset.X[rows], dataset.y[rows])
    y, target = dataset.y[train], dataset.y[test]
    return TableFit(
        dataset=dataset,
        model=model,
        train_rows=train,
        test_rows=test,
        model_rows=rows,
        prediction=prediction,
        metrics=predictive_metrics(prediction.mean, prediction.std, target),
        baseline=predictive_metrics(y.mean().expand_as(target), y.std().expand_as(target), target),
        candidates=compared,
        hyperparameters=scalar_hyperparameters(model.mll.model),
        lengthscales=model.mll.model.covar_module.base_kernel.lengthscale.detach().flatten(),
        config=config,
        seconds=time.perf_counter() - start,
    )


def _learn(
    dataset: Dataset, columns: Columns, kernel: str, activation: str | None, rows: Tensor
) -> TableModel:
    """The model of some rows, with the most probable hyperparameters."""
    # the test part is empty, since the model itself standardises the inputs of predictions
    split = standardized_split(dataset, rows, rows[:0])
    mll = make_table_model(kernel, activation, split.train_x, split.train_y)
    with exact(), torch.random.fork_rng():
        # where a fit fails, BoTorch draws its next start at random
        torch.manual_seed(0)
        fit_gpytorch_mll(mll)
    return TableModel(kernel, activation, columns, Scaling.of(split), mll)


def _compare(
    dataset: Dataset,
    columns: Columns,
    candidates: Sequence[tuple[str, str | None]],
    train: Tensor,
    seed: int,
    on_fit: Callable[[str], None],
) -> list[Candidate]:
    """The candidates in the order of their predictive density on a part of the training rows."""
    kept, held_out = (train[part] for part in split_rows(len(train), _VALIDATION_FRACTION, seed))
    compared = []
    for kernel, activation in candidates:
        try:
            prediction = _learn(dataset, columns, kernel, activation, kept).predict_inputs(
                dataset.X[held_out]
            )
        except _FAILURES:
            nlpd = math.inf
        else:
            nlpd = predictive_metrics(*prediction, dataset.y[held_out]).nlpd
        # NaN cannot be ordered
        compared.append(Candidate(kernel, activation, nlpd if math.isfinite(nlpd) else math.inf))
        on_fit(kernel_label(kernel, activation))
    return sorted(compared, key=lambda candidate: candidate.nlpd)
