"""Which connections are closed for the bytes that they occupy."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from trollmoves.messaging.security.connection_memory import (
    HANDSHAKE_BYTES,
    SEGMENT_BYTES,
    Connection,
    Limits,
    MemoryLimits,
    excess,
)

MEMORY = MemoryLimits(Limits(100_000, 150_000, 200_000), Limits(1_000, 1_500, 2_000))


@pytest.fixture
def line() -> Iterator[socket.socket]:
    """A socket, of which only the kernel's counters would be used."""
    with socket.socket() as one:
        yield one


def connection(line: socket.socket, address: str, **values: int) -> Connection:
    """Return a connection with a key and these bytes."""
    one = Connection(line, address, authenticated=True)
    for name, value in values.items():
        setattr(one, name, value)
    return one


def test_one_connection(line: socket.socket) -> None:
    """A connection over its own limit is closed; without a key the limit is low."""
    small, large = connection(line, "a", unread=100_000), connection(line, "b", unread=100_001)
    assert excess([small], MEMORY) == []
    assert excess([large], MEMORY) == [large]
    behind = connection(line, "c", unsent=1_001)
    assert excess([behind], MEMORY) == [behind]
    new = connection(line, "d", unread=HANDSHAKE_BYTES + 1)
    assert excess([new], MEMORY) == []
    new.authenticated = False
    assert excess([new], MEMORY) == [new]


def test_segments() -> None:
    """Bytes that arrive one by one count more than their number."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), 20) as line,
        listener.accept()[0] as accepted,
    ):
        accepted.settimeout(20)
        for _ in range(20):
            line.sendall(b"x")
            assert accepted.recv(1) == b"x"
        one = Connection(accepted, "a")
        one.update(0, 0, secured=False)
        assert one.unread >= 20 * SEGMENT_BYTES


def test_several_connections(line: socket.socket) -> None:
    """Of an address, and of all, the largest connections are closed."""
    small, large = connection(line, "a", unread=70_000), connection(line, "a", unread=90_000)
    assert excess([large, small], MEMORY) == [large]
    others = [connection(line, name, unread=70_000) for name in "bc"]
    assert len(excess([small, *others], MEMORY)) == 1


def test_address_with_the_most_bytes(line: socket.socket) -> None:
    """Of all connections, those of the address with the most bytes are closed, however small they are."""
    large = connection(line, "a", unread=90_000)
    many = [connection(line, "b", unread=1_000) for _ in range(140)]
    assert {one.address for one in excess([large, *many], MEMORY)} == {"b"}


def test_suspect_address(line: socket.socket) -> None:
    """The unread bytes of a suspect address have the limit of a connection without a key, and other bytes have not."""
    lines = [connection(line, "a", unread=HANDSHAKE_BYTES // 2, unsent=700) for _ in range(2)]
    assert excess(lines, MEMORY, {"a"}) == []
    more = connection(line, "a", unread=HANDSHAKE_BYTES // 2 + 1)
    assert excess([*lines, more], MEMORY, {"b"}) == []
    assert excess([*lines, more], MEMORY, {"a"}) == [more]


def test_bytes_of_closed_connections(line: socket.socket) -> None:
    """The unread bytes of closed connections count for their address."""
    small = connection(line, "a", unread=70_000)
    assert excess([small], MEMORY, left={"a": 80_000, "b": 90_000}) == []
    assert excess([small], MEMORY, left={"a": 80_001}) == [small]
