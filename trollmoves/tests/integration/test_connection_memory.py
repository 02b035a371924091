"""The memory that a peer can occupy in a listening socket is bounded in bytes: real sockets, raw ZMTP peers."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import pytest
import zmq

from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import MAX_SUBSCRIPTION_BYTES, MEMORY_LIMITS, Publisher
from trollmoves.messaging.replier import MAX_REQUEST_BYTES, MAX_VALUES, Replier, Request
from trollmoves.messaging.security import connection_monitor
from trollmoves.messaging.security.connection_memory import HANDSHAKE_BYTES
from trollmoves.messaging.security.connection_monitor import MAX_STRIKES, ConnectionMonitor
from trollmoves.messaging.security.lingering import LingeringConnections
from trollmoves.tests.helpers.flooding import FLOODER, greet, peer
from trollmoves.tests.helpers.waiting import until

HOST = "127.0.0.1"
MB = 1 << 20


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    """A publisher."""
    one = Publisher("memory", bind_address=HOST, nameservers=False)
    one.start()
    yield one
    one.stop()


def answer(requests: list[Request]) -> None:
    """Reply 1 MB to each ping."""
    for request in requests:
        request.reply("pong", "x" * MB if request.message.type == "ping" else "")


@pytest.fixture
def replier() -> Iterator[Replier]:
    """A replier that replies 1 MB to each ping."""
    one = Replier("memory", 0, answer, bind_address=HOST)
    one.start()
    yield one
    one.stop()


def sent_until_closed(line: socket.socket, block: bytes, most: int, pause: float = 0.0) -> int:
    """Send a block repeatedly, with a pause after each, until the connection is closed; return the number of bytes."""
    sent = 0
    with suppress(OSError):
        while sent < most:
            line.sendall(block)
            sent += len(block)
            if pause:
                time.sleep(pause)
    return sent


def test_short_connections(replier: Replier, caplog: pytest.LogCaptureFixture) -> None:
    """Each of many short connections, of which the descriptors are used again, gets its reply."""
    for _ in range(300):
        with zmq.Context() as context, context.socket(zmq.REQ) as asking:
            asking.setsockopt(zmq.LINGER, 0)
            asking.connect(f"tcp://{HOST}:{replier.port}")
            asking.send_string(Message("/x", "ping").encode())
            assert asking.poll(20_000), "no reply"
            asking.recv()
    assert "closed the connection" not in caplog.text


@pytest.mark.parametrize("size", [1, 1 << 16])
def test_unfinished_message(publisher: Publisher, replier: Replier, size: int) -> None:
    """A message of many frames is cut off, however small they are, and others are served."""
    frame = b"\x03" + struct.pack(">Q", size) + bytes(size)
    block = frame * max(1, 100_000 // len(frame))
    for port, kind in ((replier.port, b"DEALER"), (publisher.port, b"SUB")):
        with closing(peer(port, kind)) as line:
            assert sent_until_closed(line, block, 400 * MB) < 200 * MB
    with zmq.Context() as context, context.socket(zmq.REQ) as asking:
        asking.setsockopt(zmq.LINGER, 0)
        asking.connect(f"tcp://{HOST}:{replier.port}")
        asking.send_string(Message("/a", "ping").encode())
        assert asking.poll(20_000)


def test_frame_by_frame(replier: Replier) -> None:
    """A message of frames that arrive one by one, each in a buffer of 8 kB, is cut off early."""
    with closing(peer(replier.port, b"DEALER")) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Slowly: the bytes that arrive before the next check count, too.
        assert sent_until_closed(line, b"\x01\x22" + bytes(34), 2 * MB, 0.0001) < 2 * MB


def test_message_of_many_frames(replier: Replier, caplog: pytest.LogCaptureFixture) -> None:
    """The connection of a complete message of many frames is closed, and its address may have few unread bytes."""
    unfinished = b"\x01\x00" * HANDSHAKE_BYTES
    with closing(peer(replier.port, b"DEALER")) as line, closing(peer(replier.port, b"DEALER")) as other:
        other.sendall(unfinished)
        until(lambda: not is_closed(other), what="it is not closed")
        line.sendall(b"\x01\x00" * 100 + b"\x00\x00")
        until(lambda: is_closed(line), 20, "it is closed")
        until(lambda: is_closed(other), 20, "the other one, too")
    assert "its message has too many frames" in caplog.text


def test_closed_connections(caplog: pytest.LogCaptureFixture) -> None:
    """While the requests of closed connections wait to be read, an address cannot open connections with more."""
    reading = threading.Event()
    busy = threading.Event()

    def wait(_: list[Request]) -> None:
        busy.set()
        reading.wait(60)

    replier = Replier("memory", 0, wait, bind_address=HOST)
    replier.start()
    request = Message("/a", "ping", "x" * MB).encode().encode()
    frame = b"\x01\x00\x02" + struct.pack(">Q", len(request)) + request
    with ExitStack() as stack:
        stack.callback(replier.stop)
        stack.callback(reading.set)
        with closing(peer(replier.port, b"DEALER")) as line:
            line.sendall(frame)
            assert busy.wait(20)

        def is_refused() -> bool:
            """Send a request over a new connection, and close it."""
            with suppress(OSError), closing(peer(replier.port, b"DEALER")) as line:
                line.sendall(frame)
                line.shutdown(socket.SHUT_WR)
                while line.recv(100):
                    pass
            return "messages of its earlier ones are not read yet" in caplog.text

        def can_connect() -> bool:
            with suppress(OSError), closing(peer(replier.port, b"DEALER")):
                return True
            return False

        until(is_refused, 30, "a connection is refused")
        reading.set()
        until(lambda: not replier._monitor._left, 30, "all requests have been read")
        until(can_connect, 30, "its address can connect")


def is_served(replier: Replier, address: str) -> bool:
    """Return True if a request from an address gets a reply."""
    with zmq.Context() as context, context.socket(zmq.REQ) as asking:
        asking.setsockopt(zmq.LINGER, 0)
        asking.connect(f"tcp://{address}:0;{HOST}:{replier.port}")
        asking.send_string(Message("/a", "question").encode())
        return bool(asking.poll(20_000))


def can_connect(port: int, address: str) -> bool:
    """Return True unless the kernel drops the connection requests of an address."""
    try:
        socket.create_connection((HOST, port), 0.5, (address, 0)).close()
    except TimeoutError:
        return False
    except OSError:  # closed while it connects
        pass
    return True


def asks(line: socket.socket) -> bool:
    """Return True if a request over a connection gets a reply."""
    request = Message("/a", "question").encode().encode()
    line.sendall(b"\x01\x00\x00" + bytes([len(request)]) + request)
    received = b""
    while b" pong " not in received and (block := line.recv(1000)):
        received += block
    return b" pong " in received


def test_address_of_a_closed_connection(replier: Replier) -> None:
    """After a connection with too many bytes, its address cannot connect for a while.

    Its established connections and other addresses are served.
    """

    def is_refused() -> bool:
        with suppress(OSError), closing(peer(replier.port, b"DEALER")) as line:
            sent_until_closed(line, b"\x01\x00" * 50_000, 400 * MB)
        return not can_connect(replier.port, FLOODER)

    with closing(peer(replier.port, b"DEALER")) as established:
        until(is_refused, 60, "a connection is refused")
        assert asks(established)
    assert is_served(replier, HOST)
    assert is_served(replier, FLOODER)


def test_address_of_failed_handshakes(replier: Replier, publisher: Publisher) -> None:
    """After many connections without a handshake, their address cannot connect to the port for a while."""

    def is_refused() -> bool:
        lines = []
        with ExitStack() as stack:
            for _ in range(MAX_STRIKES):
                if not can_connect(replier.port, FLOODER):
                    return True
                lines.append(stack.enter_context(socket.create_connection((HOST, replier.port), 20, (FLOODER, 0))))
            for line in lines:
                with suppress(OSError):
                    line.sendall(b"GET / HTTP/1.1\r\n" * 10)
                    line.recv(100)
        return False

    with closing(peer(replier.port, b"DEALER")) as established:
        until(is_refused, 60, "a connection is refused")
        assert can_connect(publisher.port, FLOODER)
        assert asks(established)
    assert is_served(replier, HOST)
    assert is_served(replier, FLOODER)


SEPARATE_REPLIER = """
from trollmoves.messaging.replier import Replier
replier = Replier("memory", 0, print, bind_address="127.0.0.1")
replier.start()
print(replier.port, flush=True)
input()
"""


def test_bytes_that_take_much_more_memory() -> None:
    """An unfinished message of empty frames is cut off below the limit of its bytes, because the process grows."""
    command = [sys.executable, "-c", SEPARATE_REPLIER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        with process.stdin, closing(peer(int(process.stdout.readline()), b"DEALER")) as line:
            with suppress(OSError):
                line.sendall(b"\x01\x00" * MB)
            until(lambda: is_closed(line), 20, "it is closed")


class BlockingHandler(logging.Handler):
    """A handler of a log that blocks the thread of the first line until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.is_blocking, self.released = threading.Event(), threading.Event()

    def emit(self, _: logging.LogRecord) -> None:
        """Wait."""
        self.is_blocking.set()
        self.released.wait(60)


