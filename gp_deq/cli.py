"""The command line, ``gp-deq``.

Needs the extra ``cli`` (typer, rich, matplotlib), and what a command asks for besides: without them
the command says which extra to install.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    import typer
    from pandas import DataFrame
    from rich.console import Console
    from rich.table import Table

    from gp_deq.benchmarks.bo import Run
    from gp_deq.benchmarks.deker_convergence import Interval, References, Summary
    from gp_deq.benchmarks.demo import DemoResult
    from gp_deq.benchmarks.speed import Record, Target
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


class _Backend(StrEnum):
    """Where joblib runs things; not threads, which share their random numbers."""

    LOKY = "loky"
    DASK = "dask"
    RAY = "ray"


class _Protocol(StrEnum):
    """How hyperparameters are chosen in the regression benchmark."""

    LIKELIHOOD = "likelihood"
    RIDGE = "ridge"
    SPARSE = "sparse"


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

    @app.callback()
    def options() -> None:
        # Makes the commands of a group of typer, even where there is only one.
        pass

    @app.command()
    def demo(
        output: Annotated[Path, typer.Option(help="Where the figure goes.")] = Path(
            "gp-deq-demo.png"
        ),
        seeds: Annotated[int, typer.Option(min=1, help="Number of random splits.")] = 1,
    ) -> None:
        """Learn DEQ kernels and three baselines on the diabetes data; table and figure."""
        with _naming_the_extra():
            from gp_deq.benchmarks.demo import KERNELS, draw, run_demo
            from gp_deq.plotting import save_figure

            _check_writable(output)
            with _progress(console, seeds * len(KERNELS)) as advance:
                result = run_demo(range(seeds), on_fit=advance)
            console.print(_demo_table(result))
            for line in _demo_notes(result):
                console.print(line, highlight=False, soft_wrap=True)
            save_figure(draw(result), output)
        console.print(f"Figure: {output}", highlight=False, soft_wrap=True)

    @app.command()
    def fit(
        data: Annotated[Path, typer.Argument(help="CSV file with the names of its columns.")],
        target: Annotated[str, typer.Option(help="Name of the column to predict.")],
        output: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("gp-deq-report"),
        kernel: Annotated[
            _TableKernel, typer.Option(help="auto: the best of six on a part of the training rows.")
        ] = _TableKernel.DEQ_NNGP,
        activation: Annotated[
            str | None, typer.Option(help="Of the kernel; for deker the link.  [default: relu]")
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
        seed: Annotated[int, typer.Option(min=0, help="Of the random split.")] = 0,
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
        with _naming_the_extra():
            import gp_deq.plotting  # noqa: F401  (a missing matplotlib is to be told at once)
            from gp_deq.datasets import Columns, Table
            from gp_deq.tables import FitConfig, check_report_folder, fit_table, write_report

            config = FitConfig(kernel.value, activation, test_fraction, seed, max_rows, train_only)
            with _one_line_errors():
                check_report_folder(output, force)
                table = Table.read(data)
                columns = Columns.infer(table, target, categorical or (), ignore or ())
                with _progress(console, config.num_fits) as advance:
                    result = fit_table(table, columns, config, advance)
                write_report(result, output, force)
        console.print(_fit_table(result))
        for line in _fit_notes(result):
            console.print(line, highlight=False, soft_wrap=True)
        console.print(f"Report: {output / 'README.md'}", highlight=False, soft_wrap=True)

    @app.command()
    def predict(
        model: Annotated[Path, typer.Argument(help="The model.pt of a report.")],
        data: Annotated[Path, typer.Argument(help="CSV file with the same columns.")],
        output: Annotated[Path, typer.Option(help="Where the predictions go.")] = Path(
            "gp-deq-predictions.csv"
        ),
    ) -> None:
        """Predict each row of a table: mean, standard deviation and 95 % interval."""
        with _naming_the_extra():
            from gp_deq.datasets import Table
            from gp_deq.tables import TableModel, predictions_frame

            _check_writable(output)
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
            console.print(f"Ignored columns: {', '.join(others)}", highlight=False, markup=False)
        console.print(f"Predictions: {output}", highlight=False, soft_wrap=True)

    @benchmark.command()
    def speed(
        output: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path(
            "gp-deq-speed.png"
        ),
        csv: Annotated[Path, typer.Option(help="Where the measurements go.")] = Path(
            "gp-deq-speed.csv"
        ),
        quick: Annotated[
            bool, typer.Option("--quick", help="Tiny sizes, to see that it runs.")
        ] = False,
        memory: Annotated[bool, typer.Option(help="Measure memory too.")] = True,
        resume: Annotated[
            bool, typer.Option("--resume", help="Keep the sections that are in the CSV file.")
        ] = False,
    ) -> None:
        """Time and memory of the kernels beside Matern-5/2, RBF and InfiniteWidthBNNKernel."""
        with _naming_the_extra():
            from dataclasses import replace

            from gp_deq.benchmarks.speed import (
                SpeedConfig,
                check_targets,
                conditions,
                draw,
                read_csv,
                run_speed,
                write_csv,
            )
            from gp_deq.plotting import save_figure

            _check_writable(output)
            _check_writable(csv)
            config = replace(SpeedConfig.quick() if quick else SpeedConfig(), memory=memory)
            console.print(conditions(), highlight=False)
            with _progress(console, config.num_steps) as advance:
                records = []
                finished = read_csv(csv) if resume else []
                for section in run_speed(config, advance, finished):
                    console.print(_speed_table(section))
                    records += section
                    write_csv(records, csv)
            targets = check_targets(records, config.n)
            console.print(_target_table(targets))
            save_figure(draw(records, targets), output)
        if quick:
            console.print("Sizes of --quick: the figures mean nothing.")
        console.print(f"Measurements: {csv}", highlight=False, soft_wrap=True)
        console.print(f"Plot: {output}", highlight=False, soft_wrap=True)

    @benchmark.command()
    def deker_convergence(
        output: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path(
            "gp-deq-deker-convergence.png"
        ),
        csv: Annotated[
            Path, typer.Option(help="Where the draws go; those it holds are not repeated.")
        ] = Path("gp-deq-deker-convergence.csv"),
        seeds: Annotated[int, typer.Option(min=1, help="Number of draws at each width.")] = 10,
        steps: Annotated[int, typer.Option(min=1, help="Number of gradient updates.")] = 400,
        step_size: Annotated[
            list[float] | None, typer.Option(help="May be repeated.  [default: 1, 0.1]")
        ] = None,
        width: Annotated[
            list[int] | None, typer.Option(help="May be repeated.  [default: 13 from 5 to 500]")
        ] = None,
        full: Annotated[
            bool, typer.Option("--full", help="The widths of the paper: 5, 10, ..., 500.")
        ] = False,
    ) -> None:
        """Gram matrices of finite networks against that of the DEKer kernel, by width."""
        with _naming_the_extra():
            from dataclasses import replace

            from gp_deq.benchmarks.deker_convergence import (
                ConvergenceConfig,
                draw,
                read_csv,
                references,
                run_convergence,
                summarize,
            )
            from gp_deq.plotting import save_figure

            _check_writable(output)
            _check_writable(csv)
            config = ConvergenceConfig.full() if full else ConvergenceConfig()
            try:
                config = replace(
                    config,
                    seeds=seeds,
                    num_steps=steps,
                    widths=tuple(sorted(set(width))) if width else config.widths,
                    step_sizes=tuple(dict.fromkeys(step_size)) if step_size else config.step_sizes,
                )
                read_csv(csv)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
            with _progress(console, len(config.keys)) as advance:
                summaries = summarize(run_convergence(config, csv, advance))
            levels = references()
            console.print(_convergence_table(summaries, steps))
            for line in _convergence_notes(summaries, levels):
                console.print(line, highlight=False, soft_wrap=True)
            save_figure(draw(summaries, levels), output)
        console.print(f"Draws: {csv}", highlight=False, soft_wrap=True)
        console.print(f"Plot: {output}", highlight=False, soft_wrap=True)

    @benchmark.command()
    def bo(
        output: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("gp-deq-bo.png"),
        csv: Annotated[
            Path, typer.Option(help="Where the runs go; those it holds are not repeated.")
        ] = Path("gp-deq-bo.csv"),
        problems: Annotated[
            list[str] | None, typer.Option(help="May be repeated.  [default: all]")
        ] = None,
        surrogates: Annotated[
            list[str] | None, typer.Option(help="May be repeated.  [default: all]")
        ] = None,
        seeds: Annotated[
            int | None, typer.Option(help="Number of repetitions.  [default: 10]")
        ] = None,
        steps: Annotated[
            int | None, typer.Option(help="Evaluations after the initial ones.  [default: 50]")
        ] = None,
        minutes: Annotated[
            float, typer.Option(min=0, help="Start no run later; call again to go on.")
        ] = float("inf"),
        jobs: Annotated[int, typer.Option(help="Runs at a time; -1: one for each core.")] = -1,
        backend: Annotated[
            _Backend, typer.Option(help="Where they run; dask and ray are to be installed.")
        ] = _Backend.LOKY,
        quick: Annotated[
            bool, typer.Option("--quick", help="Seconds, to see that it runs.")
        ] = False,
    ) -> None:
        """Bayesian optimisation with DEQ kernels, BoTorch's default and other baselines."""
        with _naming_the_extra():
            from dataclasses import replace

            from gp_deq.benchmarks.bo import BOConfig, complete, draw, read_csv, run_bo
            from gp_deq.plotting import save_figure

            _check_writable(output)
            _check_writable(csv)
            config = BOConfig.quick() if quick else BOConfig()
            try:
                config = replace(
                    config,
                    problems=tuple(dict.fromkeys(problems or config.problems)),
                    surrogates=tuple(dict.fromkeys(surrogates or config.surrogates)),
                    seeds=config.seeds if seeds is None else seeds,
                    num_steps=config.num_steps if steps is None else steps,
                )
                read_csv(csv)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
            with _joblib(backend, jobs), _progress(console, len(config.keys)) as advance:
                runs = run_bo(config, csv, minutes, advance)
            compared = complete(runs, config.surrogates)
            if compared:
                for table in _final_tables(compared, console.width):
                    console.print(table)
                console.print(_rank_table(compared))
                save_figure(draw(compared), output)
        for line in _bo_notes(runs, compared, len(config.keys)):
            console.print(line, highlight=False, soft_wrap=True)
        if quick:
            console.print("Sizes of --quick: the results mean nothing.")
        console.print(f"Runs: {csv}", highlight=False, soft_wrap=True)
        if compared:
            console.print(f"Plot: {output}", highlight=False, soft_wrap=True)

    @benchmark.command()
    def regression(
        protocol: Annotated[
            _Protocol,
            typer.Option(
                help="By marginal likelihood, kernel ridge regression, or sparse variational GPs."
            ),
        ] = _Protocol.LIKELIHOOD,
        output: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path(
            "gp-deq-regression.png"
        ),
        csv: Annotated[
            Path, typer.Option(help="Where the runs go; those it holds are not repeated.")
        ] = Path("gp-deq-regression.csv"),
        tables: Annotated[
            Path | None, typer.Option(help="Folder for the tables in Markdown and LaTeX.")
        ] = None,
        dataset: Annotated[
            list[str] | None,
            typer.Option(
                help="May be repeated.  [default: those of the paper; sparse: the large ones]"
            ),
        ] = None,
        kernel: Annotated[
            list[str] | None, typer.Option(help="May be repeated.  [default: all]")
        ] = None,
        seeds: Annotated[
            int | None,
            typer.Option(
                help="Number of splits of each data set.  [default: 5; ridge: 20; sparse: 2]"
            ),
        ] = None,
        budget: Annotated[
            int | None,
            typer.Option(
                help="Starts (likelihood), settings (ridge) or passes over the data (sparse) of "
                "each kernel.  [default: 2; ridge: 24; sparse: 10]"
            ),
        ] = None,
        minutes: Annotated[
            float, typer.Option(min=0, help="Start no run later; call again to go on.")
        ] = float("inf"),
        jobs: Annotated[int, typer.Option(help="Runs at a time; -1: one for each core.")] = -1,
        backend: Annotated[
            _Backend, typer.Option(help="Where they run; dask and ray are to be installed.")
        ] = _Backend.LOKY,
    ) -> None:
        """Regression on real data sets with the kernels of this package and others."""
        with _naming_the_extra():
            from gp_deq.benchmarks.regression import (
                PROTOCOLS,
                RegressionConfig,
                run_regression,
            )
            from gp_deq.benchmarks.report import report
            from gp_deq.plotting import save_figure

            _check_writable(output)
            _check_writable(csv)
            default = PROTOCOLS[protocol]
            try:
                config = RegressionConfig(
                    protocol.value,
                    tuple(dict.fromkeys(dataset or default.datasets)),
                    tuple(dict.fromkeys(kernel or default.kernels)),
                    default.seeds if seeds is None else seeds,
                    default.budget if budget is None else budget,
                )
                with _joblib(backend, jobs), _progress(console, len(config.keys)) as advance:
                    results = run_regression(config, csv, minutes, advance)
            except (ValueError, FileNotFoundError) as error:
                raise typer.BadParameter(str(error)) from error
            found = report(results)
            for title, table in found.tables.items():
                console.print(_frame_table(title, table))
            for line in found.notes:
                console.print(line, highlight=False, soft_wrap=True)
            if found.tables:
                save_figure(found.draw(), output)
            if tables is not None:
                found.write(tables)
        if len(results) < len(config.keys):
            console.print(f"{len(results)} of {len(config.keys)} runs; the same command goes on.")
        console.print(f"Runs: {csv}", highlight=False, soft_wrap=True)
        if found.tables:
            console.print(f"Plot: {output}", highlight=False, soft_wrap=True)

    return app


