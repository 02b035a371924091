"""Subscribers that cannot request missed messages get them after an interruption."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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
@pytest.mark.parametrize("script", [PLAIN, POSTTROLL, OURS], ids=["plain", "posttroll", "ours"])
def test_stopped_subscriber(tmp_path: Path, publisher: Publisher, script: str) -> None:
    """A subscriber that is stopped for longer than a connection timeout gets every message, once and in order."""
    output = tmp_path / "topics"
    command = [*end_with_parent(), sys.executable, "-c", script, f"tcp://127.0.0.1:{publisher.port}"]
    with output.open("w") as out, subprocess.Popen(command, stdout=out) as process:

        def connected() -> bool:
            publisher.send(Message("/first", "file", {}))
            time.sleep(0.05)
            return "/first" in output.read_text()

        until(connected, 20, "a subscriber")
        process.send_signal(signal.SIGSTOP)
        expected = [f"pytroll://{number}" for number in range(COUNT)]
        for number in range(COUNT):
            publisher.send(Message(f"/{number}", "file", {"x": "x" * SIZE}))
        time.sleep(sockets.HEARTBEAT_TIMEOUT / 1000 + 5)  # no event shows that a connection is kept
        process.send_signal(signal.SIGCONT)
        until(lambda: expected[-1] in lines(output), 20, "the last message")
        assert lines(output) == expected
        process.kill()


def test_queue_is_bounded_in_bytes(publisher: Publisher) -> None:
    """With large messages fewer are queued, with small ones again more."""
    for size in (1_000_000, 100):
        publisher.send_encoded(["x" * size] * 100)
    assert publisher._queue_limit < sockets.HIGH_WATER_MARK / 50
    publisher.send_encoded(["x" * 100] * 10_000)
    assert publisher._queue_limit > sockets.HIGH_WATER_MARK / 2
