"""Hears announcements, and notes at once what is to be fetched.

The taking half of a conversation: what is heard stands in the journal (``fetches``) and is asked for from there
(``fetcher``); what was not heard is caught up with (``catchup``); and what a peer is at work on is left to it
(``peers``). So a file is fetched once however often it is announced, and is not forgotten however this process ends.
"""

from __future__ import annotations

import logging
from typing import Any

from trollmoves import steps
from trollmoves.errors import MessageError
from trollmoves.journal import BACKLOG, DONE, FRESH, Journal, Source, Task
from trollmoves.messaging import contents, sockets
from trollmoves.messaging.listener import Listener, Provider
from trollmoves.messaging.messages import Message
from trollmoves.messaging.requester import Requester
from trollmoves.options import ClientOptions
from trollmoves.receiver.catchup import CatchUp
from trollmoves.receiver.fetches import KIND, Fetches, key_of
from trollmoves.receiver.peers import Peers
from trollmoves.receiver.unnumbered import Unnumbered
from trollmoves.workers import Workers

log = logging.getLogger(__name__)

ANNOUNCEMENTS = ("file", "dataset", "collection")
PEER = "peer"  # the kind of the notes of peers
BEATS = "/heartbeat/move_it"  # the names of servers, mirrors and clients begin so


class Receiver:
    """One chain's ears. What is new in ``fetches`` is handed to the workers."""

    def __init__(
        self,
        options: ClientOptions,
        topic: str,
        journal: Journal,
        workers: Workers,
        requester: Requester,
        fetches: Fetches,
        peers: Peers,
    ) -> None:
        """Connect to the providers; StartError when an address is none.

        ``topic`` begins the subjects that are heard of providers without a topic of their own.
        """
        self.name = options.name
        self._journal = journal
        self._workers = workers
        self._fetches = fetches
        self._peers = peers
        self._catchup = CatchUp(self.name, journal, requester, self._note_missed)
        self._unnumbered = Unnumbered(self.name, journal, requester)
        self._topics: dict[str, list[str]] = {}  # by provider, which may be named again with another topic
        for one in options.providers:
            wanted = self._topics.setdefault(sockets.tcp(one.host, one.port), [])
            wanted += [text for text in (one.topic or topic,) if text and text not in wanted]
        beats = [BEATS] if options.heartbeat else []
        self._listener = Listener(
            self.name,
            [Provider(address, (*topics, *beats)) for address, topics in self._topics.items()],
            self._hear,
            alarm_scale=options.heartbeat_alarm_scale,
            connected=self._connected,
        )

    def start(self) -> None:
        """Catch up, and hear."""
        self._catchup.start()
        self._listener.start()

    def stop(self) -> None:
        """Hear nothing more."""
        self._listener.stop()

    def _connected(self, provider: str) -> None:  # noqa: ARG002  (which sources are heard through it is not known)
        """Ask for what was missed while a provider could not be heard."""
        for address in self._catchup.ask_all():
            self._workers.reopen(self.name, f"{KIND} {address}")
        self._unnumbered.ask_all()

    # -- hearing

    def _hear(self, provider: str, messages: list[Message]) -> None:
        announcements: list[Message] = []
        marks: dict[str, tuple[str, Source]] = {}
        done: list[str] = []
        for message in messages:
            data = message.data
            if message.type == "beat":
                self._hear_beat(provider, data)
                self._meet_peer(message)
            elif message.type in ANNOUNCEMENTS and isinstance(data, dict) and "request_address" in data:
                announcements.append(message)
                mark = contents.announcement_mark(data)
                if mark:
                    known = self._catchup.hear(mark["log"], mark["number"], str(data["request_address"]))
                    if known:
                        marks[mark["log"]] = known
                else:
                    self._unnumbered.hear(str(data["request_address"]), message.subject)
            else:
                done += self._hear_peer(message)
        if announcements:
            self._note(announcements, list(marks.values()), FRESH)
            self._catchup.noted()
        if done:
            self._fetches.leave(done, self._is_in_hand)

    def _hear_peer(self, message: Message) -> list[str]:
        """Take note of what a peer client does; give the key of a file that it is done with."""
        if message.type not in ("push", "ack", *ANNOUNCEMENTS) or not isinstance(message.data, dict):
            return []
        try:
            key = key_of(message.data)
        except MessageError:
            return []
        if message.type == "push":
            self._peers.hear_push(key)
            return []
        self._peers.hear_done(key)
        return [key]

    def _meet_peer(self, message: Message) -> None:
        """Take note of who a peer client is; also for the next process, which will want to ask what it did."""
        name = message.data.get("client") if isinstance(message.data, dict) else None
        if message.subject == f"{BEATS}_{self.name}" and isinstance(name, str):
            self._peers.meet(name)
            ((_, is_new),) = self._journal.note([Task(self.name, PEER, name, PEER, "", state=DONE)])
            if is_new:
                log.info("[%s] shares its work with the client %s", self.name, message.sender)

    def _is_in_hand(self, task: Task) -> bool:
        return task.id in self._workers.taken(self.name, task.lane)

    def _hear_beat(self, provider: str, data: Any) -> None:
        logs = data.get("logs") if isinstance(data, dict) else None
        for one in logs if isinstance(logs, list) else ():
            if not isinstance(one, dict):
                continue
            name, number, address = one.get("log"), one.get("number"), one.get("request_address")
            wanted = any(str(one.get("topic", "")).startswith(topic) for topic in self._topics.get(provider, ()))
            if wanted and isinstance(name, str) and isinstance(number, int) and isinstance(address, str):
                self._catchup.hear_beat(name, number, address)
                self._workers.reopen(self.name, f"{KIND} {address}")

    def _note_missed(self, messages: list[Message], sources: list[tuple[str, Source]]) -> None:
        self._note(messages, sources, BACKLOG)

    def _note(self, messages: list[Message], sources: list[tuple[str, Source]], rank: int) -> None:
        steps.reached("heard")
        new = self._fetches.note(messages, sources, rank)
        if new:
            steps.reached("noted")
            self._workers.expect(new)
        for source in {str(message.data.get("request_address")) for message in messages}:
            self._workers.reopen(self.name, f"{KIND} {source}")  # it is there again, if it was not
