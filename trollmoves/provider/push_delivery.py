"""Sends the files of a push, and checks that each opened file is the announced one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from trollmoves.errors import OriginChanged
from trollmoves.journal import AnnouncementRecord, Journal, Task
from trollmoves.movers import PartialId, clean_partials, move_it
from trollmoves.net import urls
from trollmoves.provider.destinations import PushDestination
from trollmoves.provider.file_store import FileStore
from trollmoves.provider.push_request import PushRequest
from trollmoves.utils import symlinks
from trollmoves.utils.file_versions import FileVersion, size_of, version_of

logger = logging.getLogger(__name__)

STALE_PARTIAL_AGE = 3600.0  # s without a write after which a partial is stale


class PushDelivery:
    """The transfers of one chain. Worker threads."""

    def __init__(self, name: str, journal: Journal, file_store: FileStore, parameters: Mapping[str, Any]) -> None:
        self.name = name
        self._journal = journal
        self._file_store = file_store
        self._parameters = parameters
        self._started_at = journal.now()
        self._cleaned: set[str] = set()

    def deliver(
        self,
        task: Task,
        announced: AnnouncementRecord,
        push: PushRequest,
        files: Sequence[Mapping[str, Any]],
        destination: PushDestination,
    ) -> tuple[int, str, dict[str, FileVersion]]:
        """Deliver some of the requested files.

        Return the bytes sent, the destination (with the host of the backup target if one was used), and the versions
        of the files that were delivered as announced, by URI.
        """
        size = 0
        delivered: dict[str, FileVersion] = {}
        self._clean_stale_partials(destination.local_directory)
        delivered_to = destination.without_login
        partial_id = PartialId.of_task(self._journal, task, self._started_at)
        for item in files:
            uri, opened = item["uri"], list[FileVersion]()
            pathname = self._file_store.path(announced.number, uri)
            if self._journal.sharing:
                partial_id = replace(partial_id, still=partial(self._may_complete, pathname, opened))
            url = move_it(
                pathname,
                destination.directory,
                self._parameters,
                rel_path=item.get("path"),
                backup_targets=push.backup_targets,
                on_opened=partial(self._check_opened, announced, uri, pathname, delivered, opened),
                partial_id=partial_id,
            )
            if url.netloc != destination.directory.netloc:
                delivered_to = urls.without_login(urls.parse(delivered_to)._replace(netloc=url.netloc))
            size += size_of(pathname)
        return size, delivered_to, delivered

    def _clean_stale_partials(self, directory: str) -> None:
        """Remove the partials of killed processes from a local directory, once per process."""
        if directory and directory not in self._cleaned:
            self._cleaned.add(directory)
            for path in clean_partials(directory, STALE_PARTIAL_AGE):
                logger.info("[%s] removed stale partial file %s", self.name, path)

    def _may_complete(self, pathname: str, opened: Sequence[FileVersion]) -> bool:
        """Return False once another member of the fleet may run the push.

        Raise OriginChanged if the file was replaced while it was sent: another member may have delivered the new one.
        """
        try:
            is_replaced = bool(opened) and version_of(os.stat(pathname)) != opened[-1]
        except OSError:
            is_replaced = False
        if is_replaced:
            raise OriginChanged(f"{pathname}: replaced while it was sent")
        return self._journal.still()

    def _check_opened(
        self,
        announced: AnnouncementRecord,
        uri: str,
        pathname: str,
        delivered: dict[str, FileVersion],
        opened: list[FileVersion],
        fd: int,
    ) -> None:
        """Check the opened file: its path may have been replaced since the announcement."""
        try:
            real = symlinks.path_of_fd(fd, pathname)
        except OSError as error:
            raise OriginChanged(f"{pathname}: {error.strerror}") from error
        version = self._file_store.check_opened(announced, uri, fd, real)
        if version is not None:
            delivered[uri] = version
        if self._journal.sharing:
            opened.append(version_of(os.fstat(fd)))
