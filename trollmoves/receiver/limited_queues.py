"""Queues of calls, with a limit of running ones for each key."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable


class LimitedQueues:
    """Execution of at most ``limit`` calls per key at a time, in order. Any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[Callable[[], None]]] = {}

    def run(self, key: str, start: Callable[[], None]) -> None:
        """Call ``start`` now, or after earlier calls for this key are done; each must lead to one ``done`` call."""
        with self._lock:
            if self._running[key] >= self._limit:
                self._waiting.setdefault(key, deque()).append(start)
                return
            self._running[key] += 1
        start()

    def done(self, key: str) -> None:
        """End a running call of a key, and start the next one on this thread."""
        with self._lock:
            waiting = self._waiting.get(key)
            if not waiting:
                self._waiting.pop(key, None)
                self._running[key] -= 1
                if not self._running[key]:
                    del self._running[key]
                return
            start = waiting.popleft()
        start()
