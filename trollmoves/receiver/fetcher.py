"""Asks sources for files, each in turn until one delivers."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from trollmoves.config.options import ClientOptions
from trollmoves.errors import TrollmovesError
from trollmoves.journal import BACKLOG, Journal, Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import SUBSCRIBER_GRACE
from trollmoves.messaging.requester import NoReply, Requester, RequesterStopped
from trollmoves.receiver.fetch_tasks import KIND, AnnouncementsBySource, file_key_of
from trollmoves.receiver.peers import Peers
from trollmoves.scheduler.lanes import Result, backoff
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils import failpoints

log = logging.getLogger(__name__)

REQUESTS_PER_SOURCE = 32  # to one source
MAX_TRANSFER_SECONDS = 3600.0  # s that an old server is given for one transfer
ACK_TRIES = 5  # times that a source is told that its file is not needed, when it does not answer
UPTIME_SLACK = 0.2  # s that the answer may have been on its way


class RetryPeriodExpired(TrollmovesError):
    """A file was asked for as long as the configuration says."""


class NotDelivered(TrollmovesError):
    """Every source refused, or could not deliver, for a reason that may pass."""

    temporary = True


class PermanentlyRefused(TrollmovesError):
    """Every source refused for good."""


def _parse_uptime(answer: Message | TrollmovesError) -> float:
    """Give the seconds for which a server says that it runs (``1 day, 2:03:04.5``), less than none when it does not."""
    said = answer.data.get("uptime") if isinstance(answer, Message) and isinstance(answer.data, dict) else None
    found = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d+):(\d+(?:\.\d*)?)", said if isinstance(said, str) else "")
    if not found:
        return -1e9
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return days * 86_400 + hours * 3600 + minutes * 60 + seconds


def client_name(journal: Journal, chain: str) -> str:
    """Give the name of a client's chain: what its heartbeats say, and its requests begin with."""
    return f"{journal.identity}/{chain}"


@dataclass(slots=True)
class FetchAttempt:
    """One run of a fetch. ``message`` is the announcement of the source that is asked, or was asked last."""

    task: Task
    message: Message
    destination: str
    sources: dict[str, Message | str]  # still to ask, with their announcements or the texts of these
    finish: Callable[[Result], None]
    source: str = ""
    failures: list[TrollmovesError] = field(default_factory=list)
    retry_in: float = 0.0
    asked_at: float = 0.0  # monotonic
    server_busy: bool = True  # whether a server that never says so is still at it, as far as known
    started: float = field(default_factory=time.monotonic)


class SourceLookup(Protocol):
    """Who has the file of a fetch."""

    def announcements(self, task: Task) -> AnnouncementsBySource:
        """Give the announcements by source."""

    def announcements_after_fetch(self, task: Task) -> AnnouncementsBySource:
        """Hear that the files are here; give the announcements by source."""

    def on_attempt_ended(self, task: Task) -> None:
        """Hear that a run of the fetch has ended without them."""


