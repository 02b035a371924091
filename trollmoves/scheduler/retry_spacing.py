"""Spaces the retries of tasks that fail one by one, while their lane works."""

from __future__ import annotations

from trollmoves.scheduler.circuit_breaker import BACKOFF_INITIAL, BACKOFF_MAX, backoff

SPACING = 1.0  # s between the retries of a lane
MAX_DELAY = 1800.0  # s before the retry of one task


class RetrySpacing:
    """The failed tasks of one lane, so that thousands of them cause about one attempt in ``SPACING`` seconds.

    The first task to succeed proves that the cause is gone: then the others should be retried immediately. Not
    thread-safe.
    """

    def __init__(self) -> None:
        self._failed = set[int]()

    def record_failure(self, task_id: int, tries: int, probe_interval: float = BACKOFF_MAX) -> float:
        """Record a failed attempt; return the seconds before the next attempt of the task."""
        self._failed.add(task_id)
        spaced = min(len(self._failed) * SPACING, MAX_DELAY)
        return max(spaced, backoff(tries, BACKOFF_INITIAL, probe_interval))

    def record_success(self, task_id: int) -> bool:
        """Record a success; return True if the task had failed, so that the other failed tasks should be retried."""
        if task_id not in self._failed:
            return False
        self._failed.clear()
        return True