@pytest.fixture
def blocking() -> Iterator[BlockingHandler]:
    """The handler, of the log of the thread that checks connections."""
    handler = BlockingHandler()
    logger = logging.getLogger(connection_monitor.__name__)
    logger.addHandler(handler)
    yield handler
    handler.released.set()
    logger.removeHandler(handler)


def test_messages_before_a_check(replier: Replier, publisher: Publisher, blocking: BlockingHandler) -> None:
    """While the thread that checks connections does not run, a new connection can send no message."""
    with socket.create_connection((HOST, replier.port), 20) as invalid:
        invalid.sendall(b"GET / HTTP/1.1\r\n" * 10)
        assert blocking.is_blocking.wait(20)
    for port, kind in ((replier.port, b"DEALER"), (publisher.port, b"SUB")):
        with closing(greet(port, kind)) as line:
            assert sent_until_closed(line, b"\x01\x00" * 50_000, 40 * MB) < 4 * MB
    blocking.released.set()
    assert is_served(replier, HOST)


def test_request_of_many_values(replier: Replier) -> None:
    """A request with data that would take much more memory than their text is rejected, and not decoded."""
    text = Message("/a", "ping", [0]).encode().replace("[0]", f"[{'{},' * MAX_VALUES}0]")
    with zmq.Context() as context, context.socket(zmq.REQ) as asking:
        asking.setsockopt(zmq.LINGER, 0)
        asking.connect(f"tcp://{HOST}:{replier.port}")
        asking.send_string(text)
        assert asking.poll(20_000)
        assert Message.decode(asking.recv()).data == "the data of a request must have less than 100,000 values"


