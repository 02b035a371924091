"""``trollmoves history``: what happened to a file, step by step."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from trollmoves.cli.answers import CRITICAL, OK, UNKNOWN, WARNING, Answer, add_json_option, show, table
from trollmoves.cli.selection import DaemonFiles, add_config_arguments, selected
from trollmoves.cli.texts import clock, duration, size
from trollmoves.errors import JournalError, TrollmovesError
from trollmoves.journal import open_reader
from trollmoves.messaging import payload, sockets
from trollmoves.messaging.messages import Message
from trollmoves.move_it_req import RequestClient, UnexpectedReply, check_reachable
from trollmoves.net.urls import redact_text
from trollmoves.status.history import Step, history, time_of
from trollmoves.utils.texts import counted, printable

CODES = {"held": CRITICAL, "failed": WARNING, "refused": WARNING}
MAX_HOPS = 30  # requests to servers and mirrors

Found = tuple[str, str, Step]  # kind and name of a daemon, and a step there


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser(
        "history",
        help="what happened to a file, step by step",
        description="Print each step of a file, as long as the journals keep it.",
    )
    parser.add_argument("file", help="name or path of a file; * and ? are placeholders")
    text = "also ask the servers and mirrors that announced the file, and their sources, over the network"
    parser.add_argument("--hops", action="store_true", help=text)
    add_config_arguments(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand: 0 if the last step is none of the following, 1 failed or refused, 2 held, 3 not found."""
    found, problems = _find(selected(arguments), arguments.file)
    if arguments.hops:
        found, more = _follow(found)
        problems += more
    code = max(_last_codes(found), default=UNKNOWN)
    facts = {"file": arguments.file, "steps": [_as_dict(*item) for item in found], "problems": problems}
    verdict = _verdict(arguments.file, [step for _, _, step in found])
    lines = _lines([(kind, step) for kind, _, step in found])
    return show(Answer(code, "; ".join([verdict, *problems]), facts, lines), arguments)


def steps_of(daemons: Iterable[DaemonFiles], name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the steps of a file as JSON types, oldest first, and the reasons why a journal was not read."""
    found, problems = _find(daemons, name)
    return [_as_dict(*item) for item in found], problems


def _find(daemons: Iterable[DaemonFiles], name: str) -> tuple[list[Found], list[str]]:
    found: list[Found] = []
    problems = []
    for daemon in daemons:
        try:
            with open_reader(daemon.where) as reader:
                found += [(daemon.kind, daemon.name, step) for step in history(reader, name)]
        except JournalError as error:
            problems.append(str(error))
    return _sorted(found), problems


def _sorted(found: list[Found]) -> list[Found]:
    return sorted(found, key=lambda item: time_of(item[2]))


def _follow(found: list[Found]) -> tuple[list[Found], list[str]]:
    """Return the steps with those at the sources of the files, and why some of these did not reply."""
    pending = [source for _, _, step in found for source in step.details.get("sources", {}).items()]
    known = {(step.event, step.number, step.time) for _, _, step in found}
    visited: set[tuple[str, str]] = set()
    problems: dict[str, str] = {}  # by address
    while pending and len(visited) < MAX_HOPS:
        address, uri = pending.pop(0)
        if (address, uri) in visited or address in problems or not payload.is_address(address):
            continue
        visited.add((address, uri))
        try:
            data = _request(address, uri)
        except UnexpectedReply:
            problems[address] = f"{address} is of an older version, which has no history"
            continue
        except TrollmovesError as error:
            problems[address] = redact_text(str(error))
            continue
        steps = _received_steps(data)
        if not steps:
            problems[address] = f"{address} does not know {uri} any longer"
        kind = str(data.get("kind"))[:20]
        found += [(kind, address, step) for step in steps if (step.event, step.number, step.time) not in known]
        sources = data.get("sources")
        pending += [(str(s), str(uri)) for s, uri in sources.items()] if isinstance(sources, dict) else []
    return _sorted(found), list(problems.values())


def _request(address: str, uri: str) -> Mapping[str, Any]:
    """Return the reply of a server or mirror about the file that it announced with this path."""
    host, _, port = address.rpartition(":")
    server = sockets.tcp(host, int(port))
    check_reachable(server)
    with RequestClient(server, verbose=False) as client:
        reply, _ = client.request(Message("/history", "history", {"uri": uri}))
    return reply.data if isinstance(reply.data, dict) else {}


def _received_steps(data: Mapping[str, Any]) -> list[Step]:
    """Return the steps in a reply, without values of a wrong type."""
    steps = data.get("steps")
    found = []
    for one in steps if isinstance(steps, list) else ():
        if isinstance(one, dict) and isinstance(one.get("event"), str):
            texts = {name: str(one.get(name, ""))[:500] for name in ("event", "file", "destination", "peer")}
            numbers = {name: one[name] for name in ("number", "size", "attempts") if payload.is_number(one.get(name))}
            seconds = {name: one[name] for name in ("time", "seconds") if payload.is_seconds(one.get(name))}
            found.append(
                Step(**{"time": None, "chain": str(data.get("chain", ""))[:200], **texts, **numbers, **seconds})
            )
    return found


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


def _last_codes(found: list[Found]) -> Iterator[int]:
    """Yield the exit code of the last step of each file, section and destination."""
    last = {(name, step.chain, step.file, step.destination): step for _, name, step in found}
    yield from (CODES.get(step.event, OK) for step in last.values())


def _verdict(name: str, steps: list[Step]) -> str:
    if not steps:
        reasons = "the daemon is down or did not receive it, it matched no section, or its rows were pruned"
        return f"{name} is not in the journals: {reasons} (see: status, explain)"
    files = {step.file for step in steps}
    last = steps[-1]
    subject = last.file if len(files) == 1 else counted(len(files), "file")
    where = f" to {last.destination}" if last.destination else ""
    when = f" at {clock(last.time)}" if last.time else ""
    return f"{subject}: {last.event}{where}{when}{', not requested yet' if last.event == 'announced' else ''}"


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
