"""Whatever one host sends, and however much of it, the clients of others are served."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trollmoves.tests.daemons import Pair, Site
from trollmoves.tests.flooding import FLOODER, HALF_OPEN, KINDS
from trollmoves.tests.hearing import Line
from trollmoves.tests.waiting import until

SAMPLES = 25
TIMES_SLOWER = 5.0  # with room for a busy machine
USUAL = 0.3  # s; below this nobody is held up
MEMORY = 500  # MB

pytestmark = [pytest.mark.alone, pytest.mark.slow]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A server and a client that have had a file."""
    with Site(tmp_path) as site:
        pair = Pair(site).start()
        pair.feeder.feed(1)
        pair.wait_until_done()
        yield pair


def latencies(pair: Pair) -> tuple[float, float]:
    """Give the medians of the seconds in which a ping is answered, and a file is there and told of."""
    pings, files = [], []
    with Line(pair.request_port) as line:
        line.ping()
        for _ in range(SAMPLES):
            asked = time.monotonic()
            assert line.ping() == "pong"
            pings.append(time.monotonic() - asked)
            fed = time.monotonic()
            names = pair.feeder.feed(1)
            pair.received.wait_for_receipts(names, 20)
            files.append(time.monotonic() - fed)
    return statistics.median(pings), statistics.median(files)


@contextmanager
def flood(kind: str, port: int) -> Iterator[None]:
    """Flood a port meanwhile."""
    command = [sys.executable, "-m", "trollmoves.tests.flooding", kind, str(port)]
    flooding = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield
        assert flooding.poll() is None, "it floods to the end"
    finally:
        flooding.kill()
        flooding.wait()


def memory(pair: Pair) -> float:
    """Give the MB that the server has in memory."""
    assert pair.server.popen
    with open(f"/proc/{pair.server.popen.pid}/statm") as stream:
        return int(stream.read().split()[1]) * 4096 / 1e6


SAYS = {
    "pings": f"requests of {FLOODER} refused: too many of them wait",
    "many_pings": f"requests of {FLOODER} refused: too many of them wait",
    "infos": f"requests of {FLOODER} refused: too many of them wait",
    "pushes": f"requests of {FLOODER} refused: too many of them wait",
    "nonsense": "request refused",
    "large": f"the connection from {FLOODER} was cut: it sent a message of more than 16.8 MB",
    "half_open": f"{FLOODER} did not get in: it did not go on",
    "garbage": f"{FLOODER} did not get in",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_does_not_hold_up_others(kind: str, pair: Pair) -> None:
    """Others are served while one host floods a server, which says so in a few lines and keeps its memory small."""
    before = latencies(pair)
    pair.server.mark()
    with flood(kind, pair.request_port):
        time.sleep(2.0 if kind != "half_open" else 0)
        if kind == "half_open":
            until(lambda: connections(pair.request_port) > HALF_OPEN * 0.9, 60, "they are connected")
        during = latencies(pair)
        for what, usual, now in zip(("ping", "file"), before, during, strict=True):
            print(f"{kind}: {what} {usual * 1000:.1f} ms, in the flood {now * 1000:.1f} ms, {now / usual:.1f} times")  # noqa: T201
        until(lambda: SAYS[kind] in pair.server.lines(), 30, f"{SAYS[kind]!r} in\n{pair.server.lines()[-2000:]}")
    assert memory(pair) < MEMORY
    said = [line for line in pair.server.lines().splitlines() if "INFO" not in line]
    assert len(said) < 100, said
    for usual, now in zip(before, during, strict=True):
        assert now < max(TIMES_SLOWER * usual, USUAL)


def connections(port: int) -> int:
    """Count the established connections to a port."""
    with open("/proc/net/tcp") as stream:
        rows = [line.split() for line in stream.readlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)
