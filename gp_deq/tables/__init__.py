"""Gaussian processes for tables: fit, predict, save and report, as ``gp-deq fit`` does."""

try:
    import botorch  # noqa: F401
except ImportError as error:
    raise ImportError('models of tables are fitted by BoTorch: pip install "gp_deq[bo]"') from error

from .card import model_card
from .exact_gp import make_model, scalar_hyperparameters
from .fit import Candidate, FitConfig, TableFit, fit_table
from .kernels import make_kernel
from .model import ModelFileError, Prediction, TableModel
from .report import ReportError, check_report_folder, predictions_frame, write_report

__all__ = [
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
    "make_model",
    "model_card",
    "predictions_frame",
    "scalar_hyperparameters",
    "write_report",
]
