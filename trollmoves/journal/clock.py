"""Time that never jumps, for what is remembered and compared later."""

from __future__ import annotations

import time


class MonotonicWallClock:
    """Seconds since the epoch as the wall clock said at the start, and from then on as they pass.

    Whoever sets the wall clock does not move it, so that what is due in a minute is due in a minute. It goes on while
    the host is suspended. Any thread.
    """

    def __init__(self, at_least: float = 0.0) -> None:
        """Begin now, or ``at_least`` there: where an earlier clock had come to, so that it does not go back either."""
        self._offset = max(time.time(), at_least) - _boot_time()

    def now(self) -> float:
        """Give the time."""
        return self._offset + _boot_time()


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
