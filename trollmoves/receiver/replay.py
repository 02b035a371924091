"""How far a chain has the log of each of its sources, and asking for what is missing.

Our servers number their announcements. Whoever hears number 7 after number 4 knows what it missed, and a ``replay``
request brings it: at the start, when a connection comes about, when a number is skipped, and when a heartbeat tells of
more than was heard. Servers of the earlier implementation number nothing; from them there is only what is heard.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trollmoves.errors import MessageError, TrollmovesError
from trollmoves.journal import Journal, SourcePosition
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.requester import NoReply, Requester, RequesterStopped
from trollmoves.net import urls

log = logging.getLogger(__name__)

FIRST_CONTACT_SLACK = 5.0  # s before our start from which a source we never heard of is asked for announcements
REPLAY_TIMEOUT = 10.0  # s
RETRY_DELAY = 5.0  # s before a source is asked again that did not answer as it should, however much is heard of it


@dataclass(slots=True)
class _SourceLog:
    """One source's log: everything up to ``have`` was noted; what runs from ``live_from`` to ``live_to`` was heard."""

    name: str
    address: str
    received_through: int | None = None  # None: never asked yet
    live_from: int = 0
    live_to: int = 0
    lowest_unsaved: int = 0  # the lowest number that was heard and may not be in the journal yet; 0 for none
    request_pending: bool = False
    heard_while_pending: bool = False  # a sign that there may be more, or that the source is there again
    not_before: float = 0.0  # monotonic; it is not asked before
    first_heard: float = 0.0  # monotonic; when it was first heard of, 0 for in an earlier process

    def add(self, number: int) -> None:
        self.lowest_unsaved = min(self.lowest_unsaved or number, number)
        if self.live_from and number == self.live_to + 1:
            self.live_to = number
        elif number > self.live_to:
            self.live_from = self.live_to = number
        self.join()

    def join(self) -> None:
        """Count the run that was heard as had, once what came before it is."""
        if self.received_through is not None and self.live_from and self.received_through >= self.live_from - 1:
            self.received_through = max(self.received_through, self.live_to)

    def noted(self, have: int) -> int:
        """Give up to where, of what is had, all is in the journal."""
        return min(have, self.lowest_unsaved - 1) if self.lowest_unsaved else have

    def missing(self, number: int) -> bool:
        return self.received_through is None or number > self.received_through


