"""The sources of the files of a fetch task: their announcements, versions and digests."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from trollmoves.journal import Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message

REWRITE_SECONDS = 2.0  # s after its announcement in which a file is not rewritten while its server is replaced

AnnouncementsBySource = dict[str, str]
Version = tuple[str, int | None, int | None]


@dataclass(slots=True)
class Fetch:
    """The sources of a file: the body of a fetch task.

    ``announcements`` has the encoded announcement of each source. ``versions`` has, for each source, the URI of the
    file there with its size and mtime (None if unknown), and the generation: each new content of a file name gets the
    next number. ``numbers`` has the log and the number of the announcements that a compaction removed, ``digests`` the
    digests of their metadata. ``target`` identifies the configured destination; empty if it is unknown.
    """

    announcements: AnnouncementsBySource = field(default_factory=dict)
    versions: dict[str, tuple[Version, int]] = field(default_factory=dict)
    generation: int = 1
    numbers: dict[str, tuple[str, int]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    target: str = ""

    def dump(self) -> str:
        """Return the body of a task."""
        return json.dumps([self.announcements, self.versions, self.generation, self.numbers, self.digests, self.target])

    @classmethod
    def load(cls, body: str) -> Fetch:
        """Decode the body of a task."""
        announcements, versions, generation, *more = json.loads(body)
        versions = {source: (tuple(v), g) for source, (v, g) in versions.items()}
        return cls(announcements, versions, generation, *more)

    def digest(self, source: str) -> str:
        """Return the digest of the metadata in the last known announcement of a source; empty if it is unknown."""
        text = self.announcements.get(source)
        return self.digests.get(source) or (metadata_digest(text) if text else "")

    def number(self, source: str) -> tuple[str, int] | None:
        """Return the log and the number of the last known announcement of a source; None if it is unknown."""
        metadata = payload.announcement_metadata_in(self.announcements.get(source, ""))
        log, number = (metadata["log"], metadata["number"]) if metadata else self.numbers.get(source, ("", 0))
        return (log, number) if log else None

    def may_be_current(self, size: int | None) -> bool:
        """Return True if a file of this size may have the content of the current generation."""
        sizes = [known for (_, known, _), generation in self.versions.values() if generation == self.generation]
        return size is None or any(known in (None, size) for known in sizes)


class SourceLookup(ABC):
    """Finds the sources of a file."""

    @abstractmethod
    def announcements(self, task: Task) -> AnnouncementsBySource:
        """Return the announcements by source."""

    def announcements_after_fetch(self, task: Task) -> AnnouncementsBySource:
        """Record the delivery; return the announcements by source."""
        return self.announcements(task)

    def on_attempt_ended(self, task: Task) -> None:  # noqa: B027  (optional)
        """Record that a run has ended without a delivery."""

    def is_superseded(self, task: Task) -> bool:  # noqa: ARG002  (optional)
        """Return True if a newer version of the file of a task is waiting or was fetched."""
        return False


def compact_body(task: Task) -> str:
    """Return the body of a finished fetch without its announcements: with their numbers and the digests of metadata."""
    fetch = Fetch.load(task.body)
    for source in fetch.announcements:
        if number := fetch.number(source):
            fetch.numbers[source] = number
        fetch.digests[source] = fetch.digest(source)
    fetch.announcements = {}
    return fetch.dump()


def metadata_digest(text: str) -> str:
    """Return a digest of the metadata in a valid announcement, which does not depend on the order of its items."""
    data = json.loads(text.split(None, 6)[6])
    metadata = {key: value for key, value in data.items() if key not in payload.TRANSPORT_KEYS}
    return text_digest(json.dumps(metadata, sort_keys=True))


def text_digest(text: str) -> str:
    """Return a short digest of a text."""
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def size_and_time(data: dict[str, Any]) -> tuple[int | None, int | None]:
    """Return the size and the mtime in the data of an announcement; None if it does not contain them."""
    metadata = payload.announcement_metadata(data)
    return metadata.get("size"), metadata.get("mtime")


def is_known_content(message: Message, known: Version, announced: float, now: float) -> bool:
    """Return True if an announcement has the content of an earlier one, of which only one has a size and a time.

    That is so while a server is upgraded, or replaced by a legacy one: both announce their files again when they start.

    Args:
        message: the later announcement.
        known: the version of the earlier one.
        announced: when the earlier one was received, in seconds of the journal.
        now: the time of the journal. The difference to the time of the message, a delay included, is taken as the
            difference between the clocks of both hosts.
    """
    size, mtime = size_and_time(message.data)
    if size is None and mtime is None:
        return True
    if known[1:] != (None, None) or mtime is None:
        return False
    return mtime / 1e9 + (now - message.timestamp()) < announced + REWRITE_SECONDS
