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


@pytest.mark.slow
def test_stopped_subscriber(tmp_path: Path, publisher: Publisher) -> None:
    """Subscribers stopped for longer than the timeout of a connection get every message, once and in order."""
    address = f"tcp://127.0.0.1:{publisher.port}"
    outputs = [tmp_path / name for name in ("plain", "posttroll", "ours")]
    processes = []
    try:
        for script, output in zip((PLAIN, POSTTROLL, OURS), outputs, strict=True):
            with output.open("w") as out:
                command = [*end_with_parent(), sys.executable, "-c", script, address]
                processes.append(subprocess.Popen(command, stdout=out))

        def connected() -> bool:
            publisher.send(Message("/first", "file", {}))
            time.sleep(0.05)
            return all("/first" in output.read_text() for output in outputs)

        until(connected, 20, "three subscribers")
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        expected = [f"pytroll://{number}" for number in range(COUNT)]
        for number in range(COUNT // 2):
            publisher.send(Message(f"/{number}", "file", {"x": "x" * SIZE}))
        time.sleep(sockets.HEARTBEAT_TIMEOUT / 1000 + 5)  # a kept connection is no event
        for number in range(COUNT // 2, COUNT):
            publisher.send(Message(f"/{number}", "file", {"x": "x" * SIZE}))
        for process in processes:
            process.send_signal(signal.SIGCONT)
        for output in outputs:
            until(lambda output=output: expected[-1] in output.read_text().splitlines(), 20, output.name)  # type: ignore[misc]
            received = [line for line in output.read_text().splitlines() if line != "pytroll://first"]
            assert received == expected, output.name
    finally:
        for process in processes:
            process.kill()
            process.wait(10)


def test_queue_is_bounded_in_bytes(publisher: Publisher) -> None:
    """With large messages fewer are queued, with small ones again more."""
    for size in (1_000_000, 100):
        publisher.send_encoded(["x" * size] * 100)
    assert publisher._queue_limit < sockets.HIGH_WATER_MARK / 50
    publisher.send_encoded(["x" * 100] * 10_000)
    assert publisher._queue_limit > sockets.HIGH_WATER_MARK / 2
