"""A packed file, opened once: all checks and all reading use the same descriptor, whatever its path becomes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import BinaryIO

from trollmoves.errors import TemporaryUnpackError, UnpackFailed
from trollmoves.utils.file_versions import despite_removal

_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class PackedFile:
    """Context manager for one open packed file; used by one thread.

    Args:
        path: path of the file, for its name and error texts.
        on_opened: called with the descriptor before any data is read; its exceptions propagate.

    Raises:
        UnpackFailed: the file is missing, cannot be opened, or is not a regular file.
    """

    def __init__(self, path: str, on_opened: Callable[[int], None] | None = None) -> None:
        self.path = path
        try:
            self.fd = despite_removal(path, lambda name: os.open(name, _OPEN))
        except (OSError, ValueError) as error:
            raise UnpackFailed(f"{path}: {getattr(error, 'strerror', None) or error}") from error
        try:
            self.status = os.fstat(self.fd)
            if not stat.S_ISREG(self.status.st_mode):
                raise UnpackFailed(f"{path} must be a regular file")
            if on_opened is not None:
                on_opened(self.fd)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> PackedFile:
        """Return the open file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        os.close(self.fd)

    def reader(self) -> BinaryIO:
        """Return a file object positioned at the beginning; use one at a time. Closing it keeps the file open."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        return os.fdopen(self.fd, "rb", closefd=False)

    def check_unchanged(self) -> None:
        """Raise ``TemporaryUnpackError`` if the file was modified since it was opened."""
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns):
            raise TemporaryUnpackError(f"{self.path}: was modified while it was being unpacked")
