"""Builds the snapshot of one daemon from its sections, its journal, and its process if that runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trollmoves.config.config_file import Configuration
from trollmoves.config.options import ChainOptions, ClientOptions
from trollmoves.errors import JournalError
from trollmoves.journal import FailureRow, FinishedRow, JournalReader, LaneRow, WaitingRow
from trollmoves.net import urls
from trollmoves.scheduler.pauses import Pauses
from trollmoves.scheduler.scheduler import LaneState
from trollmoves.scheduler.task_kinds import kind_of_lane
from trollmoves.status import model
from trollmoves.status.model import Chain, Daemon, Destination, Member, Provider, Traffic, quantile, worst
from trollmoves.status.names import error_of, file_of_key

WINDOW = 300.0  # s of the rates and latencies
RECENT_FILES = 5_000  # files of the rates and latencies, so that a snapshot is quick during a burst
BEHIND_AFTER = 60.0  # s that a file waits until its destination counts as behind
DOWN_AFTER = 60.0  # s of failures until a destination counts as down
FORGET_AFTER = 600.0  # s after which a failure without waiting files is not shown
ROLES = {"push": "destination", "deliver": "destination", "fetch": "source"}  # by kind of task
UNCOUNTED = {"remove", "delete_archive", "republish"}  # kinds of tasks that wait as planned


@dataclass(frozen=True)
class Section:
    """A section of a configuration file; ``problem`` is the reason if it is invalid."""

    name: str
    problem: str = ""
    providers: tuple[str, ...] = ()
    expect_every: float = 0.0  # s; 0 without a limit
    max_age: float = 0.0  # s; 0 without a limit


def sections_of(configuration: Configuration[Any] | None, names: Iterable[str], problem: str = "") -> list[Section]:
    """Return the sections with these names; ``problem`` is the reason if the whole file is invalid."""
    valid = configuration.sections if configuration else {}
    broken = configuration.broken if configuration else {}
    return [
        _section(valid[name]) if name in valid else Section(name, str(broken.get(name, problem or "not valid")))
        for name in names
    ]


def _section(options: ChainOptions) -> Section:
    addresses = [one.address for one in options.providers] if isinstance(options, ClientOptions) else []
    return Section(options.name, "", tuple(dict.fromkeys(addresses)), options.expect_every, options.max_age)


@dataclass(frozen=True)
class Live:
    """The state of the process of a daemon. ``providers`` is whether each one is connected, by chain and address."""

    pid: int
    version: str
    lanes: Iterable[LaneState]
    providers: Mapping[str, Mapping[str, bool]]
    running: Collection[str]  # names of chains
    problems: Mapping[str, str] = field(default_factory=dict)  # why chains do not run, by name
    alarms: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by chain


def snapshot(
    daemon: Daemon,
    sections: Sequence[Section] | None,
    live: Live | None,
    open_journal: Callable[[], JournalReader],
) -> Daemon:
    """Return the daemon with its state, chains and destinations. Any thread.

    ``daemon`` has the names and paths. ``sections`` is None if the configuration is not known: then the chains are
    those in the journal. If the journal cannot be read, ``problem`` has the reason. ``open_journal`` opens it.
    """
    if live:
        daemon.running, daemon.pid, daemon.version = True, live.pid, live.version
    try:
        with open_journal() as reader:
            daemon.journal_size = reader.size()
            daemon.members = daemon.members or [Member(*row) for row in reader.members()]
            builder = _Builder(reader, live)
            daemon.chains = builder.chains(daemon.kind, sections)
    except JournalError as error:
        daemon.problem = daemon.problem or str(error)
        daemon.chains = [Chain(one.name, problem=one.problem) for one in sections or ()]
    states = [chain.state for chain in daemon.chains]
    daemon.state = worst(states if daemon.running else [*states, model.DOWN])
    return daemon


class _Builder:
    """Reads a journal once and builds the chains of a snapshot."""

    def __init__(self, reader: JournalReader, live: Live | None) -> None:
        self._now = reader.now()
        self._live = live
        self._live_lanes = {(lane.chain, lane.name): lane for lane in live.lanes} if live else {}
        self._waiting = {(row.chain, row.lane): row for row in reader.waiting()}
        self._lanes = {(row.chain, row.lane): row for row in reader.lanes()}
        self._failures: dict[tuple[str, str], dict[str, FailureRow]] = defaultdict(dict)
        for row in reader.failures():
            self._failures[row.chain, row.lane][row.failure] = row
        self._announced = reader.last_announcements()
        self._pauses = Pauses(reader.pauses())
        self._finished = reader.finished_since(self._now - WINDOW, RECENT_FILES)
        self._finished_by_lane: dict[tuple[str, str], list[FinishedRow]] = defaultdict(list)
        for finished in self._finished:
            self._finished_by_lane[finished.chain, finished.lane].append(finished)
        self._window = WINDOW
        if len(self._finished) == RECENT_FILES:
            self._window = max(1.0, self._now - self._finished[-1].finished)

    def chains(self, kind: str, sections: Sequence[Section] | None) -> list[Chain]:
        """Return the chains of all sections, and those that have waiting files without a section."""
        keys = {*self._waiting, *self._failures, *self._lanes, *self._live_lanes}
        known = [Section(name) for name in sorted({*(chain for chain, _ in keys), *self._announced})]
        if sections is None:
            return [self._chain(kind, section, keys) for section in known]
        names = {section.name for section in sections}
        orphans = {chain for chain, _ in self._waiting} - names
        problem = "not in the configuration: its files wait until it is"
        listed = [*sections, *(Section(name, problem) for name in sorted(orphans))]
        return [self._chain(kind, section, keys) for section in listed]

    def _chain(self, kind: str, section: Section, keys: Iterable[tuple[str, str]]) -> Chain:
        own = sorted(lane for chain, lane in keys if chain == section.name)
        destinations = [self._destination(section, lane) for lane in own if kind_of_lane(lane) not in UNCOUNTED]
        destinations = [one for one in destinations if one.role != "internal" or one.waiting or one.failed]
        chain = Chain(section.name, problem=section.problem, destinations=destinations)
        chain.waiting = sum(one.waiting for one in destinations)
        chain.in_flight = sum(one.in_flight for one in destinations)
        chain.held = sum(one.held for one in destinations)
        chain.failed = sum(one.failed for one in destinations)
        chain.oldest_age = max((one.oldest_age for one in destinations if one.oldest_age is not None), default=None)
        chain.paused = section.name in self._pauses.names
        chain.expect_every = section.expect_every or None
        chain.traffic = self._traffic([row for row in self._finished if row.chain == section.name])
        self._set_last(chain, kind)
        self._set_live(chain, section)
        chain.state = self._chain_state(chain)
        return chain

    def _set_last(self, chain: Chain, kind: str) -> None:
        announced = self._announced.get(chain.name)
        if kind in ("server", "mirror") and announced:
            chain.last_file, chain.last_time, chain.last_number = announced.uid, announced.created, announced.number
            return
        last = max(chain.destinations, key=lambda one: one.last_time or 0.0, default=None)
        if last:
            chain.last_file, chain.last_time = last.last_file, last.last_time

    def _set_live(self, chain: Chain, section: Section) -> None:
        if self._live is None:
            chain.providers = [Provider(address) for address in section.providers]
            return
        states = self._live.providers.get(chain.name, {})
        chain.running = chain.name in self._live.running
        chain.problem = chain.problem or self._live.problems.get(chain.name, "")
        chain.alarms = list(self._live.alarms.get(chain.name, ()))
        chain.providers = [Provider(address, up) for address, up in states.items()]

    def _chain_state(self, chain: Chain) -> str:
        states = [one.state for one in chain.destinations]
        if chain.problem or chain.running is False:
            states.append(model.DOWN)
        if chain.providers and all(provider.up is False for provider in chain.providers):
            states.append(model.DOWN)
        if chain.paused:
            states.append(model.PAUSED)
        if chain.expect_every and self._now - (chain.last_time or 0.0) > chain.expect_every:
            states.append(model.SILENT)
        return worst(states)

    # -- destinations

    def _destination(self, section: Section, lane: str) -> Destination:
        key = section.name, lane
        kind, _, name = lane.partition(" ")
        one = Destination(urls.redacted(name) if name else kind, lane, ROLES.get(kind, "internal"))
        running = self._live_lanes.get(key)
        row, waiting, failures = self._lanes.get(key), self._waiting.get(key), self._failures.get(key, {})
        one.in_flight = running.in_flight if running else 0
        temporary = [failure for name, failure in failures.items() if name in ("held", "outage", "retry")]
        one.refused = sum(failure.refused for failure in temporary)
        one.waiting = max(0, (waiting.number if waiting else 0) - one.in_flight) + one.refused
        one.failed = failures["failed"].number if "failed" in failures else 0
        one.oldest_age = self._oldest_age(waiting, temporary)
        one.paused = self._pauses.covers(*key)
        if row:
            self._add_row(one, row, is_concerned=bool(one.waiting or one.in_flight))
        if temporary and not one.error:
            shown = min(temporary, key=lambda failure: (failure.failure != "held", failure.oldest))
            one.error = error_of(shown.reply) or None
        is_held = row is not None and row.failure == "held"
        one.held = one.waiting + one.in_flight if is_held else failures["held"].number if "held" in failures else 0
        one.next_attempt = self._next_attempt(one, running, waiting)
        one.traffic = self._traffic(self._finished_by_lane.get(key, []))
        one.state = self._state(one, waiting, section.max_age or BEHIND_AFTER, has_failures=bool(temporary))
        return one

    def _oldest_age(self, waiting: WaitingRow | None, failures: Iterable[FailureRow]) -> float | None:
        times = [*([waiting.created] if waiting else []), *(failure.oldest for failure in failures)]
        return max(0.0, self._now - min(times)) if times else None

    def _add_row(self, one: Destination, row: LaneRow, *, is_concerned: bool) -> None:
        one.last_time, one.total_files, one.total_bytes = row.last_done, row.done, row.size
        one.last_file = row.last_file or (file_of_key(kind_of_lane(row.lane), row.last_key) if row.last_key else None)
        failing_for = max(0.0, self._now - (row.failing_since or self._now))
        if row.failure and (is_concerned or failing_for < FORGET_AFTER):
            one.error, one.failing_for = row.error, failing_for

    def _next_attempt(self, one: Destination, running: LaneState | None, waiting: WaitingRow | None) -> float | None:
        if one.paused:
            return None
        if running and running.paused:
            return running.paused
        return max(0.0, waiting.due - self._now) if waiting and one.error and waiting.due > self._now else None

    def _state(self, one: Destination, waiting: WaitingRow | None, limit: float, *, has_failures: bool) -> str:
        is_due = one.refused > 0 or (waiting is not None and waiting.due <= self._now)
        checks = (
            (model.PAUSED, one.paused),
            (model.HELD, one.held > 0),
            (model.DOWN, one.failing_for is not None and one.failing_for > DOWN_AFTER),
            (model.BACKING_OFF, one.failing_for is not None or has_failures),
            (model.BEHIND, is_due and (one.oldest_age or 0.0) > limit),
            (model.BUSY, bool(one.waiting or one.in_flight)),
            (model.OK, one.traffic.files > 0),
        )
        return next((state for state, applies in checks if applies), model.IDLE)

    def _traffic(self, rows: Sequence[FinishedRow]) -> Traffic:
        size = sum(row.size or 0 for row in rows)
        latencies = sorted(max(0.0, row.finished - row.appeared) for row in rows)
        return Traffic(
            self._window,
            files=len(rows),
            bytes=size,
            files_per_second=round(len(rows) / self._window, 3),
            bytes_per_second=round(size / self._window, 3),
            latency_p50=quantile(latencies, 0.5),
            latency_p99=quantile(latencies, 0.99),
        )
