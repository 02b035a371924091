"""Lets what comes fast gather, so that many things are handled together.

Each round of a thread costs a hand-over between threads, a look at sockets or a commit, whether it is for one thing or
for twenty. What comes slowly is not held up.
"""

from __future__ import annotations

import math
import time

FAST = 500.0  # things a second from which on they are let gather
REST = 0.003  # s that they are
WINDOW = 0.05  # s over which the rate is taken


class Pace:
    """The rate of the things that one thread handles; for that thread only."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._at = 0.0

    def count(self, handled: int) -> None:
        """Take note of what was handled now."""
        now = time.monotonic()
        self._rate = self._rate * math.exp((self._at - now) / WINDOW) + handled / WINDOW
        self._at = now

    def is_fast(self) -> bool:
        """Tell whether things come fast, now."""
        return self._rate > FAST and self._rate * math.exp((self._at - time.monotonic()) / WINDOW) > FAST

    def rest(self, handled: int) -> None:
        """Take note of what a round handled, and sleep a little when it comes fast."""
        self.count(handled)
        if self._rate > FAST:
            time.sleep(REST)
