"""Fetch tasks: the announcements of each file, by source, without duplicates."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from trollmoves.errors import MessageError
from trollmoves.journal import BACKLOG, DONE, FAILED, FRESH, WAITING, Journal, Outcome, SourcePosition, Task, TaskEditor
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.net import urls
from trollmoves.receiver.fetch_sources import (
    AnnouncementsBySource,
    Fetch,
    SourceLookup,
    is_known_content,
    metadata_digest,
    size_and_time,
    text_digest,
)
from trollmoves.receiver.peers import Peers
from trollmoves.utils.logs import LogThrottle

logger = logging.getLogger(__name__)

KIND = "fetch"
MAX_RECENT = 10_000  # delivered tasks that are remembered until the journal has stored them as done
RECENT_SECONDS = 60.0  # s after which another member of the fleet no longer receives the same announcement
_GENERATION = "\n#"  # in the key of a task, before the generation; not part of any file name

Effects = list[Callable[[], None]]  # functions to call after a transaction; they may be called twice


class FetchTasks(SourceLookup):
    """The fetch tasks of one chain in the journal. Any thread.

    A file is identified by its name (uid), because its path differs between sources.
    ``acknowledge(source, announcement)`` is called for a source that announces an already fetched file. ``kind`` is the
    kind of the tasks. A file that is announced again ``repeat_after`` seconds after it was fetched, or with other
    metadata, or after a change of ``target`` (the configured destination), or as another file of the same version, is
    fetched again.
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
        repeat_after: float = float("inf"),
        target: str = "",
    ) -> None:
        self.name = name
        self._repeat_after = repeat_after
        self._target = text_digest(target) if target else ""
        self._kind = kind
        self._journal = journal
        self._peers = peers
        self._delay = delay
        self._acknowledge = acknowledge
        self._log_throttle = LogThrottle()
        self._repeat_throttle = LogThrottle(burst=10)
        self._lock = threading.Lock()  # live and replayed announcements may concern the same task
        self._late: dict[int, AnnouncementsBySource] = {}  # by task: sources added after it may have been claimed
        self._delivered: dict[int, None] = {}  # delivered tasks, maybe not stored as done yet; newest last

    def record_announcements(
        self,
        messages: Sequence[Message],
        positions: Iterable[tuple[str, SourcePosition]],
        rank: int,
        connected: float = float("inf"),
    ) -> list[Task]:
        """Store announcements and the positions in the logs of their sources; return the new tasks.

        ``connected`` is how long their publisher has been connected, in seconds: servers announce files again when they
        start, and this is no reason to fetch them again.
        """
        with self._lock:
            announced: list[Task] = []
            for message in messages:
                try:
                    announced.append(self._task(message, rank))
                except MessageError as error:
                    if (more := self._log_throttle.admit()) is not None:
                        sender = message.sender
                        logger.warning("[%s] ignored announcement of %s: %s%s", self.name, sender, error, more)
            effects: Effects = []
            may_repeat = rank == FRESH and connected >= self._repeat_after
            found = self._journal.merge(
                announced,
                positions,
                lambda editor, task, stored: self._merge(editor, task, stored, effects, may_repeat),
            )
            for effect in effects:
                effect()
            return list({task.id: task for task in found}.values())  # a batch may announce a file several times

    def _task(self, message: Message, rank: int) -> Task:
        data = message.data
        source = data.get("request_address")
        if not payload.is_address(source):
            raise MessageError(f"invalid request_address {source!r:.100}: it must be host:port")
        key = file_key(data)
        items = payload.file_items(data)
        for item in items:
            payload.check_file_item(item)
        version = (items[0]["uri"], *size_and_time(data))
        fetch = Fetch({source: message.raw or message.encode()}, {source: (version, 1)}, target=self._target)
        due = self._journal.now() + self._delay if self._delay else 0.0
        return Task(self.name, self._kind, key, f"{self._kind} {source}", fetch.dump(), due, rank, context=message)

    def _merge(
        self, editor: TaskEditor, candidate: Task, known: Task, effects: Effects, may_repeat: bool
    ) -> list[Task]:
        """Merge an announcement of a known file into its task; return the tasks to run because of it.

        A new source of the file is added. A known source repeats its announcement, unless size or mtime changed: then
        the file has new content. Legacy servers send neither, and announce their files again at each start: this counts
        as a repetition, also if the server was upgraded or rolled back in between. Another URI at the same source is
        another file with the same name. Functions to call after the transaction are appended to ``effects``. With
        ``may_repeat``, a repetition long after the file was fetched is a reason to fetch it again.
        """
        fetch, announced = Fetch.load(known.body), Fetch.load(candidate.body)
        ((source, (version, _)),) = announced.versions.items()
        text = announced.announcements[source]
        before, generation = fetch.versions.get(source, (None, 0))
        if before and before[0] != version[0]:
            candidate = replace(candidate, key=f"{candidate.key}\n{version[0]}")
            variant, is_new = editor.add(candidate)
            return [variant] if is_new else self._merge(editor, candidate, variant, effects, may_repeat)
        current = self._current(editor, known, fetch)
        is_other = before != version or _has_returned(candidate, source, current, fetch)
        if generation != fetch.generation and is_other and fetch.may_be_current(version[1]):
            fetch.versions[source] = (version, fetch.generation)
            self._add_source(editor, current, known, fetch, source, text, effects)
            return []
        if (
            before
            and before != version
            and is_known_content(candidate.context, before, known.created, self._journal.now())
        ):
            fetch.versions[source] = (version, generation)
            fetch.digests[source] = metadata_digest(candidate.context.raw or candidate.context.encode())
            if current.state == WAITING:  # the source now needs requests of the other kind
                self._add_source(editor, current, known, fetch, source, text, effects)
            else:
                _update(editor, known, fetch)
            before = version
        if before == version:
            reason = self._repeat_reason(candidate, Fetch.load(current.body), fetch, current, source, may_repeat)
            if not reason:
                return self._on_repetition(editor, candidate, current, source, text, effects)
            text = "[%s] fetching %s again: %s announced it again, and %s"
            effects.append(partial(logger.info, text, self.name, file_key_of(current), source, reason))
        fetch.generation += 1
        fetch.versions[source] = (version, fetch.generation)
        effects.append(partial(self._peers.forget, known.key))
        _update(editor, known, fetch)
        added, is_new = editor.add(replace(candidate, key=f"{candidate.key}{_GENERATION}{fetch.generation}"))
        return [added] if is_new else []

    def _repeat_reason(
        self, candidate: Task, current_fetch: Fetch, first_fetch: Fetch, current: Task, source: str, may_repeat: bool
    ) -> str:
        """Return the reason to fetch a file again that a source announces again, or an empty string."""
        known_digest = current_fetch.digest(source) or first_fetch.digest(source)
        known_number = current_fetch.number(source) or first_fetch.number(source)
        metadata = payload.announcement_metadata(candidate.context.data)
        if _is_known(metadata, known_number):
            return ""
        if metadata.get(payload.RETURNED):
            return "it is another file with the same size and time"
        if current.state not in (DONE, WAITING):
            return ""
        # The other sources of the newest content may have announced it with these metadata already.
        digests = {known_digest, *map(current_fetch.digest, current_fetch.versions)}
        if known_digest and metadata_digest(candidate.context.raw or candidate.context.encode()) not in digests:
            return "its metadata have changed"
        if current.state == WAITING or current.finished is None:
            return ""
        if current_fetch.target and current_fetch.target != self._target:
            return "the destination was changed"
        age = self._journal.now() - current.finished
        return f"it was fetched {age:.0f} s ago" if may_repeat and age >= self._repeat_after else ""

    def _log_ignored(self, name: str, source: str, age: float) -> None:
        if (more := self._repeat_throttle.admit()) is not None:
            text = "[%s] ignored a repeated announcement of %s by %s: it was fetched %.0f s ago%s"
            logger.info(text, self.name, name, source, age, more)

    def _on_repetition(
        self, editor: TaskEditor, candidate: Task, current: Task, source: str, text: str, effects: Effects
    ) -> list[Task]:
        """Retry a failed file that is announced again. Acknowledge a fetched one: sources repeat undelivered files."""
        if self._journal.sharing and self._is_known_to_fleet(current, source, text, effects):
            return []
        if current.state == FAILED or (current.state == WAITING and current.tries and current.rank == BACKLOG):
            fetch = Fetch.load(current.body)
            fetch.announcements[source] = text
            current.body, current.due = fetch.dump(), self._journal.now()
            if current.state == FAILED:
                current.state, current.tries, current.created = WAITING, 0, current.due
            editor.reset(current)
            return [current]
        if candidate.rank == FRESH and current.state == DONE and self._acknowledge:
            age = self._journal.now() - (current.finished or 0.0)
            effects.append(partial(self._log_ignored, file_key_of(current), source, age))
            effects.append(partial(self._acknowledge, source, text))
        return []

    def _is_known_to_fleet(self, current: Task, source: str, text: str, effects: Effects) -> bool:
        """Return True for the very announcement that another member has stored a moment ago."""
        if Fetch.load(current.body).announcements.get(source) != text:
            return False
        if current.state == WAITING and current.held:  # its source may have been added by another member
            effects.append(partial(self._on_source_added, current, source, text))
        return self._journal.now() - current.created < RECENT_SECONDS

    def _add_source(
        self,
        editor: TaskEditor,
        current: Task,
        known: Task,
        fetch: Fetch,
        source: str,
        text: str,
        effects: Effects,
    ) -> None:
        if current is known:
            fetch.announcements[source] = text
        else:
            newest = Fetch.load(current.body)
            newest.announcements[source] = text
            _update(editor, current, newest)
        _update(editor, known, fetch)
        effects.append(partial(self._on_source_added, current, source, text))

    def _on_source_added(self, current: Task, source: str, text: str) -> None:
        self._late[current.id] = {**self._late.get(current.id, {}), source: text}
        if current.state == DONE or current.id in self._delivered:
            for late, announcement in self._late.pop(current.id, {}).items():
                if self._acknowledge:
                    self._acknowledge(late, announcement)

    def _current(self, tasks: TaskEditor | Journal, known: Task, fetch: Fetch) -> Task:
        """Return the task that fetches the newest content."""
        if fetch.generation == 1:
            return known
        return tasks.find(self.name, self._kind, f"{known.key}{_GENERATION}{fetch.generation}") or known

    def latest_announcements(self, key: str) -> AnnouncementsBySource:
        """Return the announcements of the newest content of a file by source; {} if it was not announced."""
        known = self._journal.find(self.name, self._kind, key)
        return (
            Fetch.load(self._current(self._journal, known, Fetch.load(known.body)).body).announcements if known else {}
        )

    def announcements(self, task: Task) -> AnnouncementsBySource:
        """Return the announcements of a task by source, with those added after it was claimed."""
        return _announcements(task) | self._late.get(task.id, {})

    def announcements_after_fetch(self, task: Task) -> AnnouncementsBySource:
        """Record the delivery; return the announcements by source. Later sources are acknowledged immediately."""
        # The journal stores the result later. This sets ``_delivered`` before it takes ``_late``; ``_on_source_added``
        # uses the opposite order, so that no source is lost between the two.
        self._delivered[task.id] = None
        if len(self._delivered) > MAX_RECENT:
            del self._delivered[next(iter(self._delivered))]
        return _announcements(task) | self._late.pop(task.id, {})

    def on_attempt_ended(self, task: Task) -> None:
        """Forget the late sources of a task: they are in the journal."""
        self._late.pop(task.id, None)

    def is_superseded(self, task: Task) -> bool:
        """Return True if a newer content of the file of a task is waiting or was fetched."""
        known = self._journal.find(self.name, self._kind, file_key_of(task))
        current = self._current(self._journal, known, Fetch.load(known.body)) if known else task
        return current.id > task.id and current.state in (WAITING, DONE)

    def finish_for_peer(self, keys: Iterable[str], in_flight: Callable[[], Container[int]]) -> None:
        """Mark files that a peer has fetched as done, if their tasks wait and are not in flight.

        ``peers`` must have recorded the files already: a task that starts now ends without a request.
        """
        with self._lock:
            running = in_flight()  # before the states are read: these tasks may be stored as done now
            outcomes = []
            for key in dict.fromkeys(keys):
                known = self._journal.find(self.name, self._kind, key)
                current = self._current(self._journal, known, Fetch.load(known.body)) if known else None
                if current and current.state == WAITING and current.id not in running:
                    outcomes.append(Outcome(current, DONE))
                    self.on_attempt_ended(current)
            if outcomes:
                self._journal.finish(outcomes)