@contextmanager
def _joblib(backend: _Backend, jobs: int) -> Iterator[None]:
    """Where joblib runs things, with a local cluster of so many workers if need be."""
    from contextlib import nullcontext

    from joblib import parallel_config

    cluster: AbstractContextManager = nullcontext()
    package = "distributed" if backend == _Backend.DASK else "ray"
    try:
        if backend == _Backend.DASK:
            from distributed import Client

            cluster = Client(n_workers=None if jobs < 0 else jobs, threads_per_worker=1)
        elif backend == _Backend.RAY:
            from ray.util.joblib import register_ray

            register_ray()
    except ModuleNotFoundError as error:
        raise ImportError(f"{backend} is not installed: pip install {package}") from error
    with cluster, parallel_config(backend.value, n_jobs=jobs):
        yield


@contextmanager
def _naming_the_extra() -> Iterator[None]:
    """Turn a missing extra into one line instead of a traceback."""
    try:
        yield
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        sys.exit(f"gp-deq: {error}")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Say in one line what is wrong with a table, a model file or an argument."""
    try:
        yield
    except ValueError as error:
        sys.exit(f"gp-deq: {error}")


def _check_writable(path: Path) -> None:
    """Refuse an output in a folder that is missing, before minutes are spent."""
    import typer

    if not path.resolve().parent.is_dir():
        raise typer.BadParameter(f"the folder {path.resolve().parent} does not exist")


@contextmanager
def _progress(console: "Console", total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar; yields the function that advances it by one step."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=total)

        def advance(description: str) -> None:
            progress.update(task, advance=1, description=description)

        yield advance


def _demo_table(result: "DemoResult") -> "Table":
    from rich.table import Table

    seeds = len(result.of_kernel(result.kernels[0]))
    splits = "one random split" if seeds == 1 else f"{seeds} random splits, mean ± standard error"
    table = Table(title=f"{result.dataset.name}: 80/20, {splits}")
    table.add_column("kernel", no_wrap=True)
    for name in ("RMSE", "NLPD", "inside 95 %", "R²", "fit, s"):
        table.add_column(name, justify="right")
    for kernel in result.kernels:
        fits = result.of_kernel(kernel)
        table.add_row(
            kernel + (" (all noise)" if any(fit.collapsed for fit in fits) else ""),
            _mean([fit.metrics.rmse for fit in fits], ".2f"),
            _mean([fit.metrics.nlpd for fit in fits], ".3f"),
            _mean([100 * fit.metrics.coverage for fit in fits], ".1f") + " %",
            _mean([fit.metrics.r2 for fit in fits], ".3f"),
            _mean([fit.fit_seconds for fit in fits], ".1f"),
        )
    return table


def _fit_table(fit: "TableFit") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    target = escape(fit.dataset.target_name)
    table = Table(title=f"{target}: {len(fit.test_rows)} rows held out")
    table.add_column("", no_wrap=True)
    for name in ("RMSE", "NLPD", "inside 95 %", "R²"):
        table.add_column(name, justify="right")
    for name, metrics in ((fit.label, fit.metrics), ("mean of the targets", fit.baseline)):
        table.add_row(
            name,
            f"{metrics.rmse:.4g}",
            f"{metrics.nlpd:.3f}",
            f"{100 * metrics.coverage:.1f} %",
            f"{metrics.r2:.3f}",
        )
    return table


def _fit_notes(fit: "TableFit") -> Iterator[str]:
    if fit.candidates:
        yield "Validation NLPD: " + ", ".join(
            f"{item.label} {item.nlpd:.3f}" if item.fitted else f"{item.label} not fitted"
            for item in fit.candidates
        )
    for warning in fit.warnings:
        yield f"Warning: {warning}"


def _mean(values: Sequence[float], form: str) -> str:
    """The mean of the values, with its standard error where there are several."""
    from statistics import fmean, stdev

    mean = format(fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {stdev(values) / len(values) ** 0.5:{form}}"


def _demo_notes(result: "DemoResult") -> Iterator[str]:
    from gp_deq.benchmarks.demo import COLLAPSED_R2

    yield (
        "On the test part, in the units of the target. NLPD: negative log predictive density of\n"
        "the (noisy) targets, in nats. Inside 95 %: coverage of the central 95 % intervals."
    )
    collapsed = [fit for fit in result.fits if fit.collapsed]
    for fit in collapsed:
        yield (
            f"{fit.kernel}, split {fit.seed}: collapsed to all noise "
            f"(test R² {fit.metrics.r2:.3f} < {COLLAPSED_R2})."
        )
    if not collapsed:
        yield f"No fit collapsed to all noise (test R² below {COLLAPSED_R2})."
    yield "Learned on the first split (standardised units):"
    for kernel in result.kernels:
        values = result.of_kernel(kernel)[0].hyperparameters
        yield f"  {kernel}: " + ", ".join(f"{name} {value:.3g}" for name, value in values.items())


def _convergence_table(summaries: Sequence["Summary"], steps: int) -> "Table":
    from rich.table import Table

    draws = summaries[0].num_draws
    over = "one draw" if draws == 1 else f"mean ± 95 % interval over {draws} draws"
    table = Table(title=f"Gram matrices after {steps} updates: {over}")
    for name in ("step size", "d", "m", "alignment", "with RBF", "relative error"):
        table.add_column(name, justify="right")
    for i, item in enumerate(summaries):
        last = i + 1 == len(summaries) or summaries[i + 1].step_size != item.step_size
        table.add_row(
            f"{item.step_size:g}",
            str(item.width),
            str(item.latent_dim),
            *(_plus_minus(v) for v in (item.alignment, item.control, item.relative_error)),
            end_section=last,
        )
    return table


def _plus_minus(value: "Interval") -> str:
    """A mean with half the length of its interval, or a dash where it is undefined."""
    if value.mean != value.mean:
        return "–"
    half = f" ± {(value.high - value.low) / 2:.4f}" if value.high > value.low else ""
    return f"{value.mean:.4f}{half}"


def _convergence_notes(summaries: Sequence["Summary"], levels: "References") -> Iterator[str]:
    yield f"The DEKer kernel with RBF: alignment {levels.control:.4f}."
    yield (
        f"The DEKer kernel with the linear kernel: alignment {levels.linear:.4f}, relative error "
        f"of its best multiple {levels.linear_error:.4f}."
    )
    for item in summaries:
        if item.num_zero:
            yield (
                f"Step size {item.step_size:g}, d = {item.width}: the features of all inputs are "
                f"zero in {item.num_zero} of {item.num_draws} draws, so alignment is undefined."
            )


def _frame_table(title: str, frame: "DataFrame") -> "Table":
    """A table of strings, its first column the index."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column(str(frame.index.name or ""), no_wrap=True)
    for name in frame:
        table.add_column(str(name), justify="right")
    for index, row in frame.iterrows():
        table.add_row(str(index), *row)
    return table


