"""Kills, stops and outages of daemons under load: nothing is lost."""

from __future__ import annotations

import bz2
import random
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from trollmoves.tests.helpers.daemons import Process, ServerClientPair, Testbed
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.waiting import until

BURST = 1000
BACKLOG = 300  # of which many are requested concurrently
ROUNDS = 3
ASK_AGAIN = 1  # s after which a client repeats a request to a killed server


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[ServerClientPair]:
    """A server and a running client."""
    with Testbed(tmp_path) as testbed:
        yield ServerClientPair(testbed, transfer_req_timeout=ASK_AGAIN).start()


def kill_in_the_middle(pair: ServerClientPair, victim: Process) -> None:
    """Feed bursts; at a random moment of each, kill the victim and start it again."""
    for _ in range(ROUNDS):
        before = len(set(pair.received.receipts()))
        pair.feeder.feed(BURST)
        moment = before + random.randrange(BURST)
        until(lambda moment=moment: len(set(pair.received.receipts())) >= moment)  # type: ignore[misc]
        victim.kill()
        victim.start()
    pair.wait_until_done(60)


def test_server_is_killed(pair: ServerClientPair) -> None:
    """After a server was killed in a burst, every file is complete and published."""
    kill_in_the_middle(pair, pair.server)


def test_client_is_killed(pair: ServerClientPair) -> None:
    """After a client was killed in a burst, every file is complete and published."""
    kill_in_the_middle(pair, pair.client)


def test_server_is_killed_while_files_appear(pair: ServerClientPair) -> None:
    """Files that appear while their server is down are announced and delivered after its restart."""
    pair.feeder.feed(200)
    pair.server.kill()
    pair.feeder.feed(200)
    pair.server.start(wait=False)
    pair.feeder.feed(200)
    pair.wait_until_done()


def test_both_are_killed(pair: ServerClientPair) -> None:
    """After both were killed in a burst, every file is complete and published."""
    pair.feeder.feed(BURST)
    pair.received.wait_for(random.randrange(1, BURST), "file")
    pair.client.kill()
    pair.server.kill()
    pair.client.start(wait=False)
    pair.server.start(wait=False)
    pair.wait_until_done(60)


@pytest.mark.parametrize("which", ["server", "client"])
def test_stopped_in_a_burst(pair: ServerClientPair, which: str) -> None:
    """SIGTERM in a burst ends a daemon in time with status 0, and the rest is done after the restart."""
    process: Process = getattr(pair, which)
    pair.feeder.feed(BURST)
    pair.received.wait_for(random.randrange(1, BURST // 2), "file")
    assert process.terminate(10) == 0  # stop_timeout
    assert "Traceback" not in process.lines()
    process.start()
    pair.wait_until_done(60)


@pytest.mark.parametrize("options", [{}, {"compression": "bzip"}], ids=["plain", "unpacking"])
def test_idle_client_is_killed(testbed: Testbed, options: dict[str, Any]) -> None:
    """A client that was idle for a moment before its kill publishes none of its receipts again."""
    pair = ServerClientPair(testbed, **options)
    pair.server_sections["hrit"]["origin"] = f"{pair.feeder.folder}/{{name}}"
    pair.server.reconfigure(pair.server_sections)
    pair.start()
    if options:
        (pair.feeder.folder / "H-packed.bz2").write_bytes(bz2.compress(b"segment"))
        pair.received.wait_for(1, "file")
    pair.feeder.feed(5)
    pair.received.wait_for_receipts(list(pair.feeder.fed)[-5:])
    before = len(pair.received.of_type("file"))
    testbed.wait_until_outlived("client")
    pair.client.kill()
    pair.client.start()
    (last,) = pair.feeder.feed()
    pair.received.wait_for_receipts([last])
    assert len(pair.received.of_type("file")) == before + 1


def test_client_was_down(pair: ServerClientPair) -> None:
    """A client that was down fetches all missed files, without waiting for a further announcement."""
    pair.feeder.feed(10)
    pair.wait_until_done()
    assert pair.client.terminate() == 0
    pair.feeder.feed(300)
    pair.announced.wait_for(310, "file")
    pair.client.start()
    pair.wait_until_done()
    assert pair.received.receipts().count(next(iter(pair.feeder.fed))) == 1


def test_new_file_does_not_wait_behind_the_backlog(testbed: Testbed) -> None:
    """While a client catches up, a file that is announced now is not the last to arrive."""
    place = RemoteDirectory(testbed, "ftp", testbed.directory("out"))
    pair = ServerClientPair(testbed, destination=place.url).start()
    pair.feeder.feed()
    pair.wait_until_done()
    assert pair.client.terminate() == 0
    pair.feeder.feed(BACKLOG)
    pair.announced.wait_for(1 + BACKLOG, "file")
    place.proxy.stall_after(0)
    pair.client.start()
    until(lambda: testbed.pending_tasks("fetch") == BACKLOG, what="it has caught up, and all of it waits")
    (newest,) = pair.feeder.feed()
    until(lambda: testbed.pending_tasks("fetch") == BACKLOG + 1, what="so does the newest file")
    place.proxy.heal()
    pair.wait_until_done(60)
    order = list(dict.fromkeys(pair.received.receipts()))
    assert order.index(newest) < len(order) - BACKLOG // 3


@pytest.mark.parametrize("role", ["server", "client"])
def test_memory_runs_out(pair: ServerClientPair, role: str) -> None:
    """A daemon that gets no memory continues or ends; when it gets some, maybe after a restart, all files arrive."""
    pair.feeder.feed(5)
    pair.wait_until_done()
    process: Process = getattr(pair, role)
    assert process.popen is not None
    pid = process.popen.pid
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize(), hard))
    fed = pair.feeder.feed(BACKLOG)

    def is_short_of_memory() -> bool:
        text = process.log.read_text(errors="replace")
        return not process.is_running() or "MemoryError" in text or "start new thread" in text

    until(lambda: is_short_of_memory() or set(fed) <= set(pair.received.receipts()), what="memory has run out")
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))

    def has_arrived() -> bool:
        if not process.is_running():
            process.start()
        return set(fed) <= set(pair.received.receipts())

    until(has_arrived, 60, "all files arrive")
    assert pair.feeder.missing(pair.target) == []


