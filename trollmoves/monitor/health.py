"""The health of a daemon: whether its journal can be written, its origins read, and its lanes work."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from trollmoves.errors import JournalError
from trollmoves.journal import Journal
from trollmoves.scheduler.scheduler import LaneState, Scheduler

OK, WARNING, CRITICAL = "ok", "warning", "critical"
CODES = {OK: 0, WARNING: 1, CRITICAL: 2}  # exit codes, as for Nagios
CACHE_TIME = 1.0  # s; pings may come often
RESPONSE_TIME = 5.0  # s after which a directory does not respond
PROBE_TIME = 0.1  # s that a reply waits for a directory
MAX_CHECK_TIME = 30.0  # s of a check after which the journal does not respond


class _OriginCheck(NamedTuple):
    done: threading.Event
    result: list[str]  # the problem, empty if there is none


class Health:
    """The checks of one daemon. ``check`` is for one thread; any thread may read the results.

    ``origins`` returns the directories by chain, ``missing`` the names of the sections that do not run.
    """

    def __init__(
        self,
        journal: Journal,
        scheduler: Scheduler,
        origins: Callable[[], Mapping[str, str]],
        missing: Callable[[], Iterable[str]],
    ) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._origins = origins
        self._missing = missing
        self._journal_problem = ""
        self._origin_problems: Mapping[str, str] = {}
        self._checks: dict[str, _OriginCheck] = {}  # the last ones, by directory
        self._probes: dict[str, _OriginCheck] = {}  # those of replies, by directory
        self._checking_since = 0.0  # monotonic; 0 between two checks
        self._checked_at = time.monotonic()
        self._read_at = 0.0
        self._known: dict[str, tuple[float, dict[str, Any]]] = {}  # by chain: when it was determined, the health

    @property
    def is_wanted(self) -> bool:
        """True if the results were read since the last check."""
        return self._read_at >= self._checked_at

    def check(self) -> None:
        """Check the journal and the origins. It waits RESPONSE_TIME for a directory at most."""
        self._checking_since = started = time.monotonic()
        try:
            self._journal.check_writable()
            self._journal_problem = ""
        except JournalError as error:
            self._journal_problem = str(error)
        origins = self._origins()
        checks = {directory: _start_check(self._checks, directory) for directory in {*origins.values()}}
        problems = {directory: _result(check, started + RESPONSE_TIME) for directory, check in checks.items()}
        self._origin_problems = {chain: text for chain, directory in origins.items() if (text := problems[directory])}
        self._checked_at = time.monotonic()
        self._checking_since = 0.0

    def _origin_problem(self, chain: str) -> str:
        """Return the present problem of an origin; that of the last check if it does not respond in PROBE_TIME."""
        directory = self._origins().get(chain)
        known = self._origin_problems.get(chain, "")
        if directory is None:
            return known
        probe = self._probes.get(directory)
        if probe is None or probe.done.is_set():
            probe = _start_check(self._probes, directory)
            probe.done.wait(PROBE_TIME)
        return "".join(probe.result) if probe.done.is_set() else known

    def of_chain(self, chain: str) -> dict[str, Any]:
        """Return the health of one chain for other hosts, without paths, at most a second old. Any thread."""
        self._read_at = time.monotonic()
        then, known = self._known.get(chain, (0.0, {}))
        if not known or self._read_at - then > CACHE_TIME:
            known = self._of_chain(chain)
            self._known[chain] = self._read_at, known
        return known

    def _of_chain(self, chain: str) -> dict[str, Any]:
        lanes = _counts(lane for lane in self._scheduler.lane_states() if lane.chain == chain)
        journal = self._journal_state()
        origin = "unreadable" if self._origin_problem(chain) else "ok"
        status = CRITICAL if (journal, origin) != ("ok", "ok") else WARNING if lanes["failing"] else OK
        return {"status": status, "journal": journal, "origin": origin, "lanes": lanes}

    def of_daemon(self) -> dict[str, Any]:
        """Return the health of the whole daemon, with the problems in words. Any thread."""
        self._read_at = time.monotonic()
        lanes = self._scheduler.lane_states()
        critical = [f"the journal is {self._journal_state()}"] if self._journal_state() != "ok" else []
        problems = {chain: self._origin_problem(chain) for chain in self._origins()}
        critical += [f"[{chain}] origin: {problem}" for chain, problem in problems.items() if problem]
        critical += [f"[{chain}] does not run" for chain in self._missing()]
        warnings = [
            f"[{lane.chain}] {lane.name} {'is held' if lane.held else 'fails'}, next attempt in {lane.paused:.0f} s"
            for lane in lanes
            if lane.failing
        ]
        status = CRITICAL if critical else WARNING if warnings else OK
        return {
            "status": status,
            "code": CODES[status],
            "problems": [*critical, *warnings],
            "journal": self._journal_state(),
            "lanes": _counts(lanes),
        }

    def _journal_state(self) -> str:
        if self._journal.damage or self._journal_problem:
            return "not writable"
        since = self._checking_since
        return "not responding" if since and time.monotonic() - since > MAX_CHECK_TIME else "ok"


def _counts(lanes: Iterable[LaneState]) -> dict[str, int]:
    states = list(lanes)
    return {
        "total": len(states),
        "failing": sum(lane.failing for lane in states),
        "held": sum(lane.held for lane in states),
    }


def _start_check(checks: dict[str, _OriginCheck], directory: str) -> _OriginCheck:
    """Return a check that is not finished: it reads on another thread, because a dead mount blocks its reader."""
    check = checks.get(directory)
    if check is None or check.done.is_set():
        check = checks[directory] = _OriginCheck(threading.Event(), [])
        threading.Thread(target=_read, args=(directory, check), name="origin-check", daemon=True).start()
    return check


def _result(check: _OriginCheck, deadline: float) -> str:
    """Return the problem of a directory, empty if there is none."""
    if not check.done.wait(max(0.0, deadline - time.monotonic())):
        return "does not respond"
    return "".join(check.result)


def _read(directory: str, check: _OriginCheck) -> None:
    try:
        with os.scandir(directory) as entries:
            next(entries, None)
    except OSError as error:
        check.result.append(error.strerror or str(error))
    check.done.set()
