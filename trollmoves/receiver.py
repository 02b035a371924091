"""Hears announcements, and has the files sent from whichever source answers.

The taking half of a conversation. What is heard is noted in the journal at once, and asked for from there: so a file is
fetched once however often it is announced, and is not forgotten however this process ends.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trollmoves.catchup import CatchUp
from trollmoves.errors import MessageError, TrollmovesError
from trollmoves.journal import BACKLOG, DONE, FRESH, WAITING, Journal, Outcome, Source, Task
from trollmoves.lanes import Result, backoff
from trollmoves.messaging import contents, sockets
from trollmoves.messaging.listener import Listener, Provider
from trollmoves.messaging.messages import Message
from trollmoves.messaging.requester import NoAnswer, Requester
from trollmoves.options import ClientOptions
from trollmoves.peers import Peers
from trollmoves.workers import Workers

log = logging.getLogger(__name__)

ANNOUNCEMENTS = ("file", "dataset", "collection")
REQUESTS_AT_ONCE = 32  # to one source
SETTLE = 1.0  # s for subscribers of an earlier process of ours to connect to this one
BEATS = "/heartbeat/move_it"  # the names of servers, mirrors and clients begin so


class GivenUp(TrollmovesError):
    """A file was asked for as long as the configuration says."""


class NotDelivered(TrollmovesError):
    """Every source refused, or could not deliver, for a reason that may pass."""

    temporary = True


class Refused(TrollmovesError):
    """Every source refused for good."""


@dataclass(slots=True)
class Fetch:
    """What is known about a file to fetch: its announcement and who has it.

    ``uris`` and ``versions`` say, by source, where the file is and which (size, mtime) it has, with the generation:
    the number of the content that this name has had.
    """

    text: str
    sources: list[str] = field(default_factory=list)
    uris: dict[str, str] = field(default_factory=dict)
    versions: dict[str, list[int | None]] = field(default_factory=dict)
    generation: int = 1

    def dump(self) -> str:
        """Give the body of a task."""
        return json.dumps([self.text, self.sources, self.uris, self.versions, self.generation])

    @classmethod
    def load(cls, body: str) -> Fetch:
        """Read the body of a task."""
        return cls(*json.loads(body))


@dataclass(slots=True)
class Attempt:
    """One run of a fetch: the announcement, the request made of it, and the sources still to ask."""

    task: Task
    message: Message
    request: str
    destination: str
    sources: list[str]
    finish: Callable[[Result], None]
    source: str = ""
    failures: list[TrollmovesError] = field(default_factory=list)
    again_in: float = 0.0
    started: float = field(default_factory=time.monotonic)


class Receiver:
    """One chain's ears and requests.

    ``prepare(message)`` gives the destination URL, with login, for an announcement, before it is asked for; it runs on
    the clerk's thread and may refuse by an error. ``asking(attempt)`` is called before the first source is asked.
    ``arrived(attempt, answer)`` is called on the requester's thread when the file is there, and gives the result of the
    task; none of them may block.
    """

    def __init__(
        self,
        options: ClientOptions,
        journal: Journal,
        workers: Workers,
        *,
        prepare: Callable[[Message], str],
        asking: Callable[[Attempt], None],
        arrived: Callable[[Attempt, Message], Result],
    ) -> None:
        """Connect to the providers; StartError when an address is none."""
        self.name = options.name
        self._options = options
        self._journal = journal
        self._workers = workers
        self._prepare = prepare
        self._asking = asking
        self._arrived = arrived
        self._noting = threading.Lock()  # what is heard and what is replayed meet in the same tasks
        self._late_sources: dict[int, list[str]] = {}
        self._peers = Peers()
        self._down: dict[str, tuple[float, int]] = {}  # by source: until when, after how many failures
        self._requester = Requester(self.name)
        self._catchup = CatchUp(self.name, journal, self._requester, self._note_missed)
        self._topics = {
            sockets.tcp(p.host, p.port): [t for t in (p.topic or options.topic,) if t] for p in options.providers
        }
        beats = [BEATS] if options.heartbeat else []
        self._listener = Listener(
            self.name,
            [Provider(address, (*topics, *beats)) for address, topics in self._topics.items()],
            self._hear,
            alarm_scale=options.heartbeat_alarm_scale,
        )

    def start(self) -> None:
        """Hear, catch up, and fetch what waits in the journal.

        The first second nothing is fetched, so that whoever wants to be told of it finds the time to connect.
        """
        self._requester.start()
        self._workers.register(self.name, "fetch", limit=REQUESTS_AT_ONCE, starter=self._fetch, begin_in=SETTLE)
        self._catchup.start()
        self._listener.start()

    def stop(self) -> None:
        """Hear nothing more; what was asked for and not answered is asked for again at the next start."""
        self._listener.stop()
        self._workers.forget(self.name)
        self._requester.stop()

    # -- hearing

    def _hear(self, provider: str, messages: list[Message]) -> None:
        announcements: list[Message] = []
        marks: dict[str, tuple[str, Source]] = {}
        done: list[str] = []
        for message in messages:
            data = message.data
            if message.type == "beat":
                self._hear_beat(provider, data)
            elif message.type in ANNOUNCEMENTS and isinstance(data, dict) and "request_address" in data:
                announcements.append(message)
                mark = contents.announcement_mark(data)
                if mark:
                    known = self._catchup.hear(mark["log"], mark["number"], str(data["request_address"]))
                    if known:
                        marks[mark["log"]] = known
            else:
                done += self._hear_peer(message)
        if announcements:
            self._note(announcements, list(marks.values()), FRESH)
        if done:
            self._leave_to_peer(done)

    def _hear_peer(self, message: Message) -> list[str]:
        """Take note of what a peer client does; give the key of a file that it is done with."""
        if message.type not in ("push", "ack", *ANNOUNCEMENTS) or not isinstance(message.data, dict):
            return []
        try:
            key = _key(message.data)
        except MessageError:
            return []
        if message.type == "push":
            self._peers.hear_push(key)
            return []
        self._peers.hear_done(key)
        return [key]

    def _leave_to_peer(self, keys: list[str]) -> None:
        """Count as done here what a peer is done with, as far as it waits and is not in hand."""
        with self._noting:
            known = (self._newest(key) for key in keys)
            waiting = [task for task in known if task and task.state == WAITING]
            in_hand = {lane: self._workers.taken(self.name, lane) for lane in {task.lane for task in waiting}}
            idle = [task for task in waiting if task.id not in in_hand[task.lane]]
            if idle:
                self._journal.finish([Outcome(task, DONE) for task in idle])

    def _newest(self, key: str) -> Task | None:
        """Give the task that fetches the newest content of a name."""
        known = self._journal.find(self.name, "fetch", key)
        return self._current(known, Fetch.load(known.body)) if known else None

    def _hear_beat(self, provider: str, data: Any) -> None:
        logs = data.get("logs") if isinstance(data, dict) else None
        for one in logs if isinstance(logs, list) else ():
            if not isinstance(one, dict):
                continue
            name, number, address = one.get("log"), one.get("number"), one.get("request_address")
            wanted = any(str(one.get("topic", "")).startswith(topic) for topic in self._topics.get(provider, ()))
            if wanted and isinstance(name, str) and isinstance(number, int) and isinstance(address, str):
                self._catchup.hear_beat(name, number, address)

    def _note_missed(self, messages: list[Message], sources: list[tuple[str, Source]]) -> None:
        self._note(messages, sources, BACKLOG)

    def _note(self, messages: Sequence[Message], sources: Sequence[tuple[str, Source]], rank: int) -> None:
        with self._noting:
            wanted: list[tuple[Message, Task]] = []
            for message in messages:
                try:
                    wanted.append((message, self._task(message, rank)))
                except MessageError as error:
                    log.warning("[%s] announcement of %s passed over: %s", self.name, message.sender, error)
            noted = self._journal.note([task for _, task in wanted], sources)
            new = []
            for (message, asked), (task, is_new) in zip(wanted, noted, strict=True):
                new += [task] if is_new else self._merge(message, asked, task)
        if new:
            self._workers.expect(new)

    def _task(self, message: Message, rank: int) -> Task:
        data = message.data
        key = _key(data)
        source = data.get("request_address")
        if not isinstance(source, str) or not source:
            raise MessageError(f"no request address but {source!r}")
        fetch = Fetch(message.text or message.encode(), [source], {source: contents.uris(data)[0]})
        fetch.versions[source] = [*_version(data), 1]
        due = time.time() + self._options.processing_delay if self._options.processing_delay else 0.0
        return Task(self.name, "fetch", key, f"fetch {source}", fetch.dump(), due, rank, context=message)

    def _merge(self, message: Message, asked: Task, known: Task) -> list[Task]:
        """Take in an announcement of a file that is known; give the tasks that are new through it.

        From a source not heard about this file: it is a further source. From one heard already: a repetition, unless
        the file has another size or time there, or the source tells neither and the file was fetched: then its content
        is new. At another place there, it is another file of the same name.
        """
        source = message.data["request_address"]
        fetch, told = Fetch.load(known.body), Fetch.load(asked.body)
        if source in fetch.uris and fetch.uris[source] != told.uris[source]:
            return self._note_other(asked, f"{asked.key}\n{told.uris[source]}")
        version, before = told.versions[source][:2], fetch.versions.get(source)
        current = self._current(known, fetch)
        if before is None or (before[2] != fetch.generation and self._same_size(fetch, version)):
            fetch.versions[source] = [*version, fetch.generation]
            fetch.uris[source] = told.uris[source]
            self._add_source(current, known, fetch, source, message)
            return []
        if before[:2] == version and (version[0] is not None or current.state != DONE):
            return []
        fetch.generation += 1
        self._peers.forget(known.key)
        fetch.versions[source] = [*version, fetch.generation]
        known.body = fetch.dump()
        self._journal.amend([known])
        return self._note_other(asked, f"{asked.key}\n#{fetch.generation}")

    def _current(self, known: Task, fetch: Fetch) -> Task:
        """Give the task that fetches the newest content."""
        if fetch.generation == 1:
            return known
        return self._journal.find(self.name, "fetch", f"{known.key}\n#{fetch.generation}") or known

    @staticmethod
    def _same_size(fetch: Fetch, version: Sequence[int | None]) -> bool:
        return any(
            size in (None, version[0]) or version[0] is None
            for size, _, generation in fetch.versions.values()
            if generation == fetch.generation
        )

    def _note_other(self, asked: Task, key: str) -> list[Task]:
        asked.key = key
        ((task, new),) = self._journal.note([asked])
        return [task] if new else []

    def _add_source(self, current: Task, known: Task, fetch: Fetch, source: str, message: Message) -> None:
        if current is known:
            fetch.sources = [*dict.fromkeys([*fetch.sources, source])]
        else:
            newest = Fetch.load(current.body)
            newest.sources = [*dict.fromkeys([*newest.sources, source])]
            current.body = newest.dump()
            self._journal.amend([current])
        known.body = fetch.dump()
        self._journal.amend([known])
        if current.state == DONE:
            self._acknowledge(source, message)
        else:
            self._late_sources.setdefault(current.id, []).append(source)

    # -- asking

    def _fetch(self, task: Task, finish: Callable[[Result], None]) -> None:
        """Start to fetch a file; the clerk calls."""
        fetch = Fetch.load(task.body)
        message = task.context or Message.decode(fetch.text)
        key = _peer_key(task)
        hold = self._peers.hold(key)
        if self._peers.is_done(key) or hold:
            finish(Result(again_in=hold) if hold else Result())
            return
        if time.time() - task.noted > self._options.retry_for > 0:
            self._give_up(task, message, finish)
            return
        try:
            destination = self._prepare(message)
        except TrollmovesError as error:
            log.error("[%s] %s cannot be asked for: %s", self.name, contents.names(message.data), error)
            raise
        sources = [*dict.fromkeys([*fetch.sources, *self._late_sources.get(task.id, ())])]
        sources.sort(key=self._is_down)
        attempt = Attempt(task, message, self._request(task, message, destination), destination, sources, finish)
        self._asking(attempt)
        self._ask_next(attempt)

    def _request(self, task: Task, message: Message, destination: str) -> str:
        added: dict[str, Any] = {"destination": destination}
        if self._options.backup_targets:
            added["backup_targets"] = list(self._options.backup_targets)
        if contents.announcement_mark(message.data):
            added["request"] = {
                "id": f"{self._journal.identity}/{task.id}",
                "patience": self._options.transfer_req_timeout,
            }
        return message.variant("push", added)

    def _ask_next(self, attempt: Attempt) -> None:
        if not attempt.sources:
            attempt.finish(self._without_source(attempt))
            return
        attempt.source = attempt.sources.pop(0)
        self._ask(attempt)

    def _ask(self, attempt: Attempt) -> None:
        self._requester.ask(
            attempt.source,
            attempt.request,
            self._options.transfer_req_timeout,
            lambda answer: self._answered(attempt, answer),
        )

    def _answered(self, attempt: Attempt, answer: Message | TrollmovesError) -> None:
        if isinstance(answer, TrollmovesError):
            self._note_down(attempt.source)
            self._failed(attempt, answer)
            return
        self._down.pop(attempt.source, None)
        if answer.type in ANNOUNCEMENTS:
            attempt.finish(Result() if self._is_told(attempt, answer) else self._arrived(attempt, answer))
            for other in self._others(attempt):
                self._acknowledge(other, attempt.message)
        elif answer.type == "wait":
            self._asking(attempt)  # peers hear that it is still in hand
            self._ask(attempt)
        else:
            self._failed(attempt, self._refusal(attempt, answer))

    def _is_told(self, attempt: Attempt, answer: Message) -> bool:
        """Tell whether somebody else has told, or will, that this file arrived.

        A peer did while we asked. Or, when we catch up, the server says that it delivered the file for another client
        long ago: that one has it in its journal.
        """
        late = attempt.task.rank == BACKLOG and contents.request_mark(answer.data).get("delivered_for")
        told = bool(late) or self._peers.is_done(_peer_key(attempt.task))
        if told:
            log.info("[%s] %s was received by a peer", self.name, contents.names(attempt.message.data))
        return told

    def _refusal(self, attempt: Attempt, answer: Message) -> TrollmovesError:
        data = answer.data
        if isinstance(data, dict):
            again_in = data.get("again_in")
            attempt.again_in = max(attempt.again_in, float(again_in) if isinstance(again_in, (int, float)) else 0.0)
            kind = NotDelivered if data.get("temporary", True) else Refused
            return kind(f"{attempt.source}: {data.get('error', answer.type)}")
        return NotDelivered(f"{attempt.source}: {data or answer.type}")

    def _failed(self, attempt: Attempt, error: TrollmovesError) -> None:
        attempt.failures.append(error)
        level = logging.WARNING if attempt.task.tries == 1 else logging.INFO
        log.log(level, "[%s] %s not delivered: %s", self.name, contents.names(attempt.message.data), error)
        self._ask_next(attempt)

    def _without_source(self, attempt: Attempt) -> Result:
        """Decide how to go on when no source delivered: later, or never."""
        if all(isinstance(error, Refused) for error in attempt.failures):
            log.error("[%s] %s is refused for good", self.name, contents.names(attempt.message.data))
            return Result(error=attempt.failures[-1])
        if all(isinstance(error, NoAnswer) for error in attempt.failures):
            return Result(error=attempt.failures[-1])  # the lane of this source pauses
        return Result(again_in=max(attempt.again_in, backoff(attempt.task.tries)))

    def _give_up(self, task: Task, message: Message, finish: Callable[[Result], None]) -> None:
        what = contents.names(message.data)
        log.error("[%s] %s is given up after %.0f s and %d tries", self.name, what, self._options.retry_for, task.tries)
        finish(Result(error=GivenUp(f"not delivered within {self._options.retry_for:g} s")))

    def _others(self, attempt: Attempt) -> list[str]:
        known = Fetch.load(attempt.task.body).sources
        late = self._late_sources.pop(attempt.task.id, [])
        return [source for source in dict.fromkeys([*known, *late]) if source != attempt.source]

    def _acknowledge(self, source: str, message: Message) -> None:
        """Tell a source that its file is not needed any more; whether it hears is its own matter."""
        data = {key: value for key, value in message.data.items() if key != "announcement"}
        data["request_address"] = source
        ack = Message(message.subject, "ack", data).encode()
        self._requester.ask(source, ack, self._options.req_timeout, lambda _: None)

    # -- health of the sources

    def _note_down(self, source: str) -> None:
        failures = self._down.get(source, (0.0, 0))[1] + 1
        self._down[source] = (time.monotonic() + backoff(failures, first=5.0), failures)

    def _is_down(self, source: str) -> bool:
        return self._down.get(source, (0.0, 0))[0] > time.monotonic()


def _key(data: dict[str, Any]) -> str:
    """Give the identity of the files in a message: their names, wherever they are."""
    return "\n".join(item.get("uid") or item["uri"].rsplit("/", 1)[-1] for item in _checked_items(data))


def _peer_key(task: Task) -> str:
    return task.key.partition("\n#")[0]


def _checked_items(data: dict[str, Any]) -> list[dict[str, Any]]:
    items = list(contents.items(data))
    if not items:
        raise MessageError("it names no file")
    for item in items:
        if not isinstance(item["uri"], str) or not isinstance(item.get("uid", ""), str):
            raise MessageError(f"the name of a file is no text: {str(item['uri'])[:100]!r}")
    return items


def _version(data: dict[str, Any]) -> tuple[int | None, int | None]:
    mark = contents.announcement_mark(data)
    size, mtime = mark.get("size"), mark.get("mtime")
    return (size if isinstance(size, int) else None), (mtime if isinstance(mtime, int) else None)
