"""Tracks the position in each source's announcement log and requests missed announcements.

Servers number their announcements, so a client that receives number 7 after number 4 has missed two. It sends a
``replay`` request at startup, after each connection, after a gap in the numbers, and when a heartbeat has a higher
number than the last announcement. Legacy servers (trollmoves 0.19) have no numbers: no replay is possible.
"""

from __future__ import annotations

import bisect
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from trollmoves.errors import MessageError, TrollmovesError
from trollmoves.journal import Journal, SourcePosition
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.requester import NoReply, Requester, RequesterStopped
from trollmoves.net import hosts, urls
from trollmoves.utils.logs import LogThrottle
from trollmoves.utils.watched_threads import start_thread

logger = logging.getLogger(__name__)

# s before the start of this client, or the kill of the previous one, from which announcements of a new source are
# requested: that one may have received announcements, and stored neither these nor their source.
FIRST_CONTACT_SLACK = 5.0
REPLAY_TIMEOUT = 30.0  # s; ZeroMQ closes a connection on which no page arrives for 15 s
MAX_LOGS = 1_000  # of one provider; a server has one for each chain
GAP_DELAY = 0.2  # s before a small gap is requested: numbers of one log come in any order from several servers
FLEET_GAP_DELAY = 1.0  # s, likewise, if the servers belong to one fleet: one of them may be slower
SMALL_GAP = 100  # announcements
MAX_RUNS = 8  # of consecutive numbers that arrived after a gap
RETRY_DELAY = 5.0  # s before the next replay request to a source after a failed one, whatever it announces


@dataclass(slots=True)
class _SourceLog:
    """One log of a provider. All up to ``received_through`` is stored.

    ``runs`` has the first and last number of each run of consecutive later numbers that arrived as messages.
    """

    name: str
    provider: str
    address: str
    received_through: int | None = None  # None before the first reply
    runs: list[list[int]] = field(default_factory=list)
    highest_seen: int = 0  # highest number that an announcement or a heartbeat had
    lowest_unsaved: int = 0  # lowest received number that may not be in the journal yet; 0 if there is none
    request_pending: bool = False
    retry_when_done: bool = False  # another request was due while one was pending
    is_delayed: bool = False  # a request is due after GAP_DELAY
    not_before: float = 0.0  # monotonic; no request before this time
    first_seen: float = 0.0  # monotonic; 0 if known from an earlier process
    is_first_contact: bool = False  # True until the announcements from before the first contact are received
    member_hosts: frozenset[str] = frozenset()  # of the fleet, as the provider names them
    # The same log at providers that name this one as a member of their fleet; they do not announce its numbers.
    siblings: Sequence[_SourceLog] = field(default=(), repr=False, compare=False)

    @property
    def key(self) -> str:
        """The name of the log in the journal."""
        return f"{self.name} {self.provider}"

    def position(self, received_through: int) -> SourcePosition:
        return SourcePosition(self.key, self.address, received_through)

    def add(self, number: int, first: int) -> None:
        """Record the receipt of a number; those from ``first`` on that precede it are not in this log."""
        self.highest_seen = max(self.highest_seen, number)
        self.lowest_unsaved = min(self.lowest_unsaved or number, number)
        if not self.runs and self.received_through is not None and first <= self.received_through + 1 <= number:
            self.received_through = number
            return
        if number > (self.received_through or 0):
            _add_to_runs(self.runs, first, number)
        self.join()

    def join(self) -> None:
        """Advance over the live announcements once all earlier ones are received."""
        while self.received_through is not None and self.runs and self.received_through >= self.runs[0][0] - 1:
            self.received_through = max(self.received_through, self.runs.pop(0)[1])

    def saved_through(self, position: int) -> int:
        """Return the number, at most ``position``, up to which all announcements are in the journal."""
        return min(position, self.lowest_unsaved - 1) if self.lowest_unsaved else position

    def missing(self, number: int) -> bool:
        return self.received_through is None or number > self.received_through

    @property
    def may_close_soon(self) -> bool:
        """True if missing announcements may arrive in a moment, as those of other members of a fleet do."""
        if self.received_through is None:
            return False
        gap = self.highest_seen - self.received_through
        return gap > 0 and (gap <= SMALL_GAP or bool(self.siblings))


