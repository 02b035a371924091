"""``trollmoves health``: the verdict of running daemons about themselves."""

from __future__ import annotations

import argparse
from typing import Any

from trollmoves.cli.answers import CRITICAL, NAMES, OK, UNKNOWN, WARNING, Answer, add_json_option, show
from trollmoves.cli.selection import DaemonFiles, add_config_arguments, selected_started
from trollmoves.control import client
from trollmoves.control.client import ControlError, NotRunning
from trollmoves.errors import JournalError, TrollmovesError
from trollmoves.journal import open_reader
from trollmoves.utils.texts import counted, printable


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser(
        "health",
        help="check that daemons work",
        description="Check that daemons run, write their journals, read their origins and reach their destinations.",
    )
    add_config_arguments(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand: the worst verdict of the daemons."""
    daemons = selected_started(arguments)
    if not daemons:
        raise TrollmovesError("no daemon found: name its configuration")
    reports = [_report(daemon) for daemon in daemons]
    code = max(int(report["code"]) for report in reports)
    lines = [
        f"{daemon.name}: {NAMES[report['code']]}{_details(report)}"
        for daemon, report in zip(daemons, reports, strict=True)
    ]
    good = sum(report["code"] == OK for report in reports)
    verdict = lines[0] if len(lines) == 1 else f"{good} of {len(lines)} daemons ok"
    return show(Answer(code, verdict, {"daemons": reports}, lines if len(lines) > 1 else ()), arguments)


def _report(daemon: DaemonFiles) -> dict[str, Any]:
    try:
        report = _with_held_files(daemon, client.request(daemon.control, "health"))
    except NotRunning as error:
        report = {"status": NAMES[CRITICAL], "code": CRITICAL, "problems": [str(error)]}
    except ControlError as error:
        report = {"status": NAMES[UNKNOWN], "code": UNKNOWN, "problems": [str(error)]}
    return {"name": daemon.name, "journal_file": daemon.journal, **report}


def _with_held_files(daemon: DaemonFiles, report: dict[str, Any]) -> dict[str, Any]:
    """Return the report with a warning if files are held: one file can be held while its lane works."""
    try:
        with open_reader(daemon.where) as reader:
            held = reader.count_listed("held")
    except JournalError:
        return report  # the daemon reports on its journal
    if not held:
        return report
    code = max(int(report["code"]), WARNING)
    problems = [*report.get("problems", ()), f"{counted(held, 'file')} held, see trollmoves held"]
    return {**report, "status": NAMES[code], "code": code, "problems": problems}


def _details(report: dict[str, Any]) -> str:
    problems = report.get("problems") or []
    return f": {printable('; '.join(map(str, problems)))}" if problems else ""
