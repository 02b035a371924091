"""``trollmoves history``: what happened to a file, step by step."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from trollmoves.cli.answers import CRITICAL, OK, UNKNOWN, WARNING, Answer, add_json_option, printable, show, table
from trollmoves.cli.selection import DaemonFiles, add_config_arguments, selected
from trollmoves.cli.texts import clock, counted, duration, size
from trollmoves.errors import JournalError
from trollmoves.journal import open_reader
from trollmoves.status.history import Step, history

CODES = {"held": CRITICAL, "failed": WARNING, "refused": WARNING}


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser(
        "history",
        help="what happened to a file, step by step",
        description="Print each step of a file, as long as the journals keep it.",
    )
    parser.add_argument("file", help="name or path of a file; * and ? are placeholders")
    add_config_arguments(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand: 0 if the last step is none of the following, 1 failed or refused, 2 held, 3 not found."""
    found, problems = _find(selected(arguments), arguments.file)
    code = max(_last_codes(found), default=UNKNOWN)
    facts = {"file": arguments.file, "steps": [_as_dict(*item) for item in found], "problems": problems}
    verdict = _verdict(arguments.file, [step for _, _, step in found])
    lines = _lines([(kind, step) for kind, _, step in found])
    return show(Answer(code, "; ".join([verdict, *problems]), facts, lines), arguments)


def steps_of(daemons: Iterable[DaemonFiles], name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the steps of a file as JSON types, oldest first, and the reasons why a journal was not read."""
    found, problems = _find(daemons, name)
    return [_as_dict(*item) for item in found], problems


def _find(daemons: Iterable[DaemonFiles], name: str) -> tuple[list[tuple[str, str, Step]], list[str]]:
    found: list[tuple[str, str, Step]] = []
    problems = []
    for daemon in daemons:
        try:
            with open_reader(daemon.where) as reader:
                found += [(daemon.kind, daemon.name, step) for step in history(reader, name)]
        except JournalError as error:
            problems.append(str(error))
    found.sort(key=lambda item: float("inf") if item[2].time is None else item[2].time)
    return found, problems


def _as_dict(kind: str, name: str, step: Step) -> dict[str, Any]:
    return {"daemon": name, "kind": kind, **asdict(step)}


def _lines(found: list[tuple[str, Step]]) -> list[str]:
    several = len({step.file for _, step in found}) > 1
    days = {clock(step.time)[:10] for _, step in found if step.time is not None}
    cut = 11 if len(days) == 1 else 0  # a common date is only in the verdict
    header = ["TIME", "DAEMON", "SECTION", "EVENT", *(["FILE"] if several else []), "DETAILS"]
    rows = [
        [clock(step.time)[cut:] or "-", kind, step.chain, step.event, *([step.file] if several else []), _details(step)]
        for kind, step in found
    ]
    return table(header, rows, shrink=(len(header) - 1, 4))


def _last_codes(found: list[tuple[str, str, Step]]) -> Iterator[int]:
    """Yield the exit code of the last step of each file, section and destination."""
    last = {(name, step.chain, step.file, step.destination): step for _, name, step in found}
    yield from (CODES.get(step.event, OK) for step in last.values())


def _verdict(name: str, steps: list[Step]) -> str:
    if not steps:
        return f"{name} is not in the journals: it matched no section, or its rows were pruned (see: explain)"
    files = {step.file for step in steps}
    last = steps[-1]
    subject = last.file if len(files) == 1 else counted(len(files), "file")
    where = f" to {last.destination}" if last.destination else ""
    return f"{subject}: {last.event}{where}{f' at {clock(last.time)}' if last.time else ''}"


def _details(step: Step) -> str:
    preposition = {"requested": "by", "delivered": "for", "refused": "for"}.get(step.event, "from")
    parts = [
        f"number {step.number}" if step.event == "announced" else "",
        f"to {step.destination}" if step.destination else "",
        f"{preposition} {step.peer}" if step.peer else "",
        size(step.size),
        f"in {duration(step.seconds)}" if step.seconds is not None else "",
        f"attempt {step.attempts}" if step.attempts else "",
        step.text,
        f"next attempt {clock(step.details['next_attempt'])}" if "next_attempt" in step.details else "",
    ]
    return printable(", ".join(filter(None, parts)))
