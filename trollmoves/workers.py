"""Runs the tasks that are due: so many at once a lane, again later when one fails.

One thread, the clerk, talks to the journal: it claims what is due, and writes how runs ended, many in one transaction.
The worker threads only run handlers. A lane (a destination host, a source) may occupy no more than its limit; when
tries on it keep failing for a reason that may pass, the whole lane pauses and then is probed with one task, so that a
dead host costs the others nothing. Claims go lane by lane.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from trollmoves.errors import JournalError, TrollmovesError
from trollmoves.journal import DONE, FAILED, WAITING, Journal, Outcome, Task

log = logging.getLogger(__name__)

BACKOFF_FIRST = 1.0  # s before the second try
BACKOFF_MOST = 300.0  # s, so that a mended host is noticed within minutes
PREFETCH = 16  # claimed ahead of each task that may run, so that commits come in groups
IDLE_LOOK = 60.0  # s; every change wakes the clerk, this is only the longest it sleeps
_NEVER = float("inf")
JOURNAL_PAUSE = 2.0  # s before another try when the journal cannot be written (its disk may be full)


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


Handler = Callable[[Task], Result | None]
Starter = Callable[[Task, Callable[[Result], None]], None]


def backoff(tries: int, first: float = BACKOFF_FIRST, most: float = BACKOFF_MOST) -> float:
    """Give the seconds to wait after the ``tries``-th failure: doubling up to ``most``, with jitter of a half."""
    return float(min(most, first * 2.0 ** min(tries - 1, 30)) * random.uniform(0.5, 1.0))  # noqa: S311  (no secret)


@dataclass(slots=True)
class _Kind:
    """One kind of task of one chain: what runs it, and how many at once a lane."""

    limit: int
    handler: Handler | None = None  # runs on a worker thread
    starter: Starter | None = None  # only starts it, on the clerk's thread; ``finish`` is called later


@dataclass(slots=True)
class _Lane:
    """What is in hand of one lane of one chain; the clerk's, but that workers take from ``ready``."""

    chain: str
    name: str
    kind: _Kind | None
    taken: dict[int, Task] = field(default_factory=dict)
    ready: deque[Task] = field(default_factory=deque)
    tokens: int = 0
    failures: int = 0
    paused_until: float = 0.0
    look_at: float = 0.0
    wanted: bool = True  # something was noted since the last look; under the lock of the lanes

    def room(self) -> int:
        if self.kind is None:
            return 0
        if self.failures:
            return 0 if self.taken else 1
        if self.kind.starter:
            return self.kind.limit - len(self.taken)
        room = self.kind.limit * PREFETCH - len(self.taken)
        return room if room >= self.kind.limit * PREFETCH // 4 else 0

    def give_back(self) -> None:
        """Drop what was claimed but not begun; it is still waiting in the journal."""
        while self.ready:
            try:
                self.taken.pop(self.ready.popleft().id, None)
            except IndexError:  # a worker was quicker
                return


