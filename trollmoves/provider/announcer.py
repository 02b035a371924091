"""The log of a chain: files are announced through it, and told again to whoever missed them."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trollmoves.errors import JournalError, RequestRejected, TrollmovesError
from trollmoves.journal import AnnouncementRecord, Journal
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.provider.file_store import LINK_DIGESTS, FileStore
from trollmoves.utils import failpoints

log = logging.getLogger(__name__)

MAX_INFO_FILES = 2256  # files in one answer to `info`, what peers are used to
MAX_REPLAY = 500  # announcements in one answer to `replay`
SUBSCRIBER_GRACE = 1.0  # s for subscribers of an earlier process of ours to connect to this one
RETRY_DELAY = 60.0  # s after which a journal is read again that could not be read
PAGE_SIZE = 500  # announcements read at one time when many are looked through


@dataclass(slots=True)
class Announcement:
    """A file, or several in one message, to announce.

    The size is in bytes, all together, None when it is not known; the time is the newest, in ns. ``also`` stands in the
    mark of the announcement.
    """

    uri: str
    uid: str
    data: dict[str, Any]
    size: int | None
    mtime: int
    type: str = "file"
    subject: str = ""
    extra_metadata: Mapping[str, Any] = field(default_factory=dict)


class Announcer:
    """One chain's log; all of it may be used by any thread.

    With a request address, announcements say where to ask for the file, and are numbered so that peers notice what they
    missed. Without one, ``describe`` makes of an announcement the type and data of a message that tells where the file
    can be read.
    """

    def __init__(
        self,
        name: str,
        topic: str,
        journal: Journal,
        publisher: Publisher,
        *,
        holdings: FileStore,
        address: str | None,
        describe: Callable[[Announcement], tuple[str, dict[str, Any]]] | None = None,
    ) -> None:
        self.name = name
        self._topic = topic
        self._journal = journal
        self._publisher = publisher
        self._holdings = holdings
        self._address = address
        self._describe = describe
        self._log_name = f"{journal.identity}/{name}"
        self._started = time.monotonic()
        self._before = 0  # the number up to which earlier processes have announced
        self._announcing = threading.Lock()
        self._stopping = threading.Event()
        self._settler = threading.Thread(target=self._republish_undelivered, name=f"republisher-{name}", daemon=True)

    def start(self, *, again: bool) -> None:
        """Begin; with ``again`` publish anew what an earlier process announced and nobody has had."""
        self._started = time.monotonic()
        if again:
            self._before = self._journal.last_number(self.name)
            self._settler.start()

    def stop(self) -> None:
        """Announce nothing more."""
        self._stopping.set()
        if self._settler.is_alive():
            self._settler.join(5.0)

    @property
    def is_stopped(self) -> bool:
        """Whether it announces nothing more."""
        return self._stopping.is_set()

    def heartbeat_data(self) -> dict[str, Any]:
        """Say how far the log goes, for the heartbeat."""
        return {
            "log": self._log_name,
            "number": self._journal.last_number(self.name),
            "topic": self._topic,
            "request_address": self._address,
        }

    def announce(self, announcements: Sequence[Announcement]) -> int:
        """Write to the log and publish; give how many. One whose file stands there unchanged is passed over.

        Any thread. In the first second it waits, so that subscribers find the time to connect.
        """
        if self._stopping.wait(max(0.0, self._started + SUBSCRIBER_GRACE - time.monotonic())):
            return 0
        with self._announcing:
            known = self._journal.latest_versions(self.name, {a.uri for a in announcements})
            new = [a for a in announcements if known.get(a.uri) != (a.size, a.mtime) or self._link_target_changed(a)]
            new, texts = self._encode_all(new)
            number = self._journal.last_number(self.name)
            if new:
                failpoints.hit("announcing")
            self._journal.append_announcements(
                self.name,
                [
                    AnnouncementRecord(number + n, a.uri, a.uid, a.size, a.mtime, text)
                    for n, (a, text) in enumerate(zip(new, texts, strict=True), start=1)
                ],
            )
            if new:
                failpoints.hit("announced")
            self._publisher.send_encoded(texts)
        if new:
            failpoints.hit("published")
            more = f" and {len(new) - 1} more" if len(new) > 1 else ""
            log.info("[%s] announced %s%s", self.name, new[0].uid, more)
        return len(new)

    def _link_target_changed(self, a: Announcement) -> bool:
        """Tell whether a link, to a file that seems unchanged, was announced when it led to another one."""
        if LINK_DIGESTS not in a.extra_metadata:
            return False
        before = self._journal.latest_announcement(self.name, a.uri)
        mark = payload.announcement_metadata(Message.decode(before.message).data) if before else {}
        return bool(mark.get(LINK_DIGESTS) != a.extra_metadata[LINK_DIGESTS])

    def _encode_all(self, announcements: Sequence[Announcement]) -> tuple[list[Announcement], list[str]]:
        """Give the announcements that can be written, and their messages."""
        number = self._journal.last_number(self.name)
        written: list[Announcement] = []
        texts: list[str] = []
        for a in announcements:
            try:
                texts.append(self._message(a, number + len(texts) + 1).encode())
                written.append(a)
            except TrollmovesError as error:
                if error.temporary:
                    raise
                log.error("[%s] cannot announce %s: %s", self.name, a.uid, error)
        return written, texts

    def _message(self, a: Announcement, number: int) -> Message:
        subject = a.subject or self._topic
        if self._describe:
            return Message(subject, *self._describe(a))
        mark = {**a.extra_metadata, "log": self._log_name, "number": number, "mtime": a.mtime}
        if a.size is not None:
            mark["size"] = a.size
        return Message(subject, a.type, a.data | {"request_address": self._address, "announcement": mark})

    def _republish_undelivered(self) -> None:
        """Publish again what was announced, and is still there, but was never delivered: nobody may have heard it."""
        self._stopping.wait(SUBSCRIBER_GRACE)
        number = count = 0
        while not self._stopping.is_set():
            try:
                page = self._journal.undelivered_announcements(self.name, ("push", "ack"), number, PAGE_SIZE)
            except JournalError as error:
                log.warning("[%s] what nobody has had is announced again later: %s", self.name, error)
                self._stopping.wait(RETRY_DELAY)
                continue
            page = [announced for announced in page if announced.number <= self._before]
            if not page:
                break
            number = page[-1].number
            texts = [self._with_address(a.message) for a in page if self._holdings.is_unchanged(a)]
            self._publisher.send_encoded(texts)
            count += len(texts)
        if count:
            log.info("[%s] announced %d files again that nobody had asked for", self.name, count)

    def _with_address(self, text: str) -> str:
        """Give an announcement of an earlier start with the request address of this one."""
        if f'"{self._address}"' in text:
            return text
        message = Message.decode(text)
        message.data["request_address"] = self._address
        return message.encode()

    # -- told again

    def info(self, subject: str, data: Any) -> dict[str, Any]:
        """Give the files that were announced under a subject, newest first: what an ``info`` is answered."""
        wanted = data.get("max_count") if isinstance(data, dict) else None
        count = min(wanted, MAX_INFO_FILES) if isinstance(wanted, int) and wanted >= 0 else MAX_INFO_FILES
        files: list[str] = []
        for announced in self._journal.newest_announcements(self.name, count):
            topic = announced.message.split(" ", 1)[0].removeprefix("pytroll:/")
            if topic.startswith(subject):
                files.append(f"{topic}/{announced.uid}")
        uptime = dt.timedelta(seconds=time.monotonic() - self._started)
        return {"files": files, "max_count": count, "uptime": str(uptime)}

    def replay(self, data: Any) -> dict[str, Any]:
        """Give the announcements ``after`` a number, or of the last ``max_age`` seconds, to a peer that missed some.

        ``through`` is the number up to which nothing is left untold. A peer that names another log hears of this one.
        """
        data = data if isinstance(data, dict) else {}
        after, age = data.get("after"), data.get("max_age")
        last = self._journal.last_number(self.name)
        answer = {"log": self._log_name, "last": last}
        if data.get("log") != self._log_name:
            return answer | {"through": 0, "messages": []}
        if payload.is_seconds(age):
            after = self._journal.number_before(self.name, self._journal.now() - age)
        if not payload.is_number(after):
            raise RequestRejected("a replay needs a number in 'after', or seconds in 'max_age'")
        found = self._journal.announcements_after(self.name, after, MAX_REPLAY)
        messages = [self._with_address(a.message) for a in found if self._holdings.is_unchanged(a)]
        return answer | {"through": found[-1].number if found else last, "messages": messages}

    def look_up(self, requests: Iterable[Any]) -> dict[int, AnnouncementRecord]:
        """Look up together what the data of several requests name by number, for ``find``."""
        marks = map(payload.announcement_metadata, requests)
        numbers = {mark["number"] for mark in marks if mark.get("log") == self._log_name}
        return self._journal.get_announcements(self.name, numbers) if numbers else {}

    def find_announcement(
        self, data: Any, at_hand: Mapping[int, AnnouncementRecord] | None = None
    ) -> AnnouncementRecord:
        """Give the announcement that a request is about; RequestRefused when this chain made none of these files.

        What is ``at_hand`` by its number is not looked up.
        """
        if not isinstance(data, dict):
            raise RequestRejected("the data of a request must be a dictionary")
        uris = payload.file_uris(data)
        if not uris or not all(isinstance(uri, str) for uri in uris):
            raise RequestRejected("the request names no file")
        mark = payload.announcement_metadata(data)
        if mark.get("log") == self._log_name:  # one of our own peers: the number says which, and its files must fit
            number = mark["number"]
            announced = (at_hand or {}).get(number) or self._journal.get_announcement(self.name, number)
        else:
            announced = self._journal.latest_announcement(self.name, uris[0])
        if announced is None or not _covers(announced, uris):
            raise RequestRejected(f"not announced here: {payload.file_name(uris[0])}")
        return announced


def _covers(announced: AnnouncementRecord, uris: list[str]) -> bool:
    """Tell whether an announcement is about these files, and names them as often as they are asked for."""
    if uris == [announced.uri]:
        return True
    own = payload.file_uris(Message.decode(announced.message).data)
    return len(uris) <= len(own) and set(uris) <= set(own)
