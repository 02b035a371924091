"""Tells a slow line from a far end that hangs, by how far TCP has what was sent confirmed.

A whole file may fit into the buffers on this side. Then all of it is sent in a moment, and nothing is heard until a
slow line has carried it.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios

_CONFIRMED = struct.Struct("@120xQ")  # tcpi_bytes_acked in Linux's struct tcp_info


class TcpProgress:
    """What is on its way on a connection."""

    def __init__(self, line: socket.socket) -> None:
        """Begin with what has been sent until now; where that cannot be known, there is nothing on its way."""
        self._line = line
        self._confirmed = self._count_confirmed()
        self._all = self._confirmed + self._count_on_its_way()

    def has_advanced(self) -> bool:
        """Tell whether some of what was on its way at the last question has arrived since."""
        before, self._confirmed = self._confirmed, self._count_confirmed()
        return before < self._all and before < self._confirmed

    def _count_confirmed(self) -> int:
        with contextlib.suppress(OSError, AttributeError, struct.error):
            told = self._line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            return int(_CONFIRMED.unpack_from(told)[0])
        return 0

    def _count_on_its_way(self) -> int:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # it may be closed meanwhile
            return int(struct.unpack("i", fcntl.ioctl(self._line.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0])
        return 0


def wait_readable(answers: socket.socket, sent: socket.socket, timeout: float) -> None:
    """Wait until there is something to read; TimeoutError when nothing came, nor moved on ``sent``, for so many s."""
    poll = select.poll()
    poll.register(answers, select.POLLIN)
    progress = TcpProgress(sent)
    while not poll.poll(timeout * 1000):
        if not progress.has_advanced():
            raise TimeoutError("no answer")
