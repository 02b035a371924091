"""Sees from outside what the client delivers: the files in its directories, and what it publishes."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import zmq
from posttroll.message import Message

RATE_WINDOW = 1.0  # s
_RECEIPTS = ("file", "dataset", "collection")


class Outcome(NamedTuple):
    """What became of the files: names."""

    whole: list[str]
    damaged: list[str]
    lost: list[str]


class Arrivals:
    """The files that are in a directory and those below it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: deque[tuple[float, int]] = deque()  # (when, how many), for as long as the rate looks back

    def count(self) -> int:
        """Count the files that are there now under their final names."""
        count, now = sum(1 for _ in self._paths()), time.monotonic()
        self._seen.append((now, count))
        while self._seen[0][0] < now - RATE_WINDOW:
            self._seen.popleft()
        return count

    def rate(self) -> float:
        """Give the files per second between the counts of the last second."""
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - start) if end > start else 0.0

    def compare(self, digests: Mapping[str, str]) -> Outcome:
        """Compare what is there with the SHA-256 that each name should have."""
        there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self._paths()}
        outcome = Outcome([], [], [])
        for name, digest in digests.items():
            fate = outcome.lost if name not in there else outcome.whole if there[name] == digest else outcome.damaged
            fate.append(name)
        return outcome

    def _paths(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self._folder):
            yield from (Path(folder, name) for name in names if not name.startswith("."))


class Receipts:
    """What the client publishes about files that arrived, heard as any program that uses posttroll hears it.

    ``last`` is the name of the last one. A thread of its own listens.
    """

    def __init__(self, addresses: list[str]) -> None:
        """Connect; what is published from then on is heard."""
        self.last = ""
        self._times: defaultdict[str, list[float]] = defaultdict(list)
        self._lock = threading.Lock()  # _times
        self._ended = threading.Event()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt_string(zmq.SUBSCRIBE, "")
        for address in addresses:
            self._socket.connect(address)
        self._thread = threading.Thread(target=self._listen, name="receipts", daemon=True)
        self._thread.start()

    def heard(self) -> dict[str, list[float]]:
        """Say by file name when it was told of, on the clock of time.monotonic; any thread may call."""
        with self._lock:
            return {name: [*times] for name, times in self._times.items()}

    def close(self) -> None:
        """Hear nothing more."""
        self._ended.set()
        self._thread.join()
        self._socket.close(linger=0)

    def _listen(self) -> None:
        while not self._ended.is_set():
            if self._socket.poll(100):
                text = self._socket.recv_string()
                heard = time.monotonic()
                message = Message.decode(text)
                if message.type in _RECEIPTS:
                    self.last = message.data["uid"]
                    with self._lock:
                        self._times[self.last].append(heard)
