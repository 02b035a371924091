"""Observes when files are complete at their target, and when a client publishes their receipts."""

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

BATCH_RATE = 2_000  # receipts per second above which an observer reads in batches, to save processor time
BATCH_DELAY = 0.003  # s between two batches; also the error of the times

_EVENT = struct.Struct("iIII")
_UID = re.compile(rb'"uid": ?"([^"]+)"')
_FILE = re.compile(rb"^[^ ]+ file ")


class Receipts:
    """The time of each receipt of a client (monotonic seconds, by name); runs a thread."""

    def __init__(self, port: int) -> None:
        self.at: dict[str, float] = {}
        self.count = 0  # receipts, also repeated ones
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
        """Stop the thread."""
        self._stopping.set()
        self._thread.join(5)
        self._context.destroy(0)

    def wait_for(self, names: Iterable[str], seconds: float) -> None:
        """Wait until each of these files has a receipt."""
        missing = list(names)

        def all_received() -> bool:
            while missing and missing[-1] in self.at:
                missing.pop()
            return not missing

        until(all_received, seconds, f"receipts of {len(missing)} files")

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._socket.poll(100) and self._read_all() > BATCH_RATE:
                time.sleep(BATCH_DELAY)

    def _read_all(self) -> float:
        """Read all available messages; return the recent rate in receipts per second."""
        with suppress(zmq.Again):
            while True:
                text, now = self._socket.recv(zmq.NOBLOCK), time.monotonic()
                found = _FILE.match(text) and _UID.search(text)
                if found:
                    self._last.append(now)
                    self.at.setdefault(found[1].decode(), now)
                    self.count += 1
        return len(self._last) / (time.monotonic() - self._last[0]) if self._last else 0.0


class Arrivals:
    """The time at which each file was complete under its final name (monotonic seconds, by name); runs a thread.

    A file is complete when it is moved or linked to its name, or closed by its writer.
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
        """Stop the thread."""
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
                if mask & pyinotify.IN_CREATE and not self._is_complete(name):
                    continue
                self.at.setdefault(name, now)

    def _is_complete(self, name: str) -> bool:
        """Return True if a new file is a link to a complete one."""
        try:
            return os.stat(self._folder / name).st_nlink > 1
        except OSError:
            return False


class Cost:
    """The resources of processes: CPU seconds since the creation of this object, and memory now."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._from = self._cpu()

    def cpu(self) -> float:
        """Return the CPU seconds since the creation of this object."""
        return self._cpu() - self._from

    def _cpu(self) -> float:
        ticks = 0
        for pid in self._pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Return the resident memory in MB."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._pids)
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Machine:
    """The load of this machine since the creation of this object."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy_before = self._busy()

    def load_of_others(self, own: float) -> float:
        """Return the part of the machine (0 to 1) that was used in addition to ``own`` seconds of processor time."""
        available = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return (self._busy() - self._busy_before - own) / available

    @staticmethod
    def _busy() -> float:
        """Return the seconds that all processors have worked, or that the hypervisor gave to other machines."""
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(
            int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
        )
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def percentiles(values: Iterable[float], scale: Callable[[float], float] = lambda s: s * 1000) -> tuple[float, ...]:
    """Return the 50th, 95th and 99th percentile, in milliseconds by default."""
    ordered = sorted(values)
    return tuple(scale(ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]) for p in (50, 95, 99))
