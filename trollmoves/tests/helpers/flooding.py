"""Floods a server from a separate address until killed: ``python -m trollmoves.tests.helpers.flooding KIND PORT``."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import zmq
from posttroll.message import Message

HERE = "127.0.0.1"
FLOODER = "127.0.0.2"
PIPELINE = 10_000
HALF_OPEN = 1_000
TOO_LARGE = 100 * 1024 * 1024


def pump(port: int, texts: Iterator[bytes], connections: int = 1) -> None:
    """Send requests as fast as the server accepts them, and read no reply."""
    context = zmq.Context()
    lines = []
    for _ in range(connections):
        line = context.socket(zmq.DEALER)
        line.setsockopt(zmq.SNDHWM, PIPELINE)
        line.connect(f"tcp://{FLOODER}:0;{HERE}:{port}")
        lines.append(line)
    while True:
        for line in lines:
            with suppress(zmq.Again):
                line.send_multipart([b"", next(texts)], zmq.NOBLOCK)
        if not any(int(line.get(zmq.EVENTS)) & zmq.POLLOUT for line in lines):
            time.sleep(0.001)


def forever(text: object) -> Iterator[bytes]:
    """Return the same text again and again."""
    raw = str(text).encode()
    while True:
        yield raw


def pings(port: int) -> None:
    """Ping over one connection."""
    pump(port, forever(Message("/ping", "ping")))


def many_pings(port: int) -> None:
    """The same over two hundred connections."""
    pump(port, forever(Message("/ping", "ping")), 200)


def infos(port: int) -> None:
    """Questions that are costly to answer."""
    pump(port, forever(Message("/", "info", {"max_count": 2000})))


def pushes(port: int) -> None:
    """Requests for files that were never announced, each for a different file."""
    data = {"uid": "x", "destination": "file:///tmp/nowhere/", "uri": "/tmp/NUMBER"}
    head, tail = str(Message("/1b", "push", data)).encode().split(b"NUMBER")  # encoding each would take too long
    pump(port, (b"%b%d%b" % (head, number, tail) for number in range(sys.maxsize)))


def nonsense(port: int) -> None:
    """Valid frames with unreadable content."""
    pump(port, iter(lambda: os.urandom(100), b""))


def large(port: int) -> None:
    """Messages of 100 MB."""
    context = zmq.Context()
    payload = b"x" * TOO_LARGE
    while True:
        with context.socket(zmq.DEALER) as line:
            line.setsockopt(zmq.LINGER, 0)
            line.connect(f"tcp://{FLOODER}:0;{HERE}:{port}")
            line.send_multipart([b"", payload], copy=False)
            line.poll(200)


def tcp(port: int) -> socket.socket:
    """Connect without a word."""
    return socket.create_connection((HERE, port), 10, (FLOODER, 0))


def half_open(port: int) -> None:
    """Keep a thousand silent connections open, and replace those that are closed."""
    lines: list[socket.socket] = []
    while True:
        while len(lines) < HALF_OPEN:
            with suppress(OSError):
                lines.append(tcp(port))
                lines[-1].setblocking(False)
        for line in list(lines):
            with suppress(BlockingIOError):
                try:
                    gone = not line.recv(1000, socket.MSG_PEEK)
                    if not gone:
                        line.recv(1000)
                except ConnectionError:
                    gone = True
                if gone:
                    line.close()
                    lines.remove(line)
        time.sleep(0.05)


def garbage(port: int) -> None:
    """Send bytes that are not ZeroMQ's protocol, each time over a new connection."""
    while True:
        with suppress(OSError), tcp(port) as line:
            line.sendall(os.urandom(5000))


def greet(port: int, kind: bytes) -> socket.socket:
    """Connect with a small receive buffer, and send a client's part of the handshake of ZMTP 3.0 without a key."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.settimeout(20)
    line.bind((FLOODER, 0))
    line.connect((HERE, port))
    line.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 32))
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    line.sendall(b"\x04" + bytes([len(ready)]) + ready)
    return line


def peer(port: int, kind: bytes) -> socket.socket:
    """Return a connection after its handshake; raise OSError if it is refused."""
    line = greet(port, kind)
    received = b""
    while b"READY" not in received:
        if not (block := line.recv(64)):
            line.close()
            raise ConnectionError
        received += block
    return line


def send_again(port: int, kind: bytes, block: bytes) -> None:
    """Send a block as often as the connection lasts, over one connection after another."""
    while True:
        with suppress(OSError), peer(port, kind) as line:
            while True:
                line.sendall(block)


def many_frames(port: int) -> None:
    """A message of frames without an end."""
    send_again(port, b"DEALER", (b"\x03" + struct.pack(">Q", 10_000) + bytes(10_000)) * 20)


def small_frames(port: int) -> None:
    """The same of frames of one byte."""
    send_again(port, b"DEALER", b"\x01\x01x" * 10_000)


def empty_frames(port: int) -> None:
    """The same of empty frames."""
    send_again(port, b"DEALER", b"\x01\x00" * 10_000)


def messages_of_frames(port: int) -> None:
    """Complete messages of many frames."""
    send_again(port, b"DEALER", b"\x01\x00" * 10_000 + b"\x00\x00")


def frame_by_frame(port: int) -> None:
    """Frames that the server reads one by one, each into a new buffer, over a hundred connections."""
    lines: list[socket.socket] = []
    while True:
        with suppress(OSError):
            while len(lines) < 100:
                lines.append(peer(port, b"DEALER"))
        for line in list(lines):
            try:
                line.sendall(b"\x01\x22" + bytes(34))
            except OSError:
                lines.remove(line)


def nested_data(port: int) -> None:
    """Requests with data that take much more memory than their text."""
    request = str(Message("/", "push", [0])).replace("[0]", f"[{'{},' * 800_000}0]").encode()
    send_again(port, b"DEALER", b"\x01\x00" + b"\x02" + struct.pack(">Q", len(request)) + request)


def long_subscriptions(port: int) -> None:
    """Subscriptions that are too long."""
    send_again(port, b"SUB", b"\x02" + struct.pack(">Q", 1_000_000) + b"\x01" + bytes(999_999))


def subscriptions(port: int) -> None:
    """Many subscriptions, each a different one."""
    while True:
        with suppress(OSError), peer(port, b"SUB") as line:
            for number in range(sys.maxsize):
                line.sendall(b"\x00\x15\x01%020d" % number)


def unread_replies(port: int) -> None:
    """Questions over connections that read no reply."""
    request = str(Message("/", "info", {"max_count": 2000})).encode()
    send_again(port, b"DEALER", b"\x01\x00" + b"\x00" + bytes([len(request)]) + request)


KINDS: dict[str, Callable[[int], None]] = {
    one.__name__: one for one in (pings, many_pings, infos, pushes, nonsense, large, half_open, garbage)
}

# Of a hostile run, by the port: that of requests, or of publications.
HOSTILE_REQUESTS: tuple[Callable[[int], None], ...] = (
    many_frames,
    small_frames,
    empty_frames,
    messages_of_frames,
    frame_by_frame,
    nested_data,
    half_open,
    unread_replies,
    garbage,
)
HOSTILE_SUBSCRIBERS: tuple[Callable[[int], None], ...] = (small_frames, long_subscriptions, subscriptions, half_open)


if __name__ == "__main__":
    globals()[sys.argv[1]](int(sys.argv[2]))
