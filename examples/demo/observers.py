"""Observes the results of the client: the files in its directories, and its receipts."""

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
    """The names of the files, by result."""

    whole: list[str]
    damaged: list[str]
    lost: list[str]


class Arrivals:
    """The files in a directory and its subdirectories."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: deque[tuple[float, int]] = deque()  # (time, count) within the window of the rate

    def count(self) -> int:
        """Return the number of files under their final names."""
        count, now = sum(1 for _ in self._paths()), time.monotonic()
        self._seen.append((now, count))
        while self._seen[0][0] < now - RATE_WINDOW:
            self._seen.popleft()
        return count

    def rate(self) -> float:
        """Return the files per second within the last second."""
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - start) if end > start else 0.0

    def compare(self, digests: Mapping[str, str]) -> Outcome:
        """Compare the files with the expected SHA-256 of each name."""
        there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self._paths()}
        outcome = Outcome([], [], [])
        for name, digest in digests.items():
            result = outcome.lost if name not in there else outcome.whole if there[name] == digest else outcome.damaged
            result.append(name)
        return outcome

    def _paths(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self._folder):
            yield from (Path(folder, name) for name in names if not name.startswith("."))


class Receipts:
    """The receipts of the client, received on a thread; ``last`` is the file name of the last one."""

    def __init__(self, addresses: list[str]) -> None:
        """Connect to the publishers at these addresses."""
        self.last = ""
        self._times: defaultdict[str, list[float]] = defaultdict(list)
        self._lock = threading.Lock()  # _times
        self._ended = threading.Event()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt_string(zmq.SUBSCRIBE, "")
        for address in addresses:
            self._socket.connect(address)
        self._thread = threading.Thread(target=self._run, name="receipts", daemon=True)
        self._thread.start()

    def times(self) -> dict[str, list[float]]:
        """Return the times of the receipts (``time.monotonic``) by file name; any thread may call this."""
        with self._lock:
            return {name: [*times] for name, times in self._times.items()}

    def close(self) -> None:
        """Stop the thread and close the socket."""
        self._ended.set()
        self._thread.join()
        self._socket.close(linger=0)

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._socket.poll(100):
                text = self._socket.recv_string()
                received = time.monotonic()
                message = Message.decode(text)
                if message.type in _RECEIPTS:
                    self.last = message.data["uid"]
                    with self._lock:
                        self._times[self.last].append(received)
