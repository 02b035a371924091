"""The answer of a subcommand: a verdict with an exit code, and its facts as text or JSON."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trollmoves.utils.texts import printable

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3  # exit codes, as for Nagios
NAMES = ("ok", "warning", "critical", "unknown")
COLOURS = ("\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[35m")  # green, yellow, red, magenta
RESET = "\x1b[0m"
GAP = "  "  # between two columns
MIN_WIDTH = 8  # characters that a shortened cell keeps at least
ELLIPSIS = "…"


@dataclass(frozen=True)
class Answer:
    """The answer of a subcommand.

    ``verdict`` is one line. ``facts`` is printed with ``--json``, where ``status``, ``code`` and ``verdict`` are added.
    ``lines`` are printed below the verdict otherwise.
    """

    code: int
    verdict: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[str] = ()


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, which ``show`` reads."""
    parser.add_argument("--json", action="store_true", help="print JSON; its fields are in doc/operating.md")


def show(answer: Answer, arguments: argparse.Namespace) -> int:
    """Print an answer; return its exit code."""
    if arguments.json:
        facts = {"status": NAMES[answer.code], "code": answer.code, "verdict": answer.verdict, **answer.facts}
        write(json.dumps(facts, indent=2, default=str))
    else:
        verdict = f"{coloured(NAMES[answer.code].upper(), answer.code)}: {printable(answer.verdict)}"
        write("\n".join([verdict, *answer.lines]))
    return answer.code


def write(text: str) -> None:
    """Print a text and a line end; characters that the encoding of the terminal lacks are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)  # noqa: T201


def coloured(text: str, code: int) -> str:
    """Return a text in the colour of an exit code; unchanged if the output is not a terminal."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"{COLOURS[code]}{text}{RESET}"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    shrink: Sequence[int] = (),
    right: Sequence[int] = (),
    codes: Mapping[int, int] | None = None,
) -> list[str]:
    """Return the lines of a table that fits the terminal.

    Args:
        header: the titles of the columns.
        rows: the cells of each row.
        shrink: the columns with cells that may be shortened, the first one first.
        right: the columns that are aligned to the right.
        codes: by row, the exit code that colours the row.
    """
    cells = [list(header), *([printable("" if cell is None else cell) for cell in row] for row in rows)]
    if len(cells) == 1:
        return []
    widths = _fitted([max(map(len, column)) for column in zip(*cells, strict=True)], shrink, terminal_width())
    lines = []
    for number, row in enumerate(cells):
        parts = [
            _shortened(cell, width).rjust(width) if index in right else _shortened(cell, width).ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = GAP.join(parts).rstrip()
        code = (codes or {}).get(number - 1, OK)
        lines.append(coloured(line, code) if code != OK and number else line)
    return lines


def terminal_width() -> int:
    """Return the number of columns of the terminal; a large number if the output is not a terminal."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size().columns
    return sys.maxsize


def _fitted(widths: list[int], shrink: Sequence[int], available: int) -> list[int]:
    """Return widths that fit the terminal together, by making the columns of ``shrink`` narrower."""
    for index in shrink:
        excess = sum(widths) + len(GAP) * (len(widths) - 1) - available
        if excess <= 0:
            break
        widths[index] = max(min(MIN_WIDTH, widths[index]), widths[index] - excess)
    return widths


def _shortened(text: str, width: int) -> str:
    """Return a text of at most ``width`` characters; its middle is left out."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + ELLIPSIS + text[len(text) - tail :]
