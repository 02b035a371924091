"""The state of a daemon when it is scraped: its lanes, providers and journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from trollmoves.errors import JournalError
from trollmoves.journal import Journal, JournalStatistics, LaneBacklog
from trollmoves.metrics.counters import FileCounters
from trollmoves.scheduler.scheduler import LaneState
from trollmoves.scheduler.task_kinds import EVENTS_BY_KIND, is_about_files, kind_of_lane


@dataclass(slots=True)
class EndpointState:
    """The tasks of a chain for one destination or source."""

    waiting: int = 0  # tasks that wait or run
    in_flight: int = 0
    held: int = 0  # of the waiting ones: an operator must repair the cause, or the endpoint
    oldest: float = 0.0  # s since the oldest waiting task was created
    failing: bool = False

    def add_lane(self, lane: LaneState | None, backlog: LaneBacklog | None, now: float) -> None:
        """Add the tasks of a lane; several lanes, of different users, can have one endpoint."""
        if backlog:
            self.waiting += backlog.count
            self.held += backlog.count if lane and lane.held else backlog.held
            self.oldest = max(self.oldest, now - backlog.oldest)
        if lane:
            self.in_flight += lane.in_flight
            self.failing = self.failing or lane.failing


@dataclass(frozen=True, slots=True)
class DaemonState:
    """Tasks and files. ``journal_readable`` False: the tasks that wait and those that failed are missing."""

    journal_readable: bool
    journal_size: int  # bytes
    endpoints: Mapping[tuple[str, str, str], EndpointState]  # by chain, kind, endpoint
    failed: Mapping[tuple[str, str], int]  # tasks by chain and kind
    last: Mapping[tuple[str, str], float]  # s since the epoch, by chain and event; 0 if no file is known


@dataclass(slots=True)
class DaemonReader:
    """Reads the state of a daemon, without a lock that the transfers need. Metrics thread.

    ``event`` is the event that shows that a chain gets files. ``chains`` returns the names of the running chains,
    ``providers`` whether each provider of a chain is connected, ``lanes`` the state of all lanes, ``replayed`` the
    number of announcements that a chain had missed, ``alarms`` which alarms are active, ``lines_dropped`` the number of
    log lines that were dropped.
    """

    journal: Journal
    counters: FileCounters
    event: str
    chains: Callable[[], Iterable[str]]
    lanes: Callable[[], list[LaneState]]
    providers: Callable[[], Iterable[tuple[str, Mapping[str, bool]]]]
    replayed: Callable[[], Mapping[str, int]]
    alarms: Callable[[], Mapping[tuple[str, str], bool]]
    lines_dropped: Callable[[], int]
    _earlier: Mapping[tuple[str, str], float] | None = field(default=None, init=False)  # of earlier processes

    def read(self) -> DaemonState:
        """Return the tasks and the files now."""
        found = self._statistics()
        statistics = found or JournalStatistics((), {})
        return DaemonState(
            found is not None,
            self.journal.size(),
            self._endpoints(statistics),
            {key: count for key, count in statistics.failed.items() if count},
            self._last_times(),
        )

    def _statistics(self) -> JournalStatistics | None:
        try:
            if self._earlier is None:
                self._earlier = self.journal.last_times()
            return self.journal.statistics()
        except JournalError:
            return None  # the scheduler logs it

    def _endpoints(self, statistics: JournalStatistics) -> dict[tuple[str, str, str], EndpointState]:
        found = {key[:3]: EndpointState() for key in self.counters.results.copy()}
        lanes = {(lane.chain, lane.name): lane for lane in self.lanes()}
        backlog = {(lane.chain, lane.lane): lane for lane in statistics.backlog}
        now = self.journal.now()
        failing = set(statistics.failing)  # also lanes without a task at this moment: a server ends a push that fails
        for chain, name in lanes.keys() | backlog.keys() | failing:
            if is_about_files(name):
                key = chain, kind_of_lane(name), self.counters.endpoint(name)
                endpoint = found.setdefault(key, EndpointState())
                endpoint.add_lane(lanes.get((chain, name)), backlog.get((chain, name)), now)
                endpoint.failing |= (chain, name) in failing
        return found

    def _last_times(self) -> dict[tuple[str, str], float]:
        earlier = {
            (chain, EVENTS_BY_KIND[kind]): time
            for (chain, kind), time in (self._earlier or {}).items()
            if kind in EVENTS_BY_KIND
        }
        now = self.counters.last.copy()
        return {
            (chain, self.event): now.get((chain, self.event)) or earlier.get((chain, self.event), 0.0)
            for chain in self.chains()
        }
