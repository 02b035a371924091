"""The announcement log of a chain: stores, publishes and replays announcements."""

from __future__ import annotations

import datetime as dt
import json
import logging
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trollmoves.errors import JournalError, RequestRejected, TemporaryTransferError, TrollmovesError
from trollmoves.journal import AnnouncementRecord, Journal, Version, to_sqlite_time
from trollmoves.messaging import group, payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import SUBSCRIBER_GRACE, Publisher
from trollmoves.messaging.replier import MAX_REQUEST_BYTES
from trollmoves.provider.file_store import LINK_DIGESTS, FileStore
from trollmoves.provider.removals import Removals
from trollmoves.scheduler.lanes import FileStats
from trollmoves.utils.logs import LogThrottle

logger = logging.getLogger(__name__)

MAX_INFO_FILES = 2256  # files in a reply to `info`, as in trollmoves 0.19
MAX_REPLAY = 500  # announcements in a reply to `replay`
MAX_REPLAYED_BYTES = 2 * MAX_REQUEST_BYTES  # of one announcement in a reply, where it is escaped
FLEET_SECONDS = 60.0  # s in which a report of an unchanged file may be that of another member of a fleet


@dataclass(slots=True)
class Announcement:
    """One or several files to announce in one message.

    ``size`` is the total in bytes, None if unknown; ``mtime`` is the newest modification time in ns, as
    ``to_sqlite_time`` returns it.
    ``extra_metadata`` is added to the metadata of the announcement. With ``again`` an unchanged file is announced, too,
    unless its last announcement has the same ``extra_metadata``; with ``repeat_after``, if its metadata differ or that
    many seconds have passed. ``fresh`` is True if an event or a message, not a listing, reported the file: then an
    announcement that was not delivered is published again.
    """

    uri: str
    uid: str
    data: dict[str, Any]
    size: int | None
    mtime: int
    type: str = "file"
    subject: str = ""
    extra_metadata: Mapping[str, Any] = field(default_factory=dict)
    again: bool = False
    fresh: bool = False
    repeat_after: float | None = None

    def __post_init__(self) -> None:
        self.mtime = to_sqlite_time(self.mtime)

    def stats(self) -> FileStats:
        """Return number, bytes and time of the files."""
        return FileStats(payload.count_files(self.data), self.size or 0, self.mtime)


