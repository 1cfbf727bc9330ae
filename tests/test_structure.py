"""The structure of the package: which part may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gp_deq

ROOT = Path(gp_deq.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
#: Which packages each one may import, besides those of top-level modules.
ALLOWED = {
    "activations": set(),
    "equilibrium": {"activations"},
    "kernels": {"activations", "equilibrium"},
    "implicit_layers": {"activations", "equilibrium"},
    "equivalents": {"activations", "equilibrium", "kernels"},
    "bayesopt": {"activations", "equilibrium", "kernels"},
    "tables": {"activations", "datasets", "equilibrium", "kernels"},
    "datasets": set(),
}


def imports(path: Path) -> list[tuple[str, ...]]:
    """Modules of the package that a file imports, as parts of their names after ``gp_deq``."""
    found = []
    package = ("gp_deq", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            name = (*base, *(node.module or "").split(".")) if node.module else base
            targets = [name] if node.module else [(*base, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        found += [target[1:] for target in targets if target[0] == "gp_deq" and len(target) > 1]
    return found


def package_of(path: Path) -> str | None:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies_point_one_way(path: Path) -> None:
    package = package_of(path)
    for target in imports(path):
        if target[0] == "benchmarks":
            assert package == "benchmarks" or path.name == "cli.py", target
        if package in ALLOWED and (ROOT / target[0]).is_dir() and target[0] != package:
            assert target[0] in ALLOWED[package], target


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_is_entered_by_its_front_door(path: Path) -> None:
    """What one package imports of another stands in that package's ``__init__``."""
    package = package_of(path)
    for target in imports(path):
        if target[0] in ALLOWED and target[0] != package:
            assert len(target) == 1, ".".join(target)


def test_import_needs_nothing_of_an_extra() -> None:
    code = (
        "import sys, gp_deq; "
        "extras = {'botorch', 'matplotlib', 'pandas', 'typer', 'rich', 'ax'}; "
        "print(extras & {name.split('.')[0] for name in sys.modules})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "set()"
