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


def texts() -> Iterator[str]:
    """Yield each text of the product code as a regular expression, with ``.*`` for its placeholders."""
    for path in PACKAGE.rglob("*.py"):
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = re.split(r"%[\d.]*[a-z]", node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = "".join(p.value if isinstance(p, ast.Constant) else "\0" for p in node.values).split("\0")
            else:
                continue
            if len(re.findall("[a-z]", "".join(parts))) > 5:
                yield ".*".join(map(re.escape, parts))


@pytest.mark.skipif(not PAGE.exists(), reason="no checkout")
def test_log_lines() -> None:
    """Each line in the table of doc/operating.md is written by the code."""
    table = PAGE.read_text(encoding="utf-8").partition("## The log")[2]
    lines = [
        line for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for line in re.findall(r"`([^`]+)`", row)
    ]
    assert len(lines) > 12
    written = [re.compile(text, re.DOTALL) for text in texts()]
    assert [line for line in lines if not any(text.fullmatch(line) for text in written)] == []