class Announcer:
    """The announcement log of one chain. Any thread.

    With a request address, announcements contain it and are numbered, so that clients can detect missed announcements.
    Without one, ``describe`` returns the type and data of a message from which readers can open the file remotely.
    ``on_announced`` is called with the chain and the files of each announcement that was published. With ``removals``
    a delivered file that returns with its size and time is announced again.

    With ``place`` (see ``Sharing.keep_files``) the files of other members are not here. Then this member has a log of
    its own, with numbers from the log of the chain; an announcement names the previous number in it.
    """

    def __init__(
        self,
        name: str,
        topic: str,
        journal: Journal,
        publisher: Publisher,
        *,
        file_store: FileStore,
        address: str | None,
        describe: Callable[[Announcement], tuple[str, dict[str, Any]]] | None = None,
        place: str = "",
    ) -> None:
        self.name = name
        self._topic = topic
        self._journal = journal
        self._publisher = publisher
        self._file_store = file_store
        self._address = address
        self._describe = describe
        self._place = place
        self._fleet_log = f"{journal.identity}/{name}"
        self._log_name = f"{self._fleet_log}/{place}" if place else self._fleet_log
        self._previous: int | None = None  # the last number in the log of this place; None if it is not known
        self._started = time.monotonic()
        self._announce_lock = threading.Lock()
        self._stopping = threading.Event()
        self._repeat_throttle = LogThrottle(burst=10)
        self.on_announced: Callable[[str, Sequence[FileStats]], None] | None = None
        self.removals: Removals | None = None

    def start(self) -> None:
        """Begin the time in which subscribers can connect before the first announcement."""
        self._started = time.monotonic()

    def stop(self) -> None:
        """Stop announcing."""
        self._stopping.set()

    @property
    def is_stopped(self) -> bool:
        """True after ``stop``."""
        return self._stopping.is_set()

    def heartbeat_data(self) -> dict[str, Any]:
        """Return the position of the log, for the heartbeat."""
        data: dict[str, Any] = {
            "log": self._log_name,
            "number": self._journal.last_number(self.name),
            "topic": self._topic,
            "request_address": self._address,
        }
        if self._journal.sharing and not self._place:
            data["members"] = self._journal.sharing.addresses(self.name)
        elif self._journal.life:
            data["members"] = [self._address]
        return data

    def announce(self, announcements: Sequence[Announcement]) -> int:
        """Store and publish announcements, except those of unchanged files; return their number.

        Any thread. Blocks until SUBSCRIBER_GRACE seconds after the start, so that subscribers can connect.
        """
        if self._stopping.wait(max(0.0, self._started + SUBSCRIBER_GRACE - time.monotonic())):
            return 0
        with self._announce_lock:
            repeated = {a.uri for a in announcements if self._may_repeat(a) and self._differs(a)}
            new, unchanged = self._append(announcements, repeated)
            again = {a.uri: repetition for a in unchanged if (repetition := self._repetition(a))}
            if again:
                new += self._append([a for a, _ in again.values()], again)[0]
                if self.removals:
                    self.removals.cancel(number for _, number in again.values())
            if new and self.on_announced:
                self.on_announced(self.name, [a.stats() for a in new])
        if new:
            suffix = f" and {len(new) - 1} more" if len(new) > 1 else ""
            logger.info("[%s] announced %s%s", self.name, new[0].uid, suffix)
        return len(new)

    def publish_again(self, announcements: Iterable[AnnouncementRecord]) -> int:
        """Publish the announcements of unchanged files again; return their number. Any thread."""
        texts = [self._with_address(a.message) for a in announcements if self._file_store.is_unchanged(a)]
        self._publisher.send_encoded(texts)
        return len(texts)

    def _append(
        self, announcements: Sequence[Announcement], repeated: Container[str]
    ) -> tuple[list[Announcement], list[Announcement]]:
        """Store and publish announcements; return them, and those of unchanged files that are not ``repeated``."""
        new: list[Announcement] = []
        unchanged: list[Announcement] = []
        if self._place and self._previous is None:
            self._previous = self._journal.last_number(self.name)

        def make(versions: Mapping[str, Version], number: int) -> list[AnnouncementRecord]:
            nonlocal new, unchanged
            changed: list[Announcement] = []
            unchanged = []
            for a in announcements:
                differs = versions.get(a.uri) != (a.size, a.mtime) or a.uri in repeated
                (changed if differs else unchanged).append(a)
            new, records = self._encode_all(changed, number)
            return records

        try:
            records = self._journal.append(self.name, {a.uri for a in announcements}, make)
        except JournalError:
            self._previous = None
            raise
        if records and self._place:
            self._previous = records[-1].number
        self._publisher.send_encoded([record.message for record in records])
        return new, unchanged

    def _repetition(self, a: Announcement) -> tuple[Announcement, int] | None:
        """Return the announcement to make of an unchanged file, and the number of its last one; None without a reason.

        An announcement that was not delivered is published again if an event or a message reported its file.
        """
        if not (a.fresh or self.removals):
            return None
        previous = self._journal.latest_announcement(self.name, a.uri)
        if previous is None:
            return None
        if self.removals and self.removals.has_returned(previous):
            logger.info("[%s] announcing %s again: another file with its size and time has appeared", self.name, a.uid)
            return replace(a, extra_metadata={**a.extra_metadata, payload.RETURNED: True}), previous.number
        age = max(0.0, self._journal.now() - previous.created)
        if not a.fresh or (self._journal.sharing and not self._place and age < FLEET_SECONDS):
            return None
        if reason := self._repeat_reason(a, previous, age):
            logger.info("[%s] announcing %s again: %s", self.name, a.uid, reason)
            return a, previous.number
        if self._address and not self._journal.finished_for(self.name, ("push", "ack"), previous.number):
            self.publish_again([previous])
        elif a.repeat_after is not None and (more := self._repeat_throttle.admit()) is not None:
            text = "[%s] ignored a repeated message about %s: it was announced %.0f s ago%s"
            logger.info(text, self.name, a.uid, age, more)
        return None

    def _repeat_reason(self, a: Announcement, previous: AnnouncementRecord, age: float) -> str:
        """Return the reason to announce an unchanged file again, or an empty string."""
        if a.repeat_after is None:
            return ""
        if age >= a.repeat_after:
            return f"it was announced {age:.0f} s ago"
        announced = Message.decode(self._message(a, 0).encode())
        changed = _metadata(announced) != _metadata(Message.decode(previous.message))
        return "its metadata have changed" if changed else ""

    @staticmethod
    def _may_repeat(a: Announcement) -> bool:
        """Return True if an unchanged file may need another announcement: a link to another file, or a repetition."""
        return a.again or LINK_DIGESTS in a.extra_metadata

    def _differs(self, a: Announcement) -> bool:
        """Return True if a file was announced, with other extra metadata."""
        previous = self._journal.latest_announcement(self.name, a.uri)
        if previous is None:
            return False
        metadata = payload.announcement_metadata(Message.decode(previous.message).data)
        return any(metadata.get(key) != value for key, value in a.extra_metadata.items())

    def _encode_all(
        self, announcements: Sequence[Announcement], number: int
    ) -> tuple[list[Announcement], list[AnnouncementRecord]]:
        """Return the announcements that can be encoded, and their records with numbers that begin with ``number``."""
        encoded: list[Announcement] = []
        records: list[AnnouncementRecord] = []
        previous = self._previous
        for a in announcements:
            try:
                text = self._message(a, number, previous).encode()
                records.append(AnnouncementRecord(number, a.uri, a.uid, a.size, a.mtime, text))
                encoded.append(a)
                previous = number if self._place else None
                number += 1
            except TrollmovesError as error:
                if error.temporary:
                    raise
                logger.error("[%s] cannot announce %s: %s", self.name, a.uid, error)
        return encoded, records

    def _message(self, a: Announcement, number: int, previous: int | None = None) -> Message:
        subject = a.subject or self._topic
        if self._describe:
            return Message(subject, *self._describe(a))
        metadata = {**a.extra_metadata, "log": self._log_name, "number": number, "mtime": a.mtime}
        metadata[group.KEY] = group.MAX_FILES
        if a.size is not None:
            metadata["size"] = a.size
        if previous is not None:
            metadata[payload.PREVIOUS] = previous
        return Message(subject, a.type, a.data | {"request_address": self._address, "announcement": metadata})

    def _with_address(self, text: str) -> str:
        """Return an announcement with the current request address and log."""
        if f'"{self._address}"' in text and f'"{self._log_name}"' in text:
            return text
        message = Message.decode(text)
        message.data["request_address"] = self._address
        if isinstance(metadata := message.data.get("announcement"), dict):
            metadata["log"] = self._log_name
        return message.encode()

    # -- info and replay

    def info(self, subject: str, data: Any) -> dict[str, Any]:
        """Return the data of the reply to ``info``: the files announced under a subject, newest first."""
        limit = data.get("max_count") if isinstance(data, dict) else None
        count = min(limit, MAX_INFO_FILES) if isinstance(limit, int) and limit >= 0 else MAX_INFO_FILES
        files: list[str] = []
        for head, uid in self._journal.newest_files(self.name, count):
            topic = head.removeprefix("pytroll:/")
            if topic.startswith(subject):
                files.append(f"{topic}/{uid}")
        uptime = dt.timedelta(seconds=time.monotonic() - self._started)
        return {"files": files, "max_count": count, "uptime": str(uptime)}

    def replay(self, data: Any) -> dict[str, Any]:
        """Return the announcements ``after`` a number, at most ``max_count``, or of the last ``max_age`` seconds.

        The reply is limited in number and size, and complete up to the number ``through``. A client that names another
        log gets the name of this one. It reads the disk of the origin, which may not respond.
        """
        data = data if isinstance(data, dict) else {}
        after, age = data.get("after"), data.get("max_age")
        last = self._journal.last_number(self.name)
        reply = {"log": self._log_name, "last": last}
        if data.get("log") != self._log_name:
            return reply | {"through": 0, "messages": []}
        if payload.is_seconds(age):
            after = self._journal.number_before(self.name, self._journal.now() - age)
        if not payload.is_number(after):
            raise RequestRejected("a replay request must contain a number in 'after', or seconds in 'max_age'")
        count = data.get("max_count")
        limit = count if isinstance(count, int) and 0 < count < MAX_REPLAY else MAX_REPLAY
        found = self._journal.announcements_after(self.name, after, limit)
        unchanged = [a for a in found if self._file_store.is_unchanged(a)]
        messages = [text for a in unchanged if self._fits(text := self._with_address(a.message), a.uid)]
        return reply | {"through": found[-1].number if found else last, "messages": messages}

    def _fits(self, text: str, uid: str) -> bool:
        """Return True if a reply can contain an announcement, which is escaped in it; else log it."""
        fits = len(json.encoder.encode_basestring_ascii(text)) <= MAX_REPLAYED_BYTES
        if not fits:
            logger.error("[%s] cannot replay %s: its announcement is too long", self.name, uid)
        return fits

    def look_up(self, references: Iterable[Mapping[str, Any]]) -> dict[int, AnnouncementRecord]:
        """Return, by number, the announcements to which the metadata of several requests refer, for prefetching."""
        numbers = {metadata["number"] for metadata in references if metadata.get("log") == self._log_name}
        return self._journal.get_announcements(self.name, numbers) if numbers else {}

    def find_announcement(
        self, uris: list[str], metadata: Mapping[str, Any], prefetched: Mapping[int, AnnouncementRecord] | None = None
    ) -> AnnouncementRecord:
        """Return the announcement of requested files; raise RequestRejected if this chain did not announce them.

        ``metadata`` is the announcement metadata of the request; {} from legacy clients. Raise TemporaryTransferError
        if another member of the fleet announced the files, and has them on its own disk.
        """
        if self._place and (place := self._other_place(metadata.get("log", ""))):
            raise TemporaryTransferError(f"on the disk of {place}: request it at the address in its announcement")
        if metadata.get("log") == self._log_name:
            number = metadata["number"]
            announced = (prefetched or {}).get(number) or self._journal.get_announcement(self.name, number)
        else:
            announced = self._journal.latest_announcement(self.name, uris[0])
        if announced is None or not _covers(announced, uris):
            raise RequestRejected(f"not announced by this chain: {payload.file_name(uris[0])}")
        return announced

    def _other_place(self, log: str) -> str:
        """Return the place of another member with this log; empty for other logs."""
        place = log.removeprefix(f"{self._fleet_log}/")
        return place if place not in (log, self._place) else ""


def _metadata(message: Message) -> dict[str, Any]:
    return {key: value for key, value in message.data.items() if key not in payload.TRANSPORT_KEYS}


def _covers(announced: AnnouncementRecord, uris: list[str]) -> bool:
    """Return True if the announcement contains the files, each at least as often as the request does."""
    if uris == [announced.uri]:
        return True
    own = payload.file_uris(Message.decode(announced.message).data)
    return len(uris) <= len(own) and set(uris) <= set(own)
