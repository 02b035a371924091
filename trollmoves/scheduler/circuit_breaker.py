"""Pauses a lane after outages, then probes it with one task."""

from __future__ import annotations

import random
import time
from collections.abc import Container, Sequence
from enum import Enum, auto

from trollmoves.errors import TrollmovesError
from trollmoves.journal import Task

BACKOFF_INITIAL = 1.0  # s before the second attempt
BACKOFF_MAX = 120.0  # s; the default of the option ``probe_interval``
HELD_INITIAL = 15.0  # s before the second attempt if an operator must repair something: hosts ban quick repetitions


def backoff(attempts: int, initial: float = BACKOFF_INITIAL, maximum: float = BACKOFF_MAX) -> float:
    """Return the seconds to wait after failure number ``attempts``.

    The wait doubles up to ``maximum``, with jitter between 50% and 100%.
    """
    return float(min(maximum, initial * 2.0 ** min(attempts - 1, 30)) * random.uniform(0.5, 1.0))  # noqa: S311  (no secret)


class Transition(Enum):
    """The change by a result: the breaker opened (a pause began), closed (the lane works again), or neither."""

    OPENED = auto()
    CLOSED = auto()
    NONE = auto()


class CircuitBreaker:
    """The circuit breaker of one lane. For the scheduler thread; any thread may call ``resume``.

    ``failures`` counts the pauses since the last success. ``healthy`` is True once a task has finished since the lane
    was created, unless the last one failed with an outage. A pause lasts ``probe_interval`` seconds at most.
    """

    def __init__(self, probe_interval: float = BACKOFF_MAX) -> None:
        self.probe_interval = probe_interval
        self.failures = 0
        self.healthy = False
        self.held = False  # an operator must repair the cause of the pause
        self.changes = 0  # transitions by results of this process
        self.paused_until = 0.0  # monotonic time at which the pause ends; 0 without a pause
        self._probe_id = 0  # the task that was claimed after the last pause

    def pause_remaining(self) -> float:
        """Return the seconds until the pause ends, 0 without a pause."""
        return max(0.0, self.paused_until - time.monotonic())

    def is_expired(self) -> bool:
        """Return True if the failures are old enough to be forgotten."""
        return not self.failures or time.monotonic() >= self.paused_until + self.probe_interval

    def is_probing(self, in_flight: Container[int]) -> bool:
        """Return True while the probe is in flight."""
        return self._probe_id in in_flight

    def resume(self) -> bool:
        """End the pause; return True if there was one. Any thread."""
        paused = self.paused_until > 0
        self.paused_until = 0.0
        return paused

    def record_claim(self, tasks: Sequence[Task]) -> None:
        """Record claimed tasks: after a pause the first one is the probe."""
        if tasks and self.failures:
            self._probe_id = tasks[0].id

    def record_result(self, task: Task, error: TrollmovesError | None) -> Transition:
        """Record how an attempt ended: an outage opens the breaker, any other end closes it."""
        if error and error.blames_origin:
            return Transition.NONE  # the attempt never reached the destination
        if error is None or not error.outage:
            return self.close()
        self.healthy = False
        self.held = error.held
        if self.failures and task.id != self._probe_id:
            return Transition.NONE  # the task was started before the pause
        self.failures += 1
        initial = HELD_INITIAL if self.held else BACKOFF_INITIAL
        self.changes += 1
        self.paused_until = time.monotonic() + backoff(self.failures, initial, self.probe_interval)
        return Transition.OPENED

    def adopt(self, failures: int, seconds: float, *, held: bool) -> Transition:
        """Take over the state that results of another process have caused; the pause ends in ``seconds``."""
        recovered = self.failures > 0 and not failures
        self.failures, self.held, self.healthy = failures, held, not failures
        self.paused_until = time.monotonic() + seconds if failures else 0.0
        self._probe_id = 0
        return Transition.CLOSED if recovered else Transition.NONE

    def close(self) -> Transition:
        """Record that the lane works."""
        recovered = self.failures > 0
        self.changes += recovered
        self.healthy, self.held = True, False
        self.failures, self.paused_until = 0, 0.0
        return Transition.CLOSED if recovered else Transition.NONE