def _final_tables(runs: Sequence["Run"], width: int) -> Iterator["Table"]:
    """Final results, a row for each problem, the best surrogate in bold; as many as fit a table."""
    from rich.table import Table

    from gp_deq.benchmarks.bo import final_table
    from gp_deq.benchmarks.problems import make_problem

    results = final_table(runs)
    title = "log10 of the final regret; + where it is a value: larger is better"
    cells: dict[str, dict[str, str]] = {}
    for problem, row in results.iterrows():
        value = make_problem(problem, 0).best is None
        winner = row["mean"].idxmax() if value else row["mean"].idxmin()
        label = problem + " +" * value
        cells[label] = {
            name: f"{row['mean', name]:.3g}"
            + (f" ± {row['sem', name]:.2g}" if row["sem", name] == row["sem", name] else "")
            for name in results["mean"]
        }
        cells[label][winner] = f"[bold]{cells[label][winner]}[/bold]"
    names = list(results["mean"])
    columns = max(1, (width - 26) // 18)
    for first in range(0, len(names), columns):
        table = Table(title=title)
        table.add_column("problem", no_wrap=True)
        shown = names[first : first + columns]
        for name in shown:
            table.add_column(name, justify="right", no_wrap=True)
        for label, row in cells.items():
            table.add_row(label, *(row[name] for name in shown))
        yield table


def _rank_table(runs: Sequence["Run"]) -> "Table":
    from rich.table import Table

    from gp_deq.benchmarks.bo import rank_table

    table = Table(title="Mean rank over problems, 1 the best")
    table.add_column("surrogate", no_wrap=True)
    for name in ("all", "d < 10", "d ≥ 10", "s a step", "failed steps"):
        table.add_column(name, justify="right")
    for surrogate, row in rank_table(runs).iterrows():
        ranks = ("–" if row[name] != row[name] else f"{row[name]:.2f}" for name in row.index[:3])
        table.add_row(surrogate, *ranks, f"{row['seconds']:.2g}", f"{row['failures']:.0f}")
    return table


def _bo_notes(runs: Sequence["Run"], compared: Sequence["Run"], total: int) -> Iterator[str]:
    if compared:
        counts: dict[str, set[int]] = {}
        for run in compared:
            counts.setdefault(run.problem, set()).add(run.seed)
        numbers = sorted({len(seeds) for seeds in counts.values()})
        between = " to ".join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))
        seeds = f"{between} seeds of each problem"
        yield "One seed." if numbers == [1] else f"Mean ± standard error over {seeds}, paired."
    if len(runs) < total:
        yield f"{len(runs)} of {total} runs are done; the same command goes on."
    if len(compared) < len(runs):
        yield (
            f"{len(runs) - len(compared)} runs are left out until all surrogates have finished "
            "that problem and seed."
        )


