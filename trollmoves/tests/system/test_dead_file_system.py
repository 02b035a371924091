"""A destination on which every call blocks costs its files only: they are held, and all others arrive."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from trollmoves.receiver import preparation
from trollmoves.receiver.preparation import Preparer
from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed, client_section
from trollmoves.tests.helpers.dead_mount import DeadMount
from trollmoves.tests.helpers.feeding import names
from trollmoves.tests.helpers.waiting import until


def test_other_chain_goes_on(testbed: Testbed) -> None:
    """A chain with a dead destination delays no other chain, and gets its files when the destination lives again."""
    pair = ServerClientPair(testbed)
    dead = testbed.directory("dead")
    sections = pair.client_sections | {"dead": client_section(pair.publish_port, dead, testbed.port())}
    pair.client.reconfigure(sections)
    mount = DeadMount(testbed, dead)
    pair.start()
    pair.feeder.feed(20)
    pair.wait_until_done()
    pair.client.wait_for_line(f"[dead] file://{dead}: no response")
    pair.feeder.feed(20)
    pair.wait_until_done()
    mount.heal()
    until(lambda: not pair.feeder.missing(dead), 30, "the held files")
    assert pair.client.lines().count("no response") == 1
    pair.client.wait_for_line(f"[dead] file://{dead}: responds again")


def test_other_directories_go_on(testbed: Testbed) -> None:
    """One dead directory of a chain delays only its files; a stop does not wait for it."""
    pair = ServerClientPair(testbed, destination=f"{testbed.root}/out/{{uid}}")
    first = next(names(0))
    dead = testbed.directory("out") / first
    dead.mkdir()
    DeadMount(testbed, dead)
    pair.start()
    pair.feeder.feed(20)
    alive = list(pair.feeder.fed)[1:]
    pair.received.wait_for_receipts(alive)
    assert first not in pair.received.receipts()
    assert pair.client.terminate(8) == 0


def test_blocked_call_is_not_repeated(tmp_path: Path) -> None:
    """While a call is blocked, none with its key is started, and no more than MAX_BLOCKED are blocked."""
    preparation.CALL_TIMEOUT, before = 0.2, preparation.CALL_TIMEOUT
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    started: list[str] = []
    results: list[str] = []
    preparer = Preparer("chain")

    def call(key: str) -> str:
        started.append(key)
        return fifo.read_text()  # blocks until there is a writer

    def run(key: str) -> None:
        preparer.run(key, lambda: call(key), results.append, lambda error: results.append(f"held {error}"))

    try:
        for key in ("a", "a", "a", *"bcdefg"):
            run(key)
        until(lambda: len(results) == 9, 20)
        assert results == ["held None"] * 9
        assert started == ["a", "b", "c", "d"]
        fifo_writer = threading.Thread(target=fifo.write_text, args=("done",), daemon=True)
        fifo_writer.start()
        fifo_writer.join(20)
        until(lambda: not any(thread.name == "prepare-chain" for thread in threading.enumerate()), 20)
        preparer.run("a", lambda: "again", results.append, lambda error: results.append(f"held {error}"))
        until(lambda: results[-1] == "again", 20)
        preparer.run("a", lambda: str(1 // 0), results.append, lambda error: results.append(f"failed {error}"))
        until(lambda: "failed" in results[-1], 20)
    finally:
        preparation.CALL_TIMEOUT = before
        preparer.stop()
    run("after the stop")
    assert results[-1] == "held None"


@pytest.mark.parametrize("count", [0, 1, 5])
def test_stop_does_not_wait_for_a_blocked_call(tmp_path: Path, count: int) -> None:
    """A stop fails all calls without a result."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    held: list[Exception | None] = []
    preparer = Preparer("chain")
    for _ in range(count):
        preparer.run("a", fifo.read_text, lambda _: None, held.append)
    preparer.stop()
    until(lambda: held == [None] * count, 2, timeout_factor=1)
