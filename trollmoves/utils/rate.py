"""Lets what comes fast gather, so that many things are handled together.

Each round of a thread costs a hand-over between threads, a look at sockets or a commit, whether it is for one thing or
for twenty. What comes slowly is not held up.
"""

from __future__ import annotations

import math
import time

HIGH_RATE = 500.0  # things a second from which on they are let gather
BATCHING_DELAY = 0.003  # s that they are
WINDOW = 0.05  # s over which the rate is taken


class RateMeter:
    """The rate of the things that one thread handles; for that thread only."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._at = 0.0

    def record(self, handled: int) -> None:
        """Take note of what was handled now."""
        now = time.monotonic()
        self._rate = self._rate * math.exp((self._at - now) / WINDOW) + handled / WINDOW
        self._at = now

    def is_high(self) -> bool:
        """Tell whether things come fast, now."""
        return self._rate > HIGH_RATE and self._rate * math.exp((self._at - time.monotonic()) / WINDOW) > HIGH_RATE

    def throttle(self, handled: int) -> None:
        """Take note of what a round handled, and sleep a little when it comes fast."""
        self.record(handled)
        if self._rate > HIGH_RATE:
            time.sleep(BATCHING_DELAY)
