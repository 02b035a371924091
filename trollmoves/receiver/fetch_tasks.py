"""The files to fetch: what was announced of each, by whom, and whether it is new."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trollmoves.errors import MessageError
from trollmoves.journal import DONE, FRESH, WAITING, Journal, Outcome, SourcePosition, Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.net import urls
from trollmoves.receiver.peers import Peers
from trollmoves.utils.logs import LogThrottle

log = logging.getLogger(__name__)

KIND = "fetch"
MAX_RECENT = 10_000  # tasks remembered until the journal surely has them
_GENERATION = "\n#"  # in the key of a task, before the number of the content; no file is announced under such a name

AnnouncementsBySource = dict[str, str]
Version = tuple[str, int | None, int | None]


@dataclass(slots=True)
class Fetch:
    """What is known about a file to fetch.

    ``told`` has, by source, the text of its announcement. ``versions`` has, by source, where the file is there, its
    size and time (None where it does not say), and the generation: the number of the content that this name has had.
    """

    announcements: AnnouncementsBySource = field(default_factory=dict)
    versions: dict[str, tuple[Version, int]] = field(default_factory=dict)
    generation: int = 1

    def dump(self) -> str:
        """Give the body of a task."""
        return json.dumps([self.announcements, self.versions, self.generation])

    @classmethod
    def load(cls, body: str) -> Fetch:
        """Read the body of a task."""
        told, versions, generation = json.loads(body)
        return cls(told, {source: (tuple(v), g) for source, (v, g) in versions.items()}, generation)

    def may_be_current(self, size: int | None) -> bool:
        """Tell whether a file of this size may have the content of the current generation."""
        sizes = [known for (_, known, _), generation in self.versions.values() if generation == self.generation]
        return size is None or any(known in (None, size) for known in sizes)


class FetchTasks:
    """The fetches of one chain in the journal. Any thread.

    A file is known by its name (uid), for every source has it elsewhere. ``acknowledge(source, announcement)`` is
    called for a source that announces what was fetched already. ``kind`` is that of the tasks.
    """

    def __init__(
        self,
        name: str,
        journal: Journal,
        peers: Peers,
        delay: float,
        acknowledge: Callable[[str, str], None] | None,
        *,
        kind: str = KIND,
    ) -> None:
        self.name = name
        self._kind = kind
        self._journal = journal
        self._peers = peers
        self._delay = delay
        self._acknowledge = acknowledge
        self._seldom = LogThrottle()
        self._lock = threading.Lock()  # what is heard and what is caught up with meet in the same tasks
        self._changed: dict[int, Task] = {}  # while announcements are noted: what is to be written of known tasks
        self._late: dict[
            int, AnnouncementsBySource
        ] = {}  # by task: sources that may have come after it was taken in hand
        self._arrived: dict[int, None] = {}  # tasks that may not be done in the journal yet, the latest last

    def record_announcements(
        self, messages: Sequence[Message], sources: Iterable[tuple[str, SourcePosition]], rank: int
    ) -> list[Task]:
        """Note announcements, and how far the logs of their sources are had; give the fetches that are new."""
        with self._lock:
            wanted: list[Task] = []
            for message in messages:
                try:
                    wanted.append(self._task(message, rank))
                except MessageError as error:
                    if (more := self._seldom.admit()) is not None:
                        sender = message.sender
                        log.warning("[%s] announcement of %s passed over: %s%s", self.name, sender, error, more)
            noted = self._journal.add_tasks(wanted, sources)
            rows: dict[int, Task] = {}  # a file may be announced several times at once
            new = []
            for asked, (task, is_new) in zip(wanted, noted, strict=True):
                row = rows.setdefault(task.id, task)
                new += [task] if is_new else self._merge(asked, row)
            changed, self._changed = self._changed, {}
            if changed:
                self._journal.update_bodies(changed.values())
            return new

    def _task(self, message: Message, rank: int) -> Task:
        data = message.data
        source = data.get("request_address")
        if not isinstance(source, str) or not source:
            raise MessageError(f"no request address but {source!r}")
        key = file_key(data)
        for item in payload.file_items(data):
            payload.check_file_item(item)
        version = (payload.file_uris(data)[0], *_size_and_time(data))
        fetch = Fetch({source: message.raw or message.encode()}, {source: (version, 1)})
        due = self._journal.now() + self._delay if self._delay else 0.0
        return Task(self.name, self._kind, key, f"{self._kind} {source}", fetch.dump(), due, rank, context=message)

    def _merge(self, asked: Task, known: Task) -> list[Task]:
        """Take in an announcement of a file that is known; give the tasks that are new through it.

        From a source not heard about this file: it is a further source. From one heard already: a repetition, unless
        the file has another size or time there: then its content is new. Old servers tell neither, and announce what
        they have again at each start: from them it is a repetition. At another place there, it is another file of the
        same name.
        """
        fetch, told = Fetch.load(known.body), Fetch.load(asked.body)
        ((source, (version, _)),) = told.versions.items()
        before, generation = fetch.versions.get(source, (None, 0))
        if before and before[0] != version[0]:
            return self._add_variant(asked, f"{asked.key}\n{version[0]}", merge=True)
        current = self._current(known, fetch)
        if generation != fetch.generation and before != version and fetch.may_be_current(version[1]):
            fetch.versions[source] = (version, fetch.generation)
            self._add_source(current, known, fetch, source, told.announcements[source])
            return []
        if before == version:
            self._acknowledge_again(asked, current, source, told.announcements[source])
            return []
        fetch.generation += 1
        fetch.versions[source] = (version, fetch.generation)
        self._peers.forget(known.key)
        self._update(known, fetch)
        return self._add_variant(asked, f"{asked.key}{_GENERATION}{fetch.generation}")

    def _acknowledge_again(self, asked: Task, current: Task, source: str, text: str) -> None:
        """Tell a source that announces anew what is here: it seems not to know, as one of ours repeats nothing else."""
        numbered = payload.announcement_metadata(asked.context.data)
        if numbered and asked.rank == FRESH and current.state == DONE and self._acknowledge:
            self._acknowledge(source, text)

    def _add_variant(self, asked: Task, key: str, *, merge: bool = False) -> list[Task]:
        asked.key = key
        ((task, new),) = self._journal.add_tasks([asked])
        if new:
            return [task]
        return self._merge(asked, task) if merge else []

    def _update(self, task: Task, fetch: Fetch) -> None:
        task.body = fetch.dump()
        self._changed[task.id] = task

    def _add_source(self, current: Task, known: Task, fetch: Fetch, source: str, text: str) -> None:
        if current is known:
            fetch.announcements[source] = text
        else:
            newest = Fetch.load(current.body)
            newest.announcements[source] = text
            self._update(current, newest)
        self._update(known, fetch)
        self._late[current.id] = {**self._late.get(current.id, {}), source: text}
        if current.state == DONE or current.id in self._arrived:
            for late, announcement in self._late.pop(current.id, {}).items():
                if self._acknowledge:
                    self._acknowledge(late, announcement)

    def _current(self, known: Task, fetch: Fetch) -> Task:
        """Give the task that fetches the newest content."""
        if fetch.generation == 1:
            return known
        return self._journal.find(self.name, self._kind, f"{known.key}{_GENERATION}{fetch.generation}") or known

    def latest_announcements(self, key: str) -> AnnouncementsBySource:
        """Give the announcements of the newest content of a name by source; {} when it was not heard of."""
        known = self._journal.find(self.name, self._kind, key)
        return Fetch.load(self._current(known, Fetch.load(known.body)).body).announcements if known else {}

    def announcements(self, task: Task) -> AnnouncementsBySource:
        """Give the announcements of a fetch by source, with those that came after it was taken in hand."""
        return _announcements(task) | self._late.get(task.id, {})

    def announcements_after_fetch(self, task: Task) -> AnnouncementsBySource:
        """Hear that the files are here; give the announcements by source. Who comes later is acknowledged at once."""
        # The journal says so a moment later only. First this, then the late ones: ``_add_source`` does it the other way
        # round, so that no source falls between the two.
        self._arrived[task.id] = None
        if len(self._arrived) > MAX_RECENT:
            del self._arrived[next(iter(self._arrived))]
        return _announcements(task) | self._late.pop(task.id, {})

    def on_attempt_ended(self, task: Task) -> None:
        """Forget what was kept for a task in hand."""
        self._late.pop(task.id, None)

    def finish_for_peer(self, keys: Iterable[str], in_hand: Callable[[Task], bool]) -> None:
        """Count as done what a peer has fetched, as far as it waits and is not in hand."""
        with self._lock:
            ended = []
            for key in dict.fromkeys(keys):
                known = self._journal.find(self.name, self._kind, key)
                current = self._current(known, Fetch.load(known.body)) if known else None
                if current and current.state == WAITING and not in_hand(current):
                    ended.append(Outcome(current, DONE))
                    self.on_attempt_ended(current)
            if ended:
                self._journal.finish(ended)


def compact_body(task: Task) -> str:
    """Give what is left of a fetch that was done: what its content was, but not the announcements."""
    fetch = Fetch.load(task.body)
    fetch.announcements = {}
    return fetch.dump()


def file_key(data: dict[str, Any]) -> str:
    """Give the identity of the files in a message: their names, wherever they are. MessageError when it has none."""
    items = payload.file_items(data)
    if not items:
        raise MessageError("it names no file")
    for item in items:
        if not isinstance(item["uri"], str) or not isinstance(item.get("uid", ""), str):
            raise MessageError(f"the name of a file is no text: {urls.excerpt(str(item['uri']), 100)!r}")
    return "\n".join(item.get("uid") or item["uri"].rsplit("/", 1)[-1] for item in items)


def _announcements(task: Task) -> AnnouncementsBySource:
    """Give the announcements in a task by source; what came late is not among them."""
    message = task.context
    if isinstance(message, Message) and message.raw:  # it was noted just now
        return {str(message.data["request_address"]): message.raw}
    return Fetch.load(task.body).announcements


def file_key_of(task: Task) -> str:
    """Give the identity of the files of a task, whichever content of them it fetches."""
    return task.key.partition(_GENERATION)[0]


def _size_and_time(data: dict[str, Any]) -> tuple[int | None, int | None]:
    mark = payload.announcement_metadata(data)
    size, mtime = mark.get("size"), mark.get("mtime")
    return (size if isinstance(size, int) else None), (mtime if isinstance(mtime, int) else None)
