"""Distinguishes a slow link from a server that hangs, by the number of bytes that TCP has acknowledged.

A whole file may fit into the send buffers of this host. Then the reply arrives only after a slow link has carried it.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios

_ACKNOWLEDGED = struct.Struct("@120xQ")  # tcpi_bytes_acked in Linux's struct tcp_info


class TcpProgress:
    """Acknowledged and unacknowledged bytes of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        """Record the bytes sent so far; without TCP_INFO they count as acknowledged."""
        self._sock = sock
        self._acknowledged = self._count_acknowledged()
        self._total = self._acknowledged + self._count_unacknowledged()

    def has_advanced(self) -> bool:
        """Return True if bytes sent before were acknowledged since the last call."""
        before, self._acknowledged = self._acknowledged, self._count_acknowledged()
        return before < self._total and before < self._acknowledged

    def _count_acknowledged(self) -> int:
        with contextlib.suppress(OSError, AttributeError, struct.error):
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            return int(_ACKNOWLEDGED.unpack_from(info)[0])
        return 0

    def _count_unacknowledged(self) -> int:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the socket may have been closed
            return int(struct.unpack("i", fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0])
        return 0


def wait_readable(control: socket.socket, data: socket.socket, timeout: float) -> None:
    """Wait until ``control`` is readable; TimeoutError after ``timeout`` s without progress on ``data``."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    progress = TcpProgress(data)
    while not poll.poll(timeout * 1000):
        if not progress.has_advanced():
            raise TimeoutError("no reply")
