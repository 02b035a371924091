"""Subscribers that cannot request missed messages get them after an interruption."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from trollmoves.messaging import sockets
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.tests.helpers.daemons import end_with_parent
from trollmoves.tests.helpers.waiting import until

COUNT = 2000
SIZE = 2000

PLAIN = """
import sys, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.subscribe("")
socket.connect(sys.argv[1])
while True:
    print(socket.recv().split()[0].decode(), flush=True)
"""

POSTTROLL = """
import sys
from posttroll.subscriber import Subscriber
for message in Subscriber([sys.argv[1]], topics="").recv():
    print(f"pytroll:/{message.subject}", flush=True)
"""

OURS = """
import sys, time
from trollmoves.messaging.subscriber import PublisherEndpoint, Subscriber
def show(_, messages):
    for message in messages:
        print(f"pytroll:/{message.subject}", flush=True)
Subscriber("x", [PublisherEndpoint(sys.argv[1], ("",))], show, lasting=True).start()
time.sleep(3600)
"""


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    """Return a publisher of receipts or announcements."""
    one = Publisher("receipts", bind_address="127.0.0.1", nameservers=False)
    try:
        yield one
    finally:
        one.stop()


def lines(output: Path) -> list[str]:
    """Return the topics that a subscriber received, without the first ones."""
    return [line for line in output.read_text().splitlines() if line != "pytroll://first"]


@pytest.mark.slow
def test_stopped_subscribers(tmp_path: Path, publisher: Publisher) -> None:
    """Subscribers that are stopped for longer than a connection timeout get every message, once and in order."""
    outputs = [tmp_path / name for name in ("plain", "posttroll", "ours")]
    with ExitStack() as stack:
        processes = []
        for script, output in zip((PLAIN, POSTTROLL, OURS), outputs, strict=True):
            command = [*end_with_parent(), sys.executable, "-c", script, f"tcp://127.0.0.1:{publisher.port}"]
            out = stack.enter_context(output.open("w"))
            processes.append(stack.enter_context(subprocess.Popen(command, stdout=out)))
            stack.callback(processes[-1].kill)

        def connected() -> bool:
            publisher.send(Message("/first", "file", {}))
            time.sleep(0.05)
            return all("/first" in output.read_text() for output in outputs)

        until(connected, 20, "all subscribers")
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        expected = [f"pytroll://{number}" for number in range(COUNT)]
        for number in range(COUNT):
            publisher.send(Message(f"/{number}", "file", {"x": "x" * SIZE}))
        time.sleep(sockets.HEARTBEAT_TIMEOUT / 1000 + 5)  # no event shows that a connection is kept
        for process in processes:
            process.send_signal(signal.SIGCONT)
        for output in outputs:
            until(lambda output=output: expected[-1] in lines(output), 20, f"the last message in {output.name}")  # type: ignore[misc]
            assert lines(output) == expected


def test_queue_is_bounded_in_bytes(publisher: Publisher) -> None:
    """With large messages fewer are queued, with small ones again more."""
    for size in (1_000_000, 100):
        publisher.send_encoded(["x" * size] * 100)
    assert publisher._queue_limit < sockets.HIGH_WATER_MARK / 50
    publisher.send_encoded(["x" * 100] * 10_000)
    assert publisher._queue_limit > sockets.HIGH_WATER_MARK / 2
