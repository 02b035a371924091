"""A fair queue of requests: a limited number per sender, read round-robin; senders over quota are throttled."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_QUEUED = 1_000  # queued requests per sender; a client chain has up to 256 open requests
MAX_QUEUED_BYTES = 8 * 1024 * 1024  # per sender
THROTTLED_BATCH = 3  # requests of throttled senders that are read in one batch
THROTTLED_INTERVAL = 0.02  # s between such batches: each delays the other senders by a journal query
THROTTLED_PAUSE = 4  # times the duration of such a batch before the next one
BYTES_PER_COST_UNIT = 20_000  # this size of a request costs as much as another request
THROTTLE_SECONDS = 2.0  # s after the last request over quota; a replier checks throttled senders once a second

Frames = Sequence[bytes]


@dataclass(slots=True)
class _SenderQueue:
    """The queued requests of one sender."""

    queued: deque[Frames] = field(default_factory=deque)
    n_bytes: int = 0
    throttled_until: float = 0.0  # monotonic

    def is_throttled(self) -> bool:
        return time.monotonic() < self.throttled_until

    def take(self) -> tuple[Frames, int]:
        """Remove the oldest request; return it with its cost."""
        frames = self.queued.popleft()
        size = sum(map(len, frames))
        self.n_bytes -= size
        return frames, 1 + size // BYTES_PER_COST_UNIT


class FairQueue:
    """Queues requests per sender. Throttles senders over quota without delaying the others. Not thread-safe."""

    def __init__(self) -> None:
        self._senders: dict[str, _SenderQueue] = {}  # in round-robin order
        self._next_throttled_batch = 0.0  # monotonic time
        self._is_throttled_batch = False

    def is_pending(self) -> bool:
        """Return True if a request is queued."""
        return any(queue.queued for queue in self._senders.values())

    def has_room(self, sender: str) -> bool:
        """Return True if a request of a sender can be queued; otherwise throttle the sender."""
        queue = self._senders.get(sender)
        if queue is None or (len(queue.queued) < MAX_QUEUED and queue.n_bytes <= MAX_QUEUED_BYTES):
            return True
        queue.throttled_until = time.monotonic() + THROTTLE_SECONDS
        return False

    def put(self, sender: str, frames: Frames) -> None:
        """Queue a request; check ``has_room`` first."""
        queue = self._senders.setdefault(sender, _SenderQueue())
        queue.queued.append(frames)
        queue.n_bytes += sum(map(len, frames))

    def take(self, count: int) -> list[tuple[str, Frames]]:
        """Remove and return requests of a total cost of about ``count``, round-robin.

        Every THROTTLED_INTERVAL seconds, or later (see ``took``), return a few requests of throttled senders instead.
        """
        queues = [(sender, queue) for sender, queue in self._senders.items() if queue.queued]
        throttled = [(sender, queue) for sender, queue in queues if queue.is_throttled()]
        now = time.monotonic()
        self._is_throttled_batch = bool(throttled) and now >= self._next_throttled_batch
        if self._is_throttled_batch:
            self._next_throttled_batch = now + THROTTLED_INTERVAL
            return self._round_robin(throttled, THROTTLED_BATCH)
        return self._round_robin([(sender, queue) for sender, queue in queues if not queue.is_throttled()], count)

    def took(self, seconds: float) -> None:
        """Record the duration of the requests that ``take`` has returned: throttled senders get a share of the time."""
        if self._is_throttled_batch:
            pause = time.monotonic() + THROTTLED_PAUSE * seconds
            self._next_throttled_batch = max(self._next_throttled_batch, pause)

    def _round_robin(self, queues: list[tuple[str, _SenderQueue]], budget: int) -> list[tuple[str, Frames]]:
        requests: list[tuple[str, Frames]] = []
        turns = deque(queues)
        while turns and budget > 0:
            sender, queue = turns.popleft()
            frames, cost = queue.take()
            requests.append((sender, frames))
            budget -= cost
            if queue.queued:
                turns.append((sender, queue))
        rest = {name: queue for name, queue in self._senders.items() if queue.queued or queue.is_throttled()}
        self._senders = dict(turns) | rest
        return requests

    def only_throttled_pending(self) -> bool:
        """Return True if requests are queued, all of them of throttled senders."""
        return self.is_pending() and all(queue.is_throttled() for queue in self._senders.values() if queue.queued)
