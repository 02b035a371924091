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
from trollmoves.pace import Pace

if TYPE_CHECKING:
    Handler = Callable[[Task], "Result | None"]
    Starter = Callable[[Task, Callable[["Result"], None]], None]

BACKOFF_FIRST = 1.0  # s before the second try
BACKOFF_MOST = 300.0  # s, so that a mended host is noticed within minutes
PREFETCH = 16  # tasks in hand for each that may run at once, so that commits come in groups
MORE_WHEN_FAST = 8  # times as many at once where they only have to be started, and end as soon as they begin
KEPT = 500  # tasks of a lane that wait in the journal, of which is remembered what their makers want to find again
STILL = 0.01  # s without the end of a task after which another worker comes to a lane
NEVER = float("inf")


@dataclass(slots=True)
class Result:
    """How a handler ended one run of a task, when it neither failed nor simply returned.

    ``error`` None: done, with ``reply`` stored and the tasks in ``then`` noted in the same transaction.
    ``error`` temporary: again after the usual backoff; permanent, or ``final``: never again, and failed.
    ``again_in`` seconds without an error: not now, and nobody's fault.
    ``after`` is called, on the clerk's thread, when the journal has it; it must not block.
    """

    reply: str | None = None
    then: Sequence[Task] = ()
    error: TrollmovesError | None = None
    again_in: float | None = None
    final: bool = False
    after: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of task of one chain: what runs it, and how many of it at once a lane."""

    limit: int
    handler: Handler | None = None  # runs on a worker thread
    starter: Starter | None = None  # only starts it, on the clerk's thread; ``finish`` is called later
    begin_at: float = 0.0  # before this time (monotonic) none is taken
    priority: int = 0  # of its chain; a higher one goes first


def backoff(tries: int, first: float = BACKOFF_FIRST, most: float = BACKOFF_MOST) -> float:
    """Give the seconds to wait after the ``tries``-th failure: doubling up to ``most``, with jitter of a half."""
    return float(min(most, first * 2.0 ** min(tries - 1, 30)) * random.uniform(0.5, 1.0))  # noqa: S311  (no secret)


@dataclass(slots=True, eq=False)
class Lane:
    """One lane of one chain. The clerk's, but that anybody may ``offer``, and that workers use ``ready``."""

    chain: str
    name: str
    kind: Kind | None
    clock: Callable[[], float]  # by which tasks are due
    unread: bool = False  # the journal may hold due tasks that were not offered
    taken: dict[int, Task] = field(default_factory=dict)
    ready: deque[Task] = field(default_factory=deque)
    tokens: int = 0  # workers that are on this lane, or were sent to it
    proven: bool = False  # something ended since there was nothing to do, and the last of it not by an outage
    held: bool = False  # no worker was left for it; the end of another lane's task may change that
    failures: int = 0  # pauses since the last success
    paused_until: float = 0.0  # monotonic
    next_due: float = NEVER  # when the journal is to be asked again, by the clock
    pace: Pace = field(default_factory=Pace)  # of the tasks that end
    moved_at: float = 0.0  # monotonic; when a task ended or a worker came
    taken_to: int = 0  # the highest id that was ever taken
    _probe: int = 0  # the id of the task that was taken after the last pause
    _offered: deque[Task] = field(default_factory=deque)
    _kept: dict[int, Task] = field(default_factory=dict)  # offered, and to be read from the journal in their turn

    @property
    def priority(self) -> int:
        """That of its chain; 0 when that was stopped."""
        kind = self.kind
        return kind.priority if kind else 0

    def offer(self, tasks: Iterable[Task]) -> None:
        """Hand over tasks that were noted just now."""
        self._offered.extend(tasks)

    def wait(self) -> float:
        """Give the seconds after which there may be something to do without a further event."""
        kind = self.kind  # chains come and go on other threads
        if self.ready and kind and self.tokens < kind.limit and not self.held:
            return STILL
        if not self._room():
            return NEVER  # the end of a task is such an event
        return max(self._closed_for(), 0.0 if self.unread or self._offered else self.next_due - self.clock())

    def stands_still(self) -> bool:
        """Tell whether tasks are ready, and none ended lately."""
        return bool(self.ready) and time.monotonic() - self.moved_at > STILL

    def pause(self) -> float:
        """Give the seconds for which the lane is held back after tries that failed."""
        return max(0.0, self.paused_until - time.monotonic())

    def is_idle(self) -> bool:
        """Tell whether nothing is in hand, nothing to come, and nothing to remember."""
        if self.taken or self.tokens:
            return False
        if self.kind is None:
            return True
        if self.failures and time.monotonic() < self.paused_until + BACKOFF_MOST:
            return False
        return not (self._offered or self.unread) and self.next_due == NEVER

    def take(self, journal: Journal) -> list[Task]:
        """Take what is due into hand, as far as there is room."""
        room = self._room()
        if not room or self._closed_for() > 0:
            return []
        now = self.clock()
        if now >= self.next_due:
            self.unread = True
        tasks = self._from_offered(room, now)
        if self.unread and len(tasks) < room:
            tasks = self._from_journal(journal, room, now, tasks)
        for task in tasks:
            task.tries += 1
            self.taken[task.id] = task
            self.taken_to = max(self.taken_to, task.id)
        if tasks and self.failures:
            self._probe = tasks[0].id
        return tasks

    def _closed_for(self) -> float:
        kind = self.kind  # chains come and go on other threads
        return max(self.paused_until, kind.begin_at) - time.monotonic() if kind else NEVER

    def _room(self) -> int:
        kind = self.kind
        if kind is None:
            return 0
        if self.failures:  # one probe, beside what was begun before the pause and still runs
            return 0 if self._probe in self.taken or len(self.taken) >= kind.limit else 1
        if kind.starter:
            return max(0, kind.limit * (MORE_WHEN_FAST if self.pace.is_fast() else 1) - len(self.taken))
        room = kind.limit * PREFETCH - len(self.taken)
        return room if room >= kind.limit * PREFETCH // 4 else 0

    def _from_offered(self, room: int, now: float) -> list[Task]:
        """Take from what was offered, unless the journal must be read anyway: there it stands in order."""
        tasks: list[Task] = []
        while self._offered:
            task = self._offered.popleft()
            if task.due > now:
                self.next_due = min(self.next_due, task.due)
            elif self.unread or len(tasks) >= room or task.id <= self.taken_to:
                self.unread = True  # it may have been read, and even finished, before it was offered
                self._keep(task)
            elif task.id not in self.taken:
                tasks.append(task)
        return tasks

    def _keep(self, task: Task) -> None:
        if task.context is not None and task.id not in self.taken and len(self._kept) < KEPT:
            self._kept[task.id] = task

    def _from_journal(self, journal: Journal, room: int, now: float, offered: list[Task]) -> list[Task]:
        in_hand = self.taken.keys() | {task.id for task in offered}
        read = journal.claim(self.chain, self.name, room - len(offered), now, taken=in_hand)
        for task in read:
            kept = self._kept.pop(task.id, None)
            if kept and kept.body == task.body:
                task.context = kept.context
        if len(offered) + len(read) < room:
            self.unread = False
            self.next_due = journal.next_due(self.chain, self.name, now) or NEVER
            self._kept.clear()  # of what was run before it was offered
        return offered + read

    def postpone(self, due: float) -> None:
        """Remember that a task goes back to the journal, to be due again."""
        self.next_due = min(self.next_due, due)

    def give_back(self) -> None:
        """Drop what was taken but not begun; it is still waiting in the journal."""
        while self.ready:
            try:
                self.taken.pop(self.ready.popleft().id, None)
                self.unread = True
            except IndexError:  # a worker was quicker
                return

    def judge(self, task: Task, error: TrollmovesError | None) -> bool:
        """Pause when tries fail for an outage; one success opens the lane, and only then gives True."""
        if error and error.about_origin:
            return False  # a probe that was never under way tells nothing either
        self.proven = error is None or not error.outage
        if error is None or not error.outage:
            reopened = self.failures > 0
            self.failures = 0
            self.paused_until = 0.0
            return reopened
        if not self.failures or task.id == self._probe:  # others were begun before the pause, and tell nothing new
            self.failures += 1
            self.paused_until = time.monotonic() + backoff(self.failures)
            self.give_back()
        return False


class Turns:
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

    def end(self) -> None:
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
