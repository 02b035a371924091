"""A clock that never jumps, for stored times that are compared later."""

from __future__ import annotations

import time


class MonotonicWallClock:
    """Seconds since the epoch: the wall clock at creation plus the elapsed time.

    Later changes of the wall clock do not affect it, so delays keep their length. It advances while the host is
    suspended. Any thread.
    """

    def __init__(self, at_least: float = 0.0) -> None:
        """Start at the current time, or at ``at_least`` (the last time of an earlier clock) if that is later."""
        self._offset = max(time.time(), at_least) - boot_time()

    def now(self) -> float:
        """Return the time in seconds since the epoch."""
        return self._offset + time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_time() -> float:
    """Return the seconds since the boot of this host, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
