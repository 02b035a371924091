"""Lanes: the tasks in flight for one destination host or source, and which tasks to run next.

A lane keeps the tasks of one host or source from delaying the others. New tasks are submitted to their lane directly
while it has room. Otherwise the lane reads them from the journal, which stores every task.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple

from trollmoves.errors import TrollmovesError
from trollmoves.journal import Delivery, Journal, Outage, Task
from trollmoves.scheduler.circuit_breaker import (
    BACKOFF_INITIAL,
    BACKOFF_MAX,
    HELD_INITIAL,
    CircuitBreaker,
    Transition,
    backoff,
)
from trollmoves.scheduler.retry_spacing import RetrySpacing
from trollmoves.utils.rate import RateMeter

PREFETCH = 16  # tasks in flight for each task that may run concurrently, so that results are committed in groups
ASYNC_BURST_FACTOR = 8  # multiplies the limit of asynchronous tasks while they finish at a high rate
MAX_CONTEXTS = 500  # contexts kept per lane for tasks that wait in the journal
MAX_OWNERS = 100  # owners kept per lane
STALL_SECONDS = 0.01  # s without a finished task after which another worker is assigned to a lane
NEVER = float("inf")
Scope = Literal["fleet", "requested", "member", "host"]


class FileStats(NamedTuple):
    """The files of an announcement or of a delivery, for the metrics."""

    number: int
    size: int  # bytes; 0 if unknown
    mtime: int  # ns since the epoch; the newest modification time, or the time of the announcement


@dataclass(slots=True)
class Result:
    """How a handler ended one run of a task, if it neither raised an error nor returned None.

    ``error`` None: the task is done; ``reply``, ``follow_ups`` and ``delivery`` are stored in the same transaction.
    ``error`` temporary: the task is retried after the usual backoff, or after ``retry_in`` seconds.
    ``error`` permanent, or ``final``: the task has failed and is not retried.
    ``retry_in`` without an error: the task runs again after this many seconds, and the lane is not blamed. With a
    ``reply``, the reason, it counts as a failure: ``held`` if an operator must repair the cause.
    ``on_committed`` is called on the scheduler thread after the commit; it must not block.
    ``files``: what the task has delivered or fetched; None if nothing.
    """

    reply: str | None = None
    follow_ups: Sequence[Task] = ()
    error: TrollmovesError | None = None
    retry_in: float | None = None
    final: bool = False
    delivery: Delivery | None = None
    on_committed: Callable[[], None] | None = None
    files: FileStats | None = None
    held: bool = False


Handler = Callable[[Task], Result | None]
AsyncHandler = Callable[[Task, Callable[[Result], None]], None]


class ChainPolicy(NamedTuple):
    """How the tasks of one chain are scheduled: the priority, and the maximum seconds between attempts."""

    priority: int = 0
    probe_interval: float = BACKOFF_MAX


class LowerLimits(NamedTuple):
    """Limits of single lanes for a whole fleet: ``limit(lane, keys)``, with the keys of the tasks of ``kind``."""

    kind: str
    limit: Callable[[str, Collection[str]], int]


@dataclass(frozen=True, slots=True)
class TaskKind:
    """One kind of task of one chain: its handler, and how many tasks of a lane may run concurrently.

    In a fleet that shares its work, ``scope`` says which members run a task: all, within one limit ("fleet"); within
    one limit the one at which it was requested, if it has a part of the limit, and after its end any other
    ("requested"); the one that stored it, and after its end any other ("member"), or any other on the same host
    ("host"). ``lower_limits`` are those of single lanes.
    """

    limit: int
    handler: Handler | None = None  # runs on a worker thread
    async_handler: AsyncHandler | None = None  # starts the task on the scheduler thread; ``finish`` is called later
    after_start: Callable[[], None] | None = None  # called when the due tasks of a lane were started
    not_before: float = 0.0  # monotonic; no task is claimed earlier
    by_owner: bool = False  # the workers are shared between the owners of the tasks
    policy: ChainPolicy = field(default_factory=ChainPolicy)
    scope: Scope = "member"
    lower_limits: LowerLimits | None = None

    @property
    def has_shared_lanes(self) -> bool:
        """True if the members of a fleet share the limit of each lane."""
        return self.scope in ("fleet", "requested")


@dataclass(slots=True, eq=False)
class Lane:
    """One lane of one chain. For the scheduler thread; any thread may ``submit``, and workers use ``ready``."""

    chain: str
    name: str
    kind: TaskKind | None
    now: Callable[[], float]  # the clock of due times
    revoked: Mapping[int, float]  # of dropped tasks, which may have been submitted: ``created`` by id
    journal_pending: bool = False  # the journal may contain due tasks that were not submitted
    in_flight: dict[int, Task] = field(default_factory=dict)
    ready: deque[Task] = field(default_factory=deque)
    workers: int = 0  # workers that are assigned to this lane
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    retries: RetrySpacing = field(default_factory=RetrySpacing)
    paused: bool = False  # by an operator
    proven: bool = False  # its tasks finished before it was idle
    starved_since: float = NEVER  # monotonic; no worker is available until a task of another lane ends
    next_due: float = NEVER  # when to read the journal again, by the clock
    rate: RateMeter = field(default_factory=RateMeter)  # of finished tasks
    last_progress: float = 0.0  # monotonic; when a task finished or a worker was assigned
    highest_claimed_id: int = 0
    share: int | None = None  # part of the limit for this member of a fleet; None if the lane is not shared
    burst_factor: int = ASYNC_BURST_FACTOR
    may_probe: bool = True  # False while another member of the fleet may
    outage: Outage | None = None  # as read from the journal
    stored_changes: int = 0  # of the breaker
    owners: set[str] = field(default_factory=set)  # of the submitted tasks; "" for those of an earlier process
    _submitted: deque[Task] = field(default_factory=deque)
    _contexts: dict[int, Task] = field(default_factory=dict)  # submitted tasks that will be read from the journal

    @property
    def priority(self) -> int:
        """The priority of the chain; 0 when the chain is stopped."""
        kind = self.kind
        return kind.policy.priority if kind else 0

    def submit(self, tasks: Iterable[Task]) -> None:
        """Hand over tasks that were just stored in the journal. Any thread."""
        if self.paused:
            self.journal_pending = True
            return
        for task in tasks:
            if len(self.owners) < MAX_OWNERS:
                self.owners.add(task.owner)
            self._submitted.append(task)

    def seconds_until_ready(self) -> float:
        """Return the seconds after which the lane may have work without a further event."""
        kind = self.kind  # other threads start and stop chains
        if self.ready and kind and self.workers < self.limit(kind) and self.starved_since == NEVER:
            return STALL_SECONDS
        if not self._free_slots():
            return NEVER  # the end of a task wakes the scheduler thread
        return max(
            self._closed_seconds(), 0.0 if self.journal_pending or self._submitted else self.next_due - self.now()
        )

    def is_stalled(self) -> bool:
        """Return True if tasks are ready and none finished recently."""
        return bool(self.ready) and time.monotonic() - self.last_progress > STALL_SECONDS

    def is_idle(self) -> bool:
        """Return True if the lane has no tasks, expects none, and has no failures to remember or to store."""
        if self.in_flight or self.workers:
            return False
        if self.kind is None:
            return True
        if not self.breaker.is_expired() or (self.share is not None and self.breaker.changes != self.stored_changes):
            return False
        return not (self._submitted or self.journal_pending) and self.next_due == NEVER

    def claim(self, journal: Journal) -> list[Task]:
        """Claim due tasks, up to the number of free slots."""
        slots = self._free_slots()
        if not slots or self._closed_seconds() > 0:
            return []
        if self.share is not None and not journal.still():
            self.share = 0  # until the lease is renewed
            return []
        now = self.now()
        if now >= self.next_due:
            self.journal_pending = True
        tasks = self._claim_submitted(slots, now)
        if self.journal_pending and len(tasks) < slots:
            tasks = self._claim_from_journal(journal, slots, now, tasks)
        for task in tasks:
            task.tries += 1
            self.in_flight[task.id] = task
            self.highest_claimed_id = max(self.highest_claimed_id, task.id)
        self.breaker.record_claim(tasks)
        return tasks

    def _closed_seconds(self) -> float:
        kind = self.kind  # other threads start and stop chains
        return max(self.breaker.paused_until, kind.not_before) - time.monotonic() if kind else NEVER

    def _free_slots(self) -> int:
        kind = self.kind
        if kind is None or self.paused:
            return 0
        limit = self.limit(kind)
        if self.breaker.failures:  # one probe, in addition to tasks started before the pause
            is_full = len(self.in_flight) >= limit or not self.may_probe
            return 0 if is_full or self.breaker.is_probing(self.in_flight) else 1
        if kind.async_handler:
            return max(0, limit * self._burst() - len(self.in_flight))
        slots = limit * PREFETCH - len(self.in_flight)
        return slots if limit and slots >= limit * PREFETCH // 4 else 0

    def limit(self, kind: TaskKind) -> int:
        """Return how many tasks may run here concurrently: this member's part of the limit, if the lane is shared."""
        return kind.limit if self.share is None else self.share

    def _burst(self) -> int:
        return self.burst_factor if self.rate.is_high() else 1

    # -- a lane that the members of a fleet share

    def has_work(self) -> bool:
        """Return True if the lane has tasks here, or is to read some from the journal. Any thread."""
        return bool(self.in_flight or self.workers or self._submitted or self.journal_pending)

    def used(self) -> int:
        """Return the part of the limit that running tasks use. Any thread."""
        if self.kind and self.kind.async_handler:
            return math.ceil(len(self.in_flight) / self._burst())
        return self.workers

    def has_excess_workers(self) -> bool:
        """Return True if more workers are assigned than this member's part of the limit. Any thread."""
        return self.share is not None and self.workers > self.share

    def room(self) -> int:
        """Return how many further tasks can run here soon. Any thread."""
        kind = self.kind
        if kind is None or self.paused or self.breaker.failures or self.journal_pending:
            return 0
        factor = PREFETCH if kind.handler else self._burst()
        return self.limit(kind) * factor - len(self.in_flight) - len(self._submitted)

    def _claim_submitted(self, slots: int, now: float) -> list[Task]:
        """Claim submitted tasks; once the journal must be read, leave them to it, because it keeps the order."""
        tasks: list[Task] = []
        while self._submitted:
            task = self._submitted.popleft()
            if self.revoked and self.revoked.get(task.id) == task.created:
                continue
            if task.due > now:
                self.next_due = min(self.next_due, task.due)
            elif self.journal_pending or len(tasks) >= slots or not self._is_ours(task):
                self.journal_pending = True
                self._keep_context(task)
            elif task.id not in self.in_flight:
                tasks.append(task)
        return tasks

    def _is_ours(self, task: Task) -> bool:
        """Return False if a task may have been read, and even finished, before it was submitted."""
        return task.held and task.id > self.highest_claimed_id

    def _keep_context(self, task: Task) -> None:
        if task.context is not None and task.id not in self.in_flight and len(self._contexts) < MAX_CONTEXTS:
            self._contexts[task.id] = task

    def _claim_from_journal(self, journal: Journal, slots: int, now: float, submitted: list[Task]) -> list[Task]:
        in_flight = self.in_flight.keys() | {task.id for task in submitted}
        read = journal.claim(self.chain, self.name, slots - len(submitted), now, in_flight=in_flight)
        for task in read:
            kept = self._contexts.pop(task.id, None)
            if kept and kept.body == task.body:
                task.context = kept.context
        if len(submitted) + len(read) < slots:
            self.journal_pending = False
            running = in_flight | {task.id for task in read}
            self.next_due = journal.next_due(self.chain, self.name, now, in_flight=running) or NEVER
            self._contexts.clear()  # of tasks that were run before they were submitted
        return submitted + read

    def note_due(self, due: float) -> None:
        """Record that a task returned to the journal and is due at ``due``."""
        self.next_due = min(self.next_due, due)

    def release_unstarted(self) -> None:
        """Release claimed tasks that were not started; the journal still contains them."""
        while self.ready:
            try:
                self.in_flight.pop(self.ready.popleft().id, None)
                self.journal_pending = True
            except IndexError:  # a worker took the last one
                return

    def retry_delay(self, task: Task, error: TrollmovesError | None) -> float:
        """Return the seconds before the next attempt of a failed task."""
        if error and not error.outage:
            return self.retries.record_failure(task.id, task.tries, self.breaker.probe_interval)
        initial = HELD_INITIAL if error and error.held else BACKOFF_INITIAL
        return backoff(task.tries, initial, self.breaker.probe_interval)

    def record_result(self, task: Task, error: TrollmovesError | None) -> bool:
        """Record how a task ended: pause after an outage; return True if failed tasks can be retried now."""
        transition = self.breaker.record_result(task, error)
        if transition is Transition.OPENED:
            self.release_unstarted()
        retried = error is None and self.retries.record_success(task.id)
        return retried or transition is Transition.CLOSED


class LaneQueue:
    """Lanes that wait for a worker, by priority, then first in, first out. Any thread."""

    def __init__(self) -> None:
        self._by_priority: dict[int, SimpleQueue[Lane]] = {0: SimpleQueue()}
        self._order = [0]  # replaced, never modified
        self._waiting: SimpleQueue[None] = SimpleQueue()  # one entry per lane, and per worker that is to end
        self._lock = threading.Lock()  # guards the addition of a priority

    def put(self, lane: Lane) -> None:
        """Add a lane that waits for a worker."""
        priority = lane.priority
        if priority not in self._order:
            with self._lock:
                self._by_priority.setdefault(priority, SimpleQueue())
                self._order = sorted(self._by_priority, reverse=True)
        self._by_priority[priority].put(lane)
        self._waiting.put(None)

    def stop_one(self) -> None:
        """End one worker when the queue is empty."""
        self._waiting.put(None)

    def get(self) -> Lane | None:
        """Wait for the next lane and return it; return None to end the calling worker."""
        self._waiting.get()
        for priority in self._order:
            with suppress(Empty):
                return self._by_priority[priority].get_nowait()
        return None

    def empty(self) -> bool:
        """Return True if no lane waits."""
        return self._waiting.empty()
