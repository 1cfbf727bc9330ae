"""README.md: its examples run and print what it says; its links lead somewhere."""

import re
from pathlib import Path

import fenced
import pytest
import torch

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_examples_print_what_the_readme_shows():
    found = fenced.examples(README)
    assert len(found) >= 2
    assert all(example.output for example in found)
    with torch.random.fork_rng():
        fenced.run(README)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_exist(name):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_commands_of_the_first_screen_are_make_targets():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = re.findall(r"^make ([a-z-]+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"demo", "test"} <= set(commands) <= set(targets)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a 1.00\n", "a  1.01", True),
        ("a 1.00", "a 1.20", False),
        ("1.5e-10", "1.6e-10", True),
        ("1.5e-10", "1.5e-08", False),
        ("n = 30", "n = 31", False),
        ("True", "False", False),
        ("1 2", "1", False),
    ],
)
def test_outputs_are_compared_up_to_last_digits(shown, printed, same):
    assert fenced.agree(shown, printed) is same
