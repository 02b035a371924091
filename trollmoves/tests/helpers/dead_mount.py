"""A file system on which every call blocks, as on the mount of a dead NFS server: a FUSE mount without a server."""

from __future__ import annotations

import os
from pathlib import Path

from trollmoves.tests.helpers.daemons import Testbed
from trollmoves.tests.helpers.fuse_mount import FuseMount


class DeadMount:
    """A directory on which every call blocks until ``heal``; then it is the directory that was there before."""

    def __init__(self, testbed: Testbed, directory: Path) -> None:
        """Mount it over a directory, or skip the test."""
        self._mount: FuseMount | None = FuseMount(b"dead", directory)
        testbed.call_at_end(self.heal)

    def heal(self) -> None:
        """End it: blocked calls fail, and later ones see the directory below."""
        if self._mount:
            os.close(self._mount.fd)
            self._mount.unmount()
            self._mount = None
