"""The command line, ``gp-deq``.

Needs the extra ``cli`` (typer, rich, matplotlib), and what a command asks for besides: without them
the command says which extra to install. The experiments, ``gp-deq benchmark NAME``, are the modules
of `gp_deq.benchmarks` that define one.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    import typer

    from gp_deq.benchmarks.experiment import Table
    from gp_deq.tables import TableFit

__all__ = ["build_app", "main"]


class _TableKernel(StrEnum):
    """Kernels of ``gp-deq fit``."""

    DEQ_NNGP = "deq-nngp"
    DEQ_NTK = "deq-ntk"
    DEKER = "deker"
    RBF = "rbf"
    MATERN = "matern"
    AUTO = "auto"


def main() -> None:
    """Run the command line; the entry point of ``gp-deq``."""
    try:
        app = build_app()
    except ModuleNotFoundError as error:
        sys.exit(f'gp-deq needs {error.name}: pip install "gp_deq[cli]"')
    app()


def build_app() -> "typer.Typer":
    """The command-line application.

    Returns:
        A typer application; calling it runs the command that ``sys.argv`` names.
    """
    import typer
    from rich.console import Console

    from gp_deq.benchmarks.command import (
        check_writable,
        find,
        naming_the_extra,
        print_tables,
        progress,
    )

    console = Console()
    app = typer.Typer(
        help="Deep-equilibrium kernels for Gaussian processes.",
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,
    )
    benchmark = typer.Typer(
        help="Run the experiments behind the documentation.", no_args_is_help=True
    )
    app.add_typer(benchmark, name="benchmark")
    for name, summary in find().items():
        _add_experiment(benchmark, name, summary)

    @app.callback()
    def options() -> None:
        # A callback makes typer show commands as a group, even where there is only one.
        pass

    @app.command()
    def demo(
        output: Annotated[Path, typer.Option(help="Where the figure goes.")] = Path(
            "gp-deq-demo.png"
        ),
        seeds: Annotated[int, typer.Option(min=1, help="Number of random splits.")] = 1,
    ) -> None:
        """Learn DEQ kernels and three baselines on the diabetes data; table and figure."""
        with naming_the_extra():
            from gp_deq.benchmarks.demo import KERNELS, draw, run_demo, tables
            from gp_deq.plotting import save_figure

            check_writable(output)
            with progress(console, seeds * len(KERNELS)) as (advance, _):
                result = run_demo(range(seeds), on_fit=advance)
            print_tables(console, tables(result))
            save_figure(draw(result), output)
        print_tables(console, [f"Figure: {output}"])

    @app.command()
    def fit(
        data: Annotated[Path, typer.Argument(help="CSV file with the names of its columns.")],
        target: Annotated[str, typer.Option(help="Name of the column to predict.")],
        output: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("gp-deq-report"),
        kernel: Annotated[
            _TableKernel, typer.Option(help="auto: the best of six on a part of the training rows.")
        ] = _TableKernel.DEQ_NNGP,
        activation: Annotated[
            str | None,
            typer.Option(help="Activation of the kernel; for deker the link.  [default: relu]"),
        ] = None,
        categorical: Annotated[
            list[str] | None, typer.Option(help="A column of codes. May be repeated.")
        ] = None,
        ignore: Annotated[
            list[str] | None, typer.Option(help="A column to leave out. May be repeated.")
        ] = None,
        test_fraction: Annotated[
            float, typer.Option(min=0.01, max=0.9, help="Share of the rows to hold out.")
        ] = 0.2,
        seed: Annotated[int, typer.Option(min=0, help="Seed of the random split.")] = 0,
        max_rows: Annotated[
            int, typer.Option(min=10, help="Learn on a random subset of a larger table.")
        ] = 5000,
        train_only: Annotated[
            bool,
            typer.Option("--train-only", help="Keep the test rows out of the saved model too."),
        ] = False,
        force: Annotated[
            bool, typer.Option("--force", help="Replace an earlier report in that folder.")
        ] = False,
    ) -> None:
        """Fit a Gaussian process to a table; scores, predictions, model and figures in a folder."""
        with naming_the_extra():
            import gp_deq.plotting  # noqa: F401  (a missing matplotlib is to be told at once)
            from gp_deq.datasets import Columns, Table
            from gp_deq.tables import FitConfig, check_report_folder, fit_table, write_report

            config = FitConfig(kernel.value, activation, test_fraction, seed, max_rows, train_only)
            with _one_line_errors():
                check_report_folder(output, force)
                table = Table.read(data)
                columns = Columns.infer(table, target, categorical or (), ignore or ())
                with progress(console, config.num_fits) as (advance, _):
                    result = fit_table(table, columns, config, advance)
                write_report(result, output, force)
            print_tables(console, [*_fit_tables(result), f"Report: {output / 'README.md'}"])

    @app.command()
    def predict(
        model: Annotated[Path, typer.Argument(help="The model.pt of a report.")],
        data: Annotated[Path, typer.Argument(help="CSV file with the same columns.")],
        output: Annotated[Path, typer.Option(help="Where the predictions go.")] = Path(
            "gp-deq-predictions.csv"
        ),
    ) -> None:
        """Predict each row of a table: mean, standard deviation and 95 % interval."""
        with naming_the_extra():
            from gp_deq.datasets import Table
            from gp_deq.tables import TableModel, predictions_frame

            check_writable(output)
            if output.resolve() in (data.resolve(), model.resolve()):
                raise typer.BadParameter(f"{output} is what the predictions are made from")
            with _one_line_errors():
                fitted = TableModel.load(model)
                table = Table.read(data)
                frame = predictions_frame(fitted.predict(table))
            frame.to_csv(output, index=False)
        known = {column.name for column in fitted.columns.inputs}
        others = [name for name in table.cells if name not in known]
        if others:
            print_tables(console, [f"Ignored columns: {', '.join(others)}"])
        print_tables(console, [f"Predictions: {output}"])

    return app


def _add_experiment(group: "typer.Typer", name: str, summary: str) -> None:
    """A command that imports the experiment only when it is called."""
    import typer

    @group.command(
        name,
        help=summary,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def call(context: typer.Context) -> None:
        from gp_deq.benchmarks.command import command, load, naming_the_extra

        with naming_the_extra():
            experiment = load(name)
        command(experiment, summary)(args=context.args, prog_name=context.command_path)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Say in one line what is wrong with a table, a model file or an argument."""
    try:
        yield
    except ValueError as error:
        sys.exit(f"gp-deq: {error}")


def _fit_tables(fit: "TableFit") -> Iterator["Table | str"]:
    """The scores of a fit, and what is to be known of it."""
    from gp_deq.benchmarks.experiment import Table

    scores = ((fit.label, fit.metrics), ("mean of the targets", fit.baseline))
    rows = [
        [
            name,
            f"{metrics.rmse:.4g}",
            f"{metrics.nlpd:.3f}",
            f"{100 * metrics.coverage:.1f} %",
            f"{metrics.r2:.3f}",
        ]
        for name, metrics in scores
    ]
    title = f"{fit.dataset.target_name}: {len(fit.test_rows)} rows held out"
    yield Table(title, ["", "RMSE", "NLPD", "inside 95 %", "R²"], rows)
    if fit.candidates:
        yield "Validation NLPD: " + ", ".join(
            f"{item.label} {item.nlpd:.3f}" if item.fitted else f"{item.label} not fitted"
            for item in fit.candidates
        )
    for warning in fit.warnings:
        yield f"Warning: {warning}"
