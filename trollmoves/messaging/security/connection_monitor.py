"""Tracks connections to a listening socket and enforces connection limits."""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import zmq

from trollmoves.messaging.security import handshake_errors
from trollmoves.messaging.security.connection_filter import drop_connections
from trollmoves.messaging.security.connection_memory import (
    HANDSHAKE_BYTES,
    Connection,
    MemoryLimits,
    excess,
    most_unread,
)
from trollmoves.messaging.security.handshake_errors import HandshakeError
from trollmoves.messaging.security.lingering import LingeringConnections
from trollmoves.utils.logs import LogThrottle
from trollmoves.utils.logs import format_bytes as readable_size

log = logging.getLogger(__name__)

MAX_PER_ADDRESS = 1_000  # connections from one address to one socket
MAX_CONNECTIONS = 4_000  # connections to one socket
FD_DIVISOR = 8  # the share of the process's descriptors for connections to one socket is 1/FD_DIVISOR
MAX_EVENTS = 50  # events processed before the authenticator answers others
MAX_PENDING = 2_500  # more than the events that ZeroMQ queues before its I/O thread waits
PENALTY = 2.0  # s after too many bytes of a connection, or too many strikes, in which an address cannot connect
MAX_STRIKES = 50  # connections of an address in STRIKE_SECONDS that are closed before they are of use
STRIKE_SECONDS = 10.0
FREE_BYTES = 2048  # received bytes of a connection, with those of its handshake, that are not a burden
BURDEN = 8  # an address with more than 1/BURDEN of its limit of received bytes may be a burden
RECENT_MS = 10_000  # ms since the last data from a peer

MESSAGE_OVERHEAD = 256  # bytes of framing and encryption that a message has at most
CHECK_BYTES = 1_000_000  # sent bytes after which the connections are checked
SUSPECT_SECONDS = 600.0  # s in which an address that sent a message of too many frames may have few unread bytes

EVENTS = int(handshake_errors.FAILURES | zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED)
EVENTS |= int(zmq.EVENT_LISTENING | zmq.EVENT_MONITOR_STOPPED)

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_ESTABLISHED = 1  # of TCP's states
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER for 0 s
_TCP_BYTES_RECEIVED = struct.Struct("128xQ")  # an end of the stream counts as one byte
_TCP_INFO = struct.Struct("B51xI")  # the TCP state, and ms since the last data


