"""The delivery of one file to one destination, common to all protocols.

A protocol implements ``Backend``: a few operations on paths of the destination. A ``Mover`` uses them to open the
origin, find the final name, send to a partial in the same directory, verify and rename it; on errors it removes the
partial.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, cast
from urllib.parse import ParseResult

from trollmoves.errors import (
    BadDestination,
    ConnectionFailed,
    NameRejected,
    NoSpace,
    OriginChanged,
    OriginMissing,
    OriginUnreadable,
    PermanentTransferError,
    PermissionRefused,
    TargetBusy,
    TemporaryTransferError,
    TransferError,
    TransferStalled,
    TrollmovesError,
)
from trollmoves.movers import options
from trollmoves.movers.partials import PartialId, clean_partials, is_partial, partial_path
from trollmoves.net import urls
from trollmoves.utils import failpoints

__all__ = [
    "Backend",
    "Mover",
    "PartialId",
    "SourceFile",
    "clean_partials",
    "is_partial",
    "parse_destination",
    "partial_path",
    "translate_os_errors",
]

_BY_ERRNO: dict[int, type[TransferError]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), NoSpace),
    **dict.fromkeys((errno.EACCES, errno.EPERM), PermissionRefused),
    **dict.fromkeys((errno.EBUSY, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ETXTBSY), TargetBusy),
    errno.EROFS: TargetBusy,  # the kernel remounts a disk read-only after an error; operators repair it
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EEXIST), BadDestination),
    **dict.fromkeys((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EPIPE), ConnectionFailed),
    errno.ETIMEDOUT: TransferStalled,
    **dict.fromkeys((errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ), NameRejected),
    errno.EFBIG: PermanentTransferError,
}


DEFAULT_TEXTS: dict[type[OSError], str] = {TimeoutError: "no reply or no progress before the timeout"}


def from_os_error(error: OSError, action: object) -> TransferError:
    """Return the ``TransferError`` for ``error``; an unknown errno counts as temporary."""
    if isinstance(error, (ConnectionError, socket.gaierror)):
        kind: type[TransferError] = ConnectionFailed
    elif isinstance(error, TimeoutError):
        kind = TransferStalled
    else:
        kind = _BY_ERRNO.get(error.errno or 0, TemporaryTransferError)
    return kind(f"{action}: {error.strerror or str(error) or DEFAULT_TEXTS.get(type(error), type(error).__name__)}")


class translate_os_errors:  # noqa: N801  (used like a function in ``with``)
    """Translates an ``OSError`` of its block into a ``TransferError`` whose text begins with ``action``.

    A class is faster than a generator here, and this runs for each file.
    """

    __slots__ = ("action",)

    def __init__(self, action: object) -> None:
        self.action = action

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        """Translate an ``OSError``."""
        if isinstance(error, OSError) and not isinstance(error, TrollmovesError):
            raise from_os_error(error, self.action) from error


# Errors of open() that mean that the file is missing, or that its name belongs to something else.
MISSING_ERRNOS = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV}


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
        self.read_error: OriginUnreadable | None = None
        try:
            # Non-blocking: opening a named pipe would wait for its writer.
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except ValueError as error:
            raise OriginMissing(f"{path}: {error}") from error
        except OSError as error:
            kind = OriginMissing if error.errno in MISSING_ERRNOS else OriginUnreadable
            raise kind(f"{path}: {error.strerror}") from error
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
        os.lseek(self.fd, 0, os.SEEK_SET)
        return cast(BinaryIO, _Reader(self))

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

    @property
    def position(self) -> int:
        """Number of bytes read so far, for a progress bar; any thread may call."""
        try:
            return os.lseek(self.fd, 0, os.SEEK_CUR)
        except OSError:
            return self.size

    @property
    def mode(self) -> int:
        """Permissions of a copy before the umask: those of the origin, but not world-writable."""
        return self.status.st_mode & 0o775

    def is_at(self, path: str) -> bool:
        """Return True if ``path`` is this file, unmodified since it was opened."""
        now, then = os.stat(path), self.status
        return (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns) == (
            then.st_dev,
            then.st_ino,
            then.st_size,
            then.st_mtime_ns,
        )

    def check_unchanged(self) -> None:
        """Raise ``OriginChanged`` if the file was modified since it was opened."""
        now = os.fstat(self.fd)
        if now.st_size != self.size or now.st_mtime_ns != self.status.st_mtime_ns:
            raise OriginChanged(f"{self.path}: was modified while it was being sent")


class _Reader(io.FileIO):
    """Reads a source and stores read errors there: libraries may convert the exception."""

    def __init__(self, source: SourceFile) -> None:
        super().__init__(source.fd, closefd=False)
        self._source = source

    def read(self, size: int | None = -1) -> bytes | Any:
        """Return the next bytes, up to ``size``."""
        try:
            return super().read(-1 if size is None else size)
        except OSError as error:
            self._source.record_read_error(error)
            raise


class Backend(ABC):
    """One destination with the file operations of its protocol; used by one thread at a time.

    Each operation raises only ``OSError`` (with errno) or ``TransferError``.
    """

    partials = True
    """False if incomplete files are invisible; then ``replace`` is never called."""

    @abstractmethod
    def is_directory(self, path: str) -> bool:
        """Return True if ``path`` is a directory."""

    @abstractmethod
    def make_directories(self, path: str) -> None:
        """Create the directory ``path`` and its parents; existing ones are accepted."""

    @abstractmethod
    def send(self, source: SourceFile, path: str) -> None:
        """Write ``source`` to ``path``; raises ``FileNotFoundError`` if the directory is missing."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Return the size of the file ``path`` in bytes, None if the protocol cannot query it."""

    @abstractmethod
    def replace(self, partial: str, final: str) -> None:
        """Rename ``partial`` to ``final``, replacing an existing file; atomically if the protocol can."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove the file ``path``; a missing file is accepted."""

    def verify(self, source: SourceFile, path: str) -> None:  # noqa: B027  (optional)
        """Compare checksums if configured; raises ``TemporaryTransferError`` on a difference."""


