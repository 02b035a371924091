"""``trollmoves status``: the state of daemons, chains and destinations."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trollmoves.cli.answers import OK, UNKNOWN, WARNING, Answer, add_json_option, show, table, terminal_width
from trollmoves.cli.selection import add_config_arguments, selected
from trollmoves.cli.snapshots import snapshot_of
from trollmoves.cli.texts import age, duration, lasting, size
from trollmoves.status import model
from trollmoves.utils.texts import counted, printable

REFRESH_INTERVAL = 2.0  # s
WIDE = 120  # characters of a terminal from which further columns are shown
CLEAR = "\x1b[H\x1b[2J"
_NARROW = ("NAME", "STATE", "WAIT", "HELD", "FAIL", "OLDEST", "/MIN", "LAST")
_MORE = ("RUN", "SIZE/MIN", "P50", "P99", "NEXT", "LAST FILE")


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    text = "state of daemons, sections and destinations"
    parser = subparsers.add_parser("status", help=text, description=f"Print the {text}.")
    add_config_arguments(parser)
    parser.add_argument("-w", "--watch", action="store_true", help="refresh until Ctrl-C")
    parser.add_argument("--interval", type=float, default=REFRESH_INTERVAL, metavar="S", help="seconds for --watch")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand: the exit code is that of the worst state."""
    while True:
        answer = status_of([snapshot_of(files) for files in selected(arguments)])
        if not arguments.watch:
            return show(answer, arguments)
        if sys.stdout.isatty():
            sys.stdout.write(CLEAR)
        code = show(answer, arguments)
        try:
            time.sleep(max(0.1, arguments.interval))
        except KeyboardInterrupt:
            return code


def status_of(daemons: list[dict[str, Any]]) -> Answer:
    """Return the answer about the snapshots of daemons."""
    code = max(map(_code, daemons), default=UNKNOWN)
    facts = {"time": time.time(), "daemons": daemons}
    header = (*_NARROW, *_MORE) if terminal_width() >= WIDE else _NARROW
    rows = [(severity, cells[: len(header)]) for daemon in daemons for severity, cells in _rows(daemon)]
    colours = {number: severity for number, (severity, _) in enumerate(rows)}
    lines = table(header, [cells for _, cells in rows], shrink=(0, len(header) - 1), right=range(2, 12), codes=colours)
    return Answer(code, _verdict(daemons), facts, [*lines, *_details(daemons)])


def _code(daemon: Mapping[str, Any]) -> int:
    if daemon["problem"] and not daemon["running"] and not daemon["chains"]:
        return UNKNOWN
    provider_down = any(one["up"] is False for chain in daemon["chains"] for one in chain["providers"])
    return max(model.severity(daemon["state"]), WARNING if provider_down else OK)


def _verdict(daemons: list[dict[str, Any]]) -> str:
    chains = [chain for daemon in daemons for chain in daemon["chains"]]
    lanes = [one for chain in chains for one in chain["destinations"]]
    states = Counter(one["state"] for one in lanes)
    down = [daemon["name"] for daemon in daemons if not daemon["running"]]
    silent = [chain["name"] for chain in chains if chain["state"] == model.SILENT]
    providers = [one for chain in chains for one in chain["providers"] if one["up"] is False]
    stopped = [chain["name"] for chain in chains if chain["problem"] or chain["running"] is False]
    problems = [
        f"not running: {', '.join(down)}" if down else "",
        f"sections not running: {', '.join(stopped)}" if stopped else "",
        *(
            f"{counted(states[state], _noun(lanes, state))} {state}"
            for state in reversed(model.STATES)
            if model.severity(state) and states[state]
        ),
        f"silent: {', '.join(silent)}" if silent else "",
        f"{counted(len(providers), 'provider')} down" if providers else "",
        *(f"[{chain['name']}] {alarm}" for chain in chains for alarm in _alarms(chain)),
    ]
    waiting = sum(chain["waiting"] for chain in chains)
    failed = sum(chain["failed"] for chain in chains)
    oldest = max((chain["oldest_age"] for chain in chains if chain["oldest_age"] is not None), default=None)
    backlog = f"{counted(waiting, 'file')} waiting, the oldest for {duration(oldest)}" if waiting else "nothing waits"
    counts = f"{counted(len(daemons), 'daemon')}, {counted(len(chains), 'section')}"
    return "; ".join(filter(None, [*problems, backlog, f"{failed} failed" if failed else "", counts]))


