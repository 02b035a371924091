"""The log lines in the documents: each is a line that the code writes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import trollmoves

PACKAGE = Path(trollmoves.__file__).parent
PAGE = PACKAGE.parent / "doc" / "operating.md"


def texts() -> Iterator[tuple[str, int]]:
    """Yield each text of the code: a regular expression with ``.*`` for placeholders, and its number of letters."""
    for path in PACKAGE.rglob("*.py"):
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = re.split(r"%[\d.]*[a-z]", node.value)
            elif isinstance(node, ast.JoinedStr):
                values = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                parts = "".join(map(str, values)).split("\0")
            else:
                continue
            yield ".*".join(map(re.escape, parts)), letters("".join(parts))


def letters(text: str) -> int:
    """Return the number of letters in a text."""
    return sum(map(str.isalpha, text))


@pytest.mark.skipif(not PAGE.exists(), reason="no checkout")
def test_log_lines() -> None:
    """Each line in the table of doc/operating.md is written by the code."""
    table = PAGE.read_text(encoding="utf-8").partition("## The log")[2]
    lines = [
        line for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for line in re.findall(r"`([^`]+)`", row)
    ]
    assert len(lines) > 12
    written = [(re.compile(text, re.DOTALL), count) for text, count in texts() if count > 5]

    def is_written(line: str) -> bool:
        return any(count > 0.4 * letters(line) and text.fullmatch(line) for text, count in written)

    assert [line for line in lines if not is_written(line)] == []