def _is_path(text: str) -> bool:
    """Return True if ``text`` can be a path: without NUL and lone surrogates."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def parse_destination(destination: str | ParseResult) -> ParseResult:
    """Return the destination with its complete path in ``path``; a parsed one is returned unchanged."""
    if isinstance(destination, ParseResult) and not any(destination[3:]):
        return destination
    return urls.parse(destination)


class Mover(ABC):
    """Delivers the file ``origin`` to the URL ``destination`` in the calling thread; one object a file.

    Args:
        origin: path of the file.
        destination: URL or ``ParseResult``. With a trailing ``/``, or if it is an existing directory, the file keeps
            its name in that directory; else the last part is the new name. Missing directories are created.
        attrs: connection parameters, see ``options.OPTIONS``; not modified.
        backup_targets: hosts tried in order, with user and port of the destination, if the host of the destination
            cannot be reached; afterwards ``destination`` is the URL that received the file.
        partial_id: names the partial, so that the next attempt replaces the partial of a killed process.
    """

    def __init__(
        self,
        origin: str | os.PathLike[str],
        destination: str | ParseResult,
        attrs: Mapping[str, Any] | None = None,
        backup_targets: Sequence[str] | None = None,
        partial_id: PartialId | None = None,
    ) -> None:
        self.origin = os.fspath(origin)
        self.destination = parse_destination(destination)
        self.attrs: Mapping[str, Any] = attrs or {}
        self.backup_targets = backup_targets or ()
        self.partial_id = partial_id
        self.source: SourceFile | None = None
        self.on_opened: Callable[[int], None] | None = None

    def __str__(self) -> str:
        return f"{self.origin} to {urls.redacted(self.destination)}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    @abstractmethod
    def copy(self) -> None:
        """Deliver the file; on return it is complete under its final name.

        Raises:
            TransferError: the delivery failed; ``temporary`` is True if it may succeed later.
            ConfigError: a connection parameter is invalid.
        """

    def move(self) -> None:
        """Deliver the file, then remove the origin, unless it was replaced (``OriginChanged``).

        Raises:
            TransferError: as ``copy``; or the file was delivered, but the origin was not removed.
        """
        self.copy()
        self.remove_origin()

    def remove_origin(self) -> None:
        """Remove the origin if its path is still the delivered file."""
        with translate_os_errors(f"{self.origin} was delivered, but cannot be removed"):
            if self.source is not None and not self.source.is_at(self.origin):
                raise OriginChanged(f"{self.origin} was delivered, but not removed: the path is another file now")
            os.unlink(self.origin)

    def open(self) -> SourceFile:
        """Open the origin and call ``on_opened``; raises as ``SourceFile`` and ``on_opened``."""
        source = SourceFile(self.origin)
        if self.on_opened is not None:
            try:
                self.on_opened(source.fd)
            except BaseException:
                os.close(source.fd)
                raise
        return source

    def option(self, name: str) -> Any:
        """Return the connection parameter ``name``, or its default."""
        return options.value(self.attrs, name)

    @property
    def path(self) -> str:
        """The path of the destination."""
        return self.destination.path

    def deliver(self, backend: Backend, source: SourceFile) -> None:
        """Make one attempt to deliver ``source`` by ``backend``."""
        self.source = source
        final = self._final_path(backend)
        if self.is_same_file(source, final):
            return
        partial = self._partial(backend, final) if backend.partials else final
        try:
            self._send(backend, source, partial)
            self._verify(backend, source, partial)
            if backend.partials:
                failpoints.hit("sent")
                backend.replace(partial, final)
        except BaseException as error:
            if backend.partials:
                self.remove_partial(backend, partial, error)
            if source.read_error:
                raise source.read_error from error
            raise

    def _partial(self, backend: Backend, final: str) -> str:
        """Return the partial to send to, after removing that of an earlier attempt.

        It is not overwritten: the server may still be writing it for a killed process.
        """
        if self.partial_id is None:
            return partial_path(final)
        partial = partial_path(final, self.partial_id.token)
        if self.partial_id.may_exist:
            try:
                backend.remove(partial)
            except (PermissionError, PermissionRefused):  # without permission to delete, use another name
                return partial_path(final)
        return partial

    def is_same_file(self, source: SourceFile, final: str) -> bool:  # noqa: ARG002  (only for local files)
        """Return True if ``final`` is the source itself, so that nothing needs to be sent."""
        return False

    def remove_partial(self, backend: Backend, partial: str, error: BaseException) -> None:  # noqa: ARG002
        """Remove the partial of an attempt that failed with ``error``; errors are ignored, as ``error`` is raised."""
        try:
            backend.remove(partial)
        except (OSError, TransferError):
            return

    def _final_path(self, backend: Backend) -> str:
        path = self.path
        if not _is_path(path):
            raise NameRejected(f"{self}: the path must not contain NUL or invalid characters")
        if path.endswith("/"):
            return path + os.path.basename(self.origin)
        if not path:
            raise BadDestination(f"{self}: the destination has no path")
        return f"{path}/{os.path.basename(self.origin)}" if backend.is_directory(path) else path

    def _send(self, backend: Backend, source: SourceFile, path: str) -> None:
        try:
            backend.send(source, path)
        except FileNotFoundError:
            backend.make_directories(path.rpartition("/")[0] or "/")
            backend.send(source, path)
        except FileExistsError:  # left by an attempt that is not known
            backend.remove(path)
            backend.send(source, path)

    def _verify(self, backend: Backend, source: SourceFile, path: str) -> None:
        source.check_unchanged()
        size = backend.size(path)
        if size is not None and size != source.size:
            raise TemporaryTransferError(f"{self}: {size} of {source.size} bytes arrived")
        backend.verify(source, path)
