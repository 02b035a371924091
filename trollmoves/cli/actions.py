"""``trollmoves pause``, ``resume``, ``release``, ``retry``, ``resend`` and ``drop``: orders for daemons."""

from __future__ import annotations

import argparse
import os
import re
import time
from datetime import datetime
from typing import Any, NamedTuple

from trollmoves.cli.answers import OK, UNKNOWN, WARNING, Answer, add_json_option, show
from trollmoves.cli.selection import DaemonFiles, add_config_arguments, selected_started
from trollmoves.control import client
from trollmoves.control.client import ControlError, NotRunning
from trollmoves.errors import JournalError, TrollmovesError
from trollmoves.journal import open_reader, record_offline
from trollmoves.orders.order import DROP, OF_A_LANE, PAUSE, RELEASE, RESEND, RESUME, RETRY, Order
from trollmoves.scheduler.pauses import lanes_named, unknown_name
from trollmoves.utils.texts import printable
from trollmoves.utils.users import this_user

ORDER_TIMEOUT = 60.0  # s to wait for a daemon; an order can concern many files
STARTING = 10.0  # s to wait for a daemon that starts or stops
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_HELP = {
    PAUSE: "stop the transfers to a destination, or of a section; new files wait",
    RESUME: "end a pause",
    RELEASE: "attempt now what waits for the next attempt",
    RETRY: "attempt failed files again",
    RESEND: "send delivered files again",
    DROP: "give up waiting or failed files",
}


class Outcome(NamedTuple):
    """What became of an order in one daemon: ``state`` is "done", "stored" or "rejected"."""

    daemon: DaemonFiles
    state: str
    text: str
    more: dict[str, Any]


def add_parser(subparsers: Any) -> None:
    """Add the parsers."""
    for action, text in _HELP.items():
        parser = subparsers.add_parser(action, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if action in OF_A_LANE:
            parser.add_argument(
                "name", metavar="NAME", help="a section, or a destination as host or scheme://host:port"
            )
        else:
            _add_files(parser, action)
        add_config_arguments(parser)
        add_json_option(parser)
        parser.set_defaults(run=run, action=action)


def _add_files(parser: argparse.ArgumentParser, action: str) -> None:
    parser.add_argument("file", nargs="?", default="", help="name or path of a file; * and ? are placeholders")
    if action == RESEND:
        parser.add_argument("--since", type=_since, default=0.0, help="delivered since: 2h, 90m, 1d, or a local time")
        parser.add_argument("--to", default="", metavar="DESTINATION", help="URL or path of another directory")
    else:
        parser.add_argument("--failed", action="store_true", help="all failed files")
    parser.add_argument("-s", "--section", default="", dest="chain", help="only the files of this section")


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand: 0 if it is done or stored, 1 if in part, 3 if no daemon accepts it."""
    if getattr(arguments, "failed", False) and arguments.file:  # the first argument is a configuration file
        arguments.config.insert(0, arguments.file)
        arguments.file = ""
    names = ("name", "file", "failed", "since", "to", "chain")
    values = {name: value for name in names if (value := getattr(arguments, name, None))}
    values["action"] = arguments.action
    Order.parse({**values, "by": this_user(), "at": time.time()})
    outcomes = [give(daemon, values, explicit=bool(arguments.config)) for daemon in selected_started(arguments)]
    return show(_answer(arguments.action, outcomes), arguments)


def give(daemon: DaemonFiles, values: dict[str, Any], *, explicit: bool = True) -> Outcome:
    """Give an order to a daemon: to the process if it runs, else to its journal.

    Args:
        daemon: the daemon.
        values: the values of the order, as of ``Order.parse``.
        explicit: False if the user did not name this daemon; then a daemon that does not run rejects the order.
    """
    deadline = time.monotonic() + STARTING
    while True:
        try:
            request = {name: value for name, value in values.items() if name != "action"}
            reply = client.request(daemon.control, values["action"], timeout=ORDER_TIMEOUT, **request)
            return Outcome(daemon, "done", reply.pop("text"), reply)
        except NotRunning:
            pass
        except ControlError as error:
            return Outcome(daemon, "rejected", str(error), {})
        if not explicit:
            return Outcome(daemon, "rejected", "the daemon does not run; name its configuration with -c", {})
        try:
            return _store(daemon, values)
        except JournalError as error:  # in use: the daemon is starting or stopping
            exists = daemon.url or os.path.exists(daemon.journal)
            if not (exists and error.temporary) or time.monotonic() > deadline:
                return Outcome(daemon, "rejected", str(error), {})
        time.sleep(0.2)


def _store(daemon: DaemonFiles, values: dict[str, Any]) -> Outcome:
    name = values.get("name", "")
    if name and name not in daemon.sections and (daemon.url or os.path.exists(daemon.journal)):
        with open_reader(daemon.where) as reader:
            lanes = {(row.chain, row.lane) for row in reader.lanes()}
            lanes |= {(row.chain, row.lane) for row in reader.waiting()}
            is_paused = values["action"] == RESUME and name in reader.pauses()
        if not (is_paused or lanes_named(name, lanes)):
            return Outcome(daemon, "rejected", unknown_name(name, daemon.sections, lanes), {})
    order = Order.parse({**values, "by": this_user(), "at": time.time()})
    record_offline(daemon.where, order.key, order.dump())
    return Outcome(daemon, "stored", "stored; the daemon does not run, and carries it out at its next start", {})


def _answer(action: str, outcomes: list[Outcome]) -> Answer:
    if not outcomes:
        raise TrollmovesError("no daemon found: name its configuration with -c")
    accepted = [outcome for outcome in outcomes if outcome.state != "rejected"]
    shown = accepted or outcomes
    partial = any(outcome.more.get("in_flight") or outcome.more.get("lost") for outcome in accepted)
    code = UNKNOWN if not accepted else WARNING if partial else OK
    texts = [f"{outcome.daemon.name}: {printable(outcome.text)}" for outcome in shown]
    facts = [
        {
            "config": outcome.daemon.config,
            "journal": outcome.daemon.journal,
            "state": outcome.state,
            "text": outcome.text,
            **outcome.more,
        }
        for outcome in outcomes
    ]
    return Answer(code, f"{action}: {texts[0]}", {"daemons": facts}, texts[1:])


def _since(text: str) -> float:
    """Return the time (s since the epoch) of a duration before now, or of a local time in ISO format."""
    if found := re.fullmatch(r"(\d+(?:\.\d*)?)([smhd]?)", text):
        return time.time() - float(found[1]) * _UNITS[found[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a duration (2h, 90m) or a time (2026-01-31T12:00)"
        ) from None
