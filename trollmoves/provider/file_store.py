"""The files that a chain has announced: interface and helpers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from trollmoves.journal import AnnouncementRecord, to_sqlite_time
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.net import urls

LINK_DIGESTS = "link_digests"  # key in the metadata of an announcement: digests of the link targets at that time


class FileStore(Protocol):
    """The files that a chain has announced."""

    def path(self, number: int, uri: str) -> str:
        """Return the path on this host of a file of announcement ``number``."""

    def check_access(self, announced: AnnouncementRecord, uri: str, real: str) -> None:
        """Raise RequestRejected if ``real``, the path of the file with links resolved, must not be served."""

    def delete(self, number: int, uri: str) -> None:
        """Remove a local file; raise OSError on failure, BlockingIOError if a pending push needs the file."""

    def is_unchanged(self, announced: AnnouncementRecord) -> bool:
        """Return True if the files of an announcement are still available as announced."""

    def ensure_local(self, number: int) -> bool:
        """Return True if the files of an announcement are local; else start fetching them and resume the pushes."""


def local_path(uri: str) -> str:
    """Return the path of a file on this host."""
    return urls.parse(uri).path if "://" in uri else uri


def announced_uris(announced: AnnouncementRecord) -> set[str]:
    """Return the URIs of the files of an announcement."""
    return set(payload.file_uris(Message.decode(announced.message).data))


def size_and_mtime(uris: Iterable[str]) -> tuple[int, int] | None:
    """Return the total size in bytes and the newest modification time in ns (see ``to_sqlite_time``).

    None if a file is missing.
    """
    size = mtime = 0
    for uri in uris:
        try:
            status = os.stat(local_path(uri))
        except (OSError, ValueError):
            return None
        size, mtime = size + status.st_size, max(mtime, to_sqlite_time(status.st_mtime_ns))
    return size, mtime
