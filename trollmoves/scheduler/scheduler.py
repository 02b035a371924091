"""Runs due tasks on worker threads, limits concurrency per lane, and retries failures.

The scheduler thread is the only one that claims due tasks and stores results, many in one transaction. The worker
threads only run handlers. A lane (a destination host, a source) uses no more workers than its limit. After an outage
the whole lane pauses, then one task probes it. Neither failing hosts nor one sender can use up the workers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from trollmoves.errors import JournalError, TrollmovesError
from trollmoves.journal import WAITING, Journal, Outcome, Task, batches
from trollmoves.scheduler.circuit_breaker import Transition
from trollmoves.scheduler.failure_log import FailureLog
from trollmoves.scheduler.lanes import (
    NEVER,
    AsyncHandler,
    ChainPolicy,
    Handler,
    Lane,
    LowerLimits,
    Result,
    Scope,
    TaskKind,
)
from trollmoves.scheduler.outcomes import to_outcome
from trollmoves.scheduler.pauses import Pauses
from trollmoves.scheduler.shared_lanes import SharedLanes
from trollmoves.scheduler.worker_limits import WorkerLimits
from trollmoves.scheduler.worker_threads import WorkerThreads
from trollmoves.utils.logs import LogThrottle
from trollmoves.utils.rate import collect
from trollmoves.utils.texts import counted
from trollmoves.utils.watched_threads import WatchedThread

logger = logging.getLogger(__name__)

MAX_IDLE_SLEEP = 60.0  # s; every change wakes the scheduler thread earlier
JOURNAL_RETRY_DELAY = 2.0  # s before the next attempt after a journal error, such as a full disk
MAX_REVOKED = 100_000  # dropped tasks that are remembered because they may be submitted later
MAX_PROVEN = 1000  # idle lanes that are remembered as healthy


class LaneState(NamedTuple):
    """The state of a lane. ``failing``: no task has succeeded since the last outage."""

    chain: str
    name: str
    in_flight: int
    paused: float  # s until the next probe; 0 without a pause
    failing: bool
    held: bool  # an operator must repair the cause


class Scheduler:
    """The threads that run the tasks of a process, and the state of each lane."""

    def __init__(
        self, journal: Journal, threads: int = 16, observe: Callable[[Task, Result], None] | None = None
    ) -> None:
        """``threads`` is the maximum number of workers; each is started when a lane first needs it.

        ``observe`` is called on the scheduler thread with each stored result; it must not block.
        """
        self._journal = journal
        self._observe = observe
        self._kinds: dict[tuple[str, str], TaskKind] = {}
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._lock = threading.Lock()  # guards kinds and lanes; other threads start and stop chains
        self._claiming = threading.Lock()  # held while tasks are claimed, and while tasks are dropped
        # ``created`` of dropped tasks by id, the newest last; a restart changes it
        self._revoked: dict[int, float] = {}
        self._highest_claimed_id = 0  # of all dropped lanes
        self._proven: dict[tuple[str, str], None] = {}  # healthy lanes that were dropped because they were idle
        self.failures = FailureLog(journal)
        self._workers = WorkerThreads(threads, self._on_finished, self.failures)
        self._policies: dict[str, ChainPolicy] = {}  # by chain
        self.pauses = Pauses()  # those in effect; replaced by ``set_pauses``
        self._finished: deque[tuple[Lane, Task | None, Result]] = deque()
        # The host of a lane works, although no task has ended yet; or another member of the fleet found its state.
        self._news: SimpleQueue[tuple[Lane, bool]] = SimpleQueue()
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._woken = False
        self._stopping = False
        self._released = threading.Event()  # set after the stop, once unstarted tasks are released
        self._closing = threading.Event()
        self._scheduler_thread = WatchedThread(target=self._scheduler_loop, name="scheduler", daemon=True)
        self._lane_parts: dict[tuple[str, str], int] = {}  # of shared lanes, also of dropped ones
        self.on_member_killed: Callable[[], None] = lambda: None
        """Called when the last messages of a killed member are to be repeated, on a separate thread."""
        self.shared = SharedLanes(journal, journal.sharing, self) if journal.sharing else None

    def __repr__(self) -> str:
        lanes = len(self._all_lanes())
        return f"<Scheduler {len(self._workers.threads)} workers, {self.in_flight()} tasks in {lanes} lanes>"

    def _all_lanes(self) -> list[Lane]:
        with self._lock:
            return list(self._lanes.values())

    def _lanes_of(self, chain: str, name: str | None) -> list[Lane]:
        return [lane for lane in self._all_lanes() if lane.chain == chain and name in (None, lane.name)]

    def summary(self) -> str:
        """Return the tasks in flight, and the lanes without success, in words. Any thread."""
        lanes = self._all_lanes()
        held = sum(lane.breaker.held for lane in lanes)
        failing = sum(lane.breaker.failures > 0 and not lane.breaker.held for lane in lanes)
        parts = [f"{counted(self.in_flight(), 'task')} in flight"]
        parts += [f"{counted(failing, 'lane')} backing off"] if failing else []
        parts += [f"{counted(held, 'lane')} held"] if held else []
        return ", ".join(parts)

    # -- tasks and lanes

    def resume_lane(self, chain: str, lane: str) -> None:
        """End the pause of a lane, because there is a sign that it has recovered. Any thread."""
        known = self.lane(chain, lane)
        if known and known.breaker.resume():
            self.wake()

    def close_breaker(self, chain: str, lane: str) -> None:
        """End the probing of a lane whose host works, although the probe has not ended. Any thread."""
        known = self.lane(chain, lane)
        if known and known.breaker.failures:
            self._news.put((known, True))
            self.wake()

    def retry_now(self, chain: str, lane: str | None = None) -> None:
        """Retry the failed tasks of a chain, or of one of its lanes, because the cause may be repaired. Any thread."""
        self._journal.release(chain, lane)
        self.look_again(chain, lane)

    def look_again(self, chain: str, lane: str | None = None) -> None:
        """Read the due tasks of a chain, or of one of its lanes, from the journal; end its pause by outages."""
        for known in self._lanes_of(chain, lane):
            known.journal_pending = True
            known.breaker.resume()
        self.wake()

    def set_pauses(self, pauses: Pauses) -> None:
        """Pause the lanes that ``pauses`` covers, also future ones, and resume all others. Any thread.

        Running transfers continue. New tasks of a paused lane wait in the journal.
        """
        with self._lock:
            self.pauses = pauses
            for lane in self._lanes.values():
                lane.paused = pauses.covers(lane.chain, lane.name)
                lane.journal_pending = True
        self.wake()

    def drop(self, tasks: Sequence[Task]) -> tuple[list[Task], list[Task]]:
        """Drop tasks in the journal, in batches; return those that were dropped, and those in flight. Any thread.

        A task in flight is not dropped, and a dropped one does not start. Other tasks have finished or were restarted.
        """
        dropped: list[Task] = []
        in_flight: list[Task] = []
        for batch in batches(tasks):
            with self._claiming:
                running = {key: self.in_flight_ids(*key) for key in {(task.chain, task.lane) for task in batch}}
                in_flight += [task for task in batch if task.id in running[task.chain, task.lane]]
                new = self._journal.drop([t for t in batch if t.id not in running[t.chain, t.lane]])
                for task in new:
                    self._revoked[task.id] = task.created
                while len(self._revoked) > MAX_REVOKED:
                    del self._revoked[next(iter(self._revoked))]
            dropped += new
        return dropped, in_flight

    def set_policy(self, chain: str, policy: ChainPolicy) -> None:
        """Set the policy of a chain for the kinds that are registered afterwards.

        Waiting tasks of a higher priority start first. Running tasks are not interrupted.
        """
        self._policies[chain] = policy

    def register(
        self,
        chain: str,
        kind: str,
        *,
        limit: int,
        handler: Handler | None = None,
        async_handler: AsyncHandler | None = None,
        after_start: Callable[[], None] | None = None,
        delay: float = 0.0,
        by_owner: bool = False,
        scope: Scope = "member",
        lower_limits: LowerLimits | None = None,
    ) -> None:
        """Register the handler of a kind of task. A lane contains tasks of one kind.

        Args:
            chain: the name of the chain.
            kind: the kind of task.
            limit: the number of tasks of a lane that may run concurrently. Asynchronous tasks may exceed it while they
                finish quickly.
            handler: runs a task on a worker thread. An exception is the failure of the task.
            async_handler: starts a task on the scheduler thread and must not block. Its second argument is to be called
                once with the result, from any thread. An exception is the failure of the task.
            after_start: called after ``async_handler`` was called for each due task of a lane; must not raise or block.
            delay: seconds before the first task may start.
            by_owner: share the workers between the owners of the tasks.
            scope: which members of a fleet run the tasks, see ``TaskKind``.
            lower_limits: limits of single lanes for the whole fleet.
        """
        if handler:
            limit = min(limit, max(1, self._workers.maximum - 1))  # one thread remains for other lanes
        registered = TaskKind(
            limit,
            handler,
            async_handler,
            after_start,
            time.monotonic() + delay,
            by_owner,
            self._policies.get(chain, ChainPolicy()),
            scope,
            lower_limits,
        )
        if scope == "host":
            self._journal.keep_on_host(chain, kind)
        with self._lock:
            self._kinds[chain, kind] = registered  # before reading the lanes: later tasks are submitted
        waiting = {lane for lane, lane_kind in self._journal.lanes(chain) if lane_kind == kind}
        with self._lock:
            for lane in self._lanes.values():
                if lane.chain == chain and lane.name in waiting:
                    lane.kind = registered
                    lane.breaker.probe_interval = registered.policy.probe_interval
            for name in waiting:
                lane = self._get_lane(chain, name, registered)
                lane.journal_pending = True
                lane.owners.add("")
        self.wake()

    def unregister(self, chain: str) -> None:
        """Stop claiming tasks of a chain. Running tasks continue; waiting tasks stay in the journal."""
        with self._lock:
            self._kinds = {key: kind for key, kind in self._kinds.items() if key[0] != chain}
            for lane in self._lanes.values():
                if lane.chain == chain:
                    lane.kind = None

    def in_flight(self) -> int:
        """Return the number of tasks in flight."""
        return sum(len(lane.in_flight) for lane in self._all_lanes())

    def lane_states(self) -> list[LaneState]:
        """Return the state of each lane that has tasks or failures. Any thread."""
        return [
            LaneState(
                lane.chain,
                lane.name,
                len(lane.in_flight),
                lane.breaker.pause_remaining() if lane.breaker.failures else 0.0,
                lane.breaker.failures > 0,
                lane.breaker.held,
            )
            for lane in self._all_lanes()
        ]

    def pause_remaining(self, chain: str, lane: str) -> float:
        """Return the seconds until a lane is retried after repeated outages, 0 if it is not paused."""
        known = self.lane(chain, lane)
        if known and (known.breaker.failures > 1 or known.breaker.held):
            return known.breaker.pause_remaining()
        return 0.0

    def is_held(self, chain: str, lane: str) -> bool:
        """Return True if an operator must repair the cause of the pause of a lane."""
        known = self.lane(chain, lane)
        return known is not None and known.breaker.held

    def in_flight_ids(self, chain: str, lane: str | None = None) -> set[int]:
        """Return the ids of the tasks in flight of a lane, or of all lanes of a chain.

        A task is in flight until its result is stored.
        """
        return {id_ for known in self._lanes_of(chain, lane) for id_ in tuple(known.in_flight)}

    def submit(self, tasks: Sequence[Task]) -> None:
        """Hand over tasks that were just stored in the journal, so that they run when due. Any thread."""
        with self._lock:
            for task in tasks:
                kind = self._kinds.get((task.chain, task.kind))
                if kind:
                    self._get_lane(task.chain, task.lane, kind).submit((task,))
        self.wake()

    def _get_lane(self, chain: str, name: str, kind: TaskKind) -> Lane:
        lane = self._lanes.get((chain, name))
        if lane is None:
            lane = self._lanes[chain, name] = Lane(
                chain,
                name,
                kind,
                self._journal.now,
                self._revoked,
                highest_claimed_id=self._highest_claimed_id,
                paused=self.pauses.covers(chain, name),
            )
            lane.proven = (chain, name) in self._proven
            self._proven.pop((chain, name), None)
            if self.shared and kind.has_shared_lanes:
                lane.share = self._lane_parts.get((chain, name), 0)
                if not lane.share:
                    self.shared.look_soon()
        lane.kind = kind
        lane.breaker.probe_interval = kind.policy.probe_interval
        return lane

    # -- lanes that members of a fleet share

    def chains(self) -> set[str]:
        """Return the names of the chains that have registered handlers. Any thread."""
        return {chain for chain, _ in self._kinds}

    def kind_of(self, chain: str, kind: str) -> TaskKind | None:
        """Return the handler that a chain has registered for a kind of task, None if there is none. Any thread."""
        return self._kinds.get((chain, kind))

    def lane(self, chain: str, name: str) -> Lane | None:
        """Return a lane that has tasks. Any thread."""
        with self._lock:
            return self._lanes.get((chain, name))

    def shared_lanes(self) -> list[Lane]:
        """Return the lanes with tasks that members share. Any thread."""
        return [lane for lane in self._all_lanes() if lane.share is not None]

    def look_at(self, chain: str, name: str, kind: str) -> None:
        """Read the due tasks of a lane, which may be new, from the journal. Any thread."""
        with self._lock:
            registered = self._kinds.get((chain, kind))
            if registered is None:
                return
            self._get_lane(chain, name, registered).journal_pending = True
        self.wake()

    def set_share(self, chain: str, name: str, share: int) -> None:
        """Set the part of the limit of a shared lane that this member may use. Any thread."""
        with self._lock:
            if share:
                self._lane_parts[chain, name] = share
            else:
                self._lane_parts.pop((chain, name), None)
            lane = self._lanes.get((chain, name))
            if lane:
                lane.share = share

    def adopt_outage(self, lane: Lane) -> None:
        """Take over the state of a lane that results of another member have caused. Any thread."""
        self._news.put((lane, False))
        self.wake()

    # -- start and stop

    def start(self) -> None:
        """Start the scheduler thread."""
        self._scheduler_thread.start()
        if self.shared:
            self.shared.start()

    def stop(self, timeout: float) -> bool:
        """Stop the threads; return True if all running tasks finished within ``timeout`` seconds.

        No further task is claimed. The results of finished tasks are stored.
        """
        deadline = time.monotonic() + timeout
        if self.shared:
            self.shared.stop()
        self._stopping = True
        self.wake()
        while self._is_busy() and time.monotonic() < deadline:
            time.sleep(0.01)
        in_time = not self._is_busy()
        self._closing.set()
        self._workers.stop()
        self.wake()
        end = max(deadline if in_time else 0.0, time.monotonic() + 0.5)
        for thread in (*self._workers.threads, self._scheduler_thread):
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))
        return in_time

    def _is_busy(self) -> bool:
        return self._scheduler_thread.is_alive() and not (self._released.is_set() and not self.in_flight())

    # -- scheduler thread

    def wake(self) -> None:
        """Look at all lanes now. Any thread."""
        if not self._woken:
            self._woken = True
            self._wakeups.put(None)

    def _on_finished(self, lane: Lane, task: Task | None, result: Result) -> None:
        """Add the result of a run, or the end of an assignment of a worker if ``task`` is None. Any thread."""
        self._finished.append((lane, task, result))
        self.wake()

    def _scheduler_loop(self) -> None:
        throttle = LogThrottle(burst=1)
        while self._finished or not self._closing.is_set():
            timeout = self._sleep_seconds()
            self._scheduler_thread.end_round()
            with suppress(Empty):
                self._wakeups.get(timeout=timeout)
            self._scheduler_thread.begin_round()
            self._woken = False
            try:
                stopping = self._stopping
                results = self._commit_results()
                self._dispatch_due()
                if stopping:
                    self._released.set()
                collect(results)
            except JournalError as error:
                if self._closing.is_set():
                    logger.error("%s; unsaved results will be repeated after the restart", error)
                    return
                if (more := throttle.admit(str(error))) is not None:
                    logger.error("%s; trying again every %.0f s%s", error, JOURNAL_RETRY_DELAY, more)
                self._closing.wait(JOURNAL_RETRY_DELAY)
                self.wake()
            except Exception:
                logger.exception(
                    "unexpected error in the scheduler thread, trying again in %.0f s", JOURNAL_RETRY_DELAY
                )
                self._closing.wait(JOURNAL_RETRY_DELAY)
                self.wake()

    def _sleep_seconds(self) -> float:
        alive = self._journal.mark_alive()
        return max(0.0, min([MAX_IDLE_SLEEP, alive, *(lane.seconds_until_ready() for lane in self._all_lanes())]))

    def _commit_results(self) -> int:
        """Store the results of finished tasks, then run their callbacks; return the number of results."""
        results = [self._finished[n] for n in range(len(self._finished))]
        now = self._journal.now()
        outcomes = [(lane, to_outcome(lane, task, result, now)) for lane, task, result in results if task is not None]
        new, lost = self._store(outcomes)
        recovered = self._close_breakers()  # True if a task was done, or the host works
        for lane, task, result in results:
            self._finished.popleft()
            if task is None:
                lane.workers -= 1
                continue
            lane.in_flight.pop(task.id, None)
            lane.rate.record(1)
            if (result.error or result.retry_in is None) and lane.record_result(task, result.error):
                recovered[lane] = recovered.get(lane, False) or result.error is None
            if task.id not in lost:
                self._run_callbacks(task, result)
        if new:
            self.submit(new)
        for lane, worked in recovered.items():
            self._retry_recovered(lane, worked)
        return len(outcomes)

    def _close_breakers(self) -> dict[Lane, bool]:
        news = [self._news.get() for _ in range(self._news.qsize())]
        return {lane: True for lane, works in news if self._update(lane, works) is Transition.CLOSED}

    def _update(self, lane: Lane, works: bool) -> Transition:
        if works:
            return lane.breaker.close()
        failures, paused_until, held = lane.outage or (0, 0.0, False)
        if failures:
            lane.release_unstarted()
        return lane.breaker.adopt(failures, max(0.0, paused_until - self._journal.now()), held=held)

    def _store(self, outcomes: Sequence[tuple[Lane, Outcome]]) -> tuple[list[Task], set[int]]:
        """Store outcomes; return the new follow-up tasks, and the ids of tasks that another member has taken over."""
        if not outcomes:
            return [], set()
        new, lost = self._journal.finish([outcome for _, outcome in outcomes])
        for lane, outcome in outcomes:
            if outcome.state == WAITING:
                lane.note_due(outcome.due)
        return new, {outcome.task.id for outcome in lost}

    def _retry_recovered(self, lane: Lane, worked: bool) -> None:
        if worked and (summary := self.failures.end_outage(lane.chain, lane.name)) is not None:
            logger.info("[%s] %s: works again%s", lane.chain, lane.name, summary)
        self.retry_now(lane.chain, lane.name)

    def _run_callbacks(self, task: Task, result: Result) -> None:
        try:
            if result.on_committed:
                result.on_committed()
            if self._observe:
                self._observe(task, result)
        except TrollmovesError as error:
            logger.error("[%s] %s %s: %s", task.chain, task.kind, task.key, error)
        except Exception:
            logger.exception("[%s] %s %s: unexpected error in the callback", task.chain, task.kind, task.key)

    def _dispatch_due(self) -> None:
        lanes = self._all_lanes()
        limits = WorkerLimits(lanes, self._workers.maximum)
        if self._workers.healthy_starved or any(policy.priority for policy in self._policies.values()):
            lanes.sort(key=lambda lane: (-lane.priority, lane.starved_since))
        healthy_starved = False
        for lane in lanes:
            kind = lane.kind
            if self._stopping or kind is None or lane.paused:
                lane.release_unstarted()
            elif kind.async_handler:
                self._start_due(lane, kind, kind.async_handler)
            else:
                lane.ready.extend(self._claim(lane))
                self._assign_worker(lane, kind, limits)
                healthy_starved |= lane.breaker.healthy and lane.starved_since < NEVER
            if lane.is_idle():
                self._drop_idle_lane(lane)
        self._workers.healthy_starved = healthy_starved
        self._workers.start(limits.assigned)

    def _claim(self, lane: Lane) -> list[Task]:
        with self._claiming:
            return lane.claim(self._journal)

    def _assign_worker(self, lane: Lane, kind: TaskKind, limits: WorkerLimits) -> None:
        """Assign one worker to a lane, and one more each time it stalls, up to its limit.

        Short tasks run fastest on one thread; more threads would only compete for the GIL.
        """
        starved_since, lane.starved_since = lane.starved_since, NEVER
        if lane.workers < min(lane.limit(kind), len(lane.in_flight)) and (not lane.workers or lane.is_stalled()):
            now = time.monotonic()
            if not limits.assign(lane):
                lane.starved_since = min(starved_since, now)
                return
            lane.workers += 1
            lane.last_progress = now
            self._workers.assign(lane)

    def _drop_idle_lane(self, lane: Lane) -> None:
        with self._lock:
            if lane.is_idle():
                self._lanes.pop((lane.chain, lane.name), None)
                if lane.breaker.healthy or (lane.proven and not lane.breaker.failures):
                    self._proven[lane.chain, lane.name] = None
                    if len(self._proven) > MAX_PROVEN:
                        del self._proven[next(iter(self._proven))]
                self._highest_claimed_id = max(self._highest_claimed_id, lane.highest_claimed_id)

    def _start_due(self, lane: Lane, kind: TaskKind, handler: AsyncHandler) -> None:
        tasks = self._claim(lane)
        for task in tasks:
            self._start_async(lane, handler, task)
        if tasks and kind.after_start:
            kind.after_start()

    def _start_async(self, lane: Lane, handler: AsyncHandler, task: Task) -> None:
        def finish(result: Result) -> None:
            with suppress(IndexError):
                self._on_finished(lane, unfinished.pop(), result)

        unfinished = [task]  # only the first call of finish counts
        try:
            handler(task, finish)
        except Exception as error:  # an error in one task must not stop the scheduler
            finish(self.failures.to_result(task, error))
