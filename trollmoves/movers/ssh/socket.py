"""The TCP socket of an SSH login, with few system calls.

Each call releases Python's GIL and must acquire it again, which costs more than the call.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

READ_AHEAD = 65536  # bytes read in one call; paramiko reads the header of each packet, then the rest


class BufferedSocket(socket.socket):
    """A socket that reads ahead and has its timeouts in the kernel, so that Python does not poll before each call.

    One thread at a time may receive, and one may send. ``limit`` is the number of bytes that it may still receive, None
    without a limit.
    """

    def __init__(self, plain: socket.socket) -> None:
        """Take over the connection of ``plain``, which is detached."""
        super().__init__(plain.family, plain.type, plain.proto, plain.detach())
        self._ahead = b""
        self._position = 0
        self.limit: int | None = None
        self.settimeout(None)

    def settimeout(self, value: float | None) -> None:
        """Set the seconds after which ``recv`` and ``send`` raise ``TimeoutError``; None or 0: never."""
        super().settimeout(None)
        seconds, rest = divmod(value or 0.0, 1)
        timeval = struct.pack("@ll", int(seconds), int(rest * 1e6))
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Return up to ``bufsize`` bytes, none at the end; ``ConnectionAbortedError`` beyond ``limit``."""
        if self._position == len(self._ahead):
            try:
                ahead = super().recv(max(bufsize, READ_AHEAD), flags)
            except BlockingIOError as error:
                raise TimeoutError from error
            if self.limit is not None:
                self.limit -= len(ahead)
                if self.limit < 0:
                    raise ConnectionAbortedError(errno.ECONNABORTED, "the server sent too much data before the login")
            if len(ahead) <= bufsize:
                return ahead
            self._ahead, self._position = ahead, 0
        data = self._ahead[self._position : self._position + bufsize]
        self._position += len(data)
        return data

    def send(self, data: Any, flags: int = 0) -> int:
        """Send as much as fits; return the number of bytes sent."""
        try:
            return super().send(data, flags)
        except BlockingIOError as error:
            raise TimeoutError from error
