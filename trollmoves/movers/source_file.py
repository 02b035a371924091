"""The file to send: opened once, read by a protocol, checked afterwards."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from typing import Any, BinaryIO, cast

from trollmoves.errors import (
    OriginChanged,
    OriginForbidden,
    OriginMissing,
    OriginUnreadable,
    TemporaryTransferError,
    TransferError,
)
from trollmoves.utils.file_versions import despite_removal

BLOCK = 1 << 20  # bytes that are read at a time for a checksum
# Errors of open() that mean that the file is missing, or that its name belongs to something else.
MISSING_ERRNOS = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV}


def _open(path: str) -> int:
    # Non-blocking: opening a named pipe would wait for its writer.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _open_error(error: OSError) -> type[TransferError]:
    if error.errno in MISSING_ERRNOS:
        return OriginMissing
    return OriginForbidden if isinstance(error, PermissionError) else OriginUnreadable


class SourceFile:
    """The open origin: reads one file, even if its path is renamed or replaced.

    ``read_error`` is the first cause of a failed read, None without one; it is reported instead of later errors.
    """

    __slots__ = ("fd", "name", "path", "read_error", "size", "status")

    def __init__(self, path: str) -> None:
        """Open ``path``.

        Raises:
            OriginMissing: the file does not exist, or is not a regular file.
            OriginUnreadable: the file cannot be opened now.
        """
        self.path = path
        self.name = path.rpartition("/")[2]
        self.read_error: TemporaryTransferError | None = None
        try:
            self.fd = despite_removal(path, _open)
        except ValueError as error:
            raise OriginMissing(f"{path}: {error}") from error
        except OSError as error:
            raise _open_error(error)(f"{path}: {error.strerror}") from error
        self.status = os.fstat(self.fd)
        self.size = self.status.st_size
        if not stat.S_ISREG(self.status.st_mode):
            os.close(self.fd)
            raise OriginMissing(f"{path}: must be a regular file")

    def __enter__(self) -> SourceFile:
        """Return the open file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        os.close(self.fd)

    def reader(self) -> BinaryIO:
        """Return a file object positioned at the beginning; closing it keeps the source open."""
        self.rewind()
        return cast(BinaryIO, _Reader(self))

    def checked_reader(self) -> BinaryIO:
        """Return a reader as above, for an upload that is published by its last byte.

        It passes the last bytes only if the file has not changed since it was opened; otherwise it raises
        ``OriginChanged``, which is also stored in ``read_error``.
        """
        self.rewind()
        return cast(BinaryIO, _CheckedReader(self))

    def digest(self, algorithm: str) -> str:
        """Return the checksum of the file in hexadecimal form; ``algorithm`` is a name of hashlib."""
        digest = hashlib.new(algorithm, usedforsecurity=False)
        with self.reader() as reader:
            while block := reader.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def read(self, size: int) -> bytes:
        """Return the next bytes, up to ``size``."""
        try:
            return os.read(self.fd, size)
        except OSError as error:
            self.record_read_error(error)
            raise

    def record_read_error(self, error: OSError) -> None:
        """Store the cause of a failed read."""
        self.read_error = OriginUnreadable(f"{self.path}: cannot be read: {error.strerror}")

    def rewind(self) -> None:
        """Continue reading at the beginning."""
        os.lseek(self.fd, 0, os.SEEK_SET)

    @property
    def position(self) -> int:
        """Number of bytes read so far; any thread may call."""
        try:
            return os.lseek(self.fd, 0, os.SEEK_CUR)
        except OSError:
            return self.size

    @property
    def mode(self) -> int:
        """Permissions of a copy before the umask: those of the origin, but not world-writable."""
        return self.status.st_mode & 0o775

    def check_unchanged(self) -> None:
        """Raise ``OriginChanged`` if the file was modified since it was opened."""
        now = os.fstat(self.fd)
        if now.st_size != self.size or now.st_mtime_ns != self.status.st_mtime_ns:
            raise OriginChanged(f"{self.path}: was modified while it was being sent")


class _Reader(io.FileIO):
    """Reads a source and stores read errors there: libraries may convert the exception."""

    def __init__(self, source: SourceFile) -> None:
        self._source = source
        try:
            super().__init__(source.fd, closefd=False)
        except OSError as error:  # after Ctrl-C the descriptor is that of a directory
            source.record_read_error(error)
            raise

    def read(self, size: int | None = -1) -> bytes | Any:
        """Return the next bytes, up to ``size``."""
        try:
            return super().read(-1 if size is None else size)
        except OSError as error:
            self._source.record_read_error(error)
            raise


class _CheckedReader(_Reader):
    """Raises ``OriginChanged`` instead of returning the last bytes of a file that has changed."""

    def read(self, size: int | None = -1) -> bytes | Any:
        """Return the next bytes, up to ``size``."""
        block = super().read(size)
        if not block or self.tell() >= self._source.size:
            try:
                self._source.check_unchanged()
            except OriginChanged as error:
                self._source.read_error = error
                raise
        return block
