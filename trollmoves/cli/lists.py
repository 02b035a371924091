"""``trollmoves queue``, ``held`` and ``failed``: the files that wait or failed, oldest first, with the reason."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from trollmoves.cli.answers import CRITICAL, OK, UNKNOWN, WARNING, Answer, add_json_option, show, table, terminal_width
from trollmoves.cli.selection import DaemonFiles, add_config_arguments, selected
from trollmoves.cli.texts import duration, lasting
from trollmoves.errors import JournalError
from trollmoves.journal import JournalReader, TaskRow, open_reader
from trollmoves.net import urls
from trollmoves.status.names import destination_of, error_of, file_of_key
from trollmoves.utils.texts import counted, printable

WIDE = 120  # characters of a terminal from which the reasons are in the table
LIMIT = 100  # files of each daemon
HELP = {
    "queue": "files that wait, the oldest first",
    "held": "files that wait until an operator repairs something, with the reason",
    "failed": "files that will not be delivered, with the reason",
}
VERDICTS = {"queue": "waiting", "held": "held", "failed": "failed"}
CODES = {"queue": OK, "held": CRITICAL, "failed": WARNING}


@dataclass(frozen=True)
class ListedFile:
    """One row of the lists; ages and delays are in seconds."""

    daemon: str
    chain: str
    kind: str
    file: str
    destination: str
    age: float
    attempts: int
    next_attempt: float | None
    reason: str


def add_parser(subparsers: Any) -> None:
    """Add the parsers."""
    for name, text in HELP.items():
        parser = subparsers.add_parser(name, help=text, description=f"List the {text}.")
        add_config_arguments(parser)
        parser.add_argument("-n", "--limit", type=int, default=LIMIT, help="files of each daemon (default %(default)s)")
        add_json_option(parser)
        parser.set_defaults(run=run, list=name)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand: queue 0, held 2 if there are files, failed 1 if there are files; 3 without a journal."""
    name = arguments.list
    files: list[ListedFile] = []
    total, problems = 0, []
    for daemon in selected(arguments):
        try:
            with open_reader(daemon.where) as reader:
                total += reader.count_listed(name)
                files += _files(reader, daemon, name, arguments.limit)
        except JournalError as error:
            problems.append(str(error))
    files.sort(key=lambda file: -file.age)
    code = UNKNOWN if problems else CODES[name] if total else OK
    shown = f", the oldest {len(files)} are listed" if len(files) < total else ""
    oldest = f", the oldest for {duration(files[0].age)}" if files else ""
    verdict = "; ".join([f"{counted(total, 'file')} {VERDICTS[name]}{oldest}{shown}", *problems])
    facts = {"total": total, "files": [asdict(file) for file in files], "problems": problems}
    return show(Answer(code, verdict, facts, _lines(files)), arguments)


def _lines(files: list[ListedFile]) -> list[str]:
    """Return the table; the reasons are in it on wide terminals, and below it, once each, on others."""
    is_wide = terminal_width() >= WIDE
    header = ("AGE", "SECTION", "FILE", "DESTINATION", "TRIES", "NEXT", *(["REASON"] if is_wide else []))
    rows = [
        (duration(f.age), f.chain, f.file, f.destination, f.attempts, duration(f.next_attempt))
        + ((f.reason,) if is_wide else ())
        for f in files
    ]
    lines = table(header, rows, shrink=(6, 2, 3, 1) if is_wide else (2, 3, 1), right=(0, 4, 5))
    reasons = dict.fromkeys(f"[{f.chain}] {lasting(f.reason)}" for f in files if f.reason)
    return [*lines, *([] if is_wide else map(printable, reasons))]


def _files(reader: JournalReader, daemon: DaemonFiles, name: str, limit: int) -> Iterator[ListedFile]:
    now = reader.now()
    errors = {(lane.chain, lane.lane): lane.error for lane in reader.lanes() if lane.failure}
    for task in reader.listed(name, limit):
        reason = error_of(task.reply) if task.failure else errors.get((task.chain, task.lane)) or ""
        if task.kind == "set_aside":
            reason = task.body
        delay = max(0.0, task.due - now) if task.state == 0 else None
        yield ListedFile(
            daemon.name,
            task.chain,
            task.kind,
            file_of(reader, task),
            urls.redacted(destination_of(task.kind, task.key, task.destination) or task.lane.partition(" ")[2]),
            max(0.0, now - task.created),
            task.tries,
            delay,
            " ".join(urls.redact_text(reason).split()),
        )


def file_of(reader: JournalReader, task: TaskRow) -> str:
    """Return the names of the files of a task."""
    if task.number is not None and task.kind != "fetch":
        announced = reader.announcement(task.chain, task.number)
        return announced.uid if announced else f"announcement {task.number}"
    return file_of_key(task.kind, task.key)
