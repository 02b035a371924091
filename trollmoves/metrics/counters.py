"""Counts files, bytes and latencies in plain numbers, which a scrape reads without a lock."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from trollmoves.errors import Superseded
from trollmoves.journal import Task
from trollmoves.scheduler.lanes import FileStats, Result
from trollmoves.scheduler.task_kinds import EVENTS

# s; upper bounds of the buckets of a latency histogram, without the last one, which has no bound
LATENCY_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
MAX_ENDPOINTS = 200  # endpoints that are counted separately; clients name destinations, so their number has no limit
MAX_LABEL_LENGTH = 200  # characters
LOCAL = "this host"  # the endpoint of a lane without a host
OTHER = "other"  # the endpoint of further ones
MAX_CACHED_LANES = 1000  # lanes; further ones are looked up each time


@dataclass(slots=True)
class FileCount:
    """A number of files and their bytes."""

    files: int = 0
    size: int = 0  # bytes


@dataclass(slots=True)
class Histogram:
    """Latencies: the number in each bucket, not cumulated, and their sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS) + 1))
    total: float = 0.0


class FileCounters:
    """The counters of a process.

    The thread that counts for one chain is the only one that changes its numbers: for results the scheduler thread,
    for announcements the thread that announces. Any thread may read; a number that it reads may be one file behind the
    next one.
    """

    def __init__(self) -> None:
        self.results: dict[tuple[str, str, str, str], FileCount] = {}  # by chain, kind, endpoint, result
        self.announced: dict[str, FileCount] = {}  # by chain
        self.latencies: dict[tuple[str, str], Histogram] = {}  # by chain and event
        self.last: dict[tuple[str, str], float] = {}  # by chain and event; s since the epoch
        self._by_lane: dict[tuple[str, str, str], FileCount] = {}  # a cache of results, by chain, lane, result
        self._endpoints: set[str] = set()

    def count_result(self, task: Task, result: Result) -> None:
        """Count the end of an attempt. Scheduler thread."""
        event = EVENTS.get(task.kind)
        outcome = _outcome(task, result, event) if event else ""
        if not event or not outcome:
            return
        count = self._by_lane.get((task.chain, task.lane, outcome)) or self._add_lane(task, outcome)
        files = result.files
        if files is None:
            count.files += 1
            return
        count.files += files.number
        count.size += files.size
        now = time.time()
        self.last[task.chain, event] = now
        self._record_latency(task.chain, event, files, now)

    def count_announced(self, chain: str, announced: Sequence[FileStats]) -> None:
        """Count announcements; calls for one chain must not overlap."""
        count = self.announced.setdefault(chain, FileCount())
        now = time.time()
        self.last[chain, "announced"] = now
        for files in announced:
            count.files += files.number
            count.size += files.size
            self._record_latency(chain, "announced", files, now)

    def endpoint(self, lane: str) -> str:
        """Return the label of a lane: its host without a login, or ``other`` if there are too many."""
        scheme, separator, rest = (lane.partition(" ")[2] or LOCAL).rpartition("://")
        found = f"{scheme}{separator}{rest.rpartition('@')[2]}"[:MAX_LABEL_LENGTH]
        if found not in self._endpoints:
            if len(self._endpoints) >= MAX_ENDPOINTS:
                return OTHER
            self._endpoints.add(found)
        return found

    def _add_lane(self, task: Task, outcome: str) -> FileCount:
        key = task.chain, task.kind, self.endpoint(task.lane), outcome
        count = self.results.setdefault(key, FileCount())
        if len(self._by_lane) < MAX_CACHED_LANES:
            self._by_lane[task.chain, task.lane, outcome] = count
        return count

    def _record_latency(self, chain: str, event: str, files: FileStats, now: float) -> None:
        histogram = self.latencies.get((chain, event)) or self.latencies.setdefault((chain, event), Histogram())
        seconds = max(0.0, now - files.mtime * 1e-9)
        histogram.counts[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        histogram.total += seconds


def _outcome(task: Task, result: Result, event: str) -> str:
    """Return how an attempt ended; empty if the task only waits."""
    error = result.error
    if error is None:
        if result.retry_in is None:
            return event if result.files else "skipped"
        return "" if result.reply is None else "held" if result.held else "retried"
    if isinstance(error, Superseded):
        return "skipped"
    # A push ends with each attempt: its client requests the file again.
    if not error.temporary or (result.final and task.kind != "push"):
        return "failed"
    return "held" if error.held else "retried"