def _speed_table(records: Sequence["Record"]) -> "Table":
    """The measurements of one section."""
    from rich.table import Table

    section, n = records[0].section, records[0].n
    ratio = "(ratio to Matérn-5/2)"
    grids = {
        "time-n": (f"Time in ms {ratio} against n", 1e3),
        "time-depth": (f"Time in ms {ratio} against depth, n = {n}", 1e3),
        "memory-n": (f"Peak memory in MiB {ratio} against n", 1.0),
        "memory-depth": (f"Peak memory in MiB {ratio} against depth, n = {n}", 1.0),
        "memory-w": (f"Peak memory in MiB {ratio} against w, n = {n}", 1.0),
    }
    if section in grids:
        return _grid(records, *grids[section], by_depth=section.endswith("depth"))
    titles = {
        "main": f"Forward and backward, n = {n}",
        "kept-pages": f"The same where the heap keeps its pages, n = {n}",
        "batch": f"Acquisition: t-batch against {n} points, gradient for the test points",
    }
    table = Table(title=titles[section])
    table.add_column("kernel", no_wrap=True)
    for name in ("ms", "quartiles", "/ Matérn-5/2", "rounds"):
        table.add_column(name, justify="right")
    for record in records:
        table.add_row(
            record.kernel,
            _digits(1e3 * record.value),
            f"{_digits(1e3 * record.low)} to {_digits(1e3 * record.high)}",
            f"{record.ratio:.2f}",
            str(record.rounds),
        )
    return table


