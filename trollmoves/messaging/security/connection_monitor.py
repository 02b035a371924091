"""Knows who is connected to a listening socket, and turns away who comes too often."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import zmq

from trollmoves.messaging.security import handshake_errors
from trollmoves.messaging.security.handshake_errors import HandshakeError
from trollmoves.utils.logs import LogThrottle
from trollmoves.utils.logs import format_bytes as readable_size

log = logging.getLogger(__name__)

MAX_PER_ADDRESS = 1_000  # connections from one address to one socket
MAX_CONNECTIONS = 4_000  # connections to one socket
FD_DIVISOR = 8  # of the descriptors of this process is the most that the connections to one socket may use
RECENT_MS = 10_000  # ms since a peer sent something

EVENTS = int(handshake_errors.FAILURES | zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED)
EVENTS |= int(zmq.EVENT_MONITOR_STOPPED)

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_ESTABLISHED = 1  # of TCP's states
_TCP_INFO = struct.Struct("B51xI")  # the state, and for how many ms nothing came


@dataclass(slots=True)
class _Connection:
    """A connection, by a descriptor of our own: ZeroMQ's may be somebody else's by the time we look at it."""

    connection: socket.socket
    address: str


class ConnectionMonitor:
    """The connections to one listening socket, as ZeroMQ tells of them. The thread of the gate uses it.

    A connection that is one too many is cut. Those that are there stay, whatever comes.
    """

    def __init__(self, monitor: zmq.Socket[bytes], *, secured: bool, most_bytes: int) -> None:
        self.monitor = monitor
        self.port = 0
        self._secured = secured
        self._most_bytes = most_bytes
        self._most = min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // FD_DIVISOR)
        self._visits: dict[int, _Connection] = {}  # by ZeroMQ's descriptor
        self._of_address: Counter[str] = Counter()
        self._failed: HandshakeError | None = None  # why the connection that ends next was not made
        self._refused = 0  # connections that will end since the gate refused them, and said so
        self._seldom = LogThrottle(burst=1)

    def process_events(self) -> bool:
        """Take in what has happened; False when the socket is closed."""
        while True:
            try:
                event, value = handshake_errors.parse_event(self.monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return True
            if event == zmq.EVENT_MONITOR_STOPPED:
                return False
            self._on_event(event, value)

    def close(self) -> None:
        """Forget all connections; the socket is closed."""
        for visit in self._visits.values():
            visit.connection.close()
        self._visits.clear()
        self.monitor.close()

    def _on_event(self, event: int, value: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self._on_accepted(value)
        elif event == zmq.EVENT_DISCONNECTED:
            self._on_disconnected(value)
        elif event == zmq.EVENT_ACCEPT_FAILED:
            if value in _EXHAUSTED:  # else it is somebody whom the filters keep out
                self._log_throttled("accept", f"nobody can connect: {os.strerror(value)}")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._refused += 1
        else:
            self._failed = handshake_errors.classify(event, value)

    def _on_accepted(self, descriptor: int) -> None:
        visit = self._open_connection(descriptor)
        if visit is None:  # it has left already
            return
        if descriptor in self._visits:
            self._forget(descriptor)
        self._visits[descriptor] = visit
        self._of_address[visit.address] += 1
        here = self._of_address[visit.address]
        if here > MAX_PER_ADDRESS or len(self._visits) > self._most:
            there = len(self._visits)
            self._log_throttled(
                "many", f"a connection from {visit.address} is cut: it has {here}, all together have {there}"
            )
            with suppress(OSError):
                visit.connection.shutdown(socket.SHUT_RDWR)

    def _open_connection(self, descriptor: int) -> _Connection | None:
        """Look at a descriptor of ZeroMQ's; None when it is no connection to our port any more."""
        try:
            borrowed = socket.socket(fileno=descriptor)
        except OSError:
            return None
        try:
            if borrowed.type != socket.SOCK_STREAM or borrowed.getsockname()[1] != self.port:
                return None
            address = str(borrowed.getpeername()[0]).removeprefix("::ffff:")
            # socket.dup() would make the connection block, for ZeroMQ too.
            return _Connection(socket.socket(fileno=os.dup(descriptor)), address)
        except (OSError, IndexError):
            return None
        finally:
            borrowed.detach()

    def _on_disconnected(self, descriptor: int) -> None:
        failed, self._failed = self._failed, None
        visit = self._visits.get(descriptor)
        address = visit.address if visit else "an address unknown by now"
        if failed:
            why = handshake_errors.explain_for_server(failed, secured=self._secured)
            level = logging.INFO if failed in (HandshakeError.DISCONNECTED, HandshakeError.TIMEOUT) else logging.WARNING
            self._log_throttled(failed.name, f"{address} did not get in: {why}", level)
        elif self._refused:
            self._refused -= 1
        elif visit and _closed_by_zeromq(visit.connection):
            size = readable_size(self._most_bytes)
            self._log_throttled(
                "cut", f"the connection from {address} was cut: it sent a message of more than {size}, or no message"
            )
        self._forget(descriptor)

    def _log_throttled(self, kind: str, what: str, level: int = logging.WARNING) -> None:
        if (more := self._seldom.admit(kind)) is not None:
            log.log(level, "[port %d] %s%s", self.port, what, more)

    def _forget(self, descriptor: int) -> None:
        visit = self._visits.pop(descriptor, None)
        if visit is None:
            return
        visit.connection.close()
        self._of_address[visit.address] -= 1
        if not self._of_address[visit.address]:
            del self._of_address[visit.address]


def _closed_by_zeromq(connection: socket.socket) -> bool:
    """Tell whether a connection that ZeroMQ has given up was alive: the peer is there, and has just sent something."""
    try:
        state, silence = _TCP_INFO.unpack_from(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64))
    except (OSError, struct.error):
        return False
    return bool(state == _ESTABLISHED and silence < RECENT_MS)
