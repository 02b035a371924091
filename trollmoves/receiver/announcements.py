"""Hears announcements, and notes at once what is to be fetched.

The taking half of a conversation: what is heard stands in the journal (``fetches``) and is asked for from there
(``fetcher``); what was not heard is caught up with (``catchup``); and what a peer is at work on is left to it
(``peers``). So a file is fetched once however often it is announced, and is not forgotten however this process ends.
"""

from __future__ import annotations

import logging
from typing import Any

from trollmoves.config.options import ClientOptions
from trollmoves.errors import MessageError
from trollmoves.journal import BACKLOG, DONE, FRESH, Journal, SourcePosition, Task
from trollmoves.messaging import payload, sockets
from trollmoves.messaging.messages import Message
from trollmoves.messaging.requester import Requester
from trollmoves.messaging.subscriber import PublisherEndpoint, Subscriber
from trollmoves.receiver.fetch_tasks import KIND, FetchTasks, file_key
from trollmoves.receiver.legacy_servers import LegacyServers
from trollmoves.receiver.peers import Peers
from trollmoves.receiver.replay import ReplayClient
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils import failpoints

log = logging.getLogger(__name__)

PEER = "peer"  # the kind of the notes of peers
HEARTBEAT_PREFIX = "/heartbeat/move_it"  # the names of servers, mirrors and clients begin so


class AnnouncementReceiver:
    """One chain's ears. What is new in ``fetches`` is handed to the workers."""

    def __init__(
        self,
        options: ClientOptions,
        topic: str,
        journal: Journal,
        workers: Scheduler,
        requester: Requester,
        fetches: FetchTasks,
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
        self._catchup = ReplayClient(self.name, journal, requester, self._on_replayed)
        self._unnumbered = LegacyServers(self.name, journal, requester)
        self._topics: dict[str, list[str]] = {}  # by provider, which may be named again with another topic
        for one in options.providers:
            wanted = self._topics.setdefault(sockets.tcp(one.host, one.port), [])
            wanted += [text for text in (one.topic or topic,) if text and text not in wanted]
        beats = [HEARTBEAT_PREFIX] if options.heartbeat else []
        self._listener = Subscriber(
            self.name,
            [PublisherEndpoint(address, (*topics, *beats)) for address, topics in self._topics.items()],
            self._on_messages,
            alarm_scale=options.heartbeat_alarm_scale,
            connected=self._on_connected,
        )

    def start(self) -> None:
        """Catch up, and hear."""
        self._catchup.start()
        self._listener.start()

    def stop(self) -> None:
        """Hear nothing more."""
        self._listener.stop()

    def _on_connected(self, provider: str) -> None:  # noqa: ARG002  (which sources are heard through it is not known)
        """Ask for what was missed while a provider could not be heard."""
        for address in self._catchup.request_all():
            self._workers.resume_lane(self.name, f"{KIND} {address}")
        self._unnumbered.request_all()

    # -- hearing

    def _on_messages(self, provider: str, messages: list[Message]) -> None:
        announcements: list[Message] = []
        marks: dict[str, tuple[str, SourcePosition]] = {}
        done: list[str] = []
        for message in messages:
            data = message.data
            if message.type == "beat":
                self._on_heartbeat(provider, data)
                self._on_peer_heartbeat(message)
            elif message.type in payload.FILE_TYPES and isinstance(data, dict) and "request_address" in data:
                announcements.append(message)
                mark = payload.announcement_metadata(data)
                if mark:
                    known = self._catchup.on_announced(mark["log"], mark["number"], str(data["request_address"]))
                    if known:
                        marks[mark["log"]] = known
                else:
                    self._unnumbered.on_announced(str(data["request_address"]), message.subject)
            else:
                done += self._on_peer_message(message)
        if announcements:
            self._record(announcements, list(marks.values()), FRESH)
            self._catchup.mark_saved()
        if done:
            self._fetches.finish_for_peer(done, self._is_in_flight)

    def _on_peer_message(self, message: Message) -> list[str]:
        """Take note of what a peer client does; give the key of a file that it is done with."""
        if message.type not in ("push", "ack", *payload.FILE_TYPES) or not isinstance(message.data, dict):
            return []
        try:
            key = file_key(message.data)
        except MessageError:
            return []
        if message.type == "push":
            self._peers.on_push(key)
            return []
        self._peers.on_done(key)
        return [key]

    def _on_peer_heartbeat(self, message: Message) -> None:
        """Take note of who a peer client is; also for the next process, which will want to ask what it did."""
        name = message.data.get("client") if isinstance(message.data, dict) else None
        if message.subject == f"{HEARTBEAT_PREFIX}_{self.name}" and isinstance(name, str):
            self._peers.add(name)
            ((_, is_new),) = self._journal.add_tasks([Task(self.name, PEER, name, PEER, "", state=DONE)])
            if is_new:
                log.info("[%s] shares its work with the client %s", self.name, message.sender)

    def _is_in_flight(self, task: Task) -> bool:
        return task.id in self._workers.in_flight_ids(self.name, task.lane)

    def _on_heartbeat(self, provider: str, data: Any) -> None:
        logs = data.get("logs") if isinstance(data, dict) else None
        for one in logs if isinstance(logs, list) else ():
            if not isinstance(one, dict):
                continue
            name, number, address = one.get("log"), one.get("number"), one.get("request_address")
            wanted = any(str(one.get("topic", "")).startswith(topic) for topic in self._topics.get(provider, ()))
            if wanted and isinstance(name, str) and isinstance(number, int) and isinstance(address, str):
                self._catchup.on_heartbeat(name, number, address)
                self._workers.resume_lane(self.name, f"{KIND} {address}")

    def _on_replayed(self, messages: list[Message], sources: list[tuple[str, SourcePosition]]) -> None:
        self._record(messages, sources, BACKLOG)

    def _record(self, messages: list[Message], sources: list[tuple[str, SourcePosition]], rank: int) -> None:
        failpoints.hit("heard")
        new = self._fetches.record_announcements(messages, sources, rank)
        if new:
            failpoints.hit("noted")
            self._workers.submit(new)
        for source in {str(message.data.get("request_address")) for message in messages}:
            self._workers.resume_lane(self.name, f"{KIND} {source}")  # it is there again, if it was not