def client_name(journal: Journal, chain: str) -> str:
    """Return the name of a client's chain, as in its heartbeats and at the start of its request ids."""
    return f"{journal.identity}/{chain}"


def task_again(journal: Journal, task: Task) -> Task | None:  # noqa: ARG001
    """Return a task that fetches a file again; None if its announcements are compacted, and were not numbered.

    It gets a new id: to the request id of a finished task, a server only replies that it is done.
    """
    fetch = Fetch.load(task.body)
    if not (fetch.announcements or fetch.numbers):
        return None
    return Task(task.chain, task.kind, task.key, task.lane, task.body, rank=BACKLOG)


def file_key(data: dict[str, Any]) -> str:
    """Return the identity of the files in a message: their names without paths. MessageError if there are none."""
    items = payload.file_items(data)
    if not items:
        raise MessageError("an announcement must name a file")
    for item in items:
        if not isinstance(item["uri"], str) or not isinstance(item.get("uid", ""), str):
            raise MessageError(f"the name of a file must be a text, not {urls.excerpt(str(item['uri']), 100)!r}")
    return "\n".join(item.get("uid") or item["uri"].rsplit("/", 1)[-1] for item in items)


def _update(editor: TaskEditor, task: Task, fetch: Fetch) -> None:
    task.body = fetch.dump()
    editor.update_body(task)


def _announcements(task: Task) -> AnnouncementsBySource:
    """Return the announcements in a task by source, without late ones."""
    message = task.context
    if isinstance(message, Message) and message.raw:  # the task is new, with one source
        return {str(message.data["request_address"]): message.raw}
    return Fetch.load(task.body).announcements


def file_key_of(task: Task) -> str:
    """Return the identity of the files of a task, without the generation."""
    return task.key.partition(_GENERATION)[0]


def is_again(task: Task) -> bool:
    """Return True if a task is about a further content, or a repetition, of a file that was announced before."""
    return _GENERATION in task.key


def _has_returned(candidate: Task, source: str, current: Task, first_fetch: Fetch) -> bool:
    """Return True if a source announces another file of the same version for the first time."""
    metadata = payload.announcement_metadata(candidate.context.data)
    if not metadata.get(payload.RETURNED):
        return False
    return not _is_known(metadata, Fetch.load(current.body).number(source) or first_fetch.number(source))


def _is_known(metadata: dict[str, Any], known: tuple[str, int] | None) -> bool:
    """Return True for the known announcement of a file, or an older one: a replay may contain both."""
    return bool(metadata and known and metadata["log"] == known[0] and metadata["number"] <= known[1])
