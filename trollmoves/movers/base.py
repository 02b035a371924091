"""The way of one file to one destination, the same for every protocol.

A protocol is a ``FarEnd``: a handful of operations on paths there. A ``Mover`` tells the story with them: open the
origin, find the final name, send to a partial beside it, verify, replace, and leave nothing behind on any error.
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
    errno.EROFS: TargetBusy,  # after an error of the disk the kernel makes it so, and people mend it
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL), BadDestination),
    **dict.fromkeys((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EPIPE), ConnectionFailed),
    errno.ETIMEDOUT: TransferStalled,
    errno.EFBIG: PermanentTransferError,
}


DEFAULT_TEXTS: dict[type[OSError], str] = {TimeoutError: "no answer, or no progress, for too long"}


def from_os_error(error: OSError, what: object) -> TransferError:
    """Return ``error`` as one of ours; what is unknown counts as temporary, as trying again loses nothing."""
    if isinstance(error, (ConnectionError, socket.gaierror)):
        kind: type[TransferError] = ConnectionFailed
    elif isinstance(error, TimeoutError):
        kind = TransferStalled
    else:
        kind = _BY_ERRNO.get(error.errno or 0, TemporaryTransferError)
    return kind(f"{what}: {error.strerror or str(error) or DEFAULT_TEXTS.get(type(error), type(error).__name__)}")


class translate_os_errors:  # noqa: N801  (read as a word: ``with translated(self):``)
    """Turns an ``OSError`` of its block into one of our errors, which says ``what`` was being done.

    A class rather than a generator, because it stands on the way of every file.
    """

    __slots__ = ("what",)

    def __init__(self, what: object) -> None:
        self.what = what

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        """Translate, where there is something to translate."""
        if isinstance(error, OSError) and not isinstance(error, TrollmovesError):
            raise from_os_error(error, self.what) from error


# There is nothing to send: no such file, or what has its name cannot be opened as one.
MISSING_ERRNOS = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV}


class SourceFile:
    """The origin, open: what is read is one file, however its name fares meanwhile.

    ``trouble`` is why it could not be read on, None as long as it can; whatever came of that, it is the reason.
    """

    __slots__ = ("fd", "name", "path", "read_error", "size", "status")

    def __init__(self, path: str) -> None:
        """Open ``path``.

        Raises:
            OriginMissing: there is no such file, or it is no regular file.
            OriginUnreadable: it cannot be opened now.
        """
        self.path = path
        self.name = path.rpartition("/")[2]
        self.read_error: OriginUnreadable | None = None
        try:
            # Non-blocking, because opening a named pipe would wait for its writer.
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
            raise OriginMissing(f"{path}: is no regular file")

    def __enter__(self) -> SourceFile:
        """Hand out the open file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        os.close(self.fd)

    def reader(self) -> BinaryIO:
        """Return a file object at the beginning; closing it leaves the source open."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        return cast(BinaryIO, _Reader(self))

    def read(self, size: int) -> bytes:
        """Read on."""
        try:
            return os.read(self.fd, size)
        except OSError as error:
            self.record_read_error(error)
            raise

    def record_read_error(self, error: OSError) -> None:
        """Note that it could not be read on."""
        self.read_error = OriginUnreadable(f"{self.path}: cannot be read: {error.strerror}")

    @property
    def position(self) -> int:
        """How many bytes have been read so far; any thread may ask, for a progress bar."""
        try:
            return os.lseek(self.fd, 0, os.SEEK_CUR)
        except OSError:
            return self.size

    @property
    def mode(self) -> int:
        """The permissions a copy gets before the umask: the origin's, never writable for everyone."""
        return self.status.st_mode & 0o775

    def is_at(self, path: str) -> bool:
        """Tell whether ``path`` is this file, as it was when it was opened."""
        now, then = os.stat(path), self.status
        return (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns) == (
            then.st_dev,
            then.st_ino,
            then.st_size,
            then.st_mtime_ns,
        )

    def check_unchanged(self) -> None:
        """Raise ``OriginChanged`` when somebody wrote to the file since it was opened."""
        now = os.fstat(self.fd)
        if now.st_size != self.size or now.st_mtime_ns != self.status.st_mtime_ns:
            raise OriginChanged(f"{self.path}: was written to while it was being sent")


class _Reader(io.FileIO):
    """Reads a source, and notes there when that fails: what stands above may make something else of the error."""

    def __init__(self, source: SourceFile) -> None:
        super().__init__(source.fd, closefd=False)
        self._source = source

    def read(self, size: int | None = -1) -> bytes | Any:
        """Read on."""
        try:
            return super().read(-1 if size is None else size)
        except OSError as error:
            self._source.record_read_error(error)
            raise


class Backend(ABC):
    """A place that files are sent to: what a protocol can do there, by path, in one thread at a time.

    Each operation raises an ``OSError`` (of a fitting errno) or one of our own errors, nothing else.
    """

    partials = True
    """False where a file appears under its name only when it is whole; then ``replace`` is never called."""

    @abstractmethod
    def is_directory(self, path: str) -> bool:
        """Tell whether ``path`` is a directory."""

    @abstractmethod
    def make_directories(self, path: str) -> None:
        """Make the directory ``path`` and those above it; one that exists is no error."""

    @abstractmethod
    def send(self, source: SourceFile, path: str) -> None:
        """Write ``source`` to ``path``; ``FileNotFoundError`` says that the directory is missing."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Return the bytes in the file ``path``, None when the far end cannot tell."""

    @abstractmethod
    def replace(self, partial: str, final: str) -> None:
        """Give the file ``partial`` the name ``final``, in place of what has that name; at once where that can be."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove the file ``path``; one that is missing is no error."""

    def verify(self, source: SourceFile, path: str) -> None:  # noqa: B027  (most have nothing more to check)
        """Check more than the size, when asked to; raises ``TemporaryTransferError`` on a difference."""