def _digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _grid(rows: Sequence["Record"], title: str, scale: float, by_depth: bool) -> "Table":
    """One row for each kernel, one column for each n or depth."""
    from rich.table import Table

    def column(record: "Record") -> str:
        if not by_depth:
            return f"n = {record.n}"
        return "no depth" if record.depth is None else f"depth {record.depth}"

    columns = list(dict.fromkeys(column(record) for record in rows))
    table = Table(title=title)
    table.add_column("kernel", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    kernels: dict[str, dict[str, str]] = {}
    for record in rows:
        name = record.family if by_depth else record.kernel
        cell = f"{_digits(scale * record.value)} ({record.ratio:.2f})"
        kernels.setdefault(name, {})[column(record)] = cell
    for kernel, cells in kernels.items():
        table.add_row(kernel, *(cells.get(name, "") for name in columns))
    return table


def _target_table(targets: Sequence["Target"]) -> "Table":
    from rich.table import Table

    table = Table(title="Targets")
    table.add_column("ratio")
    for name in ("at most", "measured", ""):
        table.add_column(name, justify="right")
    for target in targets:
        verdict = "[green]met" if target.met else "[red]missed"
        table.add_row(target.what, f"{target.bound:.2f}", f"{target.measured:.3f}", verdict)
    return table