def _alarms(chain: Mapping[str, Any]) -> list[str]:
    """Return the alarms that the state of the section does not contain."""
    return [text for text in chain["alarms"] if chain["state"] != model.SILENT or not text.startswith("expect_every")]


def _noun(lanes: Iterable[Mapping[str, Any]], state: str) -> str:
    """Return the common name of all lanes in a state."""
    roles = {one["role"] for one in lanes if one["state"] == state}
    return roles.pop() if len(roles) == 1 and roles <= {"destination", "source"} else "lane"


def _rows(daemon: Mapping[str, Any]) -> Iterator[tuple[int, list[object]]]:
    """Yield the severity and the cells of each row of a daemon."""
    cells = [f"{daemon['name']} ({daemon['kind']})", daemon["state"] if daemon["running"] else "not running"]
    yield _code(daemon), [*cells, *[""] * (len(_NARROW) + len(_MORE) - len(cells))]
    for chain in daemon["chains"]:
        yield model.severity(chain["state"]), _cells(f"  {chain['name']}", chain)
        for one in chain["destinations"]:
            arrow = "<" if one["role"] == "source" else ">"
            yield model.severity(one["state"]), _cells(f"    {arrow} {one['name']}", one)


def _cells(name: str, one: Mapping[str, Any]) -> list[object]:
    traffic = one["traffic"]
    per_minute = round(60 * traffic["files_per_second"])
    return [
        *(name, one["state"], one["waiting"], one["held"], one["failed"]),
        *(duration(one["oldest_age"]), per_minute, age(one["last_time"])),
        *(one["in_flight"], size(round(60 * traffic["bytes_per_second"])), duration(traffic["latency_p50"])),
        *(duration(traffic["latency_p99"]), duration(one.get("next_attempt")), one["last_file"] or ""),
    ]


def _details(daemons: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each problem that the table only counts."""
    for daemon in daemons:
        if daemon["problem"]:
            yield f"{daemon['name']}: {printable(daemon['problem'])}"
        for member in daemon.get("members", ()):
            works = any(lease.split()[0] == "fleet" for lease in member["leases"])
            state = f"works, holds {counted(member['held'], 'task')}" if works else "standby"
            renewed = f"lease renewed {member['renewed']:.1f} s ago"
            yield f"{daemon['name']}: member {member['name']} ({member['version']}): {state}, {renewed}"
            yield from (f"{daemon['name']}: member {member['name']}: part of {lane}" for lane in member["lanes"])
        for chain in daemon["chains"]:
            yield from (f"[{chain['name']}] {printable(text)}" for text in _problems(chain))


def _problems(chain: Mapping[str, Any]) -> Iterator[str]:
    if chain["problem"]:
        yield chain["problem"]
    if chain["state"] == model.SILENT:
        last = f"the last one came {age(chain['last_time'])} ago" if chain["last_time"] else "none is known"
        yield f"silent: a file is expected every {chain['expect_every']:g} s, {last}"
    yield from (f"alarm: {alarm}" for alarm in _alarms(chain))
    yield from (f"provider {one['address']} is down" for one in chain["providers"] if one["up"] is False)
    for one in chain["destinations"]:
        if one["error"]:
            failing = ", failing" if one["state"] == model.PAUSED else ""
            since = f"{failing} for {duration(one['failing_for'])}" if one["failing_for"] is not None else ""
            error = lasting(one["error"]).removeprefix(f"{one['name']}: ")
            following = f"; next attempt in {duration(one['next_attempt'])}" if one["next_attempt"] else ""
            yield f"{one['name']}: {one['state']}{since}: {error}{following}"
