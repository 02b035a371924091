"""Copies of the files that a mirror has announced, brought from inner servers when they are asked for."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from contextlib import suppress
from typing import Any

from trollmoves import links, steps, unpacking
from trollmoves.errors import ConfigError, RequestRefused, UnpackFailed
from trollmoves.journal import Announced, Journal, Task
from trollmoves.messaging import contents
from trollmoves.messaging.messages import Message
from trollmoves.options import MirrorOptions
from trollmoves.provider.holdings import announced_uris
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.fetches import KIND, Fetches, Told, key_of
from trollmoves.workers import Workers

log = logging.getLogger(__name__)

UNPACK = "unpack"
HEARD = "heard"  # in the mark of an announcement: the key of the relay that made it


class Copies:
    """The holdings of a mirror's chain, and who has what is not here yet.

    Each announcement has a directory of its own, so that files of one name do not meet, neither those of one chain nor
    those of another, of another mirror, or of a journal that was lost. ``relays`` knows what was heard.
    """

    def __init__(
        self, options: MirrorOptions, journal: Journal, workers: Workers, destinations: Destinations, relays: Fetches
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
        return self._destinations.url(self._message(task.about or 0), below=self._below(task.about or 0))

    def path(self, number: int, uri: str) -> str:
        """Give the path of the copy of a file, by its announced name."""
        message = self._message(number)
        item = next((item for item in contents.items(message.data) if item["uri"] == uri), {})
        return self._place(number, message, item.get("path"), uri)

    def _place(self, number: int, message: Message, below: Any, uri: str) -> str:
        return os.path.join(self._directory(number, message), str(below or "").strip("/"), os.path.basename(uri))

    def _directory(self, number: int, message: Message) -> str:
        return self._destinations.local(self._destinations.compose(message, below=self._below(number)))

    def _below(self, number: int) -> str:
        return f"{self._folder}/{number}"

    def _message(self, number: int) -> Message:
        announced = self._journal.announcement(self.name, number)
        if announced is None:
            raise ConfigError(f"announcement {number} is not known any more", section=self.name)
        return Message.decode(announced.message)

    def unchanged(self, announced: Announced) -> bool:  # noqa: ARG002
        """Tell that it may be had: only its source knows."""
        return True

    # -- how they come and go

    def bring(self, push: Task) -> bool:
        """Tell whether all copies for a push are here; have them fetched, once for all who ask, when not."""
        number = push.about or 0
        announced = self._journal.announcement(self.name, number)
        if announced is None:
            return True  # the push itself will say that it is gone
        with self._lock:
            if self._waits(number, KIND, UNPACK):  # whatever is here already: its end is still to come
                return False
            if self._are_here(announced):
                return True
            # Each time is a task of its own: a source that is asked again by the same one only says that it is done.
            wanted = Task(
                self.name, KIND, f"{number} {self._journal.now():.6f}", self._lane(announced), "", about=number
            )
            noted = self._journal.note([wanted])
            steps.reached("copy-wanted")
        self._workers.expect([task for task, new in noted if new])
        return False

    def _waits(self, number: int, *kinds: str) -> bool:
        return any(self._journal.waits_about(self.name, kind, number) for kind in kinds)

    def _are_here(self, announced: Announced) -> bool:
        return all(os.path.exists(self.path(announced.number, uri)) for uri in announced_uris(announced))

    def not_here(self, number: int) -> str:
        """Give a path at which a file of an announcement, as it comes, is missing; none when all have come."""
        packed = {unpacked: path for path, unpacked in self.packed(number)}
        for item in contents.items(self._message(number).data):
            path = self.path(number, item["uri"])
            if not os.path.exists(path) and not os.path.exists(packed.get(path, path)):
                return path
        return ""

    def _lane(self, announced: Announced) -> str:
        return f"{KIND} {next(iter(self._told(Message.decode(announced.message))), '')}"

    def check(self, announced: Announced, uri: str, real: str) -> None:
        """Check that a copy lies in the directory of its announcement."""
        directory = self._directory(announced.number, Message.decode(announced.message))
        if not links.is_below(real, os.path.realpath(directory)):
            raise RequestRefused(f"the copy of {os.path.basename(uri)} is a link that leads elsewhere")

    def discard(self, number: int, uri: str) -> None:
        """Remove a copy, and its directory with the last one; BlockingIOError when it has been asked for again."""
        path = self.path(number, uri)
        with self._lock:
            if self._waits(number, "push", KIND, UNPACK):
                raise BlockingIOError
            try:
                os.unlink(path)
            finally:
                self._tidy(number, os.path.dirname(path))

    def tidy(self, number: int) -> None:
        """Remove the directory of an announcement if nothing is in it."""
        with suppress(ConfigError), self._lock:
            self._tidy(number, self._directory(number, self._message(number)))

    def _tidy(self, number: int, directory: str) -> None:
        with suppress(OSError):  # there may be more in it
            while self._below(number) in directory:
                os.rmdir(directory)
                directory = os.path.dirname(directory)

    # -- packed ones

    def unpacked(self, data: dict[str, Any]) -> dict[str, Any]:
        """Give what is announced of what was heard: a copy, with the names that unpacked files will have.

        MessageError when a name leads out of the directory of the copies.
        """
        return dict(_copy(data, self._options.compression))

    def packed(self, number: int) -> list[tuple[str, str]]:
        """Give the paths of the files of an announcement that come packed, and of what is in them."""
        if not self._options.compression:
            return []
        message = self._message(number)
        heard = next(iter(self._told(message).values()), None)
        theirs = contents.items(Message.decode(heard).data) if heard else ()
        return [
            (self._place(number, message, item.get("path"), their["uri"]), self.path(number, item["uri"]))
            for their, item in zip(theirs, contents.items(message.data), strict=False)
            if os.path.basename(their["uri"]) != os.path.basename(item["uri"])
        ]

    def unpack(self, number: int) -> None:
        """Unpack what has come packed; any number of times. Raises UnpackError."""
        for packed, wanted in self.packed(number):
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

    def told(self, task: Task) -> Told:
        """Give the announcements of inner servers that a fetch is about."""
        announced = self._journal.announcement(self.name, task.about or 0)
        return self._told(Message.decode(announced.message)) if announced else {}

    def _told(self, message: Message) -> Told:
        heard = contents.announcement_mark(message.data).get(HEARD)
        return self._relays.told_of(heard if isinstance(heard, str) else key_of(message.data))

    def arrived(self, task: Task) -> Told:
        """Give the announcements of inner servers that a fetch is about."""
        return self.told(task)

    def over(self, task: Task) -> None:
        """Nothing is kept for it."""


def _copy(value: Any, packing: str | None) -> Any:
    """Copy what was heard; MessageError when a file in it has a name that is no place for a copy."""
    if isinstance(value, list):
        return [_copy(one, packing) for one in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _copy(one, packing) for key, one in value.items()}
    if "uri" in copy:
        contents.check_place(copy)
        for key in ("uri", "uid"):
            if packing and key in copy:
                copy[key] = unpacking.unpacked_name(packing, copy[key])
    return copy