class ReplayClient:
    """The positions of one chain in the logs of its ``providers`` (``tcp://host:port``). Any thread.

    A log belongs to the provider that names it in messages: a provider cannot change the position in the log of
    another. For the members of a fleet, on the hosts that each one names in its heartbeats, the numbers of all count.
    The first position of a provider is the last one of other providers of that log, such as the hosts of a fleet.

    ``on_replayed(messages, positions)`` is called on the requester's thread with missed announcements and the
    (chain, position) to store in the same transaction. ``gap_delay``: seconds before a small gap is requested.
    """

    def __init__(
        self,
        name: str,
        providers: Collection[str],
        journal: Journal,
        requester: Requester,
        on_replayed: Callable[[list[Message], list[tuple[str, SourcePosition]]], None],
        gap_delay: float = GAP_DELAY,
    ) -> None:
        self.name = name
        self._gap_delay = gap_delay
        self._journal = journal
        self._requester = requester
        self._on_replayed = on_replayed
        self._begin = time.monotonic() - journal.seconds_after_kill()
        self._lock = threading.Lock()
        self._logs: dict[str, _SourceLog] = {}
        self._orphans: dict[str, int] = {}  # positions in the logs of earlier providers, which may have been renamed
        for stored in journal.sources(name):
            log_name, _, provider = stored.log.rpartition(" ")
            if provider in providers:
                self._logs[stored.log] = _SourceLog(log_name, provider, stored.address, stored.received_through)
            else:
                log_name = log_name if provider.startswith("tcp://") else stored.log
                self._orphans[log_name] = max(stored.received_through, self._orphans.get(log_name, 0))
        self._addresses = {(s.provider, s.address) for s in self._logs.values()}
        self._throttle = LogThrottle(burst=1)

    def request_all(self) -> set[str]:
        """Send a replay request to every known source; return their addresses."""
        with self._lock:
            known = list(self._logs.values())
        for source in known:
            self._request(source)
        return {source.address for source in known}

    def on_announced(
        self, provider: str, log_name: str, number: int, address: str, first: int | None = None
    ) -> tuple[str, SourcePosition] | None:
        """Record a received number; return the (chain, position) to store together with its announcement.

        The log has no announcement with a number from ``first`` to the one before ``number``.
        Call ``mark_saved`` after the transaction, and store each batch before passing in the next one.
        """
        with self._lock:
            source = self._source(provider, log_name, address)
            if source is None:
                return None
            first = number if first is None else first
            source.add(number, first)
            for sibling in source.siblings:
                sibling.add(number, first)
            gap = source.missing(number)
            position = source.received_through
        if gap:
            self._request_gap(source)
        return None if position is None else (self.name, source.position(position))

    def mark_saved(self) -> None:
        """Record that all received announcements are in the journal."""
        with self._lock:
            for source in self._logs.values():
                source.lowest_unsaved = 0

    def on_heartbeat(
        self, provider: str, log_name: str, number: int, address: str, members: Collection[str] = ()
    ) -> None:
        """Record the last number in a source's log; request a replay if it was not received.

        ``members`` are the request addresses (``host:port``) of the fleet of the source.
        """
        with self._lock:
            source = self._source(provider, log_name, address)
            if source is None:
                return
            if members or source.member_hosts:
                source.member_hosts = frozenset(map(_host, members))
                self._find_siblings(log_name)
            source.highest_seen = max(source.highest_seen, number)
            gap = source.missing(number) or number < (source.received_through or 0)
        if gap:
            self._request_gap(source)

    def _find_siblings(self, log_name: str) -> None:
        logs = [source for source in self._logs.values() if source.name == log_name]
        for source in logs:
            host = _host(source.provider)
            source.siblings = [other for other in logs if other is not source and host in other.member_hosts]

    def _request_gap(self, source: _SourceLog) -> None:
        """Request missing announcements; those of a small gap only if they do not arrive within a moment."""
        if not (self._gap_delay and source.may_close_soon):
            self._request(source)
            return
        with self._lock:
            if source.is_delayed:
                return
            source.is_delayed = True
            number = source.highest_seen
        delay = FLEET_GAP_DELAY if source.siblings else self._gap_delay
        timer = threading.Timer(delay, self._end_delay, [source, number])
        timer.daemon = True
        try:
            start_thread(timer)
        except RuntimeError:  # no memory for a thread
            with self._lock:
                source.is_delayed = False
            self._request(source)

    def _end_delay(self, source: _SourceLog, number: int) -> None:
        """Request announcements that are still missing before ``number``; wait again for later ones."""
        with self._lock:
            source.is_delayed = False
            gap, newer_gap = source.missing(number), source.missing(source.highest_seen)
            known = self._logs.get(source.key) is source
        if gap and known:
            self._request(source)
        elif newer_gap and known:
            self._request_gap(source)

    def _source(self, provider: str, log_name: str, address: str) -> _SourceLog | None:
        """Return a log of a provider; None if it has too many."""
        source = self._logs.get(f"{log_name} {provider}")
        if source is None:
            if sum(known.provider == provider for known in self._logs.values()) >= MAX_LOGS:
                if (more := self._throttle.admit(provider)) is not None:
                    logger.warning(
                        "[%s] ignored a log of %s: it has more than %d%s", self.name, provider, MAX_LOGS, more
                    )
                return None
            position = self._stored_position(log_name)
            if position is None and (provider, address) in self._addresses:
                position = 0  # the server's journal was lost or replaced: request all of the new log
            for other in self._logs.values():
                if (other.provider, other.address) == (provider, address) and other.received_through is None:
                    other.received_through = 0  # replaced before its first reply
            source = _SourceLog(log_name, provider, address, position, first_seen=time.monotonic())
            source.is_first_contact = position is None
            self._logs[source.key] = source
        source.address = address
        self._addresses.add((provider, address))
        return source

    def _stored_position(self, log_name: str) -> int | None:
        """Return the number up to which the log of other providers is stored; None if they do not have it.

        After a takeover, another host of a fleet announces the same log.
        """
        positions = [
            other.saved_through(other.received_through)
            for other in self._logs.values()
            if other.name == log_name and other.received_through is not None
        ]
        return max([*positions, *(through for log, through in self._orphans.items() if log == log_name)], default=None)

    def _request(self, source: _SourceLog) -> None:
        with self._lock:
            source.retry_when_done = source.request_pending
            if source.request_pending or time.monotonic() < source.not_before:
                return
            source.request_pending = True
            data: dict[str, Any] = {"log": source.name}
            if source.received_through is None:
                data["max_age"] = time.monotonic() - self._begin + FIRST_CONTACT_SLACK
            else:
                data["after"] = source.saved_through(source.received_through)
            after = data.get("after", 0)
        request = Message(f"/{self.name}", "replay", data).encode()
        self._requester.send_request(
            source.address, request, REPLAY_TIMEOUT, lambda reply: self._on_reply(source, after, reply)
        )

    def _on_reply(self, source: _SourceLog, after: int, reply: Message | TrollmovesError) -> None:
        more = False
        source.not_before = time.monotonic() + RETRY_DELAY  # reset after success
        try:
            data = _replay_data(reply)
            if data["log"] != source.name:
                self._on_new_log(source, data["log"])
            elif data["last"] < after:
                self._rewind(source, after, data["last"])
                more = True
            else:
                more = self._apply(source, data)
        except TrollmovesError as error:
            logger.warning("[%s] replay request to %s failed: %s", self.name, source.address, error)
            more = isinstance(error, NoReply) and source.retry_when_done and not isinstance(error, RequesterStopped)
            source.not_before = 0.0 if more else source.not_before
        finally:
            source.request_pending = False
        if more:
            self._request(source)

    def _apply(self, source: _SourceLog, data: dict[str, Any]) -> bool:
        """Store the announcements of a reply; return True if more can be requested immediately."""
        messages = self._decode(source, data["messages"], early=source.is_first_contact)
        numbers = [payload.announcement_metadata(message.data).get("number", 0) for message in messages]
        # A wrong number would skip all announcements before it: it must have been announced.
        through: int = min(data["through"], max([source.highest_seen, source.received_through or 0, *numbers]))
        # Live announcements may not be stored yet, so the stored position is that of this reply only.
        self._on_replayed(messages, [(self.name, source.position(through))])
        if messages:
            logger.info("[%s] caught up with %d announcements of %s", self.name, len(messages), source.address)
        with self._lock:
            has_advanced = source.received_through is None or through > source.received_through
            source.received_through = max(through, source.received_through or 0)
            source.join()
            source.request_pending = False  # later gaps cause new requests
            more = max([data["last"], *(last for _, last in source.runs)]) > source.received_through
            source.is_first_contact &= more
            if has_advanced or not more or through < data["through"]:
                source.not_before = 0.0
            return more and has_advanced

    def _rewind(self, source: _SourceLog, after: int, last: int) -> None:
        """Request a log from the beginning: its source has lost announcements, and will use their numbers again."""
        logger.warning(
            "[%s] %s has announcements up to %d, and this client up to %d (journal restored from a backup?); "
            "requesting them from the beginning",
            self.name,
            source.address,
            last,
            after,
        )
        self._journal.rewind_source(self.name, source.key)
        with self._lock:
            source.received_through = 0
            source.runs.clear()
            source.highest_seen = last
            source.not_before = 0.0

    def _on_new_log(self, source: _SourceLog, log_name: str) -> None:
        logger.warning(
            "[%s] %s started a new log (journal lost or replaced?); requesting it from the beginning",
            self.name,
            source.address,
        )
        with self._lock:
            self._logs.pop(source.key, None)
            new = self._source(source.provider, log_name, source.address)
        if new is None:
            return
        # Add the new log first: if killed in between, the address must still be known.
        self._journal.add_tasks([], [(self.name, new.position(0))])
        self._journal.forget_source(self.name, source.key)
        with self._lock:
            if time.monotonic() - source.first_seen < RETRY_DELAY:  # several servers, with several logs, at one address
                new.not_before = time.monotonic() + RETRY_DELAY
        self._request(new)

    def _decode(self, source: _SourceLog, texts: list[Any], *, early: bool) -> list[Message]:
        """Return replayed announcements, with the address of their source.

        The ``early`` ones, of a first contact, are marked: the legacy client that this one has replaced may have
        fetched their files.
        """
        messages = []
        for text in texts:
            try:
                message = Message.decode(text if isinstance(text, str) else "")
            except MessageError as error:
                if (suffix := self._throttle.admit(source.address)) is not None:
                    address = source.address
                    logger.warning("[%s] ignored a message in the log of %s: %s%s", self.name, address, error, suffix)
                continue
            if isinstance(message.data, dict):
                if message.data.get("request_address") != source.address:
                    message.data["request_address"] = source.address
                    message.raw = ""
                if early and (metadata := payload.announcement_metadata(message.data)):
                    message.data["announcement"] = metadata | {payload.EARLY: True}
                    message.raw = ""
                messages.append(message)
        return messages