def _is_path(text: str) -> bool:
    """Tell whether a text can be the name of a file: half a character of UTF-16, and NUL, cannot."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def parse_destination(destination: str | ParseResult) -> ParseResult:
    """Return the destination with all its path in ``path``; one that is so already costs next to nothing."""
    if isinstance(destination, ParseResult) and not any(destination[3:]):
        return destination
    return urls.parse(destination)


class Mover(ABC):
    """Delivers the file ``origin`` to the URL ``destination``, in the thread that calls; one object for one file.

    Args:
        origin: path of the file.
        destination: URL or ``ParseResult``. With a trailing ``/`` the file keeps its name; without it an existing
            directory takes the file in, else the last part is the new name. Missing directories are made.
        attrs: connection parameters, see ``options.OPTIONS``; they are only read.
        backup_targets: hosts that are tried in turn, with user and port of the destination, when the destination's
            cannot be reached; ``destination`` then tells where the file went.
        mark: names the partial, so that the next try replaces what this one may leave when the process is killed.
    """

    def __init__(
        self,
        origin: str | os.PathLike[str],
        destination: str | ParseResult,
        attrs: Mapping[str, Any] | None = None,
        backup_targets: Sequence[str] | None = None,
        mark: PartialId | None = None,
    ) -> None:
        self.origin = os.fspath(origin)
        self.destination = parse_destination(destination)
        self.attrs: Mapping[str, Any] = attrs or {}
        self.backup_targets = backup_targets or ()
        self.partial_id = mark
        self.source: SourceFile | None = None
        self.on_opened: Callable[[int], None] | None = None

    def __str__(self) -> str:
        return f"{self.origin} to {urls.redacted(self.destination)}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    @abstractmethod
    def copy(self) -> None:
        """Deliver the file; when this returns, it is whole under its final name.

        Raises:
            TransferError: it is not; ``temporary`` tells whether the same may succeed later.
            ConfigError: a connection parameter makes no sense.
        """

    def move(self) -> None:
        """Deliver the file, then remove the origin; one that was replaced meanwhile stays (``OriginChanged``).

        Raises:
            TransferError: as ``copy``; or the file was delivered, but its origin is still there.
        """
        self.copy()
        self.remove_origin()

    def remove_origin(self) -> None:
        """Remove what was delivered, and nothing else."""
        with translate_os_errors(f"{self.origin} was delivered, but cannot be removed"):
            if self.source is not None and not self.source.is_at(self.origin):
                raise OriginChanged(f"{self.origin} was delivered, but another file has its name now, which stays")
            os.unlink(self.origin)

    def open(self) -> SourceFile:
        """Open the origin, and have it checked; raises what ``Source`` does, and what the check raises."""
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
        """The destination's path on the far end."""
        return self.destination.path

    def deliver(self, far: Backend, source: SourceFile) -> None:
        """Make one try to put ``source`` to its place at ``far``, whole."""
        self.source = source
        final = self._final_path(far)
        if self.is_same_file(source, final):
            return
        partial = self._partial(far, final) if far.partials else final
        try:
            self._send(far, source, partial)
            self._verify(far, source, partial)
            if far.partials:
                failpoints.hit("sent")
                far.replace(partial, final)
        except BaseException as error:
            if far.partials:
                self.remove_partial(far, partial, error)
            if source.read_error:
                raise source.read_error from error
            raise

    def _partial(self, far: Backend, final: str) -> str:
        """Give the name to send to; what an earlier try left there is removed.

        It is not written over, since the far end may still be at work on it for a process that is dead.
        """
        if self.partial_id is None:
            return partial_path(final)
        partial = partial_path(final, self.partial_id.token)
        if self.partial_id.may_exist:
            try:
                far.remove(partial)
            except (PermissionError, PermissionRefused):  # who may only write leaves it there
                return partial_path(final)
        return partial

    def is_same_file(self, source: SourceFile, final: str) -> bool:  # noqa: ARG002  (only the local file system can tell)
        """Tell whether ``final`` is the source itself, so that nothing is to be done."""
        return False

    def remove_partial(self, far: Backend, partial: str, error: BaseException) -> None:  # noqa: ARG002
        """Remove what a try left that ended by ``error``, which is told; what goes wrong here is not."""
        try:
            far.remove(partial)
        except (OSError, TransferError):
            return

    def _final_path(self, far: Backend) -> str:
        path = self.path
        if not _is_path(path):
            raise BadDestination(f"{self}: the path cannot be the name of a file")
        if path.endswith("/"):
            return path + os.path.basename(self.origin)
        if not path:
            raise BadDestination(f"{self}: the destination has no path")
        return f"{path}/{os.path.basename(self.origin)}" if far.is_directory(path) else path

    def _send(self, far: Backend, source: SourceFile, path: str) -> None:
        try:
            far.send(source, path)
        except FileNotFoundError:
            far.make_directories(path.rpartition("/")[0] or "/")
            far.send(source, path)
        except FileExistsError:  # of an earlier try that was not known of
            far.remove(path)
            far.send(source, path)

    def _verify(self, far: Backend, source: SourceFile, path: str) -> None:
        source.check_unchanged()
        size = far.size(path)
        if size is not None and size != source.size:
            raise TemporaryTransferError(f"{self}: {size} bytes arrived of {source.size}")
        far.verify(source, path)
