"""Measures the growth of this process's memory."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_PAGE = os.sysconf("SC_PAGE_SIZE")


class ProcessMemory:
    """The growth of the resident memory since the last ``reset``."""

    def __init__(self) -> None:
        self._usual = _resident()

    def reset(self) -> None:
        """Measure the growth since this call."""
        self._usual = _resident()

    def growth(self) -> int:
        """Return the growth in bytes."""
        return _resident() - self._usual

    def trim(self) -> None:
        """Return the free memory of the C library to the system; with other libraries than glibc, do nothing."""
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _resident() -> int:
    """Return the resident memory of this process in bytes; 0 if it is unknown."""
    with suppress(OSError), open("/proc/self/statm", "rb") as stream:
        return int(stream.read().split()[1]) * _PAGE
    return 0