class Workers:
    """The threads of a process that run tasks, and the state of every lane."""

    def __init__(self, journal: Journal, threads: int = 16) -> None:
        self._journal = journal
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._lock = threading.Lock()  # kinds and lanes: chains come and go on other threads
        self._tokens: SimpleQueue[_Lane | None] = SimpleQueue()
        self._finished: deque[tuple[_Lane, Task | None, Result]] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._rung = False
        self._stopping = False
        self._closing = False
        self._threads = [threading.Thread(target=self._work, name=f"worker-{n}", daemon=True) for n in range(threads)]
        self._clerk = threading.Thread(target=self._keep_books, name="clerk", daemon=True)

    def __repr__(self) -> str:
        lanes = self._all_lanes()
        return f"<Workers {len(self._threads)} threads, {sum(len(x.taken) for x in lanes)} tasks in {len(lanes)} lanes>"

    def _all_lanes(self) -> list[_Lane]:
        with self._lock:
            return list(self._lanes.values())

    # -- what runs

    def register(
        self,
        chain: str,
        kind: str,
        *,
        limit: int,
        handler: Handler | None = None,
        starter: Starter | None = None,
    ) -> None:
        """Say what runs a kind of task, and how many of a lane at once.

        ``handler`` runs on a worker thread; ``starter`` on the clerk's, must return at once, and ``finish(result)`` is
        called later, from any thread. An exception that they raise is the failure of the task. A lane holds tasks of
        one kind.
        """
        known = _Kind(limit, handler, starter)
        waiting = [lane for lane, its_kind in self._journal.lanes(chain) if its_kind == kind]
        with self._lock:
            self._kinds[chain, kind] = known
            for name in waiting:
                self._want(chain, name, known)
        self._ring()

    def forget(self, chain: str) -> None:
        """Claim nothing more of a chain; what runs goes on, what waits stays in the journal."""
        with self._lock:
            self._kinds = {key: kind for key, kind in self._kinds.items() if key[0] != chain}
            for lane in self._lanes.values():
                if lane.chain == chain:
                    lane.kind = None

    def in_hand(self, chain: str | None = None) -> int:
        """Count the tasks that are claimed and not finished, of one chain or of all."""
        return sum(len(lane.taken) for lane in self._all_lanes() if chain in (None, lane.chain))

    def paused(self, chain: str, lane: str) -> float:
        """Give the seconds for which a lane is held back after tries that failed, 0 when it is not."""
        with self._lock:
            known = self._lanes.get((chain, lane))
        return max(0.0, known.paused_until - time.time()) if known and known.failures > 1 else 0.0

    def taken(self, chain: str, lane: str) -> set[int]:
        """Give the ids of the tasks of a lane that are in hand."""
        with self._lock:
            known = self._lanes.get((chain, lane))
        return set(known.taken) if known else set()

    def expect(self, tasks: Iterable[Task]) -> None:
        """Say that these tasks were noted, so that they are claimed when due. Any thread."""
        with self._lock:
            for chain, name, kind in {(task.chain, task.lane, task.kind) for task in tasks}:
                known = self._kinds.get((chain, kind))
                if known:
                    self._want(chain, name, known)
        self._ring()

    def _want(self, chain: str, name: str, kind: _Kind) -> None:
        lane = self._lanes.get((chain, name))
        if lane is None:
            self._lanes[chain, name] = _Lane(chain, name, kind)
        else:
            lane.kind = kind
            lane.wanted = True

    # -- start and stop

    def start(self) -> None:
        """Start the threads."""
        self._clerk.start()
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> bool:
        """Claim nothing more, give what runs ``timeout`` seconds, write what it came to; True if all ended in time."""
        deadline = time.monotonic() + timeout
        self._stopping = True
        self._ring()
        while self.in_hand() and time.monotonic() < deadline:
            time.sleep(0.01)
        in_time = not self.in_hand()
        self._closing = True
        for _ in self._threads:
            self._tokens.put(None)
        self._ring()
        for thread in (*self._threads, self._clerk):
            thread.join(max(0.5, deadline - time.monotonic()) if in_time else 0.1)
        return in_time

    # -- the workers' side

    def _work(self) -> None:
        while True:
            lane = self._tokens.get()
            if lane is None:
                return
            while True:
                try:
                    task = lane.ready.popleft()
                except IndexError:
                    break
                self._finished.append((lane, task, self._run(lane, task)))
                self._ring()
                if not self._tokens.empty():  # others wait for a thread: in turn
                    self._tokens.put(lane)
                    lane = None
                    break
            if lane is not None:
                self._finished.append((lane, None, Result()))  # the token goes back
                self._ring()

    @staticmethod
    def _run(lane: _Lane, task: Task) -> Result:
        kind = lane.kind
        if kind is None or kind.handler is None:
            return Result(again_in=0.0)  # its chain was stopped meanwhile
        try:
            return kind.handler(task) or Result()
        except TrollmovesError as error:
            return Result(error=error)
        except Exception as error:  # one task's trouble is not the house's
            log.exception("[%s] %s %s: unexpected error", task.chain, task.kind, task.key)
            return Result(error=_Unexpected(str(error) or type(error).__name__))

    # -- the clerk's side

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            self._bell.put(None)

    def _keep_books(self) -> None:
        while not (self._closing and not self._finished):
            with suppress(Empty):
                self._bell.get(timeout=max(0.0, self._time_to_sleep()))
            self._rung = False
            try:
                self._settle()
                self._hand_out()
            except JournalError as error:
                log.error("%s; trying again in %.0f s", error, JOURNAL_PAUSE)
                time.sleep(JOURNAL_PAUSE)
                self._ring()
            except Exception:
                log.exception("unexpected error while keeping the journal")
                time.sleep(JOURNAL_PAUSE)
                self._ring()

    def _time_to_sleep(self) -> float:
        now = time.time()
        return min([IDLE_LOOK, *(lane.look_at - now for lane in self._all_lanes())])

    def _settle(self) -> None:
        """Write how runs ended; only then tell whoever waits for it."""
        ended = [self._finished[n] for n in range(len(self._finished))]
        outcomes = [_outcome(task, result) for _, task, result in ended if task is not None]
        new = self._journal.finish(outcomes) if outcomes else []
        for lane, task, result in ended:
            self._finished.popleft()
            lane.look_at = 0.0
            if task is None:
                lane.tokens -= 1
                continue
            lane.taken.pop(task.id, None)
            self._judge(lane, result)
            self._tell(task, result)
        if new:
            self.expect(new)

    @staticmethod
    def _tell(task: Task, result: Result) -> None:
        if result.after:
            try:
                result.after()
            except Exception:
                log.exception("[%s] %s %s: unexpected error after the end", task.chain, task.kind, task.key)

    @staticmethod
    def _judge(lane: _Lane, result: Result) -> None:
        """Pause a lane in which tries fail for a reason that may pass; one success opens it."""
        if result.error is None or not result.error.temporary:
            if lane.failures:
                log.info("[%s] %s: works again", lane.chain, lane.name)
            lane.failures = 0
            lane.paused_until = 0.0
            return
        lane.failures += 1
        lane.paused_until = time.time() + backoff(lane.failures)
        lane.give_back()

    def _hand_out(self) -> None:
        now = time.time()
        for lane in self._all_lanes():
            if self._stopping or lane.kind is None:
                lane.give_back()
                lane.look_at = now + IDLE_LOOK
            elif lane.paused_until > now:
                lane.look_at = lane.paused_until
            elif lane.wanted or lane.look_at <= now:
                self._claim(lane, lane.kind)
                if lane.look_at == _NEVER and not lane.taken and not lane.tokens:
                    self._drop(lane)

    def _drop(self, lane: _Lane) -> None:
        with self._lock:
            if not lane.wanted:
                del self._lanes[lane.chain, lane.name]

    def _claim(self, lane: _Lane, kind: _Kind) -> None:
        with self._lock:
            lane.wanted = False
        room = lane.room()
        if not room:
            lane.look_at = time.time() + IDLE_LOOK  # the next end of a task brings us back
            return
        now = time.time()
        tasks = self._journal.claim(lane.chain, lane.name, room, now, taken=lane.taken)
        for task in tasks:
            task.tries += 1
            lane.taken[task.id] = task
        if kind.starter:
            for task in tasks:
                self._begin(lane, kind.starter, task)
        else:
            lane.ready.extend(tasks)
            while lane.tokens < min(kind.limit, len(lane.ready)):
                lane.tokens += 1
                self._tokens.put(lane)
        if lane.taken:
            lane.look_at = time.time() + IDLE_LOOK
        if len(tasks) < room:
            lane.look_at = self._journal.next_due(lane.chain, lane.name, now) or _NEVER

    def _begin(self, lane: _Lane, starter: Starter, task: Task) -> None:
        def finish(result: Result) -> None:
            self._finished.append((lane, task, result))
            self._ring()

        try:
            starter(task, finish)
        except TrollmovesError as error:
            finish(Result(error=error))
        except Exception as error:  # one task's trouble is not the house's
            log.exception("[%s] %s %s: unexpected error", task.chain, task.kind, task.key)
            finish(Result(error=_Unexpected(str(error) or type(error).__name__)))


class _Unexpected(TrollmovesError):
    """A handler raised what it should not have; the task is tried again, as any other that may succeed later."""

    temporary = True


def _outcome(task: Task, result: Result) -> Outcome:
    if result.error is None and result.again_in is None:
        return Outcome(task, DONE, result.reply, then=result.then)
    if result.error and (result.final or not result.error.temporary):
        return Outcome(task, FAILED, result.reply, then=result.then)
    wait = result.again_in if result.again_in is not None else backoff(task.tries)
    return Outcome(task, WAITING, result.reply, due=time.time() + wait, then=result.then)
