"""Runs due tasks on worker threads, limits concurrency per lane, and retries failures.

The scheduler thread is the only one that claims due tasks and stores results, many in one transaction. The worker
threads only run handlers. A lane (a destination host, a source) uses no more workers than its limit. After an outage
the whole lane pauses, then one task probes it. Failing hosts cannot use up the workers: some are reserved for lanes
with a recent success.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from trollmoves.errors import JournalError, TrollmovesError
from trollmoves.journal import BACKLOG, DONE, FAILED, WAITING, Journal, Outcome, Task
from trollmoves.scheduler.circuit_breaker import backoff
from trollmoves.scheduler.lanes import Lane, LaneQueue, Result, TaskKind
from trollmoves.utils import failpoints
from trollmoves.utils.logs import LogThrottle
from trollmoves.utils.rate import RateMeter

logger = logging.getLogger(__name__)

MAX_IDLE_SLEEP = 60.0  # s; every change wakes the scheduler thread earlier
JOURNAL_RETRY_DELAY = 2.0  # s before another try when the journal cannot be written (its disk may be full)
RESERVE_FROM = 8  # workers, of which one can be spared for lanes that are at work
TIME_SLICE = 0.02  # s that a worker stays with a lane while others wait for one


class Scheduler:
    """The threads of a process that run tasks, and the state of every lane."""

    def __init__(self, journal: Journal, threads: int = 16) -> None:
        self._journal = journal
        self._kinds: dict[tuple[str, str], TaskKind] = {}
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._lock = threading.Lock()  # kinds and lanes: chains come and go on other threads
        self._taken_to = 0  # the highest id that lanes of the past had taken
        self._tokens = LaneQueue()
        self._unproven = 0  # tokens of lanes that may hang, counted in the last round
        self._priorities: dict[str, int] = {}  # by chain
        self._finished: deque[tuple[Lane, Task | None, Result]] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._rung = False
        self._stopping = False
        self._gave_back = threading.Event()  # since it stops the scheduler thread has looked at every lane
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._worker_loop, name=f"worker-{n}", daemon=True) for n in range(threads)
        ]
        self._scheduler_thread = threading.Thread(target=self._scheduler_loop, name="scheduler", daemon=True)

    def __repr__(self) -> str:
        lanes = self._all_lanes()
        count = sum(len(lane.in_flight) for lane in lanes)
        return f"<Scheduler {len(self._threads)} threads, {count} tasks in {len(lanes)} lanes>"

    def _all_lanes(self) -> list[Lane]:
        with self._lock:
            return list(self._lanes.values())

    # -- what runs

    def resume_lane(self, chain: str, lane: str) -> None:
        """End the pause of a lane, if it has one: there is a sign that it works again. Any thread."""
        with self._lock:
            known = self._lanes.get((chain, lane))
        if known and known.breaker.resume():
            self._wake()

    def set_priority(self, chain: str, priority: int) -> None:
        """Have the tasks of a chain go before those of a lower priority (0 is usual); counts for what registers later.

        What waits for a worker goes in this order. What runs is not interrupted.
        """
        self._priorities[chain] = priority

    def register(
        self,
        chain: str,
        kind: str,
        *,
        limit: int,
        handler: Callable[[Task], Result | None] | None = None,
        starter: Callable[[Task, Callable[[Result], None]], None] | None = None,
        begin_in: float = 0.0,
    ) -> None:
        """Say what runs a kind of task, and how many of a lane at once, in ``begin_in`` seconds at the earliest.

        Of those with a ``starter`` more may be under way as long as they end quickly.

        ``handler`` runs on a worker thread; ``starter`` runs on the scheduler thread and must not block; ``finish`` is
        called later, from any thread. An exception that they raise is the failure of the task. A lane holds tasks of
        one kind.
        """
        if handler:
            limit = min(limit, max(1, len(self._threads) - 1))  # a thread is left for other lanes
        known = TaskKind(limit, handler, starter, time.monotonic() + begin_in, self._priorities.get(chain, 0))
        with self._lock:
            self._kinds[chain, kind] = known  # before the look: what is noted after it is offered
        waiting = {lane for lane, its_kind in self._journal.lanes(chain) if its_kind == kind}
        with self._lock:
            for lane in self._lanes.values():
                if lane.chain == chain and lane.name in waiting:
                    lane.kind = known
            for name in waiting:
                self._lane(chain, name, known).journal_pending = True
        self._wake()

    def unregister(self, chain: str) -> None:
        """Claim nothing more of a chain; what runs goes on, what waits stays in the journal."""
        with self._lock:
            self._kinds = {key: kind for key, kind in self._kinds.items() if key[0] != chain}
            for lane in self._lanes.values():
                if lane.chain == chain:
                    lane.kind = None

    def in_flight(self, chain: str | None = None) -> int:
        """Count the tasks that are claimed and not finished, of one chain or of all."""
        return sum(len(lane.in_flight) for lane in self._all_lanes() if chain in (None, lane.chain))

    def pause_remaining(self, chain: str, lane: str) -> float:
        """Give the seconds for which a lane is held back after tries that failed, 0 when it is not."""
        with self._lock:
            known = self._lanes.get((chain, lane))
        return known.breaker.pause_remaining() if known and known.breaker.failures > 1 else 0.0

    def in_flight_ids(self, chain: str, lane: str) -> set[int]:
        """Give the ids of the tasks of a lane that are in hand."""
        with self._lock:
            known = self._lanes.get((chain, lane))
        return set(known.in_flight) if known else set()

    def submit(self, tasks: Sequence[Task]) -> None:
        """Hand over tasks that were noted as new just now, so that they run when due. Any thread."""
        with self._lock:
            for task in tasks:
                kind = self._kinds.get((task.chain, task.kind))
                if kind:
                    self._lane(task.chain, task.lane, kind).submit((task,))
        self._wake()

    def _lane(self, chain: str, name: str, kind: TaskKind) -> Lane:
        lane = self._lanes.get((chain, name))
        if lane is None:
            lane = self._lanes[chain, name] = Lane(
                chain, name, kind, self._journal.now, highest_claimed_id=self._taken_to
            )
        lane.kind = kind
        return lane

    # -- start and stop

    def start(self) -> None:
        """Start the threads."""
        self._scheduler_thread.start()
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> bool:
        """Claim nothing more, give what runs ``timeout`` seconds, write what it came to; True if all ended in time."""
        deadline = time.monotonic() + timeout
        self._stopping = True
        self._wake()
        while self._is_busy() and time.monotonic() < deadline:
            time.sleep(0.01)
        in_time = not self._is_busy()
        self._closing.set()
        for _ in self._threads:
            self._tokens.stop_one()
        self._wake()
        end = max(deadline if in_time else 0.0, time.monotonic() + 0.5)
        for thread in (*self._threads, self._scheduler_thread):
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))
        return in_time

    def _is_busy(self) -> bool:
        return self._scheduler_thread.is_alive() and not (self._gave_back.is_set() and not self.in_flight())

    # -- worker threads

    def _worker_loop(self) -> None:
        while True:
            lane = self._tokens.get()
            if lane is None:
                return
            turn_ends = time.monotonic() + TIME_SLICE
            while True:
                try:
                    task = lane.ready.popleft()
                except IndexError:
                    break
                result = self._run(lane, task)
                lane.last_progress = time.monotonic()
                self._finished.append((lane, task, result))
                self._wake()
                if result.error and result.error.outage:
                    break  # the scheduler thread decides how the lane continues
                if lane.last_progress > turn_ends and not self._tokens.empty():  # others wait for a thread
                    self._tokens.put(lane)
                    lane = None
                    break
            if lane is not None:
                self._finished.append((lane, None, Result()))  # the token goes back
                self._wake()

    @staticmethod
    def _run(lane: Lane, task: Task) -> Result:
        kind = lane.kind
        if kind is None or kind.handler is None:
            task.tries -= 1  # its chain was stopped meanwhile
            return Result(retry_in=0.0)
        try:
            return kind.handler(task) or Result()
        except TrollmovesError as error:
            _log_failure(task, error)
            return Result(error=error)
        except Exception as error:  # an error in one task must not stop the scheduler
            logger.exception("[%s] %s %s: unexpected error", task.chain, task.kind, task.key)
            return Result(error=UnexpectedError(str(error) or type(error).__name__))

    # -- scheduler thread

    def _wake(self) -> None:
        if not self._rung:
            self._rung = True
            self._bell.put(None)

    def _scheduler_loop(self) -> None:
        seldom = LogThrottle(burst=1)
        pace = RateMeter()
        while self._finished or not self._closing.is_set():
            with suppress(Empty):
                self._bell.get(timeout=self._sleep_seconds())
            self._rung = False
            try:
                stopping = self._stopping
                ended = self._commit_results()
                self._dispatch_due()
                if stopping:
                    self._gave_back.set()
                pace.throttle(ended)
            except JournalError as error:
                if self._closing.is_set():
                    logger.error("%s; unsaved results will be repeated after the restart", error)
                    return
                if (more := seldom.admit(str(error))) is not None:
                    logger.error("%s; trying again every %.0f s%s", error, JOURNAL_RETRY_DELAY, more)
                self._closing.wait(JOURNAL_RETRY_DELAY)
                self._wake()
            except Exception:
                logger.exception("unexpected error while keeping the journal")
                self._closing.wait(JOURNAL_RETRY_DELAY)
                self._wake()

    def _sleep_seconds(self) -> float:
        return max(0.0, min([MAX_IDLE_SLEEP, *(lane.seconds_until_ready() for lane in self._all_lanes())]))

    def _commit_results(self) -> int:
        """Write how runs ended, then tell whoever waits for it; give how many."""
        ended = [self._finished[n] for n in range(len(self._finished))]
        now = self._journal.now()
        outcomes = [(lane, _to_outcome(task, result, now)) for lane, task, result in ended if task is not None]
        new = self._journal.finish([outcome for _, outcome in outcomes]) if outcomes else []
        if outcomes:
            failpoints.hit("committed")
        for lane, outcome in outcomes:
            if outcome.state == WAITING:
                lane.note_due(outcome.due)
        for lane, task, result in ended:
            self._finished.popleft()
            if task is None:
                lane.workers -= 1
                continue
            lane.in_flight.pop(task.id, None)
            lane.rate.record(1)
            if (result.error or result.retry_in is None) and lane.record_result(task, result.error):
                logger.info("[%s] %s: works again", lane.chain, lane.name)
            self._run_callback(task, result)
        if new:
            self.submit(new)
        return len(outcomes)

    @staticmethod
    def _run_callback(task: Task, result: Result) -> None:
        if result.on_committed:
            try:
                result.on_committed()
            except Exception:
                logger.exception("[%s] %s %s: unexpected error after the end", task.chain, task.kind, task.key)

    def _dispatch_due(self) -> None:
        lanes = self._all_lanes()
        self._unproven = sum(lane.workers for lane in lanes if not lane.breaker.healthy)
        if any(self._priorities.values()):
            lanes.sort(key=lambda lane: lane.priority, reverse=True)
        for lane in lanes:
            kind = lane.kind
            if self._stopping or kind is None:
                lane.release_unstarted()
            elif kind.async_handler:
                for task in lane.claim(self._journal):
                    self._start_async(lane, kind.async_handler, task)
            else:
                lane.ready.extend(lane.claim(self._journal))
                self._assign_worker(lane, kind)
            if lane.is_idle():
                self._drop_idle_lane(lane)

    def _assign_worker(self, lane: Lane, kind: TaskKind) -> None:
        """See that enough workers are on a lane: one, and one more each time that it stands still, up to its limit.

        Tasks that end at once run fastest on one thread; more of them would only pass Python to and fro.
        """
        lane.starved = False
        if lane.workers < min(kind.limit, len(lane.in_flight)) and (not lane.workers or lane.is_stalled()):
            if not lane.breaker.healthy:
                lane.starved = self._unproven >= self._probing_limit(lane)
                if lane.starved:
                    return
                self._unproven += 1
            lane.workers += 1
            lane.last_progress = time.monotonic()
            self._tokens.put(lane)

    def _probing_limit(self, lane: Lane) -> int:
        """Give how many workers may be on lanes where nothing ended yet, when one of these wants one more.

        So many dead hosts do not take them all: the last quarter is for the first worker of lanes that are not known
        to be down, and the very last for lanes that are at work. Of few workers none can be spared for those.
        """
        threads = len(self._threads)
        if not lane.workers and not lane.breaker.failures:
            return threads - 1 if threads >= RESERVE_FROM else sys.maxsize
        return threads - max(1, threads // 4)

    def _drop_idle_lane(self, lane: Lane) -> None:
        with self._lock:
            if lane.is_idle():
                self._lanes.pop((lane.chain, lane.name), None)
                self._taken_to = max(self._taken_to, lane.highest_claimed_id)

    def _start_async(self, lane: Lane, starter: Callable[[Task, Callable[[Result], None]], None], task: Task) -> None:
        def finish(result: Result) -> None:
            with suppress(IndexError):
                self._finished.append((lane, unfinished.pop(), result))
                self._wake()

        unfinished = [task]  # only the first end counts
        try:
            starter(task, finish)
        except TrollmovesError as error:
            _log_failure(task, error)
            finish(Result(error=error))
        except Exception as error:  # an error in one task must not stop the scheduler
            logger.exception("[%s] %s %s: unexpected error", task.chain, task.kind, task.key)
            finish(Result(error=UnexpectedError(str(error) or type(error).__name__)))


def _log_failure(task: Task, error: TrollmovesError) -> None:
    level, end = (logging.WARNING, "is tried again") if error.temporary else (logging.ERROR, "is not tried again")
    name = task.key.partition("\n")[0]
    logger.log(level, "[%s] %s of %s %s (try %d): %s", task.chain, task.kind, name, end, task.tries, error)


class UnexpectedError(TrollmovesError):
    """A handler raised what it should not have; the task is tried again, as any other that may succeed later."""

    temporary = True


def _to_outcome(task: Task, result: Result, now: float) -> Outcome:
    if result.error is None and result.retry_in is None:
        return Outcome(task, DONE, result.reply, follow_ups=result.follow_ups)
    if result.error and (result.final or not result.error.temporary):
        return Outcome(task, FAILED, result.reply, follow_ups=result.follow_ups)
    wait = result.retry_in if result.retry_in is not None else backoff(task.tries)
    if wait:
        task.rank = BACKLOG  # what is new does not wait behind what was tried in vain
    return Outcome(task, WAITING, result.reply, due=now + wait, follow_ups=result.follow_ups)
