#!/usr/bin/env python3
"""Count the phrases that we avoid in prose, per 1,000 words; fail above the limit.

Usage: check_prose.py [--limit N] PART...   with the parts code, docs, tests. Prose is docstrings, comments, the texts
of log calls and exceptions, and Markdown without its code blocks. CONTRIBUTING.md explains how we write.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

LIMIT = 2.0  # phrases per 1,000 words
WORST = 8  # files that are listed
PHRASES = re.compile(
    "|".join(
        [
            # name the actor and the object
            r"\b(?:whoever|whom|whose|nobody|somebody|anybody|everybody|everyone|anyone)\b",
            r"\bwhat (?:is|was|were|are|stands|stood|came|comes|it|they|an|a|the|has|had|nobody|that|one)\b",
            # use the verb of the field
            r"\b(?:tells?|told|telling|hears?|heard|hearing|stands?|stood)\b",
            # the first line of a docstring: "Return ..."
            r"^(?:Give|Tell) .*\.$",
            # say it positively and exactly
            r"\b(?:is|are|was|holds|be) no [a-z]",
            r"\b(?:anew|afresh|meanwhile|beside|at hand|in vain|lest|thereby|for good|by itself|henceforth|at once)\b",
            r"\b(?:of (?:its|their|our) own|so many|so much|as many as|from [A-Z0-9a-z ]{1,12} on)\b",
        ]
    ),
    re.IGNORECASE | re.MULTILINE,
)
LOG_CALLS = {"debug", "info", "warning", "error", "exception", "critical"}


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of each piece of prose in a file."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield 1, re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), source, flags=re.M | re.S)
        return
    for node in ast.walk(ast.parse(source)):
        yield from texts_of(node)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string[1:]


def texts_of(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the docstring of a node, or its texts if it is a log call or raises an exception."""
    constants: list[ast.AST] = []
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if text := ast.get_docstring(node):
            yield node.body[0].lineno, text
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOG_CALLS:
        constants = [*node.args[:2]]
    elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        constants = [*ast.walk(node.exc)]
    yield from (
        (one.lineno, one.value) for one in constants if isinstance(one, ast.Constant) and isinstance(one.value, str)
    )


def files_of(part: str) -> list[Path]:
    """Return the files of a part of the checkout."""
    if part == "docs":
        folders = ("doc", "examples", ".github")
        return [*Path().glob("*.md"), *(path for folder in folders for path in Path(folder).rglob("*.md"))]
    if part == "tests":
        return [*Path("trollmoves/tests").rglob("*.py")]
    folders = ("trollmoves", "bin", "examples", "benchmarks", ".ci")
    paths = (path for folder in folders for path in Path(folder).rglob("*.py"))
    return [path for path in paths if "tests" not in path.parts and path.name != "check_prose.py"]


def check(part: str, limit: float) -> bool:
    """Print the rate of a part, and its worst files if it is above the limit; return True if it is not."""
    words, found = 0, {}
    for path in sorted(files_of(part)):
        hits = []
        for line, text in prose_of(path):
            words += len(re.findall(r"[A-Za-z']+", text))
            hits += [(line + text.count("\n", 0, hit.start()), hit[0]) for hit in PHRASES.finditer(text)]
        if hits:
            found[path] = sorted(hits)
    rate = 1000 * sum(map(len, found.values())) / max(words, 1)
    print(f"{part}: {rate:.1f} phrases per 1,000 words (limit {limit:g})")
    if rate <= limit:
        return True
    for path, hits in sorted(found.items(), key=lambda item: -len(item[1]))[:WORST]:
        print(f"  {path}: " + ", ".join(f"{line}: {phrase}" for line, phrase in hits))
    return False


def main() -> int:
    """Check the parts that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="+", choices=("code", "docs", "tests"))
    parser.add_argument("--limit", type=float, default=LIMIT, help="phrases per 1,000 words (%(default)s)")
    arguments = parser.parse_args()
    passed = [check(part, arguments.limit) for part in arguments.part]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