class ConnectionMonitor:
    """The connections to one listening socket, from ZeroMQ's events; used by the authenticator's thread.

    A connection over the limit is closed. Established connections stay.
    """

    def __init__(
        self,
        monitor: zmq.Socket[bytes],
        *,
        domain: bytes,
        secured: bool,
        most_bytes: int,
        limits: MemoryLimits,
        readable: select.epoll,
        lingering: LingeringConnections,
        wake: Callable[[], None],
    ) -> None:
        self.monitor = monitor
        self.domain = domain
        self.port = 0
        self._secured = secured
        self._most_bytes = most_bytes
        self._limits = limits
        self._readable = readable
        self._lingering = lingering
        self._wake = wake
        self._by_fileno: dict[int, int] = {}  # ZeroMQ's descriptor by the duplicated one
        self._read: Counter[int] = Counter()  # bytes that the socket's thread has read, by descriptor
        self._sent: Counter[int] = Counter()
        self._published = 0
        self._unchecked = 0  # bytes sent since the last check
        self._unread = 0  # of all connections, as of their last updates
        self._burden = 0  # the same, of each without FREE_BYTES
        self._left = Counter[str]()  # unread bytes of closed connections, by address
        self._suspects: dict[str, float] = {}  # monotonic time of the end, by address
        self._penalties: dict[str, float] = {}  # the same
        self._strikes = Counter[str]()  # by address
        self._strikes_end = 0.0  # monotonic
        self._listener = -1  # descriptor
        self._filtered = frozenset[str]()  # addresses
        self.check_due = False
        self.is_flooded = False  # since the authenticator has reset this
        self._max_connections = min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // FD_DIVISOR)
        self._connections: dict[int, Connection] = {}  # by ZeroMQ's descriptor
        self._per_address: Counter[str] = Counter()
        self._failed: HandshakeError | None = None  # the handshake error of the next connection that closes
        self._rejected = 0  # rejected (and logged) connections that have not closed yet
        self._closing: set[int] = set()  # ZeroMQ reports an end before it closes the descriptor
        self._throttle = LogThrottle(burst=1)

    def process_events(self, most: int = MAX_EVENTS) -> bool:
        """Process pending events, at most ``most``; return False if the socket is closed."""
        for _ in range(most):
            if (found := handshake_errors.next_event(self.monitor)) is None:
                break
            if found[0] == zmq.EVENT_MONITOR_STOPPED:
                return False
            self._on_event(*found)
        else:
            self.is_flooded = True
        return True

    def refusal(self, address: str) -> tuple[str, str] | None:
        """Return why connections from an address are refused for now, as a kind and a text, or None."""
        if time.monotonic() < self._penalties.get(address, 0.0):
            return "penalty", f"an earlier one was closed in the last {PENALTY:.0f} s"
        if self._is_too_much_left(address):
            return "left", "messages of its earlier ones are not read yet"
        if self._per_address[address] > MAX_PER_ADDRESS or len(self._connections) > self._max_connections:
            return "many", f"{self._per_address[address]} from this address, {len(self._connections)} in all"
        return None

    def add_read(self, frame: zmq.Frame, size: int) -> int:
        """Record a message that the socket's thread has read, by one of its frames; return its descriptor, or -1."""
        try:
            descriptor = int(frame.get(int(zmq.SRCFD)))
        except zmq.ZMQError:  # under a flood ZeroMQ may not know it
            return -1
        self._read[descriptor] += size + MESSAGE_OVERHEAD
        return descriptor

    def add_sent(self, size: int, descriptor: int | None = None) -> None:
        """Record a message that the socket's thread has sent to one connection, or to all."""
        if descriptor is None:
            self._published += size
        else:
            self._sent[descriptor] += size
        self._unchecked += size
        if self._unchecked > CHECK_BYTES:
            self._unchecked, self.check_due = 0, True
            self._wake()

    def drained(self) -> None:
        """Record that the socket's thread has read all messages, those of closed connections, too."""
        if self._left:
            self._left = Counter()

    def suspect(self, descriptor: int) -> None:
        """Close a connection that sent a message of too many frames, and limit its address for SUSPECT_SECONDS.

        Called by the socket's thread. ZeroMQ hands over a message as a whole, which takes seconds for a million frames.
        """
        if connection := self._connections.get(descriptor):
            now = time.monotonic()
            self._suspects[connection.address] = now + SUSPECT_SECONDS
            self._penalties[connection.address] = now + PENALTY
            self._log_throttled(
                "frames", f"closed the connection from {connection.address}: its message has too many frames"
            )
            _cut(connection.socket, reset=True)

    def on_data(self, filenos: set[int]) -> None:
        """Check the connections on whose duplicated descriptors data arrived."""
        found = [descriptor for fileno in filenos if (descriptor := self._by_fileno.get(fileno)) is not None]
        largest = max((self._update(descriptor).unread for descriptor in found), default=0)
        if found and (
            largest > HANDSHAKE_BYTES // 2
            or self._unread > self._limits.unread.address // 2
            or any(self._connections[descriptor].address in self._suspects for descriptor in found)
        ):
            self.check()

    def check(self) -> None:
        """Close the connections with too many bytes in memory."""
        self.check_due = False
        now = time.monotonic()
        _remove_ended(self._suspects, now)
        for one in excess(list(map(self._update, self._connections)), self._limits, self._suspects, self._left):
            self._end_excessive(one)

    @property
    def is_burdened(self) -> bool:
        """True if the received bytes can take much memory."""
        return self._burden > self._limits.unread.address // BURDEN

    def relieve(self) -> None:
        """Close the connections of the address with the most received bytes, if these are many."""
        per_address: Counter[str] = Counter()
        for one in map(self._update, list(self._connections)):
            per_address[one.address] += one.unread
        address, size = max(per_address.items(), key=lambda item: item[1], default=("", 0))
        if size > self._limits.unread.address // BURDEN:
            for connection in list(self._connections.values()):
                if connection.address == address and connection.unread > FREE_BYTES:
                    self._end_excessive(connection)

    def _end_excessive(self, one: Connection) -> None:
        """Close a connection with too many bytes in memory."""
        self.is_flooded = True
        has_sent_much = one.unread > one.unsent
        if has_sent_much and one.authenticated:  # a connection without a key does not affect those with keys
            self._penalties[one.address] = time.monotonic() + PENALTY
        elif not has_sent_much:
            self._strike(one.address)
        self._log_throttled(
            "memory",
            f"closed the connection from {one.address}: {readable_size(one.unread)} received and not complete or "
            f"not read, {readable_size(one.unsent)} sent and not accepted by the client",
        )
        _cut(one.socket, reset=has_sent_much)

    def update_filter(self) -> bool:
        """Let the kernel drop the connection requests of the refused addresses; return True if there are any."""
        _remove_ended(self._penalties, time.monotonic())
        if (refused := frozenset(self._penalties)) != self._filtered:
            self._filtered = refused
            with suppress(OSError, ValueError):  # without it, their connections are closed
                drop_connections(self._listener, self.port, refused)
        return bool(refused)

    def _strike(self, address: str) -> None:
        """Count a connection that was closed before it was of use; after MAX_STRIKES refuse its address for a while."""
        now = time.monotonic()
        if now > self._strikes_end:
            self._strikes, self._strikes_end = Counter(), now + STRIKE_SECONDS
        if now > self._penalties.get(address, 0.0):  # a refused connection does not prolong this
            self._strikes[address] += 1
        if self._strikes[address] > MAX_STRIKES:
            del self._strikes[address]
            self._penalties[address] = now + PENALTY

    def _update(self, descriptor: int) -> Connection:
        connection = self._connections[descriptor]
        self._count(connection, -1)
        connection.update(self._read[descriptor], self._published + self._sent[descriptor], secured=self._secured)
        self._count(connection, 1)
        return connection

    def _count(self, one: Connection, sign: int) -> None:
        self._unread += sign * one.unread
        self._burden += sign * max(0, one.unread - FREE_BYTES)

    def close(self) -> None:
        """Close the duplicated descriptors; the socket itself is closed already."""
        for descriptor in list(self._connections):
            self._forget(descriptor)
        self.monitor.close()

    def _on_event(self, event: int, value: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self._on_accepted(value)
        elif event == zmq.EVENT_DISCONNECTED:
            self._on_disconnected(value)
        elif event == zmq.EVENT_ACCEPT_FAILED:
            if value in _EXHAUSTED:  # otherwise the accept filters rejected it
                self._log_throttled("accept", f"cannot accept connections: {os.strerror(value)}")
        elif event == zmq.EVENT_LISTENING:
            self._listener = value
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._rejected += 1
        else:
            self._failed = handshake_errors.classify(event, value)

    def _on_accepted(self, descriptor: int) -> None:
        connection = self._open_connection(descriptor)
        if connection is None:  # closed already
            return
        if descriptor in self._connections:
            self._forget(descriptor)
        self._connections[descriptor] = connection
        self._by_fileno[connection.socket.fileno()] = descriptor
        self._readable.register(connection.socket, select.EPOLLIN | select.EPOLLET)
        self._per_address[connection.address] += 1
        if refusal := self.refusal(connection.address):
            kind, reason = refusal
            self._log_throttled(kind, f"closed a connection from {connection.address}: {reason}")
            _cut(connection.socket, reset=True)

    def _is_too_much_left(self, address: str) -> bool:
        """Return True if closed connections of an address, or of all, have left too many unread bytes."""
        return self._left[address] > most_unread(address, self._limits, self._suspects) or (
            self._left[address] > 0 and self._left.total() > self._limits.unread.total
        )

    def _open_connection(self, descriptor: int) -> Connection | None:
        """Duplicate a descriptor of ZeroMQ's; return None if it is not a connection to our port any more."""
        try:
            borrowed = socket.socket(fileno=descriptor)
        except OSError:
            return None
        try:
            if borrowed.type != socket.SOCK_STREAM or borrowed.getsockname()[1] != self.port:
                return None
            address = str(borrowed.getpeername()[0]).removeprefix("::ffff:")
            # socket.dup() would make the connection block, for ZeroMQ too.
            own = socket.socket(fileno=os.dup(descriptor))
            sent = self._published + self._sent[descriptor]
            return Connection(own, address, sent, self._read[descriptor])
        except (OSError, IndexError):
            return None
        finally:
            borrowed.detach()

    def _on_disconnected(self, descriptor: int) -> None:
        failed, self._failed = self._failed, None
        connection = self._connections.get(descriptor)
        address = connection.address if connection else "an unknown address"
        if not failed and not self._rejected and not (connection and self._update(descriptor).authenticated):
            failed = HandshakeError.PROTOCOL_ERROR  # an obsolete version, for which ZeroMQ has no event
        if connection and (failed or self._rejected):
            self._strike(address)
        if failed:
            why = handshake_errors.explain_for_server(failed, secured=self._secured)
            level = logging.INFO if failed in (HandshakeError.DISCONNECTED, HandshakeError.TIMEOUT) else logging.WARNING
            is_probe = not connection or _has_sent_nothing(connection.socket)  # or closed before we saw it
            if failed == HandshakeError.DISCONNECTED and is_probe:
                log.debug("[port %d] %s connected and disconnected without sending data", self.port, address)
            else:
                kind = failed.name if connection else f"{failed.name} of an unknown address"
                self._log_throttled(kind, f"rejected connection from {address}: {why}", level)
        elif self._rejected:
            self._rejected -= 1
        elif connection and _is_open(connection.socket, descriptor):
            self._closing.add(descriptor)
            return
        elif connection and _is_alive(connection.socket):
            self._linger(connection, descriptor)
            return
        self._forget(descriptor)

    def end_closing(self) -> bool:
        """Close the ended connections that ZeroMQ has closed; return True if others remain.

        One that remains is either about to be closed, or a later one with the same descriptor, to be accepted.
        """
        for descriptor in list(self._closing):
            connection = self._connections[descriptor]
            if _is_open(connection.socket, descriptor):
                continue
            if _is_alive(connection.socket):
                self._linger(connection, descriptor)
            else:
                self._forget(descriptor)
        return bool(self._closing)

    def _linger(self, connection: Connection, descriptor: int) -> None:
        self._strike(connection.address)
        size = readable_size(self._most_bytes)
        self._log_throttled(
            "cut",
            f"closed the connection from {connection.address}: it sent more than {size} in a message, or invalid data",
        )
        self._lingering.add(self._remove(connection, descriptor).socket)

    def _log_throttled(self, kind: str, text: str, level: int = logging.WARNING) -> None:
        if (more := self._throttle.admit(kind)) is not None:
            log.log(level, "[port %d] %s%s", self.port, text, more)

    def _forget(self, descriptor: int) -> None:
        connection = self._connections.get(descriptor)
        if connection is None:
            return
        self._remove(connection, descriptor)
        with suppress(OSError):
            self._readable.unregister(connection.socket)
        connection.socket.close()

    def _remove(self, connection: Connection, descriptor: int) -> Connection:
        """Remove a connection from the counts; it stays open."""
        if unread := self._update(descriptor).unread:
            self._left[connection.address] += unread
        del self._connections[descriptor]
        self._closing.discard(descriptor)
        self._by_fileno.pop(connection.socket.fileno(), None)
        self._count(connection, -1)
        self._per_address[connection.address] -= 1
        if not self._per_address[connection.address]:
            del self._per_address[connection.address]
        return connection


def _remove_ended(ends: dict[str, float], now: float) -> None:
    for address in [address for address, end in list(ends.items()) if now > end]:
        del ends[address]


def _cut(connection: socket.socket, *, reset: bool) -> None:
    """Close a connection that ZeroMQ has open; with ``reset`` the kernel keeps nothing of it."""
    with suppress(OSError):
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        connection.shutdown(socket.SHUT_RDWR)


def _is_open(connection: socket.socket, descriptor: int) -> bool:
    """Return True if ZeroMQ's descriptor is open, and for the same connection."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.fstat(connection.fileno()))
    except OSError:
        return False


def _is_alive(connection: socket.socket) -> bool:
    """Return True if a connection is established, with recent data from the peer."""
    try:
        state, silence = _TCP_INFO.unpack_from(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64))
    except (OSError, struct.error):
        return False
    return bool(state == _ESTABLISHED and silence < RECENT_MS)


def _has_sent_nothing(connection: socket.socket) -> bool:
    """Return True if the peer has sent at most one byte, as a probe of the port does."""
    try:
        (count,) = _TCP_BYTES_RECEIVED.unpack_from(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136))
    except (OSError, struct.error):
        return False
    return bool(count <= 1)
