"""The model card, which says what a fitted model is, how good it is, and how to use it."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version

import gp_deq
from gp_deq.metrics import Metrics

from .fit import TableFit


def model_card(fit: TableFit) -> str:
    """Describe a fitted model to those who use it.

    Args:
        fit: Fitted model, with its scores.

    Returns:
        The card in Markdown. It names ``model.pt``, ``predictions.csv`` and the figures beside it.
    """
    sections = {
        f"Model of {fit.dataset.target_name}, from {fit.dataset.name}": _summary(fit),
        "How good it is": _quality(fit),
        "Data": _data(fit),
        "Model": _model(fit),
        "Use": _use(fit),
        "Limits": _limits(fit),
        "Versions": _versions(),
    }
    blocks = []
    for level, (title, lines) in enumerate(sections.items()):
        blocks.append("\n".join([f"{'##' if level else '#'} {title}", "", *lines]))
    return "\n\n".join(blocks) + "\n"


def _summary(fit: TableFit) -> Iterator[str]:
    yield (
        f"A Gaussian process with the kernel `{fit.label}`, fitted by `gp-deq fit`. It predicts "
        f"`{fit.dataset.target_name}` with a 95 % interval from {len(fit.model.columns.inputs)} "
        "columns."
    )
    for warning in fit.warnings:
        yield ""
        yield f"> **Warning.** {warning}"


def _quality(fit: TableFit) -> Iterator[str]:
    yield (
        f"On {len(fit.test_rows)} rows that were held out at random (seed {fit.config.seed}), in "
        f"the units of the target. The hyperparameters were learned on {len(fit.train_rows)} other "
        "rows, and the model that is scored here has seen those alone."
    )
    yield ""
    yield from _table(
        ("", "RMSE", "NLPD", "inside 95 %", "R²"),
        [
            (f"`{fit.label}`", *_cells(fit.metrics)),
            ("mean of the training targets", *_cells(fit.baseline)),
        ],
    )
    yield ""
    yield (
        "NLPD: mean negative log predictive density of the targets, in nats; smaller is better. "
        "Inside 95 %: share of the targets inside their 95 % intervals. The predictions are in "
        "`predictions.csv`, whose rows are numbered from 1 as in the table."
    )
    yield ""
    yield "![Predictions of the held-out rows](predictions.png)"
    if fit.candidates:
        yield ""
        yield (
            "The kernel was chosen among these by NLPD on a fifth of the training rows, and then "
            "learned anew on all of them. The test rows had no part in it."
        )
        yield ""
        yield from _table(
            ("kernel", "validation NLPD"),
            [
                (f"`{item.label}`", f"{item.nlpd:.4f}" if item.fitted else "the fit failed")
                for item in fit.candidates
            ],
        )


def _data(fit: TableFit) -> Iterator[str]:
    yield (
        f"{len(fit.dataset.y)} rows; {fit.dataset.X.shape[1]} inputs after encoding. Text columns "
        "are one-hot encoded. Inputs and target are standardised by mean and standard deviation "
        "of the training rows. Relevance: the share of a column in the sum of 1 / lengthscale² "
        "over all inputs."
    )
    yield ""
    relevance = fit.relevance
    yield from _table(
        ("column", "encoding", "relevance"),
        [
            (
                f"`{_escape(column.name)}`",
                "number"
                if column.categories is None
                else "one of " + ", ".join(f"`{_escape(item)}`" for item in column.categories),
                f"{relevance[column.name]:.3f}",
            )
            for column in fit.model.columns.inputs
        ],
    )
    yield ""
    yield "![Learned relevance of the columns](relevance.png)"


def _model(fit: TableFit) -> Iterator[str]:
    seen = (
        "the training rows alone, so that it gives `predictions.csv` again"
        if fit.config.train_only
        else f"{len(fit.model_rows)} rows, those of the test included, with the hyperparameters "
        "that were learned on the training rows; its predictions therefore differ from "
        "`predictions.csv`, which come from the training rows alone"
    )
    yield (
        "An exact Gaussian process: constant mean, Gaussian noise, and the kernel with an output "
        "scale and one lengthscale for each input, learned by marginal likelihood with weak "
        "log-normal priors. The model in "
        f"`model.pt` is conditioned on {seen}."
    )
    yield ""
    yield "Learned, in standardised units:"
    yield ""
    yield from _table(
        ("hyperparameter", "value"),
        [
            *((f"`{name}`", f"{value:.4g}") for name, value in fit.hyperparameters.items()),
            *(
                (f"lengthscale of `{_escape(name)}`", f"{value:.4g}")
                for name, value in zip(fit.dataset.feature_names, fit.lengthscales.tolist())
            ),
        ],
    )


def _use(fit: TableFit) -> Iterator[str]:
    yield "```sh"
    yield "gp-deq predict model.pt ../new.csv --output ../new-predictions.csv"
    yield "```"
    yield ""
    yield (
        "`new.csv` needs all the columns above, in any order; others are ignored. An unknown "
        "category or a missing value is refused. Keep files of your own out of this folder: "
        "`gp-deq fit --force` does not replace a report with other files beside it."
    )


def _limits(fit: TableFit) -> Iterator[str]:
    yield (
        "- The scores are those of one random split. Where rows depend on each other, such as in "
        "time or by group, they are too good."
    )
    yield (
        "- Far from the rows it has seen, the model falls back on its prior. Its intervals assume "
        "Gaussian noise of the same size everywhere."
    )
    yield "- Relevance is not causation, and inputs that depend on each other share it arbitrarily."


def _versions() -> Iterator[str]:
    found = {"Python": platform.python_version(), "gp_deq": gp_deq.__version__}
    found |= {name: version(name) for name in ("torch", "gpytorch", "botorch")}
    yield ", ".join(f"{name} {number}" for name, number in found.items())


def _cells(metrics: Metrics) -> tuple[str, str, str, str]:
    return (
        f"{metrics.rmse:.4g}",
        f"{metrics.nlpd:.4f}",
        f"{100 * metrics.coverage:.1f} %",
        f"{metrics.r2:.3f}",
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    for cells in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")
