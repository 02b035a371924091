"""Measures the memory that the C libraries of this process have allocated, ZeroMQ's included."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_FIELDS = "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"


class _Statistics(ctypes.Structure):
    """The result of ``mallinfo2``."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _FIELDS)


class Heap:
    """The growth of the heap since the last ``reset``; 0 with a C library other than glibc 2.33 or newer."""

    def __init__(self) -> None:
        self._usual = 0
        self._library = ctypes.CDLL(None)
        self._has_statistics = hasattr(self._library, "mallinfo2")
        if self._has_statistics:
            self._library.mallinfo2.restype = _Statistics
        self.reset()

    def reset(self) -> None:
        """Measure the growth from now on."""
        self._usual = self._size()

    def growth(self) -> int:
        """Return the growth in bytes."""
        return self._size() - self._usual

    def trim(self) -> None:
        """Return free memory to the system."""
        with suppress(AttributeError):
            self._library.malloc_trim(0)

    def _size(self) -> int:
        if not self._has_statistics:
            return 0
        statistics = self._library.mallinfo2()
        return int(statistics.uordblks + statistics.hblkhd)
