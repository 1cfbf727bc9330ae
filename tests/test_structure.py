"""Which part of the package imports which."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gp_deq"


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_imports_are_found_however_they_are_written(tmp_path: Path) -> None:
    names = set(imports(PACKAGE / "tables" / "fit.py"))
    assert {"math", "gp_deq.metrics", "gp_deq.tables.exact_gp"} <= names
    assert "gp_deq.benchmarks.demo" in set(imports(PACKAGE / "cli.py"))  # inside a function


def test_only_the_command_line_imports_the_benchmarks() -> None:
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name.startswith("gp_deq.benchmarks") for name in imports(path))
        and path.parent != PACKAGE / "benchmarks"
    }
    assert importers == {"cli.py"}
