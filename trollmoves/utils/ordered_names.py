"""Serializes work on names, so that an older version never replaces a newer one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager

RECHECK_DELAY = 0.2  # seconds until the next attempt while the names are claimed
CACHE_SIZE = 10_000  # names for which the highest finished number is remembered


class OrderedNames:
    """Names on which one claim works at a time, in the order of version numbers. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claimed: set[str] = set()
        self._newest: OrderedDict[str, int] = OrderedDict()  # the highest finished number, by name

    @contextmanager
    def claim(self, names: Collection[str], number: int) -> Iterator[Collection[str] | None]:
        """Claim names for version ``number``; does not wait.

        Yields the names to work on, without those for which a higher number has finished, and without claiming if none
        is left; yields None if one of the names is claimed. If the block raises no error, ``number`` has finished.
        """
        with self._lock:
            current = [name for name in names if self._newest.get(name, 0) <= number]
            is_claimed = not self._claimed.isdisjoint(current)
            if not is_claimed:
                self._claimed.update(current)
        if is_claimed:
            yield None
            return
        try:
            yield current
            self._finish(current, number)
        finally:
            with self._lock:
                self._claimed.difference_update(current)

    def _finish(self, names: Collection[str], number: int) -> None:
        with self._lock:
            for name in names:
                self._newest[name] = number
                self._newest.move_to_end(name)
            while len(self._newest) > CACHE_SIZE:
                self._newest.popitem(last=False)
