"""What a peer client says about the files that both hear of: it is at work on one, or done with it.

Two clients with sections of the same name hear each other, so that one can be the hot spare of the other. A peer's
``push`` holds this side back for a while; its ``ack`` or its receipt counts the file as done. A peer that pushed and
fell silent does not cost the file: the hold ends, and this side asks. Our own clients repeat their push while they are
at work, and name themselves in their heartbeats, so that a side that comes back can ask what the other one did.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable

CACHE_TTL = 600.0  # s for which it is known that a peer is done, for announcements that are heard later
CACHE_SIZE = 20_000  # files


class Peers:
    """What was heard from the peers of one chain, by the key of the file. Any thread.

    A peer's push holds this side back for ``hold`` seconds. ``known`` are names of peers that were heard of before.
    """

    def __init__(self, hold: float, known: Iterable[str] = ()) -> None:
        self._hold = hold
        self._lock = threading.Lock()
        self._names = dict.fromkeys(known)
        self._at_work: OrderedDict[str, float] = OrderedDict()
        self._done: OrderedDict[str, float] = OrderedDict()

    def add(self, name: str) -> None:
        """A peer tells its name."""
        with self._lock:
            self._names[name] = None

    def names(self) -> list[str]:
        """Give the names of the peers that ever told theirs."""
        with self._lock:
            return list(self._names)

    def on_push(self, key: str) -> None:
        """A peer asks for the file."""
        with self._lock:
            _remember(self._at_work, key, self._hold)

    def on_done(self, key: str) -> None:
        """A peer has the file and tells, or has told, where it is."""
        with self._lock:
            self._at_work.pop(key, None)
            _remember(self._done, key, CACHE_TTL)

    def hold_seconds(self, key: str) -> float:
        """Give the seconds for which a file is left to the peer that asks for it, 0 for none."""
        with self._lock:
            return max(0.0, self._at_work.get(key, float("-inf")) + self._hold - time.monotonic())

    def is_done(self, key: str) -> bool:
        """Tell whether a peer is done with the file."""
        with self._lock:
            return time.monotonic() - self._done.get(key, float("-inf")) < CACHE_TTL

    def forget(self, key: str) -> None:
        """The name stands for new content: what peers said was about the old one."""
        with self._lock:
            self._at_work.pop(key, None)
            self._done.pop(key, None)


def _remember(heard: OrderedDict[str, float], key: str, seconds: float) -> None:
    now = time.monotonic()
    heard[key] = now
    heard.move_to_end(key)
    while len(heard) > CACHE_SIZE or next(iter(heard.values())) < now - seconds:
        heard.popitem(last=False)
