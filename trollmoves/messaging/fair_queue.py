"""Holds requests until they are read, so many of each sender, and gives them out in turn."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_QUEUED = 1_000  # requests of one sender that wait to be read; a chain of our clients has up to 256 open
MAX_QUEUED_BYTES = 32 * 1024 * 1024  # of one sender
THROTTLED_BATCH = 3  # requests that are read at one time of those who have sent more than are held
THROTTLED_INTERVAL = 0.02  # s from one such time to the next: each costs the others a look into the journal
BYTES_PER_COST_UNIT = 20_000  # that are as much work as a request more
THROTTLE_SECONDS = 2.0  # s after the last request too many; a replier looks at those of the loud once a second

Frames = Sequence[bytes]


@dataclass(slots=True)
class _SenderQueue:
    """What one sender wants."""

    waiting: deque[Frames] = field(default_factory=deque)
    n_bytes: int = 0
    throttled_until: float = 0.0  # monotonic

    def is_throttled(self) -> bool:
        return time.monotonic() < self.throttled_until

    def take(self) -> tuple[Frames, int]:
        """Take out a request, and give how much work it is."""
        frames = self.waiting.popleft()
        size = sum(map(len, frames))
        self.n_bytes -= size
        return frames, 1 + size // BYTES_PER_COST_UNIT


class FairQueue:
    """Requests by sender. Whoever sends more than can be read gets slower, and the others do not; for one thread."""

    def __init__(self) -> None:
        self._senders: dict[str, _SenderQueue] = {}  # in the order of their turns
        self._loud_at = 0.0  # monotonic; when the loud had their last turn

    def is_pending(self) -> bool:
        """Tell whether a request waits."""
        return any(one.waiting for one in self._senders.values())

    def any_throttled(self) -> bool:
        """Tell whether somebody sends too much."""
        return any(one.is_throttled() for one in self._senders.values())

    def has_room(self, sender: str) -> bool:
        """Tell whether a request of a sender can be kept; who asks when not is loud from then on."""
        known = self._senders.get(sender)
        if known is None or (len(known.waiting) < MAX_QUEUED and known.n_bytes <= MAX_QUEUED_BYTES):
            return True
        known.throttled_until = time.monotonic() + THROTTLE_SECONDS
        return False

    def put(self, sender: str, frames: Frames) -> None:
        """Keep a request, for which there is room."""
        known = self._senders.setdefault(sender, _SenderQueue())
        known.waiting.append(frames)
        known.n_bytes += sum(map(len, frames))

    def take(self, count: int) -> list[tuple[str, Frames]]:
        """Take out up to ``count`` requests, one of each sender after the other, and now and then a few of the loud."""
        waiting = [(name, one) for name, one in self._senders.items() if one.waiting]
        loud = [(name, one) for name, one in waiting if one.is_throttled()]
        now = time.monotonic()
        if loud and now - self._loud_at >= THROTTLED_INTERVAL:
            self._loud_at = now
            return self._in_turn(loud, THROTTLED_BATCH)
        return self._in_turn([(name, one) for name, one in waiting if not one.is_throttled()], count)

    def _in_turn(self, waiting: list[tuple[str, _SenderQueue]], work: int) -> list[tuple[str, Frames]]:
        taken: list[tuple[str, Frames]] = []
        turns = deque(waiting)
        while turns and work > 0:
            name, one = turns.popleft()
            frames, cost = one.take()
            taken.append((name, frames))
            work -= cost
            if one.waiting:
                turns.append((name, one))
        first = dict(turns)
        self._senders = first | {k: one for k, one in self._senders.items() if one.waiting or one.is_throttled()}
        return taken

    def only_throttled_pending(self) -> bool:
        """Tell whether all that waits is from senders of too much."""
        return self.is_pending() and all(one.is_throttled() for one in self._senders.values() if one.waiting)
