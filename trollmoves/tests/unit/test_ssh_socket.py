"""Tests of the socket under an SSH login."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from trollmoves.movers.ssh.socket import BufferedSocket


@pytest.fixture
def ends() -> Iterator[tuple[BufferedSocket, socket.socket]]:
    """Both ends of a connection, one of them a line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        line = BufferedSocket(socket.create_connection(listener.getsockname(), 10))
        other, _ = listener.accept()
        with line, other:
            yield line, other


def test_pieces(ends: tuple[BufferedSocket, socket.socket]) -> None:
    """Received data are returned in order, in pieces of the requested size, until the end."""
    line, other = ends
    sent = os.urandom(300_000)

    def send() -> None:
        other.sendall(sent)
        other.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    got: list[bytes] = []
    while piece := line.recv(7 if len(got) % 2 else 100_000):
        got.append(piece)
    sender.join()
    assert b"".join(got) == sent
    assert all(len(piece) <= 7 for piece in got[1::2])


def test_silence(ends: tuple[BufferedSocket, socket.socket]) -> None:
    """A line that nothing comes on, or that takes no more, says so after its time-out, and goes on afterwards."""
    line, other = ends
    line.settimeout(0.05)
    with pytest.raises(TimeoutError):
        line.recv(1)
    other.sendall(b"after all")
    line.settimeout(60)
    assert line.recv(100)
    line.settimeout(0.05)
    with pytest.raises(TimeoutError):
        _fill(line)


def _fill(line: BufferedSocket) -> None:
    for _ in range(100_000):
        line.send(b"x" * 65536)