class ReplayClient:
    """The logs of one chain's sources. ``note`` may be called from any thread, and so may everything here.

    ``missed(messages, sources)`` is called on the requester's thread with announcements that were not heard, and with
    what to write to the journal together with them.
    """

    def __init__(
        self,
        name: str,
        journal: Journal,
        requester: Requester,
        missed: Callable[[list[Message], list[tuple[str, SourcePosition]]], None],
    ) -> None:
        self.name = name
        self._journal = journal
        self._requester = requester
        self._missed = missed
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._logs = {s.log: _SourceLog(s.log, s.address, s.received_through) for s in journal.sources(name)}
        self._addresses = {s.address for s in self._logs.values()}

    def start(self) -> None:
        """Ask every source that was heard before for what came meanwhile."""
        self.request_all()

    def request_all(self) -> set[str]:
        """Ask every source that is known for what came meanwhile; give their addresses."""
        with self._lock:
            known = list(self._logs.values())
        for source in known:
            self._request(source)
        return {source.address for source in known}

    def on_announced(self, log_name: str, number: int, address: str) -> tuple[str, SourcePosition] | None:
        """Take note of a number that was heard; give what to write to the journal with its announcement.

        When that is written, say so by ``noted``. What is heard is to be written before more is.
        """
        with self._lock:
            source = self._source(log_name, address)
            source.add(number)
            gap = source.missing(number)
            have = source.received_through
        if gap:
            self._request(source)
        return None if have is None else (self.name, SourcePosition(log_name, address, have))

    def mark_saved(self) -> None:
        """Take note that the announcements of all numbers that were heard are in the journal."""
        with self._lock:
            for source in self._logs.values():
                source.lowest_unsaved = 0

    def on_heartbeat(self, log_name: str, number: int, address: str) -> None:
        """Take note of how far a source's log goes."""
        with self._lock:
            source = self._source(log_name, address)
            gap = source.missing(number)
        if gap:
            self._request(source)

    def _source(self, log_name: str, address: str) -> _SourceLog:
        source = self._logs.get(log_name)
        if source is None:
            # A new log at a known address is that of a journal that was lost or replaced: all of it is new to us.
            have = 0 if address in self._addresses else None
            source = self._logs[log_name] = _SourceLog(log_name, address, have, first_heard=time.monotonic())
            self._addresses.add(address)
        source.address = address
        return source

    def _request(self, source: _SourceLog) -> None:
        with self._lock:
            source.heard_while_pending = source.request_pending
            if source.request_pending or time.monotonic() < source.not_before:
                return
            source.request_pending = True
            data: dict[str, Any] = {"log": source.name}
            if source.received_through is None:
                data["max_age"] = time.monotonic() - self._started + FIRST_CONTACT_SLACK
            else:
                data["after"] = source.noted(
                    source.received_through
                )  # what is answered to this counts as had from there on
        request = Message(f"/{self.name}", "replay", data).encode()
        self._requester.send_request(
            source.address, request, REPLAY_TIMEOUT, lambda answer: self._on_reply(source, answer)
        )

    def _on_reply(self, source: _SourceLog, answer: Message | TrollmovesError) -> None:
        more = False
        source.not_before = time.monotonic() + RETRY_DELAY  # unless all goes well
        try:
            data = _replay_data(answer)
            if data["log"] != source.name:
                self._on_new_log(source, data["log"])
            else:
                more = self._apply(source, data)
        except TrollmovesError as error:
            log.warning("[%s] cannot catch up with %s: %s", self.name, source.address, error)
            more = isinstance(error, NoReply) and source.heard_while_pending and not isinstance(error, RequesterStopped)
            source.not_before = 0.0 if more else source.not_before
        finally:
            source.request_pending = False
        if more:
            self._request(source)

    def _apply(self, source: _SourceLog, data: dict[str, Any]) -> bool:
        """Have the announcements of an answer noted; tell whether there are more to be had at once."""
        messages = self._decode(source, data["messages"])
        through: int = data["through"]
        # What was heard meanwhile may not be noted yet, so only what this answer brings is written down as had.
        self._missed(messages, [(self.name, SourcePosition(source.name, source.address, through))])
        if messages:
            log.info("[%s] caught up with %d announcements of %s", self.name, len(messages), source.address)
        with self._lock:
            went_on = source.received_through is None or through > source.received_through
            source.received_through = max(through, source.received_through or 0)
            source.join()
            source.request_pending = False  # from here on whoever hears of a gap asks
            more = max(data["last"], source.live_to) > source.received_through
            if went_on or not more:
                source.not_before = 0.0
            return more and went_on

    def _on_new_log(self, source: _SourceLog, log_name: str) -> None:
        log.warning("[%s] %s has begun a new log: all of it is taken", self.name, source.address)
        # First the new one: an address without a log would be that of a stranger, if we were killed here.
        self._journal.add_tasks([], [(self.name, SourcePosition(log_name, source.address, 0))])
        self._journal.forget_source(self.name, source.name)
        with self._lock:
            self._logs.pop(source.name, None)
            new = self._source(log_name, source.address)
            if (
                time.monotonic() - source.first_heard < RETRY_DELAY
            ):  # several servers behind one address, each with its own
                new.not_before = time.monotonic() + RETRY_DELAY
        self._request(new)

    def _decode(self, source: _SourceLog, texts: list[Any]) -> list[Message]:
        messages = []
        for text in texts:
            try:
                message = Message.decode(text if isinstance(text, str) else "")
            except MessageError as error:
                log.warning("[%s] in the log of %s: %s", self.name, source.address, error)
                continue
            if isinstance(message.data, dict):
                if message.data.get("request_address") != source.address:
                    message.data["request_address"] = source.address
                    message.raw = ""
                messages.append(message)
        return messages


def _replay_data(answer: Message | TrollmovesError) -> dict[str, Any]:
    if isinstance(answer, TrollmovesError):
        raise answer
    data = answer.data
    if answer.type != "replay" or not isinstance(data, dict):
        raise MessageError(f"answered {answer.type} to a replay: {urls.excerpt(str(data), 200)}")
    if not (payload.is_number(data.get("through")) and payload.is_number(data.get("last"))):
        raise MessageError("a replay without numbers")
    if not (isinstance(data.get("messages"), list) and isinstance(data.get("log"), str)):
        raise MessageError("a replay without messages")
    return data
