"""The delivery of one file to one destination, common to all protocols.

A protocol implements ``Backend``: a few operations on paths of the destination. A ``Mover`` uses them to open the
origin, find the final name, send to a partial in the same directory, verify and rename it; on errors it removes the
partial.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import Any
from urllib.parse import ParseResult

from trollmoves.errors import (
    AuthenticationFailed,
    BadDestination,
    NameRejected,
    OriginChanged,
    PermanentTransferError,
    PermissionRefused,
    TemporaryTransferError,
    TransferError,
)
from trollmoves.movers import options
from trollmoves.movers.host_capabilities import HostCapabilities, Limitation
from trollmoves.movers.os_errors import translate_os_errors
from trollmoves.movers.partials import PartialId, partial_path, visible_partial_path
from trollmoves.movers.source_file import SourceFile
from trollmoves.net import urls
from trollmoves.utils.file_versions import remove_version, version_of

logger = logging.getLogger(__name__)
SIZE_DELAYS = (0.1, 0.3, 0.6, 1.0)  # seconds between queries while a host reports too small a size
REJECTION_ERRNOS = {errno.EACCES, errno.EPERM, errno.EOPNOTSUPP}


class Backend(ABC):
    """One destination with the file operations of its protocol; used by one thread at a time.

    Each operation raises only ``OSError`` (with errno) or ``TransferError``. ``PermissionError``, ``PermissionRefused``
    and ``PermanentTransferError`` by ``send``, before it reads the source, or by ``replace`` mean that the host rejects
    the name or the operation; then the mover tries a lesser sequence of operations.
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

    def rejects_rename(self, path: str) -> bool:  # noqa: ARG002  (optional)
        """Return True if the host rejects renames, as far as the missing file ``path`` shows; once per host."""
        return False

    def verify(self, source: SourceFile, path: str) -> None:  # noqa: B027  (optional)
        """Compare checksums, if ``verify_checksum`` is set; raises ``TemporaryTransferError`` on a difference."""


class Naming(Enum):
    """The kind of name under which a file is sent: a partial, or its final name."""

    HIDDEN = auto()
    VISIBLE = auto()
    FINAL = auto()


class _Rejected(Exception):
    """The host rejected a step of the sequence; the cause is its error."""

    def __init__(self, limitation: Limitation, *, lasting: bool = True) -> None:
        super().__init__(limitation)
        self.limitation = limitation
        self.lasting = lasting


