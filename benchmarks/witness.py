"""Sees when files appear, when they are whole at their target, and when a client tells of them."""

from __future__ import annotations

import os
import re
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pyinotify
import zmq

from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import until

FLOOD = 1_500  # messages a second from which on a witness lets them gather: it is not to take a processor itself
REST = 0.003  # s that it does, and may be late by

_EVENT = struct.Struct("iIII")
_UID = re.compile(rb'"uid": ?"([^"]+)"')
_FILE = re.compile(rb"^[^ ]+ file ")


class Receipts:
    """When each file was told of by a publisher on this host (monotonic seconds, by name); a thread of its own."""

    def __init__(self, port: int) -> None:
        self.at: dict[str, float] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        for option, value in ((zmq.RCVHWM, 0), (zmq.LINGER, 0), (zmq.RECONNECT_IVL, 10), (zmq.RECONNECT_IVL_MAX, 10)):
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"pytroll:/")
        self._socket.connect(f"tcp://{HOST}:{port}")
        self._last: deque[float] = deque(maxlen=50)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hear no more."""
        self._stopping.set()
        self._thread.join(5)
        self._context.destroy(0)

    def wait_for(self, names: Iterable[str], seconds: float) -> None:
        """Wait until each of these files was told of."""
        missing = list(names)

        def all_told() -> bool:
            while missing and missing[-1] in self.at:
                missing.pop()
            return not missing

        until(all_told, seconds, f"receipts of {len(missing)} files")

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._socket.poll(100) and self._take_all() > FLOOD:
                time.sleep(REST)

    def _take_all(self) -> float:
        """Take what is at hand; give the messages a second, of late."""
        with suppress(zmq.Again):
            while True:
                text, now = self._socket.recv(zmq.NOBLOCK), time.monotonic()
                self._last.append(now)
                found = _FILE.match(text) and _UID.search(text)
                if found:
                    self.at.setdefault(found[1].decode(), now)
        return len(self._last) / (time.monotonic() - self._last[0])


class Arrivals:
    """When each file stood whole in a folder under its final name (monotonic seconds, by name); its own thread.

    A file is whole when it is moved or linked to its name, or closed by its writer.
    """

    def __init__(self, folder: Path) -> None:
        self.at: dict[str, float] = {}
        self._manager = pyinotify.WatchManager()
        self._folder = folder
        self._manager.add_watch(
            str(folder), pyinotify.IN_MOVED_TO | pyinotify.IN_CLOSE_WRITE | pyinotify.IN_CREATE, quiet=False
        )
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._stopping = True
        (self._folder / ".end").touch()
        self._thread.join(5)
        self._manager.close()

    def _run(self) -> None:
        while not self._stopping:
            data, now = os.read(self._manager.get_fd(), 65536), time.monotonic()
            at = 0
            while at < len(data):
                _, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                name = data[at - length : at].rstrip(b"\0").decode()
                if name.startswith("."):
                    continue
                if mask & pyinotify.IN_CREATE and not self._is_whole(name):
                    continue
                self.at.setdefault(name, now)

    def _is_whole(self, name: str) -> bool:
        """Tell whether a file that was made is a link to a whole one."""
        try:
            return os.stat(self._folder / name).st_nlink > 1
        except OSError:
            return False


class Cost:
    """What a process uses: CPU seconds since this was made, and memory now."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._from = self._cpu()

    def cpu(self) -> float:
        """Give the CPU seconds used since."""
        return self._cpu() - self._from

    def _cpu(self) -> float:
        ticks = 0
        for pid in self._pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Give the resident MB."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._pids)
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def percentiles(values: Iterable[float], scale: Callable[[float], float] = lambda s: s * 1000) -> tuple[float, ...]:
    """Give the 50th, 95th and 99th percentile, in milliseconds by default."""
    ordered = sorted(values)
    return tuple(scale(ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]) for p in (50, 95, 99))