def _host(address: str) -> str:
    return hosts.canonical(address.removeprefix("tcp://").rpartition(":")[0])


def _add_to_runs(runs: list[list[int]], first: int, last: int) -> None:
    """Add consecutive numbers to runs of these; of more than MAX_RUNS the lowest one is forgotten."""
    index = bisect.bisect_right(runs, first, key=itemgetter(0))
    if index and first <= runs[index - 1][1] + 1:
        index -= 1
        runs[index][1] = max(runs[index][1], last)
    else:
        runs.insert(index, [first, last])
    while index + 1 < len(runs) and runs[index + 1][0] <= runs[index][1] + 1:
        runs[index][1] = max(runs[index][1], runs.pop(index + 1)[1])
    if len(runs) > MAX_RUNS:
        del runs[0]


def _replay_data(reply: Message | TrollmovesError) -> dict[str, Any]:
    if isinstance(reply, TrollmovesError):
        raise reply
    data = reply.data
    if reply.type != "replay" or not isinstance(data, dict):
        raise MessageError(f"expected a reply of type replay, got {reply.type}: {urls.excerpt(str(data), 200)}")
    if not (payload.is_number(data.get("through")) and payload.is_number(data.get("last"))):
        raise MessageError("the fields through and last of a replay must be numbers")
    if not (isinstance(data.get("messages"), list) and isinstance(data.get("log"), str)):
        raise MessageError("a replay must have the fields messages and log")
    return data