def test_large_requests(replier: Replier) -> None:
    """Many requests for a dataset of a thousand files, and one of the maximum size, get their replies."""
    item = {"uri": f"/data/{'x' * 80}.nc", "uid": f"{'x' * 80}.nc"}
    size = len(json.dumps(item)) + 2
    with zmq.Context() as context, context.socket(zmq.DEALER) as asking:
        asking.setsockopt(zmq.LINGER, 0)
        asking.connect(f"tcp://{HOST}:{replier.port}")
        for count in [1_000] * 20 + [MAX_REQUEST_BYTES // size - 1]:
            asking.send_multipart([b"", Message("/a", "push", {"dataset": [item] * count}).encode().encode()])
        for _ in range(21):
            assert asking.poll(20_000), "no reply"
            asking.recv_multipart()


def test_subscriptions(publisher: Publisher) -> None:
    """A long subscription, and many short ones, are cut off."""
    for size in (MAX_SUBSCRIPTION_BYTES + 1, 200):
        frame = b"\x02" + struct.pack(">Q", size) + b"\x01" + bytes(size - 1)
        with closing(peer(publisher.port, b"SUB")) as line:
            assert sent_until_closed(line, frame, 50 * MB) < 50 * MB


def test_one_subscription(publisher: Publisher) -> None:
    """One subscription that is a little too long is cut off."""
    with closing(peer(publisher.port, b"SUB")) as line:
        line.sendall(b"\x02" + struct.pack(">Q", 5_000) + b"\x01" + bytes(4_999))
        while line.recv(100):
            pass


def test_end_of_a_stream_that_was_too_long(publisher: Publisher) -> None:
    """A peer that sends a long subscription reads the end of the stream, and no reset, when it has sent all."""
    with closing(peer(publisher.port, b"SUB")) as line:
        until(lambda: publisher._monitor._connections, what="the connection is monitored")
        line.sendall(b"\x02" + struct.pack(">Q", 2 * MB) + bytes(2 * MB))
        while line.recv(100):
            pass


def new_monitor(
    events: zmq.Socket[bytes], readable: select.epoll, lingering: LingeringConnections
) -> ConnectionMonitor:
    """Return a monitor of a socket that does not exist."""
    return ConnectionMonitor(
        events,
        domain=b"1",
        secured=False,
        most_bytes=MAX_SUBSCRIPTION_BYTES,
        limits=MEMORY_LIMITS,
        readable=readable,
        lingering=lingering,
        wake=lambda: None,
    )


def test_refused_without_a_filter() -> None:
    """If the kernel cannot drop the connections of a refused address, they are refused when they are accepted."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as events, select.epoll() as readable:
        monitor = new_monitor(events, readable, LingeringConnections(readable))
        for _ in range(MAX_STRIKES + 1):
            assert not monitor.refusal(FLOODER)
            monitor._strike(FLOODER)
        assert monitor.update_filter()
        assert monitor.refusal(FLOODER)
        assert not monitor.refusal(HOST)


def test_end_that_is_reported_before_the_descriptor_is_closed() -> None:
    """A connection is not reset if ZeroMQ closes its descriptor some time after the report."""
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        reporting, events = (stack.enter_context(context.socket(zmq.PAIR)) for _ in range(2))
        events.bind("inproc://events")
        reporting.connect("inproc://events")
        readable = stack.enter_context(select.epoll())
        listener = stack.enter_context(socket.create_server((HOST, 0)))
        line = stack.enter_context(socket.create_connection(listener.getsockname(), 20))
        line.sendall(b"not read")
        descriptor = listener.accept()[0].detach()
        os.write(descriptor, bytes(1000))  # as after a handshake
        assert line.recv(1000, socket.MSG_WAITALL) == bytes(1000)
        until(lambda: fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)) == bytes(4), what="it is acknowledged")
        lingering = LingeringConnections(readable)
        monitor = new_monitor(events, readable, lingering)
        monitor.port = listener.getsockname()[1]
        for event in (zmq.EVENT_ACCEPTED, zmq.EVENT_DISCONNECTED):
            reporting.send_multipart([struct.pack("=HI", event, descriptor), b"tcp://"])
        until(lambda: monitor.process_events() and monitor.end_closing())
        os.close(descriptor)
        assert not monitor.end_closing()
        assert line.recv(1) == b""
        line.close()

        def has_ended() -> bool:
            lingering.discard({one for one, _ in readable.poll(1)})
            return not lingering._connections

        until(has_ended)


def test_long_request(replier: Replier, caplog: pytest.LogCaptureFixture) -> None:
    """A request of 17 MB in one frame is cut off, and not read."""
    received = b""
    with closing(peer(replier.port, b"DEALER")) as line, suppress(ConnectionError):
        line.sendall(b"\x02" + struct.pack(">Q", 17 * MB) + bytes(17 * MB))
        while block := line.recv(100):
            received += block
    assert b" err " not in received
    until(lambda: "it sent more than 2.5 MB in a message" in caplog.text, what="the reason is logged")


def is_closed(line: socket.socket) -> bool:
    """Return True if the peer has closed the connection; reads nothing."""
    try:
        line.sendall(b"\x04\x05\x04PONG")
    except OSError:
        return True
    time.sleep(0.1)
    return False


def test_subscriber_that_does_not_read(publisher: Publisher) -> None:
    """A subscriber that reads nothing is disconnected; one that reads receives everything."""
    with closing(peer(publisher.port, b"SUB")) as slow, zmq.Context() as context, context.socket(zmq.SUB) as fast:
        slow.sendall(b"\x00\x01\x01")
        fast.setsockopt(zmq.LINGER, 0)
        fast.subscribe("")
        fast.connect(f"tcp://{HOST}:{publisher.port}")

        def connected() -> bool:
            publisher.send_heartbeat()
            return bool(fast.poll(100))

        until(connected, 20, "it is connected")
        message = Message("/a", "file", "x" * 50_000)
        for _ in range(1000):
            publisher.send(message)
            assert fast.poll(20_000)  # it must not fall behind
            fast.recv()
        until(lambda: is_closed(slow), 20, "the slow one is disconnected")
        publisher.send(Message("/end", "file"))
        until(lambda: fast.poll(1000) and b"//end" in fast.recv(), 20, "the last message")


def test_replies_that_are_not_read(replier: Replier) -> None:
    """A client that reads no replies is disconnected."""
    request = Message("/a", "ping").encode().encode()
    frames = b"\x01\x00" + b"\x00" + bytes([len(request)]) + request
    with closing(peer(replier.port, b"DEALER")) as line:
        assert len(request) < 256
        with suppress(OSError):
            for _ in range(500):
                line.sendall(frames)
        until(lambda: is_closed(line), 30, "it is disconnected")


def test_silent_connections_are_closed(publisher: Publisher, replier: Replier) -> None:
    """A connection that sends nothing is closed after the time for the handshake, on both kinds of ports."""
    lines = [socket.create_connection((HOST, port), 20) for port in (publisher.port, replier.port)]
    for line in lines:
        with closing(line):
            while line.recv(100):
                pass
