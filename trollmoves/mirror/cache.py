"""Copies of the files that a mirror has announced, brought from inner servers when they are asked for."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from contextlib import suppress
from typing import Any

from trollmoves import unpacking
from trollmoves.config.options import MirrorOptions
from trollmoves.errors import ConfigError, RequestRejected, UnpackFailed
from trollmoves.journal import AnnouncementRecord, Journal, Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.provider.file_store import announced_uris
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.fetch_tasks import KIND, AnnouncementsBySource, FetchTasks, file_key
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils import failpoints, symlinks

log = logging.getLogger(__name__)

UNPACK = "unpack"
RELAY_KEY = "heard"  # in the mark of an announcement: the key of the relay that made it


class MirrorCache:
    """The holdings of a mirror's chain, and who has what is not here yet.

    Each announcement has a directory of its own, so that files of one name do not meet, neither those of one chain nor
    those of another, of another mirror, or of a journal that was lost. ``relays`` knows what was heard.
    """

    def __init__(
        self,
        options: MirrorOptions,
        journal: Journal,
        workers: Scheduler,
        destinations: Destinations,
        relays: FetchTasks,
    ) -> None:
        self.name = options.name
        self._options = options
        self._journal = journal
        self._workers = workers
        self._destinations = destinations
        self._relays = relays
        mark = hashlib.sha256(f"{journal.identity}/{self.name}".encode("utf-8", "backslashreplace")).hexdigest()[:8]
        self._folder = f"mirror-{re.sub(r'[^A-Za-z0-9_.-]', '_', self.name)}-{mark}"
        self._lock = threading.Lock()  # between the look for a copy and the push of it nobody removes it

    # -- where they are

    def url(self, task: Task, message: Message) -> str:  # noqa: ARG002  (sources may describe a file differently)
        """Give the URL of the directory to which inner servers push the files of a fetch, and make it."""
        return self._destinations.url_for(
            self._announcement(task.announcement_number or 0), below=self._subdirectory(task.announcement_number or 0)
        )

    def path(self, number: int, uri: str) -> str:
        """Give the path of the copy of a file, by its announced name."""
        message = self._announcement(number)
        item = next((item for item in payload.file_items(message.data) if item["uri"] == uri), {})
        return self._cached_path(number, message, item.get("path"), uri)

    def _cached_path(self, number: int, message: Message, below: Any, uri: str) -> str:
        return os.path.join(self._directory(number, message), str(below or "").strip("/"), os.path.basename(uri))

    def _directory(self, number: int, message: Message) -> str:
        return self._destinations.local_path(self._destinations.compose(message, below=self._subdirectory(number)))

    def _subdirectory(self, number: int) -> str:
        return f"{self._folder}/{number}"

    def _announcement(self, number: int) -> Message:
        announced = self._journal.get_announcement(self.name, number)
        if announced is None:
            raise ConfigError(f"announcement {number} is not known any more", section=self.name)
        return Message.decode(announced.message)

    def is_unchanged(self, announced: AnnouncementRecord) -> bool:  # noqa: ARG002
        """Tell that it may be had: only its source knows."""
        return True

    # -- how they come and go

    def ensure_local(self, number: int) -> bool:
        """Tell whether all copies for a push are here; have them fetched, once for all who ask, when not."""
        announced = self._journal.get_announcement(self.name, number)
        if announced is None:
            return True  # the push itself will say that it is gone
        with self._lock:
            if self._has_pending(number, KIND, UNPACK):  # whatever is here already: its end is still to come
                return False
            if self._is_complete(announced):
                return True
            # Each time is a task of its own: a source that is asked again by the same one only says that it is done.
            wanted = Task(
                self.name,
                KIND,
                f"{number} {self._journal.now():.6f}",
                self._lane(announced),
                "",
                announcement_number=number,
            )
            noted = self._journal.add_tasks([wanted])
            failpoints.hit("copy-requested")
        self._workers.submit([task for task, new in noted if new])
        return False

    def _has_pending(self, number: int, *kinds: str) -> bool:
        return any(self._journal.has_pending_for(self.name, kind, number) for kind in kinds)

    def _is_complete(self, announced: AnnouncementRecord) -> bool:
        return all(os.path.exists(self.path(announced.number, uri)) for uri in announced_uris(announced))

    def missing_path(self, number: int) -> str:
        """Give a path at which a file of an announcement, as it comes, is missing; none when all have come."""
        packed = {unpacked: path for path, unpacked in self.packed_files(number)}
        for item in payload.file_items(self._announcement(number).data):
            path = self.path(number, item["uri"])
            if not os.path.exists(path) and not os.path.exists(packed.get(path, path)):
                return path
        return ""

    def _lane(self, announced: AnnouncementRecord) -> str:
        return f"{KIND} {next(iter(self._announcements_of(Message.decode(announced.message))), '')}"

    def check_access(self, announced: AnnouncementRecord, uri: str, real: str) -> None:
        """Check that a copy lies in the directory of its announcement."""
        directory = self._directory(announced.number, Message.decode(announced.message))
        if not symlinks.is_below(real, os.path.realpath(directory)):
            raise RequestRejected(f"the copy of {os.path.basename(uri)} is a link that leads elsewhere")

    def delete(self, number: int, uri: str) -> None:
        """Remove a copy, and its directory with the last one; BlockingIOError when it has been asked for again."""
        path = self.path(number, uri)
        with self._lock:
            if self._has_pending(number, "push", KIND, UNPACK):
                raise BlockingIOError
            try:
                os.unlink(path)
            finally:
                self._remove_empty_dirs(number, os.path.dirname(path))

    def remove_if_empty(self, number: int) -> None:
        """Remove the directory of an announcement if nothing is in it."""
        with suppress(ConfigError), self._lock:
            self._remove_empty_dirs(number, self._directory(number, self._announcement(number)))

    def _remove_empty_dirs(self, number: int, directory: str) -> None:
        with suppress(OSError):  # there may be more in it
            while self._subdirectory(number) in directory:
                os.rmdir(directory)
                directory = os.path.dirname(directory)

    # -- packed ones

    def with_unpacked_names(self, data: dict[str, Any]) -> dict[str, Any]:
        """Give what is announced of what was heard: a copy, with the names that unpacked files will have.

        MessageError when a name leads out of the directory of the copies.
        """
        return dict(_copied_data(data, self._options.compression))

    def packed_files(self, number: int) -> list[tuple[str, str]]:
        """Give the paths of the files of an announcement that come packed, and of what is in them."""
        if not self._options.compression:
            return []
        message = self._announcement(number)
        heard = next(iter(self._announcements_of(message).values()), None)
        theirs = payload.file_items(Message.decode(heard).data) if heard else ()
        return [
            (self._cached_path(number, message, item.get("path"), their["uri"]), self.path(number, item["uri"]))
            for their, item in zip(theirs, payload.file_items(message.data), strict=False)
            if os.path.basename(their["uri"]) != os.path.basename(item["uri"])
        ]

    def unpack(self, number: int) -> None:
        """Unpack what has come packed; any number of times. Raises UnpackError."""
        for packed, wanted in self.packed_files(number):
            if not os.path.exists(wanted):
                made = unpacking.unpack(
                    self._options.compression or "",
                    packed,
                    os.path.dirname(wanted),
                    program=self._options.xritdecompressor or self._options.prog,
                    block_size=self._options.block_size,
                )
                if made != [wanted]:
                    raise UnpackFailed(f"{packed} holds {os.path.basename(made[0])}, which is not what was announced")
                log.info("[%s] unpacked %s", self.name, os.path.basename(packed))
            with suppress(FileNotFoundError):
                os.unlink(packed)

    # -- who has them

    def announcements(self, task: Task) -> AnnouncementsBySource:
        """Give the announcements of inner servers that a fetch is about."""
        announced = self._journal.get_announcement(self.name, task.announcement_number or 0)
        return self._announcements_of(Message.decode(announced.message)) if announced else {}

    def _announcements_of(self, message: Message) -> AnnouncementsBySource:
        heard = payload.announcement_metadata(message.data).get(RELAY_KEY)
        return self._relays.latest_announcements(heard if isinstance(heard, str) else file_key(message.data))

    def announcements_after_fetch(self, task: Task) -> AnnouncementsBySource:
        """Give the announcements of inner servers that a fetch is about."""
        return self.announcements(task)

    def on_attempt_ended(self, task: Task) -> None:
        """Nothing is kept for it."""


def _copied_data(value: Any, packing: str | None) -> Any:
    """Copy what was heard; MessageError when a file in it has a name that is no place for a copy."""
    if isinstance(value, list):
        return [_copied_data(one, packing) for one in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _copied_data(one, packing) for key, one in value.items()}
    if "uri" in copy:
        payload.check_file_item(copy)
        for key in ("uri", "uid"):
            if packing and key in copy:
                copy[key] = unpacking.unpacked_name(packing, copy[key])
    return copy
