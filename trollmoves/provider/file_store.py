"""Where the files of a chain are on this host."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from trollmoves.journal import AnnouncementRecord, Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.net import urls

LINK_DIGESTS = "link_digests"  # in the mark of an announcement: digests of where links led when it was made


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


def local_path(uri: str) -> str:
    """Give the path of a file on this host."""
    return urls.parse(uri).path if "://" in uri else uri


def announced_uris(announced: AnnouncementRecord) -> set[str]:
    """Give the files that an announcement is about."""
    return set(payload.file_uris(Message.decode(announced.message).data))


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
