"""Limits the log lines about failures with one cause: the first ones, then a summary at growing intervals."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from trollmoves.utils.texts import counted

SUMMARY_INTERVALS = (300.0, 1800.0, 3600.0)  # s between summaries; the last one repeats
MAX_CAUSES = 100


@dataclass(slots=True)
class _Outage:
    since: float  # monotonic
    next_summary: float  # monotonic
    failures: int = 0
    summaries: int = 0


class OutageLog:
    """Decides which failures to log; a day-long outage takes fewer than 40 lines. Any thread.

    Args:
        burst: the number of failures with one cause that are logged one by one.
        clock: returns the time in seconds; only differences count.
    """

    def __init__(self, burst: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._outages: dict[str, _Outage] = {}

    def admit(self, cause: str = "") -> str | None:
        """Return the suffix of the line about a failure, or None if it is only counted."""
        now = self._clock()
        with self._lock:
            if cause not in self._outages and len(self._outages) >= MAX_CAUSES:
                del self._outages[next(iter(self._outages))]
            outage = self._outages.setdefault(cause, _Outage(now, now + SUMMARY_INTERVALS[0]))
            outage.failures += 1
            if outage.failures <= self._burst:
                return ""
            if now < outage.next_summary:
                return None
            outage.summaries += 1
            outage.next_summary = now + SUMMARY_INTERVALS[min(outage.summaries, len(SUMMARY_INTERVALS) - 1)]
            return f" ({outage.failures} failures in {(now - outage.since) / 60:.0f} min)"

    def end(self) -> str | None:
        """End all outages; return the suffix of the line about the recovery, None if nothing was logged."""
        with self._lock:
            if not self._outages:
                return None
            since = min(outage.since for outage in self._outages.values())
            failures = sum(outage.failures for outage in self._outages.values())
            self._outages.clear()
        return f" ({counted(failures, 'failure')} in {self._clock() - since:.0f} s)"
