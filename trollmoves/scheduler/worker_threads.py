"""The worker threads: each runs the ready tasks of the lane that it is assigned to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from trollmoves.journal import Task
from trollmoves.scheduler.failure_log import FailureLog
from trollmoves.scheduler.lanes import Lane, LaneQueue, Result
from trollmoves.utils.logs import LogThrottle
from trollmoves.utils.watched_threads import start_thread

logger = logging.getLogger(__name__)

TIME_SLICE = 0.02  # s that a worker spends on a lane while other lanes wait for a worker


class WorkerThreads:
    """At most ``maximum`` threads, each of which is started when a lane first needs it.

    ``on_finished`` is called on a worker thread with the lane, the task and the result of each run; with None instead
    of the task when the worker leaves the lane.
    """

    def __init__(
        self, maximum: int, on_finished: Callable[[Lane, Task | None, Result], None], failures: FailureLog
    ) -> None:
        self.maximum = maximum
        self.healthy_starved = False
        """True while healthy lanes wait for a worker of another lane; set by the scheduler thread."""
        self.threads: list[threading.Thread] = []
        self._on_finished = on_finished
        self._failures = failures
        self._tokens = LaneQueue()  # one entry for each assigned worker
        self._throttle = LogThrottle(burst=1)

    def assign(self, lane: Lane) -> None:
        """Let one more worker run the ready tasks of a lane, once it is free or started."""
        self._tokens.put(lane)

    def start(self, assigned: int) -> None:
        """Start a thread for each assigned worker, up to the maximum; without memory for one, the others go on."""
        while len(self.threads) < min(assigned, self.maximum):
            worker = threading.Thread(target=self._loop, name=f"worker-{len(self.threads)}", daemon=True)
            try:
                start_thread(worker)
            except RuntimeError as error:
                if not self.threads:
                    raise
                if (more := self._throttle.admit()) is not None:
                    logger.warning(
                        "cannot start worker %d (%s); continuing with fewer%s", len(self.threads) + 1, error, more
                    )
                return
            self.threads.append(worker)

    def stop(self) -> None:
        """End the threads once they have run all that is ready; do not wait for it."""
        for _ in self.threads:
            self._tokens.stop_one()

    def _loop(self) -> None:
        while lane := self._tokens.get():
            if self._run_ready(lane):
                self._tokens.put(lane)
            else:
                self._on_finished(lane, None, Result())  # unassigns this worker

    def _run_ready(self, lane: Lane) -> bool:
        """Run the ready tasks of a lane; return True if its time is over because other lanes wait for a thread."""
        slice_end = time.monotonic() + TIME_SLICE
        while True:
            try:
                task = lane.ready.popleft()
            except IndexError:
                return False
            result = self._run(lane, task)
            lane.last_progress = time.monotonic()
            self._on_finished(lane, task, result)
            if result.error and result.error.outage:
                return False  # the scheduler thread decides how the lane continues
            if lane.has_excess_workers():
                return False
            if lane.last_progress > slice_end:
                if not self._tokens.empty():
                    return True
                if self.healthy_starved:
                    return False

    def _run(self, lane: Lane, task: Task) -> Result:
        kind = lane.kind
        if kind is None or kind.handler is None:
            task.tries -= 1  # the chain was stopped
            return Result(retry_in=0.0)
        try:
            return kind.handler(task) or Result()
        except Exception as error:  # an error in one task must not stop the scheduler
            return self._failures.to_result(task, error)
