"""docs/: examples run, the API reference is complete, versions agree.

That the pages build without a warning is `make docs`.
"""

import importlib
import re
import tomllib
from pathlib import Path

import fenced
import pytest
import torch

import gp_deq

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    page for page in DOCS.rglob("*.md") if "_build" not in page.parts and fenced.examples(page)
)
MODULES = [
    "activations",
    "bayesopt",
    "datasets",
    "equilibrium",
    "equivalents",
    "kernels",
    "metrics",
    "settings",
    "simulation",
    "tables",
]


def page_id(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_examples_print_what_the_page_shows(page):
    with torch.random.fork_rng():
        fenced.run(page)


def documented(module: str) -> list[str]:
    text = (DOCS / "api" / f"{module}.md").read_text(encoding="utf-8")
    assert f".. module:: gp_deq.{module}" in text
    return re.findall(r"^\.\. auto(?:class|function|exception|data):: (\w+)$", text, re.MULTILINE)


@pytest.mark.parametrize("module", MODULES)
def test_api_reference_lists_what_is_public_and_nothing_else(module):
    public = importlib.import_module(f"gp_deq.{module}").__all__
    names = documented(module)
    assert len(names) == len(set(names))
    assert set(names) == set(public)


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_has_a_docstring(module):
    namespace = importlib.import_module(f"gp_deq.{module}")
    for name in namespace.__all__:
        docstring = getattr(namespace, name).__doc__
        assert docstring and docstring.strip(), name


def test_kernels_are_at_the_top_level():
    bases = {"NeuralKernel", "WeightedKernel", "EquilibriumKernel"}
    names = {name for name in documented("kernels") if name.endswith("Kernel")} - bases
    assert len(names) == 5
    for name in names:
        assert getattr(gp_deq, name) is getattr(gp_deq.kernels, name)


def test_versions_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation
    assert gp_deq.__version__ == version == citation[1]
