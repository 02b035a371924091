"""Bounds on the bytes that ZeroMQ holds for the connections of a listening socket.

ZeroMQ bounds the size of a frame and the number of messages, and not the frames of a message. The kernel counts the
bytes of a connection. Received bytes that this process has not read, and sent bytes that the peer has not
acknowledged, are in memory.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from dataclasses import dataclass, field

MB = 1024 * 1024
HANDSHAKE_BYTES = 64 * 1024  # received bytes of a connection without an authenticated key
_CURVE_HANDSHAKE_SENT = 246  # bytes that a server sends at most before it accepts a key: greeting, WELCOME, ERROR
_HEARTBEAT_BYTES = 20  # per second: ZeroMQ reads pings and pongs itself
_COUNTERS = struct.Struct("=120xQQ8xI")  # of TCP_INFO: bytes acknowledged, bytes received, bytes not sent yet


@dataclass(frozen=True)
class Limits:
    """Maximum bytes in memory: of one connection, of one address, of all connections of a socket."""

    connection: int
    address: int
    total: int


@dataclass(frozen=True)
class MemoryLimits:
    """Limits of received bytes that are unread, and of sent bytes that are not acknowledged."""

    unread: Limits
    unsent: Limits


@dataclass(slots=True)
class ConnectionBytes:
    """The bytes of one connection in memory; ``update`` refreshes them from the kernel's counters."""

    socket: socket.socket
    address: str
    sent_base: int
    offset: int = 0
    acked_base: int = 0
    authenticated: bool = False
    unread: int = 0
    unsent: int = 0
    opened: float = field(default_factory=time.monotonic)

    def update(self, read: int, sent: int, *, secured: bool) -> None:
        """Set ``unread`` and ``unsent``, from the totals of bytes that this process has read and sent."""
        try:
            acked, received, waiting = _COUNTERS.unpack(
                self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTERS.size)
            )
            in_kernel = struct.unpack("=i", fcntl.ioctl(self.socket, termios.FIONREAD, b"\0" * 4))[0]
        except (OSError, struct.error):  # closed, or an old kernel
            return
        self.authenticated = self.authenticated or not secured or acked > _CURVE_HANDSHAKE_SENT
        heartbeats = int(_HEARTBEAT_BYTES * (time.monotonic() - self.opened))
        self.unread = received - in_kernel - read - heartbeats + self.offset
        if self.unread < 0:
            self.offset -= self.unread
            self.unread = 0
        if not waiting:  # ZeroMQ has passed everything to the kernel
            self.sent_base, self.acked_base = sent, acked
        self.unsent = sent - self.sent_base - (acked - self.acked_base)

    def is_over(self, limits: MemoryLimits) -> bool:
        """Return True if the bytes of this connection exceed its own limits."""
        most = limits.unread.connection if self.authenticated else min(HANDSHAKE_BYTES, limits.unread.connection)
        return self.unread > most or self.unsent > limits.unsent.connection


def excess(connections: list[ConnectionBytes], limits: MemoryLimits) -> list[ConnectionBytes]:
    """Return the connections to close: those over their own limit, then the largest ones of an address, then of all."""
    found = [one for one in connections if one.is_over(limits)]
    for name, kind in (("unread", limits.unread), ("unsent", limits.unsent)):
        rest = [one for one in connections if one not in found and getattr(one, name)]
        total, per_address = 0, dict[str, int]()
        for one in sorted(rest, key=lambda one: int(getattr(one, name))):  # the largest ones last
            size = int(getattr(one, name))
            of_address = per_address.get(one.address, 0) + size
            if of_address > kind.address or total + size > kind.total:
                found.append(one)
            else:
                total, per_address[one.address] = total + size, of_address
    return found