def test_server_restarts_while_the_client_stays(pair: ServerClientPair) -> None:
    """A client continues with a restarted server, misses none of its announcements, and repeats none."""
    pair.feeder.feed(20)
    pair.wait_until_done()
    assert pair.server.terminate() == 0
    pair.feeder.feed(20)
    pair.server.start()
    pair.wait_until_done()
    receipts = pair.received.receipts()
    assert len(receipts) == len(set(receipts))


def test_server_loses_its_journal(pair: ServerClientPair, tmp_path: Path) -> None:
    """A server that lost its journal announces the existing files again, and new files arrive."""
    pair.feeder.feed(20)
    pair.wait_until_done()
    pair.server.kill()
    for file in (Path(pair.server.environment["XDG_STATE_HOME"]) / "trollmoves").glob("server-*"):
        file.unlink()
    pair.server.start()
    pair.feeder.feed(20)
    pair.wait_until_done()


def test_removals_are_lost_with_the_journal(testbed: Testbed) -> None:
    """A server that lost its journal with pending removals removes the delivered files, and sends none again."""
    pair = ServerClientPair(testbed, {"delete": True, "remove_delay": 600}).start()
    pair.feeder.feed(20)
    pair.wait_until_done()
    pair.server.kill()
    for file in (testbed.root / "state" / "trollmoves").glob("server-*"):
        file.unlink()
    pair.server_sections["hrit"]["remove_delay"] = 0.1
    pair.server.reconfigure(pair.server_sections)
    pair.server.start()
    until(lambda: not list(pair.feeder.folder.iterdir()), what="the delivered files are removed")
    assert sorted(pair.received.receipts()) == sorted(pair.feeder.fed)


def test_readers_see_complete_files_only(pair: ServerClientPair) -> None:
    """A reader of the target sees only complete files at any moment, also while the server is killed."""
    size = 3_000_000
    seen = 0
    for _ in range(2):
        pair.feeder.feed(10, size=size)
        deadline = time.monotonic() + random.uniform(0.0, 0.05)
        until(lambda: any(pair.target.iterdir()))
        while time.monotonic() < deadline:
            seen += sum(path.stat().st_size == size for path in pair.target.glob("H-*"))
            assert {path.stat().st_size for path in pair.target.glob("H-*")} <= {size}
        pair.server.kill()
        assert {path.stat().st_size for path in pair.target.glob("H-*")} <= {size}
        pair.server.start()
    pair.wait_until_done()
