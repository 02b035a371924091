"""The files of a mirror: fetched from upstream servers when clients request them."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from contextlib import suppress
from functools import partial
from typing import Any

from trollmoves import unpacking
from trollmoves.config.options import MirrorOptions
from trollmoves.errors import ConfigError, RequestRejected, UnpackFailed
from trollmoves.journal import AnnouncementRecord, Journal, Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.provider.file_store import announced_uris, current_versions
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.fetch_sources import AnnouncementsBySource, SourceLookup
from trollmoves.receiver.fetch_tasks import KIND, FetchTasks, file_key
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils import symlinks
from trollmoves.utils.file_versions import FileVersion, remove_version, version_of

logger = logging.getLogger(__name__)

UNPACK = "unpack"
RELAY_KEY = "heard"  # key in the metadata of an announcement: the key of the relay task that made it


class MirrorCache(SourceLookup):
    """The file store of a mirror chain.

    Each announcement has its own directory, so that files of equal names never meet: neither those of one chain, nor
    those of other chains, other mirrors or a lost journal. ``relays`` holds the announcements of upstream servers.
    """

    def __init__(
        self,
        options: MirrorOptions,
        journal: Journal,
        scheduler: Scheduler,
        destinations: Destinations,
        relays: FetchTasks,
    ) -> None:
        self.name = options.name
        self._options = options
        self._journal = journal
        self._scheduler = scheduler
        self._destinations = destinations
        self._relays = relays
        digest = hashlib.sha256(f"{journal.identity}/{self.name}".encode("utf-8", "backslashreplace")).hexdigest()[:8]
        self._directory_name = f"mirror-{re.sub(r'[^A-Za-z0-9_.-]', '_', self.name)}-{digest}"
        self._lock = threading.Lock()  # prevents removal between the existence check and the push

    # -- paths

    def url(self, task: Task, message: Message) -> str:  # noqa: ARG002  (sources may describe a file differently)
        """Create the directory for the files of a fetch; return its URL for the upstream servers."""
        number = task.announcement_number or 0
        return self._destinations.url_for(self._announcement(number), below=self._subdirectory(number))

    def path(self, number: int, uri: str) -> str:
        """Return the path of a cached file by its announced URI."""
        message = self._announcement(number)
        item = next((item for item in payload.file_items(message.data) if item["uri"] == uri), {})
        return self._cached_path(number, message, item.get("path"), uri)

    def _cached_path(self, number: int, message: Message, subpath: Any, uri: str) -> str:
        return os.path.join(self._directory(number, message), str(subpath or "").strip("/"), os.path.basename(uri))

    def _directory(self, number: int, message: Message) -> str:
        return self._destinations.local_path(self._destinations.compose(message, below=self._subdirectory(number)))

    def _subdirectory(self, number: int) -> str:
        return f"{self._directory_name}/{number}"

    def _announcement(self, number: int) -> Message:
        announced = self._journal.get_announcement(self.name, number)
        if announced is None:
            raise ConfigError(f"the journal does not contain announcement {number} any longer", section=self.name)
        return Message.decode(announced.message)

    def is_unchanged(self, announced: AnnouncementRecord) -> bool:  # noqa: ARG002
        """Return True: only the upstream server could detect a change."""
        return True

    # -- fetching and removal

    def ensure_local(self, number: int) -> bool:
        """Return True if the files of an announcement are local; else start one fetch for all requests."""
        announced = self._journal.get_announcement(self.name, number)
        if announced is None:
            return True  # the push itself fails with the right error
        with self._lock:
            if self._has_pending(number, KIND, UNPACK):  # files that exist already may be incomplete
                return False
            if self._is_complete(announced):
                return True
            # The time makes each fetch a new task: to a repeated request id, a source only replies that it is done.
            key = f"{number} {self._journal.now():.6f}"
            fetch = Task(self.name, KIND, key, self._lane(announced), "", announcement_number=number)
            stored = self._journal.add_tasks([fetch])
        self._scheduler.submit([task for task, created in stored if created])
        return False

    def _has_pending(self, number: int, *kinds: str) -> bool:
        return any(self._journal.has_pending_for(self.name, kind, number) for kind in kinds)

    def _is_complete(self, announced: AnnouncementRecord) -> bool:
        return all(os.path.exists(self.path(announced.number, uri)) for uri in announced_uris(announced))

    def missing_path(self, number: int) -> str:
        """Return the path of a fetched file, packed or not, that does not exist; empty if all exist."""
        packed = {unpacked: path for path, unpacked in self.packed_files(number)}
        for item in payload.file_items(self._announcement(number).data):
            path = self.path(number, item["uri"])
            if not os.path.exists(path) and not os.path.exists(packed.get(path, path)):
                return path
        return ""

    def _lane(self, announced: AnnouncementRecord) -> str:
        return f"{KIND} {next(iter(self._announcements_of(Message.decode(announced.message))), '')}"

    def check_opened(self, announced: AnnouncementRecord, uri: str, fd: int, real: str) -> FileVersion | None:
        """Return the version of an open file; raise RequestRejected if it is outside of its directory."""
        self._check_path(announced, uri, real)
        return version_of(os.fstat(fd))

    def _check_path(self, announced: AnnouncementRecord, uri: str, real: str) -> None:
        directory = self._directory(announced.number, Message.decode(announced.message))
        if not symlinks.is_below(real, os.path.realpath(directory)):
            name = os.path.basename(uri)
            raise RequestRejected(f"the cached file {name} must not be a link that leads out of its directory")

    def versions(self, announced: AnnouncementRecord) -> dict[str, FileVersion] | None:
        """Return the versions of the cached files by URI, without missing ones."""
        versions: dict[str, FileVersion] = {}
        for uri in announced_uris(announced):
            versions |= current_versions({uri: self.path(announced.number, uri)}) or {}
        return versions

    def delete(self, announced: AnnouncementRecord, uri: str, version: FileVersion) -> bool:
        """Remove a cached file, and its directory if empty; raise BlockingIOError if a pending task needs the file."""
        number = announced.number
        path = self.path(number, uri)
        with self._lock:
            if self._has_pending(number, "push", KIND, UNPACK):
                raise BlockingIOError
            try:
                return remove_version(path, version, check=partial(self._check_path, announced, uri))
            finally:
                self._remove_empty_dirs(number, os.path.dirname(path))

    def remove_if_empty(self, number: int) -> None:
        """Remove the directory of an announcement if it is empty."""
        with suppress(ConfigError), self._lock:
            self._remove_empty_dirs(number, self._directory(number, self._announcement(number)))

    def _remove_empty_dirs(self, number: int, directory: str) -> None:
        with suppress(OSError):  # not empty
            while self._subdirectory(number) in directory:
                os.rmdir(directory)
                directory = os.path.dirname(directory)

    # -- packed files

    def with_unpacked_names(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of the data of an upstream announcement, with the names of the unpacked files.

        Raise MessageError if a file name or path leads out of the directory of the announcement.
        """
        return dict(_copy_data(data, self._options.compression))

    def packed_files(self, number: int) -> list[tuple[str, str]]:
        """Return the paths of the files of an announcement that arrive packed, and of their unpacked contents."""
        if not self._options.compression:
            return []
        message = self._announcement(number)
        upstream = next(iter(self._announcements_of(message).values()), None)
        upstream_items = payload.file_items(Message.decode(upstream).data) if upstream else ()
        return [
            (self._cached_path(number, message, item.get("path"), packed["uri"]), self.path(number, item["uri"]))
            for packed, item in zip(upstream_items, payload.file_items(message.data), strict=False)
            if os.path.basename(packed["uri"]) != os.path.basename(item["uri"])
        ]

    def unpack(self, number: int) -> None:
        """Unpack the packed files of an announcement; may be repeated. Raise UnpackError."""
        for packed, path in self.packed_files(number):
            if not os.path.exists(path):
                unpacked = unpacking.unpack(
                    self._options.compression or "",
                    packed,
                    os.path.dirname(path),
                    program=self._options.xritdecompressor or self._options.prog,
                    block_size=self._options.block_size,
                )
                if unpacked != [path]:
                    found, expected = os.path.basename(unpacked[0]), os.path.basename(path)
                    raise UnpackFailed(f"{packed} must contain the announced file {expected}, but contains {found}")
                logger.info("[%s] unpacked %s", self.name, os.path.basename(packed))
            with suppress(FileNotFoundError):
                os.unlink(packed)

    # -- upstream servers

    def announcements(self, task: Task) -> AnnouncementsBySource:
        """Return the announcements of upstream servers for the files of a fetch."""
        announced = self._journal.get_announcement(self.name, task.announcement_number or 0)
        return self._announcements_of(Message.decode(announced.message)) if announced else {}

    def sources(self, announced: AnnouncementRecord) -> dict[str, str]:
        """Return the path of an announced file at each upstream server."""
        texts = self._announcements_of(Message.decode(announced.message))
        return {source: str(payload.file_uris(Message.decode(text).data)[0]) for source, text in texts.items()}

    def _announcements_of(self, message: Message) -> AnnouncementsBySource:
        key = payload.announcement_metadata(message.data).get(RELAY_KEY)
        return self._relays.latest_announcements(key if isinstance(key, str) else file_key(message.data))


def _copy_data(value: Any, compression: str | None) -> Any:
    """Copy the data of an announcement; raise MessageError if a file name or path leads out of the directory."""
    if isinstance(value, list):
        return [_copy_data(item, compression) for item in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _copy_data(item, compression) for key, item in value.items()}
    if "uri" in copy:
        payload.check_file_item(copy)
        for key in ("uri", "uid"):
            if compression and key in copy:
                copy[key] = unpacking.unpacked_name(compression, copy[key])
    return copy
