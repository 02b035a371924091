"""Where the files of a chain are on this host."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from trollmoves import urls
from trollmoves.journal import Announced, Journal, Task
from trollmoves.messaging import contents
from trollmoves.messaging.messages import Message
from trollmoves.provider.whereabouts import LEADS_TO, Whereabouts


class Holdings(Protocol):
    """The files that a chain has announced."""

    def path(self, number: int, uri: str) -> str:
        """Give the path here of a file that was announced under this number."""

    def check(self, announced: Announced, uri: str, real: str) -> None:
        """Check that a file may be handed out that lies at ``real`` now, links followed; RequestRefused when not."""

    def discard(self, number: int, uri: str) -> None:
        """Remove a file that is here; OSError when that fails, BlockingIOError when it is wanted just now."""

    def unchanged(self, announced: Announced) -> bool:
        """Tell whether the files of an announcement can still be had as they were announced."""

    def bring(self, push: Task) -> bool:
        """Tell whether the files for a push are here; if not, have them brought, and the push run again then."""


class OwnFiles:
    """The holdings of a server: what it announced lies where it was announced."""

    def __init__(self, name: str, journal: Journal, whereabouts: Whereabouts) -> None:
        self.name = name
        self._journal = journal
        self._whereabouts = whereabouts

    def path(self, number: int, uri: str) -> str:  # noqa: ARG002
        """Give the path in a URI."""
        return local_path(uri)

    def check(self, announced: Announced, uri: str, real: str) -> None:
        """Check that an announced path leads where it may."""
        path = local_path(uri)
        if path != real:
            mark = (
                contents.announcement_mark(Message.decode(announced.message).data)
                if LEADS_TO in announced.message
                else {}
            )
            self._whereabouts.check(path, real, mark)

    def discard(self, number: int, uri: str) -> None:
        """Remove it; RequestRefused when its directory has become a link to somewhere else."""
        path = self.path(number, uri)
        announced = self._journal.announcement(self.name, number)
        if announced:
            self.check(announced, uri, os.path.realpath(path))
        os.unlink(path)

    def unchanged(self, announced: Announced) -> bool:
        """Tell whether the files still have the size and time that were announced, all together."""
        version = measure([announced.uri])
        if version != (announced.size, announced.mtime):
            version = measure(announced_uris(announced))
        return version == (announced.size, announced.mtime)

    def bring(self, push: Task) -> bool:  # noqa: ARG002
        """Tell that they are here."""
        return True


def local_path(uri: str) -> str:
    """Give the path of a file on this host."""
    return urls.parse(uri).path if "://" in uri else uri


def announced_uris(announced: Announced) -> set[str]:
    """Give the files that an announcement is about."""
    return set(contents.uris(Message.decode(announced.message).data))


def measure(uris: Iterable[str]) -> tuple[int, int] | None:
    """Give the size of files in bytes, all together, and the newest of their times in ns; None when one is gone."""
    size = mtime = 0
    for uri in uris:
        try:
            status = os.stat(local_path(uri))
        except (OSError, ValueError):
            return None
        size, mtime = size + status.st_size, max(mtime, status.st_mtime_ns)
    return size, mtime
