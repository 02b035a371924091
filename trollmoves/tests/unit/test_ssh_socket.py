"""Tests of the connection under an SSH login, and of the processor that its threads share."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from trollmoves.movers.ssh.connection import pinned_to_one_cpu
from trollmoves.movers.ssh.socket import BufferedSocket


@pytest.fixture
def ends() -> Iterator[tuple[BufferedSocket, socket.socket]]:
    """Both ends of a connection, one of them a line."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        line = BufferedSocket(socket.create_connection(door.getsockname(), 10))
        other, _ = door.accept()
        with line, other:
            yield line, other


def test_pieces(ends: tuple[BufferedSocket, socket.socket]) -> None:
    """What comes is handed out in order, in pieces of the size that is asked for, until the end."""
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


def test_one_processor() -> None:
    """Within the block a thread, and one that it starts, may run on one processor; afterwards as before."""
    before = os.sched_getaffinity(0)
    started: list[set[int]] = []
    with pinned_to_one_cpu():
        inside = os.sched_getaffinity(0)
        thread = threading.Thread(target=lambda: started.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
    assert len(inside) == 1
    assert inside <= before
    assert started == [inside]
    assert os.sched_getaffinity(0) == before


def test_all_share_it() -> None:
    """All threads of a process are kept on the same processor."""
    seen: list[set[int]] = []

    def note() -> None:
        with pinned_to_one_cpu():
            seen.append(os.sched_getaffinity(0))

    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    assert all(one == seen[0] for one in seen)
