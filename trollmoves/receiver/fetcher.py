"""Requests files from their sources, one after another until one delivers."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from trollmoves.config.options import ClientOptions
from trollmoves.errors import MessageError, TrollmovesError
from trollmoves.journal import Journal, Task
from trollmoves.messaging import group, payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import SUBSCRIBER_GRACE
from trollmoves.messaging.requester import NoReply, Requester, RequesterStopped
from trollmoves.net import urls
from trollmoves.receiver.available_sources import AvailableSources
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.fetch_attempt import (
    FetchAttempt,
    HeldAtSource,
    NotDelivered,
    PermanentlyRefused,
    RetryPeriodExpired,
    SupersededAtSource,
)
from trollmoves.receiver.fetch_sources import Fetch, SourceLookup
from trollmoves.receiver.fetch_tasks import KIND, client_name, file_key_of
from trollmoves.receiver.fleet_addresses import FleetAddresses
from trollmoves.receiver.legacy_servers import KIND as LEGACY_SERVER
from trollmoves.receiver.legacy_servers import is_legacy_server
from trollmoves.receiver.limited_queues import LimitedQueues
from trollmoves.receiver.peers import Peers
from trollmoves.receiver.preparation import Preparer
from trollmoves.scheduler.circuit_breaker import BACKOFF_MAX, backoff
from trollmoves.scheduler.lanes import LowerLimits, Result
from trollmoves.scheduler.retry_spacing import RetrySpacing
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils.outage_log import OutageLog

logger = logging.getLogger(__name__)

REQUESTS_PER_SOURCE = 32  # concurrent requests
REQUESTS_PER_LEGACY_SOURCE = 4  # likewise; more exceed the MaxSessions of the sshd that it pushes to
MAX_TRANSFER_SECONDS = 3600.0  # s allowed for one transfer of a legacy server
ACK_TRIES = 5  # attempts to acknowledge a file to a source that does not reply
HELD_RETRY_DELAY = 10.0  # s before the next look at a destination that does not respond
UNKNOWN_RETRY_DELAY = 1.0  # s before the next request for a file that may belong to another member of the fleet
UPTIME_SLACK = 0.2  # s allowed for the transmission of the reply
BUFFERED_SECONDS = 5.0  # s after a gap in which messages from before its end are still processed
MAX_REASON = 1_000  # characters of the error in a reply that are kept

Reply = Message | TrollmovesError
ReplyHandler = Callable[[Sequence[FetchAttempt], Reply], None]


def _parse_uptime(reply: Message | TrollmovesError) -> float:
    """Return the uptime in a server's reply (``1 day, 2:03:04.5``) in seconds, a negative number if there is none."""
    uptime = reply.data.get("uptime") if isinstance(reply, Message) and isinstance(reply.data, dict) else None
    match = re.fullmatch(
        r"(?:(\d+) days?, )?(\d+):(\d+):(\d+(?:\.\d*)?)", uptime[:100] if isinstance(uptime, str) else ""
    )
    if not match:
        return -1e9
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return days * 86_400 + hours * 3600 + minutes * 60 + seconds


