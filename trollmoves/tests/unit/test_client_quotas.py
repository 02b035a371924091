"""Tests that one sender takes no more than its share: of connections, of requests that wait, of pushes that wait."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import zmq

from trollmoves.journal import BACKLOG, FRESH
from trollmoves.messaging import fair_queue
from trollmoves.messaging.fair_queue import FairQueue
from trollmoves.messaging.messages import Message
from trollmoves.messaging.replier import Replier, Request
from trollmoves.messaging.security import connection_monitor
from trollmoves.provider.client_quotas import FAIR_SHARE, MAX_PENDING, ClientQuotas
from trollmoves.tests.helpers.flooding import peer
from trollmoves.tests.helpers.waiting import until

HERE = "127.0.0.1"
OTHER = "127.0.0.2"
DESCRIPTORS = 1_024
OURS = 100  # descriptors that a test has besides its connections


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close at the end whatever was opened."""
    with ExitStack() as stack:
        yield stack


def allow_descriptors(stack: ExitStack, count: int) -> None:
    """Limit this process to ``count`` file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"a process may have only {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))


def pong(requests: list[Request]) -> None:
    """Answer pings."""
    for request in requests:
        request.reply("pong")


class Honest:
    """A client that asks whether the server is there."""

    def __init__(self, stack: ExitStack, port: int) -> None:
        context = stack.enter_context(zmq.Context())
        self._line = stack.enter_context(context.socket(zmq.REQ))
        self._line.setsockopt(zmq.LINGER, 0)
        self._line.connect(f"tcp://{HERE}:{port}")

    def is_served(self) -> bool:
        """Return True if a ping gets a reply."""
        self._line.send_string(Message("/ping", "ping").encode())
        return bool(self._line.poll(30_000)) and Message.decode(self._line.recv()).type == "pong"


def was_cut(line: socket.socket) -> bool:
    """Return True if the other side has closed a connection."""
    line.setblocking(False)
    try:
        while line.recv(1_000):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize(
    ("descriptors", "most"),
    [
        (DESCRIPTORS, DESCRIPTORS // connection_monitor.FD_DIVISOR - 1),  # the honest one has one
        (
            connection_monitor.FD_DIVISOR * (connection_monitor.MAX_PER_ADDRESS + OURS),
            connection_monitor.MAX_PER_ADDRESS,
        ),
    ],
    ids=["descriptors", "address"],
)
def test_a_connection_too_many_is_cut(
    stack: ExitStack, descriptors: int, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection that is one too many is cut, those that are there stay, and who leaves makes room."""
    allow_descriptors(stack, descriptors)
    replier = Replier("chain", 0, pong, bind_address=HERE)
    stack.callback(replier.stop)
    replier.start()
    honest = Honest(stack, replier.port)
    assert honest.is_served()
    # With a handshake: connections without one are closed after 10 s, which is short on a busy machine.
    lines = [stack.enter_context(peer(replier.port, b"DEALER")) for _ in range(most)]
    until(lambda: is_surplus(replier.port), 30, "a late one is cut")
    until(lambda: f"closed a connection from {OTHER}" in caplog.text, what="it is logged")
    assert not any(map(was_cut, lines[-OURS:]))
    assert honest.is_served()
    for line in lines:
        line.close()
    until(lambda: not is_surplus(replier.port), 30, "there is room again")


def is_surplus(port: int) -> bool:
    """Return True if a new connection from the other address is closed before its greeting."""
    try:
        with socket.create_connection((HERE, port), 30, (OTHER, 0)) as line:
            line.settimeout(1.0)
            while line.recv(1_000):
                pass
    except TimeoutError:
        return False
    except ConnectionError:  # maybe while it connects
        pass
    return True


def test_sender_over_quota_waits() -> None:
    """A few requests of a sender over quota are read per interval, and all requests of the others immediately."""
    box = FairQueue()
    for _ in range(fair_queue.MAX_QUEUED):
        assert box.has_room("loud")
        box.put("loud", [b"ping"])
    assert not box.has_room("loud")
    assert box.has_room("quiet")
    assert [name for name, _ in box.take(100)] == ["loud"] * fair_queue.THROTTLED_BATCH
    for _ in range(50):
        box.put("quiet", [b"ping"])
    until(
        lambda: (accepted := box.take(100)) and {name for name, _ in accepted} == {"quiet"},
        5,
        "the quiet one is served",
    )
    assert box.only_throttled_pending()


def test_slow_requests_of_a_throttled_sender() -> None:
    """A batch of a throttled sender that took long is followed by a longer pause."""
    box = FairQueue()
    for _ in range(fair_queue.MAX_QUEUED):
        box.put("loud", [b"info"])
    assert not box.has_room("loud")
    assert len(box.take(100)) == fair_queue.THROTTLED_BATCH
    box.took(3600)
    assert box._next_throttled_batch > time.monotonic() + 3600
    box.put("quiet", [b"ping"])
    assert [name for name, _ in box.take(100)] == ["quiet"]
    pause_end = box._next_throttled_batch
    box.took(7200)
    assert box._next_throttled_batch == pause_end


def test_large_requests_count_by_their_bytes() -> None:
    """The waiting bytes of a sender are limited."""
    box = FairQueue()
    count = 0
    while box.has_room("large"):
        box.put("large", [bytes(fair_queue.MAX_QUEUED_BYTES // 4)])
        count += 1
    assert count == 5
    assert box.has_room("small")


def test_many_pushes_of_one_sender() -> None:
    """Above some number the pushes of a sender come after those of others, later they are rejected."""
    shares = ClientQuotas()
    for task in range(MAX_PENDING):
        assert not shares.is_full("greedy")
        assert shares.rank("greedy") == (FRESH if task < FAIR_SHARE else BACKLOG)
        shares.add(task, "greedy")
    assert shares.is_full("greedy")
    assert not shares.is_full("modest")
    assert shares.rank("modest") == FRESH


def test_a_push_counts_once() -> None:
    """A push that is asked for again, or ends twice, counts once; those of an earlier process do not count."""
    shares = ClientQuotas()
    for task in [*range(MAX_PENDING), *range(MAX_PENDING)]:
        shares.add(task, "greedy")
    shares.remove([0, 0, MAX_PENDING + 1])
    assert not shares.is_full("greedy")
    shares.add(0, "greedy")
    assert shares.is_full("greedy")
    shares.remove(range(MAX_PENDING))
    assert shares.rank("greedy") == FRESH
