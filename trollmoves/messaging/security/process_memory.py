"""Measures this process's memory, and returns free memory to the system."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 if it is unknown."""
    with suppress(OSError), open("/proc/self/statm", "rb") as stream:
        return int(stream.read().split()[1]) * _PAGE
    return 0


def trim() -> None:
    """Return the free memory of the C library to the system; with other libraries than glibc, do nothing."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
