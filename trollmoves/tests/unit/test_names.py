"""The names in product code: terms of the glossary, without the words that they replaced."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import trollmoves

PACKAGE = Path(trollmoves.__file__).parent
CHECKOUT = PACKAGE.parent
GLOSSARY = CHECKOUT / "doc" / "glossary.md"

# A retired word, and the term of doc/glossary.md in its place.
RETIRED = {
    "house": "runtime",
    "upkeep": "pruning",
    "debris": "stale partial",
    "trunk": "shared handle",
    "judge": "completeness checker",
    "patience": "timeout",
    "seldom": "log throttle",
    "told": "published, announcements",
    "heard": "received",
    "whole": "complete",
    "beat": "heartbeat",
    "bell": "wakeup",
    "door": "connection monitor",
    "ear": "subscriber",
    "ears": "subscribers",
    "gate": "authenticator",
    "guests": "client keys",
    "holdings": "file store",
    "inlet": "file source",
    "whereabouts": "symlink policy",
    "noted": "created",
    "arrivals": "receipts",
    "hear": "receive",
    "asked": "requested",
    "asker": "request client",
    "trouble": "failure",
    "lookout": "connection watcher",
    "hearsay": "MessageSource",
    "clerk": "scheduler",
    "guest": "client key",
    "shares": "client quotas",
    "showcase": "file store",
    "bring": "ensure_local",
    "clumsy": "legacy",
    "unnumbered": "legacy server",
    "catchup": "replay",
    "rescue": "salvage",
    "masked": "redacted",
    "anew": "again, reconnect",
    "meanwhile": "",
    "nobody": "",
    "somebody": "",
    "whoever": "",
    "whom": "",
    "whose": "",
}


def words(identifier: str) -> set[str]:
    """Return the words of an identifier in snake_case or CamelCase, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)}


def defined(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each class, function, argument, variable and attribute that is defined."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.lineno, node.name


def modules() -> list[str]:
    """Return the paths of the modules of the product, relative to the package."""
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return sorted(path.as_posix() for path in paths if path.parts[0] != "tests")


@pytest.mark.parametrize("module", modules())
def test_retired_words(module: str) -> None:
    """No module and no name in it contains a word that a term of the glossary replaced."""
    names = [(0, module.removesuffix(".py")), *defined(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))]
    found = {f"{line}: {name}" for line, name in names if words(name) & RETIRED.keys()}
    assert not found, f"use the terms of doc/glossary.md: {sorted(found)}"


def test_words() -> None:
    """Identifiers are split at underscores and capital letters."""
    assert words("_is_whole") == {"is", "whole"}
    assert words("HTTPServerName2") == {"http", "server", "name"}
    assert words("MAX_TOLD") == {"max", "told"}
    assert words("threshold") == {"threshold"}


@pytest.mark.skipif(not GLOSSARY.exists(), reason="no checkout")
def test_glossary_names_files() -> None:
    """doc/glossary.md is sorted, and each file that it names exists."""
    rows = re.findall(r"^\| \*\*(.+?)\*\*.* \| ([^|]*) \|$", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    terms = [term.lower() for term, _ in rows]
    assert terms == sorted(terms)
    named = {name for _, files in rows for name in re.findall(r"`([\w/.]+)`", files)}
    assert len(named) > 40
    assert [name for name in sorted(named) if not (PACKAGE / name).exists()] == []
