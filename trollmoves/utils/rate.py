"""Batches work when the arrival rate is high.

Each round of a thread costs a thread switch, a poll of sockets or a commit, for one event as for twenty. At a low rate,
events are not delayed.
"""

from __future__ import annotations

import math
import time

HIGH_RATE = 500.0  # events per second above which they are batched
BATCHING_DELAY = 0.003  # s of sleep in each round at a high rate
WINDOW = 0.05  # s; time constant of the exponential average


class RateMeter:
    """The rate of the events that one thread handles. For that thread only."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._at = 0.0

    def record(self, count: int) -> None:
        """Record ``count`` events that were handled now."""
        now = time.monotonic()
        self._rate = self._rate * math.exp((self._at - now) / WINDOW) + count / WINDOW
        self._at = now

    def is_high(self) -> bool:
        """Return True if the current rate is high."""
        return self._rate > HIGH_RATE and self._rate * math.exp((self._at - time.monotonic()) / WINDOW) > HIGH_RATE

    def throttle(self, count: int) -> None:
        """Record ``count`` events of a round; sleep for ``BATCHING_DELAY`` if the rate is high."""
        self.record(count)
        if self._rate > HIGH_RATE:
            time.sleep(BATCHING_DELAY)
