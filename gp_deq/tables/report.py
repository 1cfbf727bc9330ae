"""The report folder of ``gp-deq fit``, which is written as a whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .card import model_card
from .fit import TableFit
from .model import Prediction

if TYPE_CHECKING:
    from pandas import DataFrame

_FILES = {"metrics.json", "predictions.csv", "model.pt", "README.md"}
_FIGURES = {"predictions.png", "relevance.png"}
_MOST_BARS = 15
"""Columns in the figure of relevances, whose labels would overlap with more."""


class ReportError(ValueError):
    """A report cannot be written to a folder."""


def check_report_folder(folder: Path, force: bool = False) -> None:
    """Refuse a folder that a report cannot be written to, before the minutes of a fit.

    Args:
        folder: Folder of the report.
        force: Whether to replace an earlier report.

    Raises:
        ReportError: The folder above is missing or cannot be written; or the folder exists and is
            not empty, unless ``force`` is set and it has an earlier report and nothing else.
    """
    folder = folder.resolve()
    if not folder.parent.is_dir():
        raise ReportError(f"the folder {folder.parent} does not exist")
    try:
        _scratch(folder).cleanup()
    except OSError as error:
        raise ReportError(
            f"cannot write to the folder {folder.parent} ({error.strerror})"
        ) from error
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not all((folder / name).is_file() for name in _FILES):
        raise ReportError(f"{folder} exists and is not a report; choose another folder")
    others = sorted({item.name for item in folder.iterdir()} - _FILES - _FIGURES)
    if others:
        raise ReportError(
            f"{folder} has other files beside a report ({', '.join(others)}); move them, or choose "
            "another folder"
        )
    if not force:
        raise ReportError(f"{folder} has a report already; --force replaces it")


def write_report(fit: TableFit, folder: str | os.PathLike[str], force: bool = False) -> None:
    """Write metrics, predictions, model, model card and figures to a folder.

    They are written beside the folder and moved there in one step, so that an interruption leaves
    no part of a report, and an earlier report as it was.

    Args:
        fit: Fit to report.
        folder: Folder of the report, which is made if it does not exist.
        force: Whether to replace an earlier report.

    Raises:
        ReportError: See `check_report_folder`.
        ImportError: pandas or matplotlib is not installed.
    """
    target = Path(folder).resolve()
    check_report_folder(target, force)
    with _scratch(target) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        _write_files(fit, new)
        try:
            if target.exists():
                target.rename(old)
            new.rename(target)
        except BaseException:
            # also an interruption between the two must leave the earlier report in its place
            if old.exists() and not target.exists():
                old.rename(target)
            raise


def _scratch(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder beside another one, on the same file system."""
    return tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-")


def _write_files(fit: TableFit, folder: Path) -> None:
    from gp_deq.plotting import Predictions, predictions_figure, relevance_figure, save_figure

    text = json.dumps(_metrics(fit), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    rows = fit.test_rows.sort().indices
    numbers = (fit.test_rows[rows] + 1).tolist()
    prediction = Prediction(fit.prediction.mean[rows], fit.prediction.std[rows])
    target = fit.dataset.y[fit.test_rows[rows]]
    frame = predictions_frame(prediction, numbers)
    frame.insert(1, "target", target.numpy())
    frame.to_csv(folder / "predictions.csv", index=False)
    fit.model.save(folder / "model.pt")
    save_figure(
        predictions_figure(
            {fit.label: Predictions(target, prediction.mean, prediction.std)},
            unit=_label(fit.dataset.target_name, width=40),
        ),
        folder / "predictions.png",
    )
    shown = sorted(fit.relevance.items(), key=lambda item: -item[1])[:_MOST_BARS]
    relevances = {fit.label: torch.tensor([value for _, value in shown])}
    save_figure(
        relevance_figure(relevances, [_label(name) for name, _ in shown]), folder / "relevance.png"
    )
    (folder / "README.md").write_text(model_card(fit), encoding="utf-8")


def predictions_frame(prediction: Prediction, rows: Sequence[int] | None = None) -> DataFrame:
    """Predictions as a table with the columns row, mean, std, lower and upper.

    Args:
        prediction: Predictions of some rows.
        rows: Numbers of the rows. Default: from 1.

    Returns:
        One row for each prediction.
    """
    import pandas as pd

    return pd.DataFrame(
        {
            "row": range(1, len(prediction.mean) + 1) if rows is None else rows,
            "mean": prediction.mean.numpy(),
            "std": prediction.std.numpy(),
            "lower": prediction.lower.numpy(),
            "upper": prediction.upper.numpy(),
        }
    )


def _label(name: str, width: int = 12) -> str:
    """A name for a figure, in up to three short lines, its dollars no signs of a formula."""
    return "\n".join(textwrap.wrap(name, width)[:3]).replace("$", r"\$")


def _metrics(fit: TableFit) -> dict[str, Any]:
    return {
        "data": fit.dataset.name,
        "target": fit.dataset.target_name,
        "kernel": fit.model.kernel,
        "activation": fit.model.activation,
        **_finite(asdict(fit.metrics)),
        "baseline": _finite(asdict(fit.baseline)),
        "candidates": [_finite(asdict(candidate)) for candidate in fit.candidates],
        "hyperparameters": fit.hyperparameters,
        "lengthscales": dict(zip(fit.dataset.feature_names, fit.lengthscales.tolist())),
        "rows": {
            "table": len(fit.dataset.y),
            "train": len(fit.train_rows),
            "test": len(fit.test_rows),
            "model": len(fit.model_rows),
        },
        "config": asdict(fit.config),
        "warnings": fit.warnings,
        "seconds": fit.seconds,
    }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with None for infinite numbers and NaN, which JSON lacks."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
