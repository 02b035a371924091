"""Bounds on the bytes that ZeroMQ holds for the connections of a listening socket.

ZeroMQ bounds the size of a frame and the number of messages, and not the frames of a message. The kernel counts the
bytes of a connection. Received bytes that this process has not read, and sent bytes that the peer has not
acknowledged, are in memory.

ZeroMQ takes 64 bytes for a frame, which has 2 bytes or more on the network: a received byte takes up to 32 bytes. A
frame of 34 bytes or more keeps a buffer of 8 kB, which it shares with the other frames of one read from the connection:
so a received segment takes up to 8 kB, and counts as ``SEGMENT_BYTES`` more.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

MB = 1024 * 1024
HANDSHAKE_BYTES = 64 * 1024  # received bytes of a connection without an authenticated key
SEGMENT_BYTES = 256
MIN_EXACT = 8 * 1024  # fewer unread bytes may include those in the kernel
# Bytes that a server sends at most before it accepts a connection: greeting, ERROR; with CURVE also WELCOME.
_HANDSHAKE_SENT, _CURVE_HANDSHAKE_SENT = 76, 246
# Per second, because ZeroMQ reads pings itself: one of 9 bytes (CURVE: 42) in 5 s, in one segment.
_PING_BYTES, _PING_SEGMENTS = 10, 0.25
# Of TCP_INFO: bytes acknowledged, bytes received, bytes not sent yet, segments received.
_COUNTERS = struct.Struct("=120xQQ8xI4xI")


@dataclass(frozen=True)
class Limits:
    """Maximum bytes: of one connection, of one address, of all connections of a socket."""

    connection: int
    address: int
    total: int


@dataclass(frozen=True)
class MemoryLimits:
    """Limits of received bytes that are unread, with SEGMENT_BYTES, and of sent bytes that are not acknowledged."""

    unread: Limits
    unsent: Limits


@dataclass(slots=True, eq=False)
class Connection:
    """A connection and its bytes in memory; ``update`` refreshes them from the kernel's counters.

    ``sent_base`` and ``offset`` are at first the bytes sent and read by earlier connections with its descriptor.
    """

    socket: socket.socket  # a duplicated descriptor: ZeroMQ may reuse its own for another connection
    address: str
    sent_base: int = 0
    offset: int = 0
    segments_base: int = 0
    acked_base: int = 0
    authenticated: bool = False
    unread: int = 0
    unsent: int = 0
    opened: float = field(default_factory=time.monotonic)

    def update(self, read: int, sent: int, *, secured: bool) -> None:
        """Set ``unread`` and ``unsent``, from the totals of bytes read and sent on its descriptor."""
        try:
            acked, received, waiting, segments = _COUNTERS.unpack(
                self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTERS.size)
            )
            if received - read + self.offset > MIN_EXACT:  # the call waits for other threads, unlike getsockopt
                received -= struct.unpack("=i", fcntl.ioctl(self.socket, termios.FIONREAD, b"\0" * 4))[0]
        except (OSError, struct.error):  # closed, or an old kernel
            return
        self.authenticated = self.authenticated or acked > (_CURVE_HANDSHAKE_SENT if secured else _HANDSHAKE_SENT)
        age = time.monotonic() - self.opened
        segments -= int(_PING_SEGMENTS * age)
        self.unread = received - read - int(_PING_BYTES * age) + self.offset
        if self.unread <= 0:
            self.offset -= self.unread
            self.unread, self.segments_base = 0, segments
        self.unread += SEGMENT_BYTES * max(0, segments - self.segments_base)
        if not waiting:  # ZeroMQ has passed everything to the kernel
            self.sent_base, self.acked_base = sent, acked
        self.unsent = sent - self.sent_base - (acked - self.acked_base)

    def is_over(self, limits: MemoryLimits) -> bool:
        """Return True if the bytes of this connection exceed its own limits."""
        most = limits.unread.connection if self.authenticated else min(HANDSHAKE_BYTES, limits.unread.connection)
        return self.unread > most or self.unsent > limits.unsent.connection


def most_unread(address: str, limits: MemoryLimits, suspects: Container[str]) -> int:
    """Return the limit of the unread bytes of an address."""
    return min(HANDSHAKE_BYTES, limits.unread.address) if address in suspects else limits.unread.address


def excess(
    connections: list[Connection],
    limits: MemoryLimits,
    suspects: Container[str] = (),
    left: Mapping[str, int] | None = None,
) -> list[Connection]:
    """Return the connections to close.

    These are the ones over their own limit, then the largest ones of an address, then those of the addresses with the
    most bytes. The unread bytes of a ``suspects`` address are limited to HANDSHAKE_BYTES. ``left`` are the unread bytes
    of closed connections, by address.
    """
    found = [one for one in connections if one.is_over(limits)]
    for name, kind in (("unread", limits.unread), ("unsent", limits.unsent)):
        closed = set(found)
        rest = [one for one in connections if one not in closed and getattr(one, name)]
        kept, per_address = [], Counter(left if name == "unread" else {})
        for one in sorted(rest, key=lambda one: int(getattr(one, name))):  # the largest ones last
            size = int(getattr(one, name))
            most = most_unread(one.address, limits, suspects) if name == "unread" else kind.address
            if per_address[one.address] + size > most:
                found.append(one)
            else:
                kept.append((one, size))
                per_address[one.address] += size
        total = 0
        for one, size in sorted(kept, key=lambda item: (per_address[item[0].address], item[1])):
            if total + size > kind.total:
                found.append(one)
            else:
                total += size
    return found
