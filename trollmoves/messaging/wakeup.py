"""Wakes a thread that polls sockets."""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress


class Wakeup:
    """Wakes a thread that polls sockets: any thread calls ``set``, the polling thread calls ``clear``."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._is_set = False
        self._closing = threading.Lock()  # prevents a write to a descriptor that has been closed and reused

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._fd

    def set(self) -> None:
        """Wake the polling thread; cheap if it has been woken already."""
        if not self._is_set:
            self._is_set = True
            with self._closing:
                if self._fd >= 0:
                    os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Reset the descriptor. Call this before checking the state that ``set`` signals."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        self._is_set = False

    def wait(self, timeout_ms: int) -> None:
        """Block the polling thread until the next ``set``, for at most ``timeout_ms``."""
        self._poll.poll(timeout_ms)

    def close(self) -> None:
        """Close the descriptor; ``set`` does nothing afterwards."""
        with self._closing:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1
