"""Experiments on the command line: options, progress, tables, and where the results go."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import Field, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from gp_deq.benchmarks.experiment import Experiment, Table

__all__ = ["check_writable", "command", "find", "load", "naming_the_extra", "print_tables"]
__all__ += ["progress", "script", "write_tables"]


class _Backend(StrEnum):
    """Where joblib runs things; not threads, which share their random numbers."""

    LOKY = "loky"
    DASK = "dask"
    RAY = "ray"


def find() -> dict[str, str]:
    """The experiments of this package, found without importing them.

    Returns:
        The subject of each, by the name of its command.
    """
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        if "EXPERIMENT" in names:
            found[path.stem.replace("_", "-")] = _first_paragraph(ast.get_docstring(tree))
    return found


def _first_paragraph(docstring: str | None) -> str:
    return (docstring or "").split("\n\n")[0].replace("\n", " ").strip()


def load(name: str) -> Experiment:
    """An experiment of this package.

    Args:
        name: One of `find`.

    Raises:
        ImportError: An extra is missing; the message names it.
    """
    module = importlib.import_module(f"gp_deq.benchmarks.{name.replace('-', '_')}")
    return module.EXPERIMENT


def command(experiment: Experiment, docstring: str | None) -> typer.Typer:
    """The command of an experiment; calling it runs it.

    Args:
        experiment: The experiment.
        docstring: Text whose first paragraph is the help.

    Returns:
        A typer application of one command.
    """
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)

    def run(**options: Any) -> None:
        with naming_the_extra():
            _run(experiment, options)

    parameters = list(_parameters(experiment))
    signature = inspect.Signature(parameters, return_annotation=None)
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(help=_first_paragraph(docstring))(run)
    return app


def _parameters(experiment: Experiment) -> Iterator[inspect.Parameter]:
    """The options that an experiment has."""
    import typer

    def parameter(
        name: str, kind: Any, help: str, default: Any, *names: str, **more: Any
    ) -> inspect.Parameter:
        annotation = Annotated[kind, typer.Option(*names, help=help, **more)]
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )

    files = f"gp-deq-{experiment.name}"
    if experiment.figure is not None:
        yield parameter("output", Path, "Where the plot goes.", Path(f"{files}.png"))
    keeps = "" if experiment.timing else "; those it holds are not repeated"
    yield parameter("csv", Path, f"Where the rows go{keeps}.", Path(f"{files}.csv"))
    yield parameter(
        "tables", Path | None, "Folder for the tables in Markdown and LaTeX.", None, "--tables"
    )
    types = get_type_hints(experiment.configuration)
    for item in fields(experiment.configuration):
        if item.metadata:
            flag = f"--{item.metadata['name'] or item.name.replace('_', '-')}"
            if types[item.name] is bool:
                flag += f"/--no-{flag[2:]}"
            kind, help = _option(item, types[item.name])
            yield parameter(item.name, kind, help, None, flag)
    for preset, help in experiment.configuration.presets.items():
        yield parameter(preset, bool, help, False, f"--{preset}")
    if experiment.timing:
        yield parameter(
            "resume", bool, "Keep the rows that are in the CSV file.", False, "--resume"
        )
    else:
        help = "Start no row later; call again to go on."
        yield parameter("minutes", float, help, float("inf"), min=0)
        yield parameter("jobs", int, "Rows at a time; -1: one for each core.", -1)
        help = "Where they are made; dask and ray are to be installed."
        yield parameter("backend", _Backend, help, _Backend.LOKY)


def _option(item: Field, kind: Any) -> tuple[Any, str]:
    """Type and help of the option of a field; no value means the default of the configuration."""
    several = bool(get_args(kind))
    kind = get_args(kind)[0] if several else kind
    if item.metadata["choices"]:
        kind = _choice(item.metadata["choices"])
    shown = item.metadata["shown"]
    if shown is None:
        default: Any = item.default
        shown = ", ".join(map(str, default)) if several else default
    repeat = " May be repeated." if several else ""
    # typer's help takes brackets for markup
    help = f"{item.metadata['help']}{repeat}  \\[default: {shown}]"
    return (list[kind] if several else kind) | None, help


def _choice(names: Sequence[str]) -> Any:
    """An enumeration, of which typer makes an option of few values."""
    members: Any = {f"CHOICE_{i}": name for i, name in enumerate(names)}
    return StrEnum("Choice", members)


def _run(experiment: Experiment, options: dict[str, Any]) -> None:
    import typer
    from rich.console import Console

    from gp_deq.benchmarks.runs import RunFile

    console = Console()
    output, csv, tables = options.pop("output", None), options.pop("csv"), options.pop("tables")
    for path in filter(None, (output, csv)):
        check_writable(path)
    if experiment.figure is not None:
        import gp_deq.plotting  # noqa: F401  (a missing matplotlib is to be told at once)
    resume = options.pop("resume", True)
    minutes = options.pop("minutes", float("inf"))
    jobs, backend = options.pop("jobs", 1), options.pop("backend", _Backend.LOKY)
    presets = [name for name in experiment.configuration.presets if options.pop(name)]
    given = {name: _plain(value) for name, value in options.items() if value not in (None, [])}
    try:
        if len(presets) > 1:
            raise ValueError(f"--{presets[0]} and --{presets[1]} exclude each other.")
        config = experiment.configuration.from_options(presets[0] if presets else None, given)
        if resume:
            RunFile(experiment.row, csv).read()
        if experiment.prepare is not None:
            experiment.prepare(config)
    except (ValueError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    total = len(config.keys)
    parallel = nullcontext() if experiment.timing else _joblib(backend, jobs)
    with parallel, progress(console, total) as (advance, tell):
        rows = experiment.collect(config, csv, minutes, advance, tell, resume)
    found = list(experiment.tables(config, rows))
    print_tables(console, found)
    if tables is not None:
        write_tables(tables, found)
    figure = None if experiment.figure is None else experiment.figure(config, rows)
    if figure is not None:
        from gp_deq.plotting import save_figure

        save_figure(figure, output)
    if len(rows) < total:
        found = [f"{len(rows)} of {total} runs are done; the same command goes on."]
        print_tables(console, found)
    if "quick" in presets:
        print_tables(console, ["Sizes of --quick: the results mean nothing."])
    print_tables(console, [f"Rows: {csv}"])
    if figure is not None:
        print_tables(console, [f"Plot: {output}"])


def _plain(value: Any) -> Any:
    """The value of an option as the configuration takes it: tuples without repetition, and text."""
    if isinstance(value, list):
        return tuple(dict.fromkeys(map(_plain, value)))
    return value.value if isinstance(value, StrEnum) else value


def script(path: str) -> None:
    """Run the experiment of a script in ``docs/experiments``.

    The script is imported by its name, by which other processes find what is defined there.

    Args:
        path: The script's file.
    """
    module = importlib.import_module(Path(path).stem)
    command(module.EXPERIMENT, module.__doc__)()


@contextmanager
def _joblib(backend: _Backend, jobs: int) -> Iterator[None]:
    """Where joblib runs things, with a local cluster of so many workers if need be."""
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
def naming_the_extra() -> Iterator[None]:
    """Turn a missing extra into one line instead of a traceback."""
    try:
        yield
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        sys.exit(f"gp-deq: {error}")


def check_writable(path: Path) -> None:
    """Refuse an output in a folder that is missing, before minutes are spent.

    Args:
        path: The output.

    Raises:
        typer.BadParameter: The folder is missing.
    """
    import typer

    if not path.resolve().parent.is_dir():
        raise typer.BadParameter(f"the folder {path.resolve().parent} does not exist")


@contextmanager
def progress(
    console: Console, total: int
) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """A progress bar.

    Args:
        console: Where it is drawn.
        total: Number of steps.

    Yields:
        Two functions: one advances the bar by a step and says what was done, the other only says
        what is being done.
    """
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
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=total)
        yield (
            lambda description: bar.update(task, advance=1, description=description),
            lambda description: bar.update(task, description=description),
        )


def print_tables(console: Console, found: Iterable[Table | str]) -> None:
    """Print tables and notes; a table that is too wide is continued in others below.

    Args:
        console: Where.
        found: Tables and notes.
    """
    from rich.markup import escape
    from rich.table import Table as RichTable

    def text(cell: str) -> str:
        return re.sub(r"\*\*(.+?)\*\*", r"[bold]\1[/bold]", escape(cell))

    for item in found:
        if isinstance(item, str):
            console.print(item, highlight=False, soft_wrap=True, markup=False)
            continue
        for chosen in _columns_that_fit(item, console.width):
            table = RichTable(title=escape(item.title))
            for i in chosen:
                justify: Any = "left" if i < item.num_labels else "right"
                table.add_column(escape(item.columns[i]), justify=justify, no_wrap=True)
            for row in item.rows:
                table.add_row(*(text(row[i]) for i in chosen))
            console.print(table)


def _columns_that_fit(table: Table, width: int) -> Iterator[Sequence[int]]:
    """Groups of columns, the names of the rows in all of them."""
    # each column has two spaces and a line besides its longest cell
    sizes = [
        3 + max(len(cell.replace("**", "")) for cell in (name, *(row[i] for row in table.rows)))
        for i, name in enumerate(table.columns)
    ]
    labels = list(range(table.num_labels))
    room = width - 1 - sum(sizes[: table.num_labels])
    chosen: list[int] = []
    used = 0
    for i, size in enumerate(sizes[table.num_labels :], table.num_labels):
        if chosen and used + size > room:
            yield labels + chosen
            chosen, used = [], 0
        chosen.append(i)
        used += size
    yield labels + chosen


def write_tables(folder: Path, found: Iterable[Table | str]) -> None:
    """Write each table as Markdown and as LaTeX.

    Args:
        folder: Where to; made if need be.
        found: Tables, and notes, which are left out.
    """
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    for item in found:
        if isinstance(item, str):
            continue
        frame = pd.DataFrame([row[1:] for row in item.rows], columns=list(item.columns[1:]))
        frame.index = pd.Index([row[0] for row in item.rows], name=item.columns[0] or None)
        path = folder / (item.name or item.title.split()[0].lower())
        markdown = frame.to_markdown() + "\n"
        path.with_suffix(".md").write_text(markdown, encoding="utf-8")
        latex = frame.style.format_index(escape="latex", axis=1).to_latex(hrules=True)
        latex = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", latex).replace("±", r"$\pm$")
        path.with_suffix(".tex").write_text(latex, encoding="utf-8")
