"""The files that a chain has announced: interface and helpers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Protocol

from trollmoves.journal import AnnouncementRecord, to_sqlite_time
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.net import urls
from trollmoves.utils.file_versions import FileVersion, despite_removal, version_of

LINK_DIGESTS = "link_digests"  # key in the metadata of an announcement: digests of the link targets at that time


class FileStore(Protocol):
    """The files that a chain has announced."""

    def path(self, number: int, uri: str) -> str:
        """Return the path on this host of a file of announcement ``number``."""

    def check_opened(self, announced: AnnouncementRecord, uri: str, fd: int, real: str) -> FileVersion | None:
        """Check an open file of an announcement, and return its version if it is the announced one.

        Raise RequestRejected if ``real``, its path with links resolved, must not be served. Raise OriginChanged if the
        file differs from the announced one and may be incomplete.
        """

    def delete(self, announced: AnnouncementRecord, uri: str, version: FileVersion) -> bool:
        """Remove exactly one version of a local file; return False, and keep the file, if it is another version.

        Raise OSError on failure, BlockingIOError if a pending push needs the file, RequestRejected if the path now
        leads to a file that must not be served.
        """

    def versions(self, announced: AnnouncementRecord) -> dict[str, FileVersion] | None:
        """Return the versions of the local files of an announcement by URI; None if one is missing or was changed."""

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


def first_uri(announced: AnnouncementRecord) -> str:
    """Return the URI of the first file. That of the record has escapes for bytes that are not UTF-8."""
    if "\\" not in announced.uri:
        return announced.uri
    return next(iter(payload.file_uris(Message.decode(announced.message).data)), announced.uri)


def current_versions(paths: Mapping[str, str]) -> dict[str, FileVersion] | None:
    """Return the versions of files, by the keys of their paths; None if a file is missing."""
    try:
        return {key: version_of(despite_removal(path, os.stat)) for key, path in paths.items()}
    except (OSError, ValueError):
        return None


def size_and_mtime(uris: Iterable[str]) -> tuple[int, int] | None:
    """Return the total size in bytes and the newest modification time in ns (see ``to_sqlite_time``).

    None if a file is missing.
    """
    versions = current_versions({uri: local_path(uri) for uri in uris})
    return None if versions is None else total(versions)


def total(versions: Mapping[str, FileVersion]) -> tuple[int, int]:
    """Return the total size in bytes and the newest modification time in ns (see ``to_sqlite_time``)."""
    newest = max((version.mtime_ns for version in versions.values()), default=0)
    return sum(version.size for version in versions.values()), to_sqlite_time(newest)
