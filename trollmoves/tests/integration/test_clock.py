"""Clocks that are set while daemons run, or while they do not: nothing is lost, and nothing waits for ever."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from trollmoves.journal import open_journal
from trollmoves.journal.clock import MonotonicWallClock
from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.helpers.wall_clock import HOUR, YEAR, WallClock


@pytest.fixture
def testbed(tmp_path: Path) -> Iterator[Testbed]:
    """A site."""
    with Testbed(tmp_path) as testbed:
        yield testbed


@pytest.fixture
def clock(testbed: Testbed) -> WallClock:
    """A clock that can be set."""
    return WallClock(testbed.directory("clock"))


def once(pair: ServerClientPair) -> bool:
    """Return True if no file has two receipts."""
    return set(Counter(pair.received.receipts()).values()) == {1}


@pytest.mark.parametrize("jump", [-YEAR, -HOUR, HOUR, 10 * YEAR])
def test_set_while_a_task_waits(testbed: Testbed, clock: WallClock, jump: int) -> None:
    """However the clock is set, a task that is due in seconds runs in seconds, and the same files are not had again."""
    pair = ServerClientPair(testbed, {"delete": "True", "remove_delay": 5}, processing_delay=3, retry_for=600)
    clock.of(pair.server, pair.client)
    pair.start()
    pair.feeder.feed(10)
    pair.announced.wait_for(10, "file")
    clock.set(jump)  # the fetches are noted, and due in three seconds
    pair.feeder.feed(10)
    pair.wait_until_done()
    until(lambda: not list(pair.feeder.folder.iterdir()))
    assert once(pair)


@pytest.mark.parametrize("jump", [-YEAR, HOUR])
def test_set_while_nothing_runs(testbed: Testbed, clock: WallClock, jump: int) -> None:
    """A server and a client that find another time at their start go on where they were, and repeat nothing."""
    pair = ServerClientPair(testbed, processing_delay=3)
    clock.of(pair.server, pair.client)
    pair.start()
    pair.feeder.feed(10)
    pair.wait_until_done()
    pair.feeder.feed(10)
    pair.announced.wait_for(20, "file")
    assert pair.client.terminate() == 0
    assert pair.server.terminate() == 0
    clock.set(jump)
    pair.start()
    pair.feeder.feed(10)
    pair.wait_until_done()
    assert once(pair)


def test_retry_after_clock_is_set_back(testbed: Testbed, clock: WallClock) -> None:
    """A server is requested again within the usual time although the clock went back by an hour."""
    pair = ServerClientPair(testbed, transfer_req_timeout=1, processing_delay=2)
    clock.of(pair.client)
    pair.start()
    pair.feeder.feed(3)
    pair.announced.wait_for(3, "file")
    pair.server.kill()
    pair.client.wait_for_line("not delivered")
    clock.set(-HOUR)
    pair.server.start()
    pair.wait_until_done()
    assert once(pair)


def test_a_steady_clock() -> None:
    """It begins at the wall clock's time, or at a later one that is known, and goes on from there."""
    assert MonotonicWallClock().now() == pytest.approx(time.time(), abs=5)
    future = time.time() + YEAR
    clock = MonotonicWallClock(at_least=future)
    readings = [clock.now() for _ in range(1000)]
    assert readings == sorted(readings)
    assert 0 <= readings[0] - future < 5


CHILD = """
import os, sys
from trollmoves.journal import open_journal, Journal, Task
journal = open_journal(sys.argv[1])
journal.add_tasks([Task("chain", "kind", "key", "lane", "", due=journal.now() + 60)])
if sys.argv[2] == "closed":
    journal.close()
os._exit(0)
"""


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_journal_limits_due_times(testbed: Testbed, clock: WallClock, end: str) -> None:
    """A task due in a minute is due within one after a restart with the clock set back by a year."""
    clock.set(YEAR)
    path = str(testbed.root / "a.journal")
    subprocess.run([sys.executable, "-c", CHILD, path, end], env=clock.environment(testbed.environment), check=True)
    journal = open_journal(path)
    testbed.call_at_end(journal.close)
    (task,) = journal.claim("chain", "lane", 1, time.time() + 2 * YEAR)
    assert 0 < task.due - journal.now() < 61
