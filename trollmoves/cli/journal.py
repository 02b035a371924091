"""``trollmoves journal``: size and contents of a journal, a backup of it, and the move to PostgreSQL."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

from trollmoves.cli.answers import OK, Answer, add_json_option, show, table
from trollmoves.cli.selection import DaemonFiles, add_config_arguments, selected
from trollmoves.cli.texts import age, size
from trollmoves.config.options import ProcessOptions
from trollmoves.errors import ConfigError
from trollmoves.journal import JournalFacts, copy_journal, is_shared, migrate_journal, open_reader, running_pid
from trollmoves.utils.texts import counted

DAY = 86_400.0  # s
STATES = ("waiting", "done", "failed", "dropped")


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    text = "size and contents of journals, and a backup copy"
    description = (
        "Print size and contents of journals. 'trollmoves journal migrate URL' creates or migrates the tables of a "
        "journal on PostgreSQL; 'trollmoves journal copy FILE URL' copies the file of a stopped daemon there."
    )
    parser = subparsers.add_parser("journal", help=text, description=description)
    add_config_arguments(parser)
    parser.add_argument("--backup", metavar="FILE", help="copy the journal to a new file, also while the daemon runs")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    if action := _ACTIONS.get(next(iter(arguments.config), "")):
        return show(action(*arguments.config[1:]), arguments)
    daemons = selected(arguments)
    if arguments.backup and len(daemons) != 1:
        raise ConfigError("--backup copies one journal: name one configuration file")
    answers = [_describe(daemon, arguments.backup) for daemon in daemons]
    verdict = "; ".join(str(facts.pop("verdict")) for facts, _ in answers)
    lines = [line for _, lines in answers for line in lines]
    return show(Answer(OK, verdict, {"journals": [facts for facts, _ in answers]}, lines), arguments)


def _migrate(*urls: str) -> Answer:
    if len(urls) != 1 or not is_shared(urls[0]):
        raise ConfigError("migrate needs the URL of a journal: trollmoves journal migrate postgresql://...")
    return Answer(OK, f"{migrate_journal(urls[0])} has the tables of this version", {}, ())


def _copy(*places: str) -> Answer:
    if len(places) != 2 or is_shared(places[0]) or not is_shared(places[1]):
        raise ConfigError("copy needs a file and a URL: trollmoves journal copy FILE postgresql://...")
    counts = copy_journal(*places)
    rows = f"{counted(counts['tasks'], 'task')}, {counted(counts['announcements'], 'announcement')}"
    return Answer(OK, f"copied {rows}; set journal in the configuration to the URL", {"rows": counts}, ())


_ACTIONS: Mapping[str, Callable[..., Answer]] = {"migrate": _migrate, "copy": _copy}


def _describe(daemon: DaemonFiles, backup: str | None) -> tuple[dict[str, Any], list[str]]:
    options = daemon.configuration.process if daemon.configuration else ProcessOptions()
    with open_reader(daemon.where) as reader:
        facts, now = reader.facts(), reader.now()
        prunable = reader.count_prunable(now - options.keep_finished * DAY, now - options.keep_announcements * DAY)
        if backup:
            reader.back_up(backup)
        identity = reader.meta.get("identity", "")
    pid = running_pid(daemon.where)
    tasks, announced = sum(facts.tasks.values()), sum(facts.announcements.values())
    rows = f"{counted(tasks, 'task')}, {counted(announced, 'announcement')}"
    verdict = f"{daemon.name}: {size(facts.size + facts.wal_size)}, {rows}"
    described = {
        "verdict": f"{verdict}, copied to {backup}" if backup else verdict,
        "name": daemon.name,
        "journal": daemon.journal,
        "identity": identity,
        "pid": pid,
        "bytes": facts.size,
        "wal_bytes": facts.wal_size,
        "free_bytes": facts.free,
        "tasks": [
            {"chain": chain, "kind": kind, "state": STATES[state], "number": number}
            for (chain, kind, state), number in sorted(facts.tasks.items())
        ],
        "announcements": [{"chain": chain, "number": number} for chain, number in facts.announcements.items()],
        "prunable_tasks": prunable[0],
        "prunable_announcements": prunable[1],
        "oldest_finished": facts.oldest_finished,
        "oldest_announcement": facts.oldest_announcement,
        "backup": backup,
        "time": time.time(),
    }
    return described, _lines(described, facts)


def _lines(described: dict[str, Any], facts: JournalFacts) -> list[str]:
    pid = described["pid"]
    rows = [
        *((chain or "-", kind, STATES[state], number) for (chain, kind, state), number in sorted(facts.tasks.items())),
        *((chain, "announcement", "", number) for chain, number in facts.announcements.items()),
    ]
    return [
        f"journal   {described['journal']}, identity {described['identity']}",
        f"process   {f'running, pid {pid}' if pid else 'not running'}",
        f"size      {size(facts.size)}, write-ahead log {size(facts.wal_size)}, free pages {size(facts.free)}",
        f"oldest    finished task {age(facts.oldest_finished) or '-'}, "
        f"announcement {age(facts.oldest_announcement) or '-'}",
        f"prunable  {counted(described['prunable_tasks'], 'task')}, "
        f"{counted(described['prunable_announcements'], 'announcement')}",
        *table(("SECTION", "KIND", "STATE", "ROWS"), rows, shrink=(0,), right=(3,)),
    ]
