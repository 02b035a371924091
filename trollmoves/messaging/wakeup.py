"""Wakes a thread that polls sockets."""

from __future__ import annotations

import os
import threading
from contextlib import suppress


class Wakeup:
    """Wakes a thread that polls sockets: any thread rings, the polling one silences."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ringing = False
        self._closing = threading.Lock()  # what is written must not reach whoever gets the descriptor next

    def fileno(self) -> int:
        """Give the descriptor to poll for reading."""
        return self._fd

    def set(self) -> None:
        """Wake the polling thread; cheap when it was rung already."""
        if not self._ringing:
            self._ringing = True
            with self._closing:
                if self._fd >= 0:
                    os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Hear the bell: call it before looking at what it was rung for."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        self._ringing = False

    def close(self) -> None:
        """Give the descriptor back; from now on ringing does nothing."""
        with self._closing:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1