def is_rejection(error: BaseException) -> bool:
    """Return True if the host rejected a name or an operation; False for an outage, a full disk or the origin."""
    if isinstance(error, TransferError):
        return (
            isinstance(error, (PermissionRefused, PermanentTransferError))
            and not isinstance(error, AuthenticationFailed)
            and not error.blames_origin
        )
    return isinstance(error, OSError) and error.errno in REJECTION_ERRNOS


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
        self.attrs: Mapping[str, Any] = self.with_defaults(attrs or {})
        self.backup_targets = backup_targets or ()
        self.partial_id = partial_id
        self.source: SourceFile | None = None
        self.host: HostCapabilities | None = None
        self.on_opened: Callable[[int], None] | None = None

    def __str__(self) -> str:
        return f"{self.origin} to {urls.redacted(self.destination)}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def with_defaults(self, attrs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the connection parameters with the defaults of the host's configuration, if the protocol has one."""
        return attrs

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
            if self.source is None:
                os.unlink(self.origin)
            elif not remove_version(self.origin, version_of(self.source.status)):
                raise OriginChanged(f"{self.origin} was delivered, but not removed: the path is another file now")

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

    def check(self, name: str) -> bool:  # noqa: ARG002  (optional)
        """Write the origin under ``name`` to the destination, a directory, and remove it; return False without it.

        If the directory is missing, this is done in the nearest directory above it that exists: a delivery creates the
        others there.

        Raises TransferError if the host, the login or the directory does not accept the file.
        """
        raise PermanentTransferError(f"{self}: deliveries by {type(self).__name__} cannot be checked")

    def write_and_remove(self, backend: Backend, source: SourceFile, name: str) -> bool:
        """Do the work of ``check`` with a backend."""
        wanted = directory = self.path.rstrip("/")
        while backend.partials and directory and not backend.is_directory(directory):
            directory = directory.rpartition("/")[0]
        path = f"{directory}/{name}"
        backend.send(source, path)
        backend.remove(path)
        return directory == wanted

    def option(self, name: str) -> Any:
        """Return the connection parameter ``name``, or its default."""
        return options.value(self.attrs, name)

    @property
    def path(self) -> str:
        """The path of the destination."""
        return self.destination.path

    def deliver(self, backend: Backend, source: SourceFile) -> None:
        """Deliver ``source`` by ``backend``, by the best sequence of operations that the host allows.

        The file is sent to a partial and renamed; if the host rejects that, under its final name. Limitations of the
        host are recorded after a success, so that an outage or a locked directory is not taken for one.
        """
        self.source = source
        self._compares_checksums = self.option("verify_checksum")  # here: an invalid value must fail before a transfer
        final = self._final_path(backend)
        if self.is_same_file(source, final):
            return
        found: list[Limitation] = []
        naming = self._first_naming(backend, final, found)
        first: BaseException | None = None
        while True:
            try:
                self._attempt(backend, source, final, naming)
                break
            except _Rejected as rejection:
                first = first or rejection.__cause__
                if rejection.lasting:
                    found.append(rejection.limitation)
                hidden = rejection.limitation is Limitation.NO_HIDDEN_NAMES
                naming = Naming.VISIBLE if hidden else Naming.FINAL
                source.rewind()
            except (OSError, TransferError) as error:
                if first is not None and is_rejection(error):
                    raise first from None
                raise
        if found and self.host is not None:
            self.host.record(found[-1])  # it includes those before

    def _first_naming(self, backend: Backend, final: str, found: list[Limitation]) -> Naming:
        """Return how to name the file until it is complete; add a limitation that a probe shows to ``found``."""
        if not backend.partials or not self.option("use_tmp_on_transfer"):
            return Naming.FINAL
        naming = Naming.VISIBLE if self.option("tmp_prefix") else Naming.HIDDEN
        host = self.host
        if host is None:
            return naming
        if host.lacks(Limitation.NO_PARTIALS) or host.lacks(Limitation.NO_RENAME):
            return Naming.FINAL
        if not host.renames:
            # Checked before data is sent: a host without renames may also reject the removal of the partial.
            if backend.rejects_rename(partial_path(final)):
                found.append(Limitation.NO_RENAME)
                return Naming.FINAL
            host.renames = True
        return Naming.VISIBLE if host.lacks(Limitation.NO_HIDDEN_NAMES) else naming

    def _attempt(self, backend: Backend, source: SourceFile, final: str, naming: Naming) -> None:
        """Send, verify and rename; raise ``_Rejected`` if another sequence may succeed."""
        path = final if naming is Naming.FINAL else self._partial(backend, final, naming)
        sent = False
        try:
            self._send(backend, source, path)
            self._verify(backend, source, path)
            sent = True
            if path != final:
                self._check_lease()
                backend.replace(path, final)
        except BaseException as error:
            if path != final or (backend.partials and source.position):  # else the earlier file of this name is intact
                self.remove_incomplete(backend, path, error, is_final=path == final)
            if source.read_error:
                raise source.read_error from error
            if self.host is not None and path != final and is_rejection(error):
                if sent:
                    lasting = self._is_lasting(backend, path, final)
                    raise _Rejected(Limitation.NO_RENAME, lasting=lasting) from error
                if not source.position:
                    hidden = naming is Naming.HIDDEN
                    raise _Rejected(Limitation.NO_HIDDEN_NAMES if hidden else Limitation.NO_PARTIALS) from error
            raise

    def _check_lease(self) -> None:
        if self.partial_id:
            self.partial_id.check_lease(self)

    def _is_lasting(self, backend: Backend, partial: str, final: str) -> bool:
        """Return True if a rejected rename concerns further files, too; warn about a partial that is left."""
        if _exists(backend, partial):  # partials must not accumulate
            logger.warning("%s: the host rejects renames and removals; remove its file %s", self, partial)
            return True
        return not _exists(backend, final)  # a file that cannot be replaced says nothing about other names

    def _partial(self, backend: Backend, final: str, naming: Naming) -> str:
        """Return the partial to send to, after removing that of an earlier attempt.

        It is not overwritten: the server may still be writing it for a killed process.
        """
        prefix = self.option("tmp_prefix") or ""

        def named(token: str = "") -> str:
            return partial_path(final, token) if naming is Naming.HIDDEN else visible_partial_path(final, token, prefix)

        if self.partial_id is None:
            return named()
        for token in self.partial_id.earlier:
            with suppress(PermissionError):
                backend.remove(named(token))
        partial = named(self.partial_id.token)
        if self.partial_id.may_exist:
            try:
                backend.remove(partial)
            except PermissionError:  # without permission to delete, use another name
                return named()
        return partial

    def is_same_file(self, source: SourceFile, final: str) -> bool:  # noqa: ARG002  (only for local files)
        """Return True if ``final`` is the source itself, so that nothing needs to be sent."""
        return False

    def remove_incomplete(self, backend: Backend, path: str, error: BaseException, *, is_final: bool) -> None:  # noqa: ARG002
        """Remove the partial, or the file under its final name, of an attempt that failed with ``error``.

        Errors are ignored, as ``error`` is raised.
        """
        try:
            backend.remove(path)
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
        if backend.is_directory(path):
            self.destination = self.destination._replace(path=f"{self.destination.path}/")
            path = f"{path}/{os.path.basename(self.origin)}"
        return path

    def _send(self, backend: Backend, source: SourceFile, path: str) -> None:
        self._check_lease()  # here, too: the path may be the final one
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
        for delay in SIZE_DELAYS:
            if size is None or size >= source.size:
                break
            time.sleep(delay)  # some hosts report the size of a file that they are still storing
            size = backend.size(path)
        if size is None:
            if self.host is not None:
                self.host.record(Limitation.NO_SIZE)
        elif size != source.size:
            raise TemporaryTransferError(f"{self}: {size} of {source.size} bytes arrived")
        if self._compares_checksums:
            backend.verify(source, path)


def _exists(backend: Backend, path: str) -> bool:
    try:
        return backend.size(path) is not None
    except (OSError, TransferError):
        return False
