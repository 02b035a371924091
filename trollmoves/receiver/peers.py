"""The state of files at peer clients: requested or received.

Two clients with sections of the same name subscribe to each other, so that one can be the hot spare of the other. A
``push`` published by the peer makes this client hold its own request; an ``ack`` or receipt marks the file as done. If
the peer goes silent, the hold expires and this client requests the file. Clients repeat their push during a transfer,
and publish their name in heartbeats: a client that may have missed messages of its peer, because it was started,
stopped or disconnected, asks servers for the deliveries to its peer.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable

CACHE_TTL = 600.0  # s for which a file is remembered as done, for announcements that arrive later
CACHE_SIZE = 20_000  # files
MAX_SILENCE = 3.0  # s between two calls of ``tick`` after which this process was stopped, or its host suspended


class Peers:
    """The activity of the peers of one chain, by file key. Any thread.

    A push of a peer holds the request of this client for ``hold`` seconds. ``known`` has the names of earlier peers.
    """

    def __init__(self, hold: float, known: Iterable[str] = ()) -> None:
        self._hold = hold
        self._lock = threading.Lock()
        self._names = dict.fromkeys(known)
        self.seen = False
        """True if this client has received a message of a peer, also in an earlier process."""
        self._gap_ended = self._ticked = time.monotonic()
        self._requested: OrderedDict[str, float] = OrderedDict()
        self._done: OrderedDict[str, float] = OrderedDict()

    def add(self, name: str) -> None:
        """Record the name of a peer."""
        with self._lock:
            self._names[name] = None

    def names(self) -> list[str]:
        """Return the names of all known peers."""
        with self._lock:
            return list(self._names)

    def tick(self) -> None:
        """Record that messages of peers are received; call it every second."""
        with self._lock:
            self._check_stop()
            self._ticked = time.monotonic()

    def record_gap(self) -> None:
        """Record that messages of peers may have been missed until now: a connection is new."""
        with self._lock:
            self._gap_ended = time.monotonic()

    def seconds_since_gap(self) -> float:
        """Return the seconds since messages of peers may have been missed: by a start, a stop or a connection."""
        with self._lock:
            self._check_stop()
            return time.monotonic() - self._gap_ended

    def _check_stop(self) -> None:
        now = time.monotonic()
        if now - self._ticked > MAX_SILENCE:
            self._ticked = self._gap_ended = now

    def on_push(self, key: str) -> None:
        """Record that a peer has requested the file."""
        with self._lock:
            _remember(self._requested, key, self._hold)

    def on_done(self, key: str) -> None:
        """Record that a peer has received the file, and has published or will publish its receipt."""
        with self._lock:
            self._requested.pop(key, None)
            _remember(self._done, key, CACHE_TTL)

    def hold_seconds(self, key: str) -> float:
        """Return the seconds for which a file is left to a peer that requested it, 0 if there is none."""
        with self._lock:
            return max(0.0, self._requested.get(key, float("-inf")) + self._hold - time.monotonic())

    def is_done(self, key: str) -> bool:
        """Return True if a peer has received the file."""
        with self._lock:
            return time.monotonic() - self._done.get(key, float("-inf")) < CACHE_TTL

    def forget(self, key: str) -> None:
        """Forget the activity for a file: its name has new content."""
        with self._lock:
            self._requested.pop(key, None)
            self._done.pop(key, None)


def _remember(recent: OrderedDict[str, float], key: str, seconds: float) -> None:
    now = time.monotonic()
    recent[key] = now
    recent.move_to_end(key)
    while len(recent) > CACHE_SIZE or next(iter(recent.values())) < now - seconds:
        recent.popitem(last=False)
