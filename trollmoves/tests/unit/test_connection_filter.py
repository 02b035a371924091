"""The kernel drops connection requests of chosen addresses."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest

from trollmoves.messaging.security.connection_filter import MAX_ADDRESSES, drop_connections

OTHERS = [f"10.0.0.{number}" for number in range(40)] + [f"2001:db8::{number}" for number in range(40)]


def can_connect(listener: socket.socket, address: str) -> bool:
    """Return True if the kernel accepts a connection from an address."""
    target = "::1" if ":" in address else "127.0.0.1"
    with suppress(OSError), socket.create_connection((target, listener.getsockname()[1]), 0.3, (address, 0)):
        return True
    return False


@pytest.mark.parametrize(("bound", "address"), [("127.0.0.1", "127.0.0.2"), ("::", "127.0.0.2"), ("::", "::1")])
def test_dropped(bound: str, address: str) -> None:
    """Only the given addresses are dropped, on both kinds of sockets, until the next call."""
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    try:
        listener = socket.create_server((bound, 0), family=family, dualstack_ipv6=bound == "::")
    except OSError:
        pytest.skip("this host has no IPv6")
    with listener:
        port = listener.getsockname()[1]
        if not can_connect(listener, address):
            pytest.skip(f"this host has no address {address}")
        drop_connections(listener.fileno(), port, [*OTHERS, address])
        assert not can_connect(listener, address)
        assert can_connect(listener, "127.0.0.1")
        drop_connections(listener.fileno(), port, OTHERS)
        assert can_connect(listener, address)
        drop_connections(listener.fileno(), port, [])
        assert can_connect(listener, address)


def test_established_connection() -> None:
    """A connection that was established before stays."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        name = listener.getsockname()
        with socket.create_connection(name, 20) as line, listener.accept()[0] as accepted:
            drop_connections(listener.fileno(), name[1], ["127.0.0.1"])
            line.sendall(b"x")
            accepted.settimeout(20)
            assert accepted.recv(1) == b"x"


def test_many_addresses() -> None:
    """Of more addresses than a filter can have, the last ones are dropped."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        many = [f"2001:db8::{number:x}" for number in range(MAX_ADDRESSES)]
        drop_connections(listener.fileno(), listener.getsockname()[1], ["127.0.0.3", *many[1:]])
        assert not can_connect(listener, "127.0.0.3")
        drop_connections(listener.fileno(), listener.getsockname()[1], ["127.0.0.3", *many])
        assert can_connect(listener, "127.0.0.3")


def test_another_socket() -> None:
    """A descriptor that is not the listening socket of the port is left alone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        drop_connections(listener.fileno(), listener.getsockname()[1] + 1, ["127.0.0.2"])
        assert can_connect(listener, "127.0.0.2")
