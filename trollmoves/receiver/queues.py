"""Lets things that must not overlap begin one after the other."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class SerialQueues:
    """A queue for each key. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Callable[[], None]]] = {}  # behind what is under way, by key

    def run(self, key: str, start: Callable[[], None]) -> None:
        """Start now, or when all of this key that came before has ended; what starts must ``end``, once."""
        with self._lock:
            if key in self._waiting:
                self._waiting[key].append(start)
                return
            self._waiting[key] = deque()
        start()

    def done(self, key: str) -> None:
        """Start what waits next, on this thread."""
        with self._lock:
            if not self._waiting[key]:
                del self._waiting[key]
                return
            start = self._waiting[key].popleft()
        start()
