"""How the threads of a busy process work in batches.

Each round of a thread costs a thread switch, a poll of sockets or a commit, for one event as for twenty.
"""

from __future__ import annotations

import math
import time

BATCH_FROM = 4  # events of one round after which more of them are expected soon
BATCHING_DELAY = 0.003  # s of sleep after such a round
HIGH_RATE = 500.0  # events per second above which a rate is high
WINDOW = 0.05  # s; time constant of the exponential average


def collect(count: int) -> None:
    """Sleep for ``BATCHING_DELAY`` after a round with ``BATCH_FROM`` events or more, so that the next has many too.

    At 1,000 events per second they arrive one at a time, and none is delayed.
    """
    if count >= BATCH_FROM:
        time.sleep(BATCHING_DELAY)


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
