"""The log lines and error texts in the documents: each is one that the code writes, and none is missing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import trollmoves

PACKAGE = Path(trollmoves.__file__).parent
DOCUMENTS = PACKAGE.parent / "doc"
PAGES = {"operating.md": "## The log", "troubleshooting.md": "## Start and configuration"}  # where the lines begin
LEVELS = ("warning", "error", "exception", "critical", "log")
MIN_LETTERS = 4  # of a text that identifies a line

pytestmark = pytest.mark.skipif(not DOCUMENTS.exists(), reason="no checkout")


@cache
def modules() -> dict[str, ast.Module]:
    """Return the parsed modules of the package, without the tests."""
    paths = [path for path in PACKAGE.rglob("*.py") if "tests" not in path.relative_to(PACKAGE).parts]
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


class Text(NamedTuple):
    """A text of the code: its constant parts, with a placeholder between two of them, and their number of letters."""

    parts: tuple[str, ...]
    letters: int

    def is_in(self, line: str) -> bool:
        """Return True if the code writes the line with this text, and most of the line is constant."""
        if not all(part in line for part in self.parts) or self.letters <= 0.4 * letters(line):
            return False
        return re.fullmatch(".*".join(map(re.escape, self.parts)), line) is not None


def text_of(node: ast.expr) -> Text | None:
    """Return the text of an expression; None if it is not one, or has too few letters to identify a line."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        parts = re.split(r"%[\d.]*[a-z]", node.value)
    elif isinstance(node, ast.JoinedStr):
        values = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
        parts = "".join(map(str, values)).split("\0")
    else:
        return None
    constants = tuple(part.partition("\n")[0] for part in parts)
    count = letters("".join(constants))
    return Text(constants, count) if count >= MIN_LETTERS else None


def texts() -> Iterator[Text]:
    """Yield each text of the code."""
    for module in modules().values():
        for node in ast.walk(module):
            if isinstance(node, ast.expr) and (text := text_of(node)):
                yield text


def log_texts() -> Iterator[tuple[str, Text]]:
    """Yield place and text of each line that is logged as a warning or an error."""
    for name, module in modules().items():
        for node in ast.walk(module):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
                and (text := text_of(node.args[node.func.attr == "log"]))
            ):
                yield f"{name}:{node.lineno}", text


def letters(text: str) -> int:
    """Return the number of letters in a text."""
    return sum(map(str.isalpha, text))


def documented(page: str) -> list[str]:
    """Return the lines in the first column of the tables of a page."""
    tables = (DOCUMENTS / page).read_text(encoding="utf-8").partition(PAGES[page])[2]
    rows = re.findall(r"^\| (`.*?) \|", tables, re.MULTILINE)
    return [line for row in rows for line in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("page", PAGES)
def test_documented_lines_are_written(page: str) -> None:
    """Each line in the tables is written by the code."""
    lines = documented(page)
    assert len(lines) > 12
    written = set(texts())
    unwritten = [line for line in lines if not any(text.is_in(line) for text in written)]
    assert unwritten == [], f"doc/{page} has lines that the code does not write"


def test_logged_lines_are_documented() -> None:
    """Each warning and error in the log is in doc/troubleshooting.md, if its text identifies it."""
    lines = documented("troubleshooting.md")
    found = dict(log_texts())
    assert len(found) > 70
    missing = [f"{place}: {'...'.join(text.parts)}" for place, text in found.items() if not any(map(text.is_in, lines))]
    assert missing == [], "add a row with the cause and the remedy to doc/troubleshooting.md"
