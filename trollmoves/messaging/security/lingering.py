"""Connections that are closed while their peer still sends."""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress

MAX_LINGERING = 16  # connections; further ones are reset
LINGER_SECONDS = 10.0
LINGER_BYTES = 33_600_000  # of one connection
DISCARD_BYTES = 256 * 1024  # of one connection at a time


class LingeringConnections:
    """Receives and discards what peers still send, so that they read the end of the stream.

    The kernel resets a connection that is closed with unread data. Used by the authenticator's thread; ``readable``
    reports the descriptors with data.
    """

    def __init__(self, readable: select.epoll) -> None:
        self._readable = readable
        self._connections: dict[int, socket.socket] = {}  # by descriptor
        self._ends: dict[int, float] = {}  # monotonic
        self._left: dict[int, int] = {}  # bytes
        self._discarded = bytearray(DISCARD_BYTES)

    def add(self, connection: socket.socket) -> None:
        """Take over a connection that is registered with ``readable``; close it after a while."""
        fileno = connection.fileno()
        self._connections[fileno] = connection
        self._ends[fileno], self._left[fileno] = time.monotonic() + LINGER_SECONDS, LINGER_BYTES
        try:
            connection.shutdown(socket.SHUT_WR)
            self._readable.modify(fileno, select.EPOLLIN)  # reported until all is read
        except OSError:
            self._close(fileno)
            return
        if len(self._connections) > MAX_LINGERING:
            self._close(next(iter(self._connections)))

    def discard(self, filenos: set[int]) -> None:
        """Discard data of the connections among these descriptors."""
        for fileno in filenos & self._connections.keys():
            try:
                size = self._connections[fileno].recv_into(self._discarded)
            except BlockingIOError:
                continue
            except OSError:
                size = 0
            self._left[fileno] -= size
            if not size or self._left[fileno] <= 0:
                self._close(fileno)

    def close_expired(self) -> None:
        """Close the connections that have lingered for ``LINGER_SECONDS``."""
        now = time.monotonic()
        for fileno in [fileno for fileno, end in self._ends.items() if now > end]:
            self._close(fileno)

    def _close(self, fileno: int) -> None:
        connection = self._connections.pop(fileno)
        del self._ends[fileno], self._left[fileno]
        with suppress(OSError):
            self._readable.unregister(fileno)
        connection.close()
