"""Gaussian processes for tables: fit, predict, save and report, as ``gp-deq fit`` does."""

from .card import model_card
from .fit import CANDIDATES, Candidate, FitConfig, TableFit, fit_table
from .kernels import KERNELS, make_kernel
from .model import ModelFileError, Prediction, TableModel
from .report import ReportError, check_report_folder, predictions_frame, write_report

__all__ = [
    "CANDIDATES",
    "KERNELS",
    "Candidate",
    "FitConfig",
    "ModelFileError",
    "Prediction",
    "ReportError",
    "TableFit",
    "TableModel",
    "check_report_folder",
    "fit_table",
    "make_kernel",
    "model_card",
    "predictions_frame",
    "write_report",
]
