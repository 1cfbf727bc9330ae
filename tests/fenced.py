"""Run the Python examples of a Markdown page and compare what they print.

A fence marked ``python`` is an example; one marked ``text`` right after it is what it prints. The
examples of a page share one namespace, as a reader's session would. A fence that follows the line
``<!-- not run -->`` is left alone.
"""

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(
    r"^(?P<skip><!-- not run -->\n+)?```python\n(?P<code>.*?)^```$"
    r"(?:\n+```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Example:
    """One fence: its code, the line it starts on, and the output that the page shows, if any."""

    code: str
    line: int
    output: str | None


def examples(page: Path) -> list[Example]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        if match["skip"] is None:
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(Example(match["code"], line, match["output"]))
    return found


def agree(shown: str, printed: str) -> bool:
    """Whether two outputs agree but for white space and the last digits of their numbers.

    A number may be off by two units of the last digit that the page shows, or by 2 %.
    """
    if _NUMBER.sub("#", " ".join(shown.split())) != _NUMBER.sub("#", " ".join(printed.split())):
        return False
    for expected, actual in zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=True):
        mantissa, _, exponent = expected.lower().partition("e")
        decimals = len(mantissa.partition(".")[2])
        exact = decimals == 0 and not exponent
        unit = 10.0 ** (int(exponent or 0) - decimals)
        tolerance = 0.0 if exact else max(2.5 * unit, 0.02 * abs(float(expected)))
        if abs(float(expected) - float(actual)) > tolerance:
            return False
    return True


def run(page: Path) -> None:
    """Run all examples of a page in order; AssertionError where an output differs."""
    namespace: dict[str, object] = {"__name__": "__example__"}
    for example in examples(page):
        # line numbers of the page, so that a traceback points into it
        code = compile("\n" * (example.line - 1) + example.code, str(page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        where = f"{page.name}, line {example.line}"
        if example.output is None:
            assert not printed.getvalue(), f"{where}: prints what the page does not show"
        else:
            assert agree(example.output, printed.getvalue()), (
                f"{where}: the page shows\n{example.output}\nbut the example prints\n"
                f"{printed.getvalue()}"
            )
