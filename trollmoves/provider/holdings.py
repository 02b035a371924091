"""Where the files of a chain are on this host."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Protocol

from trollmoves import urls
from trollmoves.journal import Announced, Task
from trollmoves.messaging import contents
from trollmoves.messaging.messages import Message


class Holdings(Protocol):
    """The files that a chain has announced."""

    def path(self, number: int, uri: str) -> str:
        """Give the path here of a file that was announced under this number."""

    def discard(self, number: int, uri: str) -> None:
        """Remove a file that is here; OSError when that fails, BlockingIOError when it is wanted just now."""

    def unchanged(self, announced: Announced) -> bool:
        """Tell whether the files of an announcement can still be had as they were announced."""

    def bring(self, push: Task) -> bool:
        """Tell whether the files for a push are here; if not, have them brought, and the push run again then."""


class OwnFiles:
    """The holdings of a server: what it announced lies where it was announced."""

    def path(self, number: int, uri: str) -> str:  # noqa: ARG002
        """Give the path in a URI."""
        return local_path(uri)

    def discard(self, number: int, uri: str) -> None:
        """Remove it."""
        os.unlink(self.path(number, uri))

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


def announced_uris(announced: Announced, asked: Sequence[str] = ()) -> set[str]:
    """Give the files that an announcement is about; ``asked`` is what the answer is compared with, to spare a look."""
    if list(asked) == [announced.uri]:
        return {announced.uri}
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
