"""A file system on which every call blocks, as on the mount of a dead NFS server: a FUSE mount without a server."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import Testbed

MNT_DETACH = 2


class DeadMount:
    """A directory on which every call blocks until ``heal``; then it is the directory that was there before."""

    def __init__(self, testbed: Testbed, directory: Path) -> None:
        """Mount it over a directory, or skip the test."""
        if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
            pytest.skip("missing: root and /dev/fuse")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._directory = os.fsencode(directory)
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0".encode()
        if self._libc.mount(b"dead", self._directory, b"fuse", 0, options):
            os.close(self._fd)
            pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
        testbed.call_at_end(self.heal)

    def heal(self) -> None:
        """End it: blocked calls fail, and later ones see the directory below."""
        if self._fd >= 0:
            os.close(self._fd)
            self._libc.umount2(self._directory, MNT_DETACH)
            self._fd = -1
