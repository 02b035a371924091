"""The TCP connection under an SSH login, read and written with as few calls of the kernel as can be.

Each call hands Python's lock to another thread and has to get it back, which costs more than the call.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

READ_AHEAD = 65536  # bytes read in one call; paramiko asks for the head of each packet, then for its rest


class BufferedSocket(socket.socket):
    """A socket that reads ahead, and waits in the kernel where Python would poll before each call.

    One thread at a time may receive, and one send.
    """

    def __init__(self, plain: socket.socket) -> None:
        """Take the connection of ``plain``, which is of no more use."""
        super().__init__(plain.family, plain.type, plain.proto, plain.detach())
        self._ahead = b""
        self._position = 0
        self.settimeout(None)

    def settimeout(self, value: float | None) -> None:
        """Have ``recv`` and ``send`` raise ``TimeoutError`` after so many seconds, None or 0 for never."""
        super().settimeout(None)
        seconds, rest = divmod(value or 0.0, 1)
        span = struct.pack("@ll", int(seconds), int(rest * 1e6))
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Give up to ``bufsize`` bytes, none at the end."""
        if self._position == len(self._ahead):
            try:
                ahead = super().recv(max(bufsize, READ_AHEAD), flags)
            except BlockingIOError as error:
                raise TimeoutError from error
            if len(ahead) <= bufsize:
                return ahead
            self._ahead, self._position = ahead, 0
        data = self._ahead[self._position : self._position + bufsize]
        self._position += len(data)
        return data

    def send(self, data: Any, flags: int = 0) -> int:
        """Send what fits; return how many bytes that were."""
        try:
            return super().send(data, flags)
        except BlockingIOError as error:
            raise TimeoutError from error
