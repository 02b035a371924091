"""The file store of a server: serves files at the paths that were announced."""

from __future__ import annotations

import os
from functools import partial

from trollmoves.journal import AnnouncementRecord
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.provider.file_store import LINK_DIGESTS, announced_uris, current_versions, first_uri, local_path, total
from trollmoves.server.symlink_policy import SymlinkPolicy
from trollmoves.utils.file_versions import FileVersion, remove_version, version_of
from trollmoves.watch.completeness import check_complete


class LocalFileStore:
    """The announced files of a server chain."""

    def __init__(self, name: str, symlink_policy: SymlinkPolicy, quiet: float) -> None:
        """``quiet`` is the option ``quiet_time``."""
        self.name = name
        self._symlink_policy = symlink_policy
        self._quiet = quiet

    def path(self, number: int, uri: str) -> str:  # noqa: ARG002
        """Return the path in a URI."""
        return local_path(uri)

    def check_opened(self, announced: AnnouncementRecord, uri: str, fd: int, real: str) -> FileVersion | None:
        """Check an open file, see ``FileStore``: its content may be newer than announced, but must be complete."""
        self._check_path(announced, uri, real)
        version = version_of(os.fstat(fd))
        if total({uri: version}) == (announced.size, announced.mtime):
            return version
        expected = self.versions(announced)
        if expected is not None and expected.get(uri) == version:
            return version
        check_complete(fd, local_path(uri), self._quiet)
        return None

    def _check_path(self, announced: AnnouncementRecord, uri: str, real: str) -> None:
        path = local_path(uri)
        if path != real:
            message = Message.decode(announced.message) if LINK_DIGESTS in announced.message else None
            self._symlink_policy.check(path, real, payload.announcement_metadata(message.data) if message else {})

    def delete(self, announced: AnnouncementRecord, uri: str, version: FileVersion) -> bool:
        """Remove one version of a file; raise RequestRejected if the path now leads to another place."""
        return remove_version(local_path(uri), version, check=partial(self._check_path, announced, uri))

    def versions(self, announced: AnnouncementRecord) -> dict[str, FileVersion] | None:
        """Return the versions of the files, if they have the total size and the newest time that were announced."""
        announced_total = (announced.size, announced.mtime)
        uri = first_uri(announced)
        versions = current_versions({uri: local_path(uri)})
        if versions is None or total(versions) != announced_total:
            uris = announced_uris(announced)
            versions = current_versions({uri: local_path(uri) for uri in uris}) if len(uris) > 1 else None
        return versions if versions is not None and total(versions) == announced_total else None

    def is_unchanged(self, announced: AnnouncementRecord) -> bool:
        """Return True if the files still have the total size and the newest time that were announced."""
        return self.versions(announced) is not None

    def ensure_local(self, number: int) -> bool:  # noqa: ARG002
        """Return True: the files of a server are always local."""
        return True
