"""``trollmoves logs``: the last warnings and errors of running daemons."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from trollmoves.cli.answers import CRITICAL, OK, UNKNOWN, WARNING, Answer, add_json_option, coloured, show
from trollmoves.cli.selection import DaemonFiles, add_config_arguments, selected
from trollmoves.cli.texts import clock
from trollmoves.control import client
from trollmoves.control.client import ControlError
from trollmoves.utils.texts import counted, printable

CODES = {"WARNING": WARNING, "ERROR": CRITICAL, "CRITICAL": CRITICAL}


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    text = "last warnings and errors of running daemons"
    parser = subparsers.add_parser("logs", help=text, description=f"Print the {text}.")
    add_config_arguments(parser)
    parser.add_argument("-n", "--lines", type=int, default=50, help="lines of each daemon (default %(default)s)")
    add_json_option(parser)
    parser.set_defaults(run=run)


def lines_of(daemons: Iterable[DaemonFiles], count: int) -> list[dict[str, Any]]:
    """Return the last ``count`` warnings and errors of each daemon; ``error`` if it does not reply."""
    facts: list[dict[str, Any]] = []
    for files in daemons:
        try:
            lines = client.request(files.control, "logs")["lines"][-count:]
            facts.append({"name": files.name, "lines": lines})
        except ControlError as error:
            facts.append({"name": files.name, "lines": [], "error": str(error)})
    return facts


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand: 0 without lines, 1 with warnings, 2 with errors, 3 if a daemon does not reply."""
    facts = lines_of(selected(arguments), arguments.lines)
    levels = [CODES.get(line["level"], OK) for one in facts for line in one["lines"]]
    missing = [one["name"] for one in facts if "error" in one]
    code = UNKNOWN if missing else max(levels, default=OK)
    verdict = f"{counted(levels.count(CRITICAL), 'error')}, {counted(levels.count(WARNING), 'warning')}"
    if missing:
        verdict += f"; no reply, see the log file or journalctl: {', '.join(missing)}"
    texts = []
    for one in facts:
        for line in one["lines"]:
            level = coloured(line["level"], CODES.get(line["level"], OK))
            texts.append(f"{clock(line['time'])} {one['name']} {level} {printable(line['text'])}")
    return show(Answer(code, verdict, {"daemons": facts}, texts), arguments)
