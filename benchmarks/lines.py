"""SFTP over lines with a delay: both SSH transports, and OpenSSH's own program."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from benchmarks.figures import Figure
from benchmarks.movers import THREADS, MoverBench
from trollmoves.tests.helpers.daemons import Testbed, end_with_parent
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import HOST, answers, free_port

ROUND_TRIPS = (0.0, 0.010, 0.050)  # s
LARGE, SMALL = 10_000_000, 10_000  # bytes
BLOCK = 1 << 18  # bytes
ROUNDS = 3


def lines(logs: Path, *, megabytes: int, count: int) -> Iterator[Figure]:
    """Time files of 10 MB and of 10 kB; OpenSSH's program sends them one after another over one connection."""
    for round_trip in ROUND_TRIPS:
        with Testbed(logs) as testbed:
            bench = MoverBench(testbed)
            line = f", round trip {round_trip * 1000:.0f} ms" if round_trip else ""
            if round_trip:
                _delay(testbed, bench, round_trip / 2)
            for size, number in ((LARGE, megabytes // 10), (SMALL, count if not round_trip else count // 10)):
                bench.make(number, size)
                what = f"{number} files of {'10 MB' if size == LARGE else '10 kB'}{line}"
                yield from _compare(bench, what, number)


def _compare(bench: MoverBench, what: str, number: int) -> Iterator[Figure]:
    """Time each program in turn, ``ROUNDS`` times."""
    ways: dict[str, Callable[[], float | None]] = {
        "sftp of OpenSSH": lambda: bench.openssh(count=number),
        "paramiko": lambda: bench.seconds(sys.executable, "sftp", number, THREADS),
        "openssh": lambda: bench.seconds(sys.executable, "sftp", number, THREADS, transport="openssh"),
    }
    took: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, measure in ways.items():
            took[way].append(measure() or float("inf"))
    limit = statistics.median(took.pop("sftp of OpenSSH"))
    for way, seconds in took.items():
        yield Figure(
            f"sftp, {way}: {what}", statistics.median(seconds), "s", more=False,
            limit=limit, limit_of="sftp of OpenSSH",
        )  # fmt: skip


def _delay(testbed: Testbed, bench: MoverBench, delay: float) -> None:
    """Make the benchmark connect by a relay with a delay."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.lines", str(port), str(bench.ssh_port), str(delay)]
    relay = subprocess.Popen([*end_with_parent(), *command])
    testbed.call_at_end(relay.wait)
    testbed.call_at_end(relay.kill)  # first: the calls are made in reverse order
    until(lambda: answers(port), 20, "the relay listens")
    bench.use_port(port)


class _Direction:
    """Passes bytes from one socket to another, each ``delay`` seconds after its arrival."""

    def __init__(self, source: socket.socket, target: socket.socket, delay: float) -> None:
        self._source, self._target, self._delay = source, target, delay
        self._waiting: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
        for one in (self._read, self._write):
            threading.Thread(target=one, daemon=True).start()

    def _read(self) -> None:
        data = b"first"
        while data:
            try:
                data = self._source.recv(BLOCK)
            except OSError:
                data = b""
            self._waiting.put((time.monotonic() + self._delay, data))

    def _write(self) -> None:
        with suppress(OSError):
            while True:
                due, data = self._waiting.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    self._target.shutdown(socket.SHUT_WR)
                    return
                self._target.sendall(data)


def main() -> None:
    """Relay connections to a port of this host: ``PORT TARGET SECONDS``."""
    port, target, delay = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    with socket.create_server((HOST, port)) as listener:
        while True:
            ends = [listener.accept()[0], socket.create_connection((HOST, target))]
            for end in ends:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Direction(ends[0], ends[1], delay)
            _Direction(ends[1], ends[0], delay)


if __name__ == "__main__":
    main()
