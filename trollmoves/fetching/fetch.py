"""One attempt to fetch one file: it is written to a partial, which is renamed when it is complete."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import Any, BinaryIO, cast

from trollmoves.errors import BadDestination, OriginUnreadable, TrollmovesError
from trollmoves.fetching.sources import LocalSource, Source
from trollmoves.movers import PartialId
from trollmoves.movers.file import LocalBackend
from trollmoves.movers.os_errors import from_os_error, translate_os_errors
from trollmoves.movers.partials import partial_path

MODE = 0o664  # permissions of a file before the umask


def fetch(source: Source, path: str, *, make_directory: bool, partial_id: PartialId | None = None) -> int:
    """Fetch a file to ``path``, replacing an existing file, and return its size in bytes. Any thread.

    Args:
        source: the file.
        path: its final path on this host.
        make_directory: create a missing directory; without it a missing directory is an error.
        partial_id: names the partial, so that the next attempt replaces the partial of a killed process.

    Raises:
        TransferError: the file was not fetched; ``temporary`` is True if it may be fetched later.
    """
    directory = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise BadDestination(f"{path} is a directory: remove it, or correct the destination")
    if not os.path.isdir(directory):
        if not make_directory:
            raise BadDestination(f"the directory {directory} does not exist: create it, or correct the path")
        with translate_os_errors(directory):
            LocalBackend().make_directories(os.path.abspath(directory))
    if isinstance(source, LocalSource):
        return source.copy_to(os.path.abspath(path), partial_id)
    return _fetch_remote(source, path, partial_id or PartialId(""))


def _fetch_remote(source: Source, path: str, partial_id: PartialId) -> int:
    partial = partial_path(path, partial_id.token)
    with translate_os_errors(partial):
        for token in filter(None, (*partial_id.earlier, partial_id.token)):
            with suppress(FileNotFoundError):
                os.unlink(partial_path(path, token))  # of a killed process
    try:
        with _Partial(partial) as stream:
            try:
                source.read_to(cast(BinaryIO, stream))
            except TrollmovesError:
                raise
            except OSError as error:
                raise OriginUnreadable(f"{source.name}: {error.strerror or error}") from error
            size = os.fstat(stream.fileno()).st_size
        partial_id.check_lease(source.name)
        with translate_os_errors(path):
            os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise
    return size


class _Partial(io.FileIO):
    """A new file that writes all bytes of each block; its errors are those of the destination."""

    def __init__(self, path: str) -> None:
        self._path = path
        with translate_os_errors(path):
            super().__init__(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE), "r+")

    def write(self, data: Any) -> int:
        """Write all of ``data``; raise TransferError."""
        rest = memoryview(data).cast("B")
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            raise from_os_error(error, self._path) from error
        return memoryview(data).nbytes
