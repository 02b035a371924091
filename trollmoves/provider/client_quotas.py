"""Limits pending pushes per client."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from trollmoves.journal import BACKLOG, FRESH

MAX_PENDING = 2_000  # pushes of one client in the journal; further requests are temporarily rejected
FAIR_SHARE = 300  # pending pushes of one client that keep the rank FRESH; a client chain has up to 256 open requests


class ClientQuotas:
    """The pending pushes of each client, as requested from this process. Any thread."""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}  # by task id
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def is_full(self, client: str) -> bool:
        """Return True if a client has the maximum number of pending pushes."""
        return self._counts[client] >= MAX_PENDING

    def rank(self, client: str) -> int:
        """Return the rank of the next push of a client."""
        return FRESH if self._counts[client] < FAIR_SHARE else BACKLOG

    def add(self, task: int, client: str) -> None:
        """Count a pending push."""
        with self._lock:
            if task not in self._owners:
                self._owners[task] = client
                self._counts[client] += 1

    def remove(self, tasks: Iterable[int]) -> None:
        """Stop counting pushes."""
        with self._lock:
            for task in tasks:
                client = self._owners.pop(task, None)
                if client is not None:
                    self._counts[client] -= 1
                    if not self._counts[client]:
                        del self._counts[client]
