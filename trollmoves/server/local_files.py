"""The file store of a server: announced files, where they were announced."""

from __future__ import annotations

import os

from trollmoves.journal import AnnouncementRecord, Journal
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.provider.file_store import LINK_DIGESTS, announced_uris, local_path, size_and_mtime
from trollmoves.server.symlink_policy import SymlinkPolicy


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
                payload.announcement_metadata(Message.decode(announced.message).data)
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

    def ensure_local(self, number: int) -> bool:  # noqa: ARG002
        """Tell that they are here."""
        return True