class Fetcher:
    """The requests of one chain.

    Files that wait together for one source and destination are requested by groups (``messaging/group.py``).
    ``prepare(task, message)`` returns the destination URL, with login, before a request; it may raise, and may block,
    so it runs on a thread of ``Preparer``, unless ``destinations`` knows the URL. ``on_request(attempts)`` is called
    for each request to a source, and again during the transfer.
    ``on_delivered(attempt, reply)`` is called on the requester's thread after a delivery. It returns the result of the
    task, and the messages with which ``publish`` is called before the result is stored, those of a group together.
    ``on_failed(task, error)`` is called if no source delivered; if ``error.temporary``, another attempt follows.
    These four must not block.
    """

    def __init__(
        self,
        options: ClientOptions,
        journal: Journal,
        scheduler: Scheduler,
        requester: Requester,
        sources: SourceLookup,
        peers: Peers,
        fleets: FleetAddresses,
        *,
        prepare: Callable[[Task, Message], str],
        destinations: Destinations | None = None,
        on_request: Callable[[Sequence[FetchAttempt]], None],
        on_delivered: Callable[[FetchAttempt, Message], tuple[Result, list[str]]],
        publish: Callable[[Sequence[str]], None] = lambda _: None,
        on_failed: Callable[[Task, TrollmovesError], None] = lambda *_: None,
        delay: float = SUBSCRIBER_GRACE,
    ) -> None:
        self.name = options.name
        self._options = options
        self._client = client_name(journal, options.name)
        self._journal = journal
        self._requester = requester
        self._sources = sources
        self._peers = peers
        self._available = AvailableSources(fleets)
        self._on_failed = on_failed
        self._delay = delay
        self._prepare = prepare
        self._destinations = destinations
        self._preparer = Preparer(options.name)
        self._on_request = on_request
        self._on_delivered = on_delivered
        self._publish = publish
        self._ready: list[FetchAttempt] = []  # to request together; for the scheduler thread only
        self._serial_requests = LimitedQueues(1)
        self._legacy_requests = LimitedQueues(REQUESTS_PER_LEGACY_SOURCE)
        self._retries: dict[str, RetrySpacing] = {}  # by lane
        self._retries_lock = threading.Lock()
        self._failure_log = OutageLog(burst=3)
        self._scheduler = scheduler

    def start(self) -> None:
        """Register the fetch tasks with the scheduler.

        They start after ``delay`` seconds, so that subscribers can connect before the first receipt.
        """
        self._scheduler.register(
            self.name,
            KIND,
            limit=REQUESTS_PER_SOURCE,
            async_handler=self._fetch,
            after_start=self._request_ready,
            delay=self._delay,
            scope="fleet",
            lower_limits=LowerLimits(LEGACY_SERVER, self._lane_limit),
        )

    def _lane_limit(self, lane: str, legacy_servers: Collection[str]) -> int:
        """Return the limit of a lane for the whole fleet: see ``_queues_for``."""
        if not is_legacy_server(lane.removeprefix(f"{KIND} "), legacy_servers):
            return REQUESTS_PER_SOURCE
        return 1 if self._options.destination.startswith("ftp") else REQUESTS_PER_LEGACY_SOURCE

    def stop(self) -> None:
        """Stop preparing requests."""
        self._preparer.stop()

    def acknowledge(self, source: str, announcement: str) -> None:
        """Send an ack to a source; without a reply it is repeated, ``ACK_TRIES`` times in total."""
        self._acknowledge(source, Message.decode(announcement).derive("ack"), ACK_TRIES)

    def _acknowledge(self, source: str, ack: str, tries: int) -> None:
        def on_reply(reply: Message | TrollmovesError) -> None:
            if isinstance(reply, NoReply) and not isinstance(reply, RequesterStopped) and tries > 1:
                self._acknowledge(source, ack, tries - 1)

        self._requester.send_request(self._available.available(source, ack), ack, self._options.req_timeout, on_reply)

    # -- requests

    def _fetch(self, task: Task, finish: Callable[[Result], None]) -> None:
        """Start to fetch a file. Runs on the scheduler thread."""
        name = file_key_of(task)
        hold = self._peers.hold_seconds(name)
        if task.tries > 1 and self._sources.is_superseded(task):
            self._drop(task, finish)
            return
        if self._peers.is_done(name) or hold:
            finish(Result(retry_in=hold) if hold else Result())
            return
        sources: dict[str, Message | str] = dict(self._sources.announcements(task).items())
        if not sources:
            self._look_up(task, Fetch.load(task.body) if task.body else Fetch(), finish)
            return
        first = next(iter(sources))
        message = task.context if isinstance(task.context, Message) else Message.decode(str(sources[first]))
        sources[first] = message
        if len(sources) == 1:
            task.context = message  # avoids decoding it again after the delivery
        if self._journal.now() - task.created > self._options.retry_for > 0:
            self._give_up(task, message, finish)
            return
        known, living = self._destinations, self._available.available_first(sources)
        attempt = FetchAttempt(task, message, known.cached_url(message) if known else "", living, finish)
        if attempt.destination:
            self._ready.append(attempt)
        else:
            self._prepare_and_request(attempt, urls.redacted(known.compose(message).geturl()) if known else self.name)

    def _look_up(self, task: Task, fetch: Fetch, finish: Callable[[Result], None]) -> None:
        """Request the announcement of a file, which was removed from the journal, from its sources in turn."""
        if not fetch.numbers:
            text = "no source of the file has its announcement any longer: resend it at the server"
            logger.error("[%s] %s: %s", self.name, file_key_of(task).replace("\n", ", "), text)
            finish(self._failure_result(task, PermanentlyRefused(text)))
            return
        source, (log, number) = fetch.numbers.popitem()

        def on_reply(reply: Message | TrollmovesError) -> None:
            if isinstance(reply, RequesterStopped):
                task.tries -= 1
                finish(Result(retry_in=0.0))
                return
            if isinstance(reply, NoReply) and not fetch.numbers:
                finish(self._failure_result(task, reply))
                return
            text = _replayed_text(reply, log, number)
            if text:
                fetch.announcements[source] = text
                task.body = fetch.dump()
                self._journal.reset_tasks([task])
                self._fetch(task, finish)
            else:
                self._look_up(task, fetch, finish)

        data = {"log": log, "after": number - 1, "max_count": 1}
        request = Message(f"/{self.name}", "replay", data).encode()
        self._requester.send_request(source, request, self._options.req_timeout, on_reply)

    def _prepare_and_request(self, attempt: FetchAttempt, directory: str) -> None:
        def request(destination: str) -> None:
            attempt.destination = destination
            self._request_next([attempt])

        def fail(error: Exception | None) -> None:
            if error is None:
                attempt.task.tries -= 1
                attempt.finish(Result(retry_in=HELD_RETRY_DELAY))
            else:
                attempt.finish(self._scheduler.failures.to_result(attempt.task, error))

        self._preparer.run(directory, lambda: self._prepare(attempt.task, attempt.message), request, fail)

    def _drop(self, task: Task, finish: Callable[[Result], None]) -> None:
        """End a task whose file has a newer version, which is delivered or waiting."""
        name = file_key_of(task).replace("\n", ", ")
        logger.info("[%s] dropped an older version of %s: a newer one is delivered or waiting", self.name, name)
        self._sources.on_attempt_ended(task)
        finish(Result())

    def _request_ready(self) -> None:
        """Request the files that are ready, those of one source and destination by groups. Scheduler thread."""
        ready, self._ready = self._ready, []
        groups: dict[object, list[FetchAttempt]] = {}
        for attempt in ready:
            groups.setdefault(self._group_key(attempt), []).append(attempt)
        for attempts in groups.values():
            for first in range(0, len(attempts), group.MAX_FILES):
                self._request_together(attempts[first : first + group.MAX_FILES])

    def _request_together(self, attempts: Sequence[FetchAttempt]) -> None:
        """Request files by one message. If this fails, request each alone: the cause may be one of them."""
        try:
            self._request_next(attempts)
        except Exception as error:
            if len(attempts) == 1:
                attempts[0].finish(self._scheduler.failures.to_result(attempts[0].task, error))
            else:
                self._request_alone(attempts)

    def _request_alone(self, attempts: Sequence[FetchAttempt]) -> None:
        for attempt in attempts:
            attempt.sources = {attempt.source: attempt.message, **attempt.sources}
            self._request_together([attempt])

    def _group_key(self, attempt: FetchAttempt) -> object:
        """Return a key that the files of a group share; a unique one for a file that is requested alone."""
        if self._unless_delivered_to(attempt) or not group.accepts(attempt.announced, attempt.message.raw):
            return attempt.task.id
        source = next(iter(attempt.sources))
        return source, attempt.announced["log"], attempt.message.subject, attempt.destination

    def _request_next(self, attempts: Sequence[FetchAttempt]) -> None:
        """Request one file from its next source, or several files of which this is the same."""
        for attempt in attempts:
            attempt.next_source()
        queues = self._queues_for(attempts[0])
        if queues:
            source = attempts[0].source
            queues.run(source, lambda: self._begin_request(attempts, partial(self._on_queued_reply, queues)))
        else:
            self._begin_request(attempts, self._handle_reply)

    def _queues_for(self, attempt: FetchAttempt) -> LimitedQueues | None:
        """Return the queues that limit concurrent requests to legacy servers; None for others.

        The FTP mover of legacy servers corrupts concurrent transfers; their other movers open a session for each.
        """
        if attempt.announced:
            return None
        return self._serial_requests if attempt.destination.startswith("ftp") else self._legacy_requests

    def _begin_request(self, attempts: Sequence[FetchAttempt], handler: ReplyHandler) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            for attempt in attempts:
                names = payload.file_names(attempt.message.data)
                logger.debug("[%s] requesting %s from %s", self.name, names, attempt.source)
        self._on_request(attempts)
        self._send_request(attempts, handler)

    def _on_queued_reply(self, queues: LimitedQueues, attempts: Sequence[FetchAttempt], reply: Reply) -> None:
        source = attempts[0].source
        try:
            self._handle_reply(attempts, reply)
        finally:
            queues.done(source)

    def _send_request(self, attempts: Sequence[FetchAttempt], handler: ReplyHandler) -> None:
        now, first = time.monotonic(), attempts[0]
        for attempt in attempts:
            attempt.requested_at, attempt.server_busy = now, True
        is_numbered = bool(first.announced)
        self._requester.send_request(
            first.source,
            self._request(first) if len(attempts) == 1 else self._group_request(attempts),
            self._options.transfer_req_timeout,
            lambda reply: handler(attempts, reply),
            extend=None if is_numbered else lambda: self._extend_timeout(first),
            shared=is_numbered,
        )

    def _extend_timeout(self, attempt: FetchAttempt) -> bool:
        """Return True to wait longer for a legacy server: a repeated request would start a second transfer.

        A legacy server does not report a running transfer, but its uptime. A server that does not reply, or that has
        restarted since the request, has lost the request.
        """
        if not attempt.server_busy:
            return False
        attempt.server_busy = False
        requested_at = attempt.requested_at

        def on_reply(reply: Message | TrollmovesError) -> None:
            server_started = time.monotonic() - _parse_uptime(reply)
            attempt.server_busy = server_started < requested_at + UPTIME_SLACK

        self._on_request([attempt])  # renews the hold of peers
        request = Message(attempt.message.subject, "info", {"max_count": 1}).encode()
        self._requester.send_request(attempt.source, request, self._options.transfer_req_timeout * 0.8, on_reply)
        return time.monotonic() - requested_at < MAX_TRANSFER_SECONDS

    def _group_request(self, attempts: Sequence[FetchAttempt]) -> str:
        files = {attempt.announced["number"]: attempt.task.id for attempt in attempts}
        first = attempts[0]
        added = self._added(first) | {"request": {"timeout": min(self._timeout, group.TIMEOUT)}}
        return group.encode_request(first.message.subject, first.announced["log"], self._client, files, added)

    @property
    def _timeout(self) -> float:
        """Seconds in which a server replies: often enough to renew the hold of peers."""
        return min(self._options.transfer_req_timeout, self._options.takeover_after / 2)

    def _added(self, attempt: FetchAttempt) -> dict[str, Any]:
        added: dict[str, Any] = {"destination": attempt.destination}
        if self._options.backup_targets:
            added["backup_targets"] = list(self._options.backup_targets)
        return added

    def _request(self, attempt: FetchAttempt) -> str:
        added = self._added(attempt)
        if attempt.announced:
            added["request"] = {"id": f"{self._client}/{attempt.task.id}", "timeout": self._timeout}
            if others := self._unless_delivered_to(attempt):
                added["request"]["unless_delivered_to"] = others
        return attempt.message.derive("push", added)

    def _unless_delivered_to(self, attempt: FetchAttempt) -> list[str]:
        """Return the other clients that may have fetched a file: peers, and the legacy client that ran before."""
        peers = self._peers.names()
        others = peers if peers and self._is_late(attempt) else []
        return [*others, payload.LEGACY_CLIENT] if attempt.announced.get(payload.EARLY) else others

    def _is_late(self, attempt: FetchAttempt) -> bool:
        """Return True if a peer may have fetched a file unnoticed: it was announced before the last gap ended.

        An announcement from before the end of a gap may wait in a receive buffer until after it.
        """
        task, gap = attempt.task, self._peers.seconds_since_gap()
        return (
            task.created < self._journal.now() - gap + BUFFERED_SECONDS
            or attempt.message.timestamp() < time.time() - gap
        )

    def _was_interrupted(self, attempt: FetchAttempt) -> bool:
        """Return True if a peer may have taken over a file during the request for it."""
        is_numbered = bool(attempt.announced)
        requested = time.monotonic() - attempt.requested_at
        return is_numbered and bool(self._peers.names()) and requested > self._peers.seconds_since_gap()

    def _handle_reply(self, attempts: Sequence[FetchAttempt], reply: Reply) -> None:
        """Handle the reply to a request: publish the receipts of the delivered files together, then end their tasks."""
        delivered: list[tuple[FetchAttempt, Result]] = []
        waiting: list[FetchAttempt] = []
        texts: list[str] = []
        for attempt, own_reply in self._own_replies(attempts, reply):
            if isinstance(own_reply, Message) and own_reply.type == group.WAIT:
                self._available.record_reply(attempt.source)
                waiting.append(attempt)
                continue
            with self._retrying(attempt):
                if ended := self._handle_own_reply(attempt, own_reply):
                    delivered.append((attempt, ended[0]))
                    texts += ended[1]
        if delivered:
            with self._retrying(*(attempt for attempt, _ in delivered)):
                self._end_delivered(delivered, texts)
        if waiting:
            self._scheduler.close_breaker(self.name, waiting[0].task.lane)
            self._on_request(waiting)  # renews the hold of peers
            self._send_request(waiting, self._handle_reply)

    def _end_delivered(self, delivered: Sequence[tuple[FetchAttempt, Result]], texts: Sequence[str]) -> None:
        self._publish(texts)
        for attempt, result in delivered:
            attempt.finish(result)
            self._acknowledge_others(attempt)
            self._retry_others(attempt.task)

    def _own_replies(self, attempts: Sequence[FetchAttempt], reply: Reply) -> Iterable[tuple[FetchAttempt, Reply]]:
        """Return each file with the reply to its request; if a group was rejected, request its files alone instead."""
        replies: Sequence[Reply] = [reply] * len(attempts)
        if len(attempts) > 1 and isinstance(reply, Message):
            try:
                replies = group.replies(reply, [attempt.announced["number"] for attempt in attempts])
            except MessageError:
                is_error = reply.type == "err" and isinstance(reply.data, dict)
                if not (is_error and reply.data.get("temporary", True)):
                    self._request_alone(attempts)
                    return ()
        return zip(attempts, replies, strict=True)

    @contextmanager
    def _retrying(self, *attempts: FetchAttempt) -> Iterator[None]:
        """If an error is raised, end these attempts, so that the files are requested again."""
        try:
            yield
        except Exception:
            for attempt in attempts:
                logger.exception(
                    "[%s] %s: cannot handle the reply of %s, requesting it again later",
                    self.name,
                    payload.file_names(attempt.message.data),
                    attempt.source,
                )
                attempt.finish(Result(retry_in=backoff(attempt.task.tries)))

    def _handle_own_reply(self, attempt: FetchAttempt, reply: Reply) -> tuple[Result, list[str]] | None:
        """Return the result of a delivery, and what to publish; else end the attempt, or continue it."""
        if isinstance(reply, RequesterStopped):
            attempt.task.tries -= 1
            attempt.finish(Result(retry_in=0.0))
            return None
        if not self._journal.still():  # another member may have requested the file, and publishes its receipt
            attempt.finish(Result(retry_in=UNKNOWN_RETRY_DELAY))
            return None
        if isinstance(reply, TrollmovesError):
            self._available.record_failure(attempt.source)
            self._on_source_failed(attempt, reply)
            return None
        self._available.record_reply(attempt.source)
        if reply.type in payload.FILE_TYPES and self._was_interrupted(attempt):
            self._send_request([attempt], self._handle_reply)
        elif reply.type in payload.FILE_TYPES:
            return (Result(), []) if self._peer_has_received(attempt, reply) else self._on_delivered(attempt, reply)
        elif isinstance(error := self._rejection(attempt, reply), SupersededAtSource):
            self._drop(attempt.task, attempt.finish)
        else:
            self._on_source_failed(attempt, error)
        return None

    def _peer_has_received(self, attempt: FetchAttempt, reply: Message) -> bool:
        """Return True if a peer, or a legacy client that ran before, has published the receipt of this file, or will.

        Either the receipt arrived during the request, or the reply says that the server delivered the file to that one.
        """
        delivered_to = payload.request_metadata(reply.data).get("delivered_to")
        is_received = bool(delivered_to) or self._peers.is_done(file_key_of(attempt.task))
        if is_received:
            text = "[%s] %s was received by a peer"
            if delivered_to == payload.LEGACY_CLIENT:
                text = "[%s] %s was received by the earlier version of this client"
            logger.info(text, self.name, payload.file_names(attempt.message.data))
        return is_received

    def _rejection(self, attempt: FetchAttempt, reply: Message) -> TrollmovesError:
        data = reply.data
        if isinstance(data, dict):
            retry_after = data.get("retry_after")
            if retry_after is not None and payload.is_seconds(retry_after):
                attempt.retry_in = max(attempt.retry_in, min(float(retry_after), BACKOFF_MAX))
            refusal = SupersededAtSource if data.get("superseded") else PermanentlyRefused
            delayed = HeldAtSource if data.get("held") is True else NotDelivered
            error_type = delayed if data.get("temporary", True) else refusal
            return error_type(f"{attempt.source}: {_reason(data.get('error', reply.type))}")
        return NotDelivered(f"{attempt.source}: {_reason(data or reply.type)}")

    def _on_source_failed(self, attempt: FetchAttempt, error: TrollmovesError) -> None:
        if isinstance(error, NoReply):
            log = attempt.announced.get("log")
            if member := self._available.other_member(attempt.source, log, attempt.requested_from):
                attempt.sources = {member: attempt.message, **attempt.sources}
        attempt.failures.append(error)
        suffix = self._failure_log.admit(f"{attempt.source} {type(error).__name__}")
        level = logging.WARNING if suffix is not None else logging.DEBUG
        names = payload.file_names(attempt.message.data)
        logger.log(level, "[%s] %s not delivered: %s%s", self.name, names, error, suffix or "")
        if attempt.sources:
            self._request_next([attempt])
            return
        self._sources.on_attempt_ended(attempt.task)
        attempt.finish(self._all_sources_failed(attempt))

    def _all_sources_failed(self, attempt: FetchAttempt) -> Result:
        """Return the result after all sources failed: a later attempt or a permanent failure."""
        if all(isinstance(error, PermanentlyRefused) for error in attempt.failures):
            logger.error(
                "[%s] %s: permanently rejected by all sources", self.name, payload.file_names(attempt.message.data)
            )
            return self._failure_result(attempt.task, attempt.failures[-1])
        if all(isinstance(error, NoReply) for error in attempt.failures):
            return self._failure_result(attempt.task, attempt.failures[-1])  # pauses the lane of this source
        result = self._failure_result(attempt.task, NotDelivered(str(attempt.failures[-1])))
        task, probe_interval = attempt.task, self._options.probe_interval
        with self._retries_lock:
            retries = self._retries.setdefault(task.lane, RetrySpacing())
            spaced = retries.record_failure(task.id, task.tries, probe_interval)
        result.retry_in = attempt.retry_in or spaced
        result.reply, result.error = str(result.error), None
        result.held = all(isinstance(error, HeldAtSource) for error in attempt.failures)
        return result

    def _retry_others(self, task: Task) -> None:
        """After the success of a task that had failed, retry the other failed tasks of its lane now."""
        with self._retries_lock:
            retries = self._retries.get(task.lane)
            recovered = retries is not None and retries.record_success(task.id)
        if recovered:
            if (summary := self._failure_log.end()) is not None:
                logger.info("[%s] %s: works again%s", self.name, task.lane, summary)
            self._scheduler.retry_now(self.name, task.lane)

    def _give_up(self, task: Task, message: Message, finish: Callable[[Result], None]) -> None:
        logger.error(
            "[%s] giving up on %s after %.0f s and %d attempts",
            self.name,
            payload.file_names(message.data),
            self._options.retry_for,
            task.tries,
        )
        finish(self._failure_result(task, RetryPeriodExpired(f"not delivered within {self._options.retry_for:g} s")))

    def _failure_result(self, task: Task, error: TrollmovesError) -> Result:
        return Result(error=error, on_committed=lambda: self._on_failed(task, error))

    def _acknowledge_others(self, attempt: FetchAttempt) -> None:
        for source, announcement in self._sources.announcements_after_fetch(attempt.task).items():
            if source != attempt.source and not _is_same(attempt.announced, announcement):
                self.acknowledge(source, announcement)


def _replayed_text(reply: Message | TrollmovesError, log: str, number: int) -> str:
    """Return the announcement with this number in the reply to a replay request; empty if it has none."""
    data = reply.data if isinstance(reply, Message) and reply.type == "replay" else None
    messages = data.get("messages") if isinstance(data, dict) else None
    for text in messages if isinstance(messages, list) else ():
        metadata = payload.announcement_metadata_in(text) if isinstance(text, str) else {}
        if (metadata.get("log"), metadata.get("number")) == (log, number):
            return str(text)
    return ""


def _is_same(announced: Mapping[str, Any], text: str) -> bool:
    """Return True if ``text`` repeats a numbered announcement, perhaps of another member of the same fleet."""
    metadata = payload.announcement_metadata_in(text) if announced else {}
    return bool(metadata) and (metadata["log"], metadata["number"]) == (announced["log"], announced["number"])


def _reason(value: object) -> str:
    return urls.excerpt(str(value), MAX_REASON)
