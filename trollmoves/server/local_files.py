"""The file store of a server: serves files at the paths that were announced."""

from __future__ import annotations

import os

from trollmoves.journal import AnnouncementRecord, Journal
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.provider.file_store import LINK_DIGESTS, announced_uris, local_path, size_and_mtime
from trollmoves.server.symlink_policy import SymlinkPolicy


class LocalFileStore:
    """The announced files of a server chain."""

    def __init__(self, name: str, journal: Journal, symlink_policy: SymlinkPolicy) -> None:
        self.name = name
        self._journal = journal
        self._symlink_policy = symlink_policy

    def path(self, number: int, uri: str) -> str:  # noqa: ARG002
        """Return the path in a URI."""
        return local_path(uri)

    def check_access(self, announced: AnnouncementRecord, uri: str, real: str) -> None:
        """Raise RequestRejected if the link target ``real`` of an announced path must not be served."""
        path = local_path(uri)
        if path != real:
            message = Message.decode(announced.message) if LINK_DIGESTS in announced.message else None
            self._symlink_policy.check(path, real, payload.announcement_metadata(message.data) if message else {})

    def delete(self, number: int, uri: str) -> None:
        """Remove a file; raise RequestRejected if a link now leads to a file that must not be served."""
        path = self.path(number, uri)
        announced = self._journal.get_announcement(self.name, number)
        if announced:
            self.check_access(announced, uri, os.path.realpath(path))
        os.unlink(path)

    def is_unchanged(self, announced: AnnouncementRecord) -> bool:
        """Return True if the files still have the total size and the newest time that were announced."""
        version = size_and_mtime([announced.uri])
        if version != (announced.size, announced.mtime):
            version = size_and_mtime(announced_uris(announced))
        return version == (announced.size, announced.mtime)

    def ensure_local(self, number: int) -> bool:  # noqa: ARG002
        """Return True: the files of a server are always local."""
        return True
