"""Where the files of a chain are on this host."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from trollmoves import urls
from trollmoves.journal import AnnouncementRecord, Journal, Task
from trollmoves.messaging import contents
from trollmoves.messaging.messages import Message
from trollmoves.provider.whereabouts import LINK_DIGESTS, SymlinkPolicy


class FileStore(Protocol):
    """The files that a chain has announced."""

    def path(self, number: int, uri: str) -> str:
        """Give the path here of a file that was announced under this number."""

    def check_access(self, announced: AnnouncementRecord, uri: str, real: str) -> None:
        """Check that a file may be handed out that lies at ``real`` now, links followed; RequestRefused when not."""

    def delete(self, number: int, uri: str) -> None:
        """Remove a file that is here; OSError when that fails, BlockingIOError when it is wanted just now."""

    def is_unchanged(self, announced: AnnouncementRecord) -> bool:
        """Tell whether the files of an announcement can still be had as they were announced."""

    def ensure_local(self, push: Task) -> bool:
        """Tell whether the files for a push are here; if not, have them brought, and the push run again then."""


class LocalFileStore:
    """The holdings of a server: what it announced lies where it was announced."""

    def __init__(self, name: str, journal: Journal, whereabouts: SymlinkPolicy) -> None:
        self.name = name
        self._journal = journal
        self._whereabouts = whereabouts

    def path(self, number: int, uri: str) -> str:  # noqa: ARG002
        """Give the path in a URI."""
        return local_path(uri)

    def check_access(self, announced: AnnouncementRecord, uri: str, real: str) -> None:
        """Check that an announced path leads where it may."""
        path = local_path(uri)
        if path != real:
            mark = (
                contents.announcement_metadata(Message.decode(announced.message).data)
                if LINK_DIGESTS in announced.message
                else {}
            )
            self._whereabouts.check(path, real, mark)

    def delete(self, number: int, uri: str) -> None:
        """Remove it; RequestRefused when its directory has become a link to somewhere else."""
        path = self.path(number, uri)
        announced = self._journal.get_announcement(self.name, number)
        if announced:
            self.check_access(announced, uri, os.path.realpath(path))
        os.unlink(path)

    def is_unchanged(self, announced: AnnouncementRecord) -> bool:
        """Tell whether the files still have the size and time that were announced, all together."""
        version = size_and_mtime([announced.uri])
        if version != (announced.size, announced.mtime):
            version = size_and_mtime(announced_uris(announced))
        return version == (announced.size, announced.mtime)

    def ensure_local(self, push: Task) -> bool:  # noqa: ARG002
        """Tell that they are here."""
        return True


def local_path(uri: str) -> str:
    """Give the path of a file on this host."""
    return urls.parse(uri).path if "://" in uri else uri


def announced_uris(announced: AnnouncementRecord) -> set[str]:
    """Give the files that an announcement is about."""
    return set(contents.file_uris(Message.decode(announced.message).data))


def size_and_mtime(uris: Iterable[str]) -> tuple[int, int] | None:
    """Give the size of files in bytes, all together, and the newest of their times in ns; None when one is gone."""
    size = mtime = 0
    for uri in uris:
        try:
            status = os.stat(local_path(uri))
        except (OSError, ValueError):
            return None
        size, mtime = size + status.st_size, max(mtime, status.st_mtime_ns)
    return size, mtime
