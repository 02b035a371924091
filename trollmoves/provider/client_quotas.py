"""Sees to it that nobody's pushes crowd out those of others."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from trollmoves.journal import BACKLOG, FRESH

MAX_PENDING = 2_000  # pushes of one sender that wait in the journal; what it asks for beyond is refused for now
FAIR_SHARE = (
    300  # up to which its pushes go before those of whoever has more; a chain of our clients has up to 256 open
)


class ClientQuotas:
    """Whose the pushes are that wait, of those that this process was asked for. Any thread."""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}  # by task
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def is_full(self, sender: str) -> bool:
        """Tell whether a sender has as many waiting as it may."""
        return self._counts[sender] >= MAX_PENDING

    def rank(self, sender: str) -> int:
        """Give the rank of another push of a sender."""
        return FRESH if self._counts[sender] < FAIR_SHARE else BACKLOG

    def add(self, task: int, sender: str) -> None:
        """Count a push that waits from now on."""
        with self._lock:
            if task not in self._owners:
                self._owners[task] = sender
                self._counts[sender] += 1

    def remove(self, tasks: Iterable[int]) -> None:
        """Count pushes no more."""
        with self._lock:
            for task in tasks:
                sender = self._owners.pop(task, None)
                if sender is not None:
                    self._counts[sender] -= 1
                    if not self._counts[sender]:
                        del self._counts[sender]
