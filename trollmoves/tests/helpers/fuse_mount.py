"""Mounts of FUSE file systems, by the kernel's interface alone: their calls are read from a descriptor."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

MNT_DETACH = 2


class FuseMount:
    """A FUSE file system over a directory; the kernel's requests are read from ``fd`` and answered on it."""

    def __init__(self, name: bytes, directory: Path) -> None:
        """Mount it, or skip the test."""
        if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
            pytest.skip("missing: root and /dev/fuse")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._directory = os.fsencode(directory)
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.fd},rootmode=40000,user_id=0,group_id=0".encode()
        if self._libc.mount(name, self._directory, b"fuse", 0, options):
            os.close(self.fd)
            pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")

    def unmount(self) -> None:
        """Unmount it; the directory below is visible again. The descriptor stays open."""
        self._libc.umount2(self._directory, MNT_DETACH)
