"""What is in hand of one lane, and what of it may be taken next.

A lane is what must not crowd others: a destination host, a source. Its tasks come from whoever noted them, directly, as
long as there is room for them here; else from the journal, which has them all.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from trollmoves.errors import TrollmovesError
from trollmoves.journal import Journal, Task
from trollmoves.utils.rate import RateMeter

if TYPE_CHECKING:
    Handler = Callable[[Task], "Result | None"]
    Starter = Callable[[Task, Callable[["Result"], None]], None]

BACKOFF_INITIAL = 1.0  # s before the second try
BACKOFF_MAX = 300.0  # s, so that a mended host is noticed within minutes
PREFETCH = 16  # tasks in hand for each that may run at once, so that commits come in groups
ASYNC_BURST_FACTOR = 8  # times as many at once where they only have to be started, and end as soon as they begin
MAX_CONTEXTS = (
    500  # tasks of a lane that wait in the journal, of which is remembered what their makers want to find again
)
STALL_SECONDS = 0.01  # s without the end of a task after which another worker comes to a lane
NEVER = float("inf")


@dataclass(slots=True)
class Result:
    """How a handler ended one run of a task, when it neither failed nor simply returned.

    ``error`` None: done, with ``reply`` stored and the tasks in ``then`` noted in the same transaction.
    ``error`` temporary: again after the usual backoff; permanent, or ``final``: never again, and failed.
    ``retry_after`` seconds without an error: not now, and nobody's fault.
    ``after`` is called, on the clerk's thread, when the journal has it; it must not block.
    """

    reply: str | None = None
    follow_ups: Sequence[Task] = ()
    error: TrollmovesError | None = None
    retry_in: float | None = None
    final: bool = False
    on_committed: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class TaskKind:
    """One kind of task of one chain: what runs it, and how many of it at once a lane."""

    limit: int
    handler: Handler | None = None  # runs on a worker thread
    async_handler: Starter | None = None  # only starts it, on the clerk's thread; ``finish`` is called later
    not_before: float = 0.0  # before this time (monotonic) none is taken
    priority: int = 0  # of its chain; a higher one goes first


def backoff(tries: int, first: float = BACKOFF_INITIAL, most: float = BACKOFF_MAX) -> float:
    """Give the seconds to wait after the ``tries``-th failure: doubling up to ``most``, with jitter of a half."""
    return float(min(most, first * 2.0 ** min(tries - 1, 30)) * random.uniform(0.5, 1.0))  # noqa: S311  (no secret)


@dataclass(slots=True, eq=False)
class Lane:
    """One lane of one chain. The clerk's, but that anybody may ``offer``, and that workers use ``ready``."""

    chain: str
    name: str
    kind: TaskKind | None
    now: Callable[[], float]  # by which tasks are due
    journal_pending: bool = False  # the journal may hold due tasks that were not offered
    in_flight: dict[int, Task] = field(default_factory=dict)
    ready: deque[Task] = field(default_factory=deque)
    workers: int = 0  # workers that are on this lane, or were sent to it
    healthy: bool = False  # something ended since there was nothing to do, and the last of it not by an outage
    starved: bool = False  # no worker was left for it; the end of another lane's task may change that
    failures: int = 0  # pauses since the last success
    paused_until: float = 0.0  # monotonic
    next_due: float = NEVER  # when the journal is to be asked again, by the clock
    pace: RateMeter = field(default_factory=RateMeter)  # of the tasks that end
    last_progress: float = 0.0  # monotonic; when a task ended or a worker came
    highest_claimed_id: int = 0  # the highest id that was ever taken
    _probe: int = 0  # the id of the task that was taken after the last pause
    _submitted: deque[Task] = field(default_factory=deque)
    _contexts: dict[int, Task] = field(default_factory=dict)  # offered, and to be read from the journal in their turn

    @property
    def priority(self) -> int:
        """That of its chain; 0 when that was stopped."""
        kind = self.kind
        return kind.priority if kind else 0

    def submit(self, tasks: Iterable[Task]) -> None:
        """Hand over tasks that were noted just now."""
        self._submitted.extend(tasks)

    def seconds_until_ready(self) -> float:
        """Give the seconds after which there may be something to do without a further event."""
        kind = self.kind  # chains come and go on other threads
        if self.ready and kind and self.workers < kind.limit and not self.starved:
            return STALL_SECONDS
        if not self._free_slots():
            return NEVER  # the end of a task is such an event
        return max(
            self._closed_seconds(), 0.0 if self.journal_pending or self._submitted else self.next_due - self.now()
        )

    def is_stalled(self) -> bool:
        """Tell whether tasks are ready, and none ended lately."""
        return bool(self.ready) and time.monotonic() - self.last_progress > STALL_SECONDS

    def pause_remaining(self) -> float:
        """Give the seconds for which the lane is held back after tries that failed."""
        return max(0.0, self.paused_until - time.monotonic())

    def is_idle(self) -> bool:
        """Tell whether nothing is in hand, nothing to come, and nothing to remember."""
        if self.in_flight or self.workers:
            return False
        if self.kind is None:
            return True
        if self.failures and time.monotonic() < self.paused_until + BACKOFF_MAX:
            return False
        return not (self._submitted or self.journal_pending) and self.next_due == NEVER

    def claim(self, journal: Journal) -> list[Task]:
        """Take what is due into hand, as far as there is room."""
        room = self._free_slots()
        if not room or self._closed_seconds() > 0:
            return []
        now = self.now()
        if now >= self.next_due:
            self.journal_pending = True
        tasks = self._claim_submitted(room, now)
        if self.journal_pending and len(tasks) < room:
            tasks = self._claim_from_journal(journal, room, now, tasks)
        for task in tasks:
            task.tries += 1
            self.in_flight[task.id] = task
            self.highest_claimed_id = max(self.highest_claimed_id, task.id)
        if tasks and self.failures:
            self._probe = tasks[0].id
        return tasks

    def _closed_seconds(self) -> float:
        kind = self.kind  # chains come and go on other threads
        return max(self.paused_until, kind.not_before) - time.monotonic() if kind else NEVER

    def _free_slots(self) -> int:
        kind = self.kind
        if kind is None:
            return 0
        if self.failures:  # one probe, beside what was begun before the pause and still runs
            return 0 if self._probe in self.in_flight or len(self.in_flight) >= kind.limit else 1
        if kind.async_handler:
            return max(0, kind.limit * (ASYNC_BURST_FACTOR if self.pace.is_high() else 1) - len(self.in_flight))
        room = kind.limit * PREFETCH - len(self.in_flight)
        return room if room >= kind.limit * PREFETCH // 4 else 0

    def _claim_submitted(self, room: int, now: float) -> list[Task]:
        """Take from what was offered, unless the journal must be read anyway: there it stands in order."""
        tasks: list[Task] = []
        while self._submitted:
            task = self._submitted.popleft()
            if task.due > now:
                self.next_due = min(self.next_due, task.due)
            elif self.journal_pending or len(tasks) >= room or task.id <= self.highest_claimed_id:
                self.journal_pending = True  # it may have been read, and even finished, before it was offered
                self._keep_context(task)
            elif task.id not in self.in_flight:
                tasks.append(task)
        return tasks

    def _keep_context(self, task: Task) -> None:
        if task.context is not None and task.id not in self.in_flight and len(self._contexts) < MAX_CONTEXTS:
            self._contexts[task.id] = task

    def _claim_from_journal(self, journal: Journal, room: int, now: float, offered: list[Task]) -> list[Task]:
        in_hand = self.in_flight.keys() | {task.id for task in offered}
        read = journal.claim(self.chain, self.name, room - len(offered), now, in_flight=in_hand)
        for task in read:
            kept = self._contexts.pop(task.id, None)
            if kept and kept.body == task.body:
                task.context = kept.context
        if len(offered) + len(read) < room:
            self.journal_pending = False
            self.next_due = journal.next_due(self.chain, self.name, now) or NEVER
            self._contexts.clear()  # of what was run before it was offered
        return offered + read

    def note_due(self, due: float) -> None:
        """Remember that a task goes back to the journal, to be due again."""
        self.next_due = min(self.next_due, due)

    def release_unstarted(self) -> None:
        """Drop what was taken but not begun; it is still waiting in the journal."""
        while self.ready:
            try:
                self.in_flight.pop(self.ready.popleft().id, None)
                self.journal_pending = True
            except IndexError:  # a worker was quicker
                return

    def record_result(self, task: Task, error: TrollmovesError | None) -> bool:
        """Pause when tries fail for an outage; one success opens the lane, and only then gives True."""
        if error and error.blames_origin:
            return False  # a probe that was never under way tells nothing either
        self.healthy = error is None or not error.outage
        if error is None or not error.outage:
            reopened = self.failures > 0
            self.failures = 0
            self.paused_until = 0.0
            return reopened
        if not self.failures or task.id == self._probe:  # others were begun before the pause, and tell nothing new
            self.failures += 1
            self.paused_until = time.monotonic() + backoff(self.failures)
            self.release_unstarted()
        return False


class LaneQueue:
    """The lanes that wait for a worker: those of a higher priority first, then one after the other. Any thread."""

    def __init__(self) -> None:
        self._by_priority: dict[int, SimpleQueue[Lane]] = {0: SimpleQueue()}
        self._order = [0]  # replaced, never changed
        self._waiting: SimpleQueue[None] = SimpleQueue()  # one for each lane, and for each worker that is to end
        self._lock = threading.Lock()  # for a priority that was not met before

    def put(self, lane: Lane) -> None:
        """Have a lane wait for a worker."""
        priority = lane.priority
        if priority not in self._order:
            with self._lock:
                self._by_priority.setdefault(priority, SimpleQueue())
                self._order = sorted(self._by_priority, reverse=True)
        self._by_priority[priority].put(lane)
        self._waiting.put(None)

    def stop_one(self) -> None:
        """Have one worker end when no lane waits any more."""
        self._waiting.put(None)

    def get(self) -> Lane | None:
        """Wait for the lane whose turn it is; None when this worker is to end."""
        self._waiting.get()
        for priority in self._order:
            with suppress(Empty):
                return self._by_priority[priority].get_nowait()
        return None

    def empty(self) -> bool:
        """Tell whether no lane waits."""
        return self._waiting.empty()
