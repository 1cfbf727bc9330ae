"""Sphinx configuration; `make docs` builds with warnings as errors."""

import shutil
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "gp_deq"
author = "The gp_deq developers"
project_copyright = "2026, The gp_deq developers"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "myst_nb",
]
exclude_patterns = ["_build", "data", "jupyter_execute", "**.ipynb_checkpoints"]

# MyST: $...$ and $$...$$, bare amsmath environments, definition lists, targets on headings.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

# Notebooks live in tutorials/, are committed with their outputs and executed by the test suite, so
# the docs show them as they are. Sphinx reads only its own folder: they are copied in, unchanged.
nb_execution_mode = "off"
nb_merge_streams = True
for stale in (HERE / "tutorials").glob("*.ipynb"):
    stale.unlink()
for notebook in sorted((ROOT / "tutorials").glob("*.ipynb")):
    shutil.copy2(notebook, HERE / "tutorials" / notebook.name)

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# A docstring's `.. [Key]` is a reference for the reader of that docstring, cited or not, and
# several kernels share the same papers.
suppress_warnings = ["ref.citation"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"gp_deq {release}"
html_show_sourcelink = False
html_copy_source = False
