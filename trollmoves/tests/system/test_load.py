"""Memory, descriptors and journal stay flat under any load, and starts are quick.

``TROLLMOVES_LOAD`` multiplies the numbers: 1 in CI, 200 for a million announcements.
"""

from __future__ import annotations

import os
import resource
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import Process, ServerClientPair, Testbed
from trollmoves.tests.helpers.feeding import names
from trollmoves.tests.helpers.waiting import until

SCALE = float(os.environ.get("TROLLMOVES_LOAD", "1"))
PASSED = int(5_000 * SCALE)
BACKLOG = int(10_000 * min(SCALE, 10.0))
MOST_OPEN = 300  # descriptors: about 35, plus kept connections

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 * max(1.0, SCALE))]


def memory(process: Process) -> float:
    """Return the MB that a process has in memory."""
    assert process.popen is not None
    return memory_of(process.popen.pid)


def memory_of(pid: int | str) -> float:
    """Return the MB that the process with an id has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def descriptors(process: Process) -> int:
    """Count the open descriptors of a process."""
    assert process.popen is not None
    return len(os.listdir(f"/proc/{process.popen.pid}/fd"))


def journal_size(testbed: Testbed, role: str) -> float:
    """Return the size of a daemon's journal in MB."""
    return sum(path.stat().st_size for path in (testbed.root / "state" / "trollmoves").glob(f"{role}-*.journal*")) / 1e6


def count_of(folder: Path) -> int:
    """Count the files in a folder."""
    with os.scandir(folder) as entries:
        return sum(not entry.name.startswith(".") for entry in entries)


def test_load_leaves_no_growth(tmp_path: Path) -> None:
    """While files pass through server and client, the memory of both stays flat, with few descriptors."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed).start()
        marks = []
        batch = PASSED // 10
        wanted = names()
        started = time.monotonic()
        for turn in range(10):
            fed = [next(wanted) for _ in range(batch)]
            for name in fed:
                (pair.feeder.folder / f".{name}").write_bytes(b"x" * 100)
                (pair.feeder.folder / f".{name}").rename(pair.feeder.folder / name)
            until(lambda: count_of(pair.target) == batch, 120, f"batch {turn} of {batch} files")
            until(lambda: not count_waiting(pair), 20)
            for name in fed:
                (pair.target / name).unlink()
                (pair.feeder.folder / name).unlink()
            both = (pair.server, pair.client)
            marks.append(
                [f(p) for p in both for f in (memory, descriptors)]
                + [journal_size(testbed, r) for r in ("server", "client")]
            )
        seconds = time.monotonic() - started
        table = "\n".join("  ".join(f"{value:7.1f}" for value in mark) for mark in marks)
        report = f"{PASSED} files in {seconds:.0f} s; MB, descriptors of server, client; MB of journals\n{table}\n"
        (testbed.logs / "figures").write_text(report)
        sys.stdout.write(f"\n{report}")
        first, last = marks[0], marks[-1]
        for n in (0, 2):
            assert last[n] < first[n] + 40
            assert last[n] < 150
            assert last[n + 1] < MOST_OPEN
        assert last[4] * 1e6 < 4000 * PASSED + 30e6
        assert last[5] * 1e6 < 3000 * PASSED + 30e6


def count_waiting(pair: ServerClientPair) -> bool:
    """Return True if a client still publishes receipts."""
    lines = pair.client.lines().count("received")
    time.sleep(0.2)
    return pair.client.lines().count("received") != lines


def test_start_with_a_full_directory_and_a_full_journal(tmp_path: Path) -> None:
    """With very many files and as many stored announcements, a server soon replies, with little memory."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed)
        wanted = names()
        for _ in range(BACKLOG):
            (pair.feeder.folder / next(wanted)).write_bytes(b"x" * 100)
        started = time.monotonic()
        pair.server.start()
        up = time.monotonic() - started
        (path,) = (testbed.root / "state" / "trollmoves").glob("server-*.journal")
        until(lambda: announced(path) == BACKLOG, 300)
        every = time.monotonic() - started
        first = memory(pair.server)
        assert pair.server.terminate(60) == 0
        again = time.monotonic()
        pair.server.start()
        up_again = time.monotonic() - again
        sys.stdout.write(
            f"\n{BACKLOG} files: runs after {up:.1f} s, all announced after {every:.1f} s, {first:.0f} MB; "
            f"again after {up_again:.1f} s, {memory(pair.server):.0f} MB, "
            f"journal {journal_size(testbed, 'server'):.0f} MB"
        )
        assert first < 250
        assert descriptors(pair.server) < MOST_OPEN


def announced(path: Path) -> int:
    """Return the number of announcements in a journal that a daemon has open."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        found = db.execute("SELECT max(number) FROM announcements").fetchone()[0]
    db.close()
    return int(found or 0)