class Fetcher:
    """The requests of one chain.

    ``prepare(task, message)`` gives the destination URL, with login, for an announcement, before it is asked for; it
    runs on the clerk's thread and may refuse by an error. ``asking(attempt)`` is called when a source is asked, and
    again while it is at work. ``arrived(attempt, answer)`` is called on the requester's thread when the file is there,
    and gives the result of the task. ``lost(task, error)`` is called when no source delivered; there will be another
    try if ``error.temporary``. None of them may block.
    """

    def __init__(
        self,
        options: ClientOptions,
        journal: Journal,
        requester: Requester,
        sources: SourceLookup,
        peers: Peers,
        *,
        prepare: Callable[[Task, Message], str],
        asking: Callable[[FetchAttempt], None],
        arrived: Callable[[FetchAttempt, Message], Result],
        lost: Callable[[Task, TrollmovesError], None] | None = None,
    ) -> None:
        self.name = options.name
        self._options = options
        self._client = client_name(journal, options.name)
        self._journal = journal
        self._began = journal.now()
        self._began_at = time.time()  # as messages tell the time
        self._requester = requester
        self._sources = sources
        self._peers = peers
        self._lost = lost
        self._prepare = prepare
        self._asking = asking
        self._arrived = arrived
        self._queues = SerialQueues()
        self._down: dict[str, tuple[float, int]] = {}  # by source: until when, after how many failures

    def start(self, workers: Scheduler) -> None:
        """Fetch what waits in the journal, and what will.

        The first second nothing is fetched, so that whoever wants to be told of it finds the time to connect.
        """
        workers.register(self.name, KIND, limit=REQUESTS_PER_SOURCE, starter=self._fetch, begin_in=SUBSCRIBER_GRACE)

    def acknowledge(self, source: str, announcement: str) -> None:
        """Tell a source that its file is not needed any more, a few times if need be; then it is its own matter."""
        self._acknowledge(source, Message.decode(announcement).derive("ack"), ACK_TRIES)

    def _acknowledge(self, source: str, ack: str, tries: int) -> None:
        def hear(answer: Message | TrollmovesError) -> None:
            if isinstance(answer, NoReply) and not isinstance(answer, RequesterStopped) and tries > 1:
                self._acknowledge(source, ack, tries - 1)

        self._requester.send_request(source, ack, self._options.req_timeout, hear)

    # -- asking

    def _fetch(self, task: Task, finish: Callable[[Result], None]) -> None:
        """Start to fetch a file; the clerk calls."""
        name = file_key_of(task)
        hold = self._peers.hold_seconds(name)
        if self._peers.is_done(name) or hold:
            finish(Result(retry_in=hold) if hold else Result())
            return
        sources: dict[str, Message | str] = dict(self._sources.announcements(task).items())
        if not sources:
            finish(self._failure_result(task, PermanentlyRefused("nobody is known to have it")))
            return
        first = next(iter(sources))
        message = task.context if isinstance(task.context, Message) else Message.decode(str(sources[first]))
        sources[first] = message
        if len(sources) == 1:
            task.context = message  # so that it is not read again when the file is there
        if self._journal.now() - task.created > self._options.retry_for > 0:
            self._give_up(task, message, finish)
            return
        destination = self._prepare(task, message)
        if len(sources) > 1:
            sources = {source: sources[source] for source in sorted(sources, key=self._is_down)}
        self._request_next(FetchAttempt(task, message, destination, sources, finish))

    def _request_next(self, attempt: FetchAttempt) -> None:
        if not attempt.sources:
            self._sources.on_attempt_ended(attempt.task)
            attempt.finish(self._all_sources_failed(attempt))
            return
        attempt.source = next(iter(attempt.sources))
        announcement = attempt.sources.pop(attempt.source)
        attempt.message = announcement if isinstance(announcement, Message) else Message.decode(announcement)
        if self._needs_serial_requests(attempt):
            self._queues.run(attempt.source, lambda: self._begin(attempt, self._on_serial_reply))
        else:
            self._begin(attempt, self._handle_reply)

    @staticmethod
    def _needs_serial_requests(attempt: FetchAttempt) -> bool:
        """Tell whether a source must be asked for one file at a time: old servers mix up what they send by FTP."""
        return attempt.destination.startswith("ftp") and not payload.announcement_metadata(attempt.message.data)

    def _begin(
        self, attempt: FetchAttempt, answered: Callable[[FetchAttempt, Message | TrollmovesError], None]
    ) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("[%s] asking %s for %s", self.name, attempt.source, payload.file_names(attempt.message.data))
        self._asking(attempt)
        failpoints.hit("asking")
        self._send_request(attempt, answered)

    def _on_serial_reply(self, attempt: FetchAttempt, answer: Message | TrollmovesError) -> None:
        source = attempt.source
        try:
            self._handle_reply(attempt, answer)
        finally:
            self._queues.done(source)

    def _send_request(
        self, attempt: FetchAttempt, answered: Callable[[FetchAttempt, Message | TrollmovesError], None]
    ) -> None:
        attempt.asked_at, attempt.server_busy = time.monotonic(), True
        tells = payload.announcement_metadata(attempt.message.data)
        self._requester.send_request(
            attempt.source,
            self._request(attempt),
            self._options.transfer_req_timeout,
            lambda answer: self._on_reply(answered, attempt, answer),
            overdue=None if tells else lambda: self._extend_timeout(attempt),
            shared=bool(tells),
        )

    def _on_reply(
        self,
        answered: Callable[[FetchAttempt, Message | TrollmovesError], None],
        attempt: FetchAttempt,
        answer: Message | TrollmovesError,
    ) -> None:
        """Take an answer; whatever it is, the attempt comes to an end."""
        try:
            answered(attempt, answer)
        except Exception:
            log.exception(
                "[%s] %s: an answer of %s", self.name, payload.file_names(attempt.message.data), attempt.source
            )
            attempt.finish(Result(retry_in=backoff(attempt.task.tries)))

    def _extend_timeout(self, attempt: FetchAttempt) -> bool:
        """Decide whether to wait once more for an old server: to ask it again would begin a second transfer.

        It does not say that it is at work, but how long it runs. Whoever is gone, or was started anew, has forgotten.
        """
        if not attempt.server_busy:
            return False
        attempt.server_busy = False
        asked_at = attempt.asked_at

        def hear(answer: Message | TrollmovesError) -> None:
            began = time.monotonic() - _parse_uptime(answer)
            attempt.server_busy = began < asked_at + UPTIME_SLACK

        self._asking(attempt)  # peers hear that it is still in hand
        question = Message(attempt.message.subject, "info", {"max_count": 1}).encode()
        self._requester.send_request(attempt.source, question, self._options.transfer_req_timeout * 0.8, hear)
        return time.monotonic() - asked_at < MAX_TRANSFER_SECONDS

    def _request(self, attempt: FetchAttempt) -> str:
        added: dict[str, Any] = {"destination": attempt.destination}
        if self._options.backup_targets:
            added["backup_targets"] = list(self._options.backup_targets)
        if payload.announcement_metadata(attempt.message.data):
            # Asked again often enough for peers to hear that it is in hand.
            patience = min(self._options.transfer_req_timeout, self._options.takeover_after / 2)
            added["request"] = {"id": f"{self._client}/{attempt.task.id}", "timeout": patience}
            peers = self._peers.names()
            if peers and self._is_late(attempt):
                added["request"]["unless_delivered_to"] = peers
        return attempt.message.derive("push", added)

    def _is_late(self, attempt: FetchAttempt) -> bool:
        """Tell whether a file was announced before this process began, so that a peer may have taken it over."""
        task = attempt.task
        return task.created < self._began or (task.rank == BACKLOG and attempt.message.timestamp() < self._began_at)

    def _handle_reply(self, attempt: FetchAttempt, answer: Message | TrollmovesError) -> None:
        if isinstance(answer, RequesterStopped):
            attempt.task.tries -= 1
            attempt.finish(Result(retry_in=0.0))
            return
        if isinstance(answer, TrollmovesError):
            self._mark_source_down(attempt.source)
            self._failed(attempt, answer)
            return
        self._down.pop(attempt.source, None)
        if answer.type in payload.FILE_TYPES:
            attempt.finish(Result() if self._peer_has_received(attempt, answer) else self._arrived(attempt, answer))
            self._acknowledge_others(attempt)
        elif answer.type == "wait":
            self._asking(attempt)  # peers hear that it is still in hand
            self._send_request(attempt, self._handle_reply)
        else:
            self._failed(attempt, self._refusal(attempt, answer))

    def _peer_has_received(self, attempt: FetchAttempt, answer: Message) -> bool:
        """Tell whether somebody else has told, or will, that this file arrived.

        A peer did while we asked, or it has the file in its journal: the server has delivered for it.
        """
        delivered_for = payload.request_metadata(answer.data).get("delivered_to")
        told = bool(delivered_for) or self._peers.is_done(file_key_of(attempt.task))
        if told:
            log.info("[%s] %s was received by a peer", self.name, payload.file_names(attempt.message.data))
        return told

    def _refusal(self, attempt: FetchAttempt, answer: Message) -> TrollmovesError:
        data = answer.data
        if isinstance(data, dict):
            again_in = data.get("retry_after")
            attempt.retry_in = max(attempt.retry_in, float(again_in or 0.0) if payload.is_seconds(again_in) else 0.0)
            kind = NotDelivered if data.get("temporary", True) else PermanentlyRefused
            return kind(f"{attempt.source}: {data.get('error', answer.type)}")
        return NotDelivered(f"{attempt.source}: {data or answer.type}")

    def _failed(self, attempt: FetchAttempt, error: TrollmovesError) -> None:
        attempt.failures.append(error)
        level = logging.WARNING if attempt.task.tries == 1 else logging.INFO
        log.log(level, "[%s] %s not delivered: %s", self.name, payload.file_names(attempt.message.data), error)
        self._request_next(attempt)

    def _all_sources_failed(self, attempt: FetchAttempt) -> Result:
        """Decide how to go on when no source delivered: later, or never."""
        if all(isinstance(error, PermanentlyRefused) for error in attempt.failures):
            log.error("[%s] %s is refused for good", self.name, payload.file_names(attempt.message.data))
            return self._failure_result(attempt.task, attempt.failures[-1])
        if all(isinstance(error, NoReply) for error in attempt.failures):
            return self._failure_result(attempt.task, attempt.failures[-1])  # the lane of this source pauses
        result = self._failure_result(attempt.task, NotDelivered(str(attempt.failures[-1])))
        result.error, result.retry_in = None, max(attempt.retry_in, backoff(attempt.task.tries))
        return result

    def _give_up(self, task: Task, message: Message, finish: Callable[[Result], None]) -> None:
        what = payload.file_names(message.data)
        log.error("[%s] %s is given up after %.0f s and %d tries", self.name, what, self._options.retry_for, task.tries)
        finish(self._failure_result(task, RetryPeriodExpired(f"not delivered within {self._options.retry_for:g} s")))

    def _failure_result(self, task: Task, error: TrollmovesError) -> Result:
        lost = self._lost
        return Result(error=error, on_committed=(lambda: lost(task, error)) if lost else None)

    def _acknowledge_others(self, attempt: FetchAttempt) -> None:
        for source, announcement in self._sources.announcements_after_fetch(attempt.task).items():
            if source != attempt.source:
                self.acknowledge(source, announcement)

    # -- health of the sources

    def _mark_source_down(self, source: str) -> None:
        failures = self._down.get(source, (0.0, 0))[1] + 1
        self._down[source] = (time.monotonic() + backoff(failures, first=5.0), failures)

    def _is_down(self, source: str) -> bool:
        return self._down.get(source, (0.0, 0))[0] > time.monotonic()


class SerialQueues:
    """A queue for each key. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Callable[[], None]]] = {}  # behind what is under way, by key

    def run(self, key: str, start: Callable[[], None]) -> None:
        """Start now, or when all of this key that came before has ended; what starts must ``end``, once."""
        with self._lock:
            if key in self._waiting:
                self._waiting[key].append(start)
                return
            self._waiting[key] = deque()
        start()

    def done(self, key: str) -> None:
        """Start what waits next, on this thread."""
        with self._lock:
            if not self._waiting[key]:
                del self._waiting[key]
                return
            start = self._waiting[key].popleft()
        start()
