"""Receives announcements and stores a fetch task for each new file.

Announcements are stored as tasks (``fetch_tasks``), from which files are requested (``fetcher``). Missed announcements
are replayed (``replay``). Files that a peer is fetching are left to the peer (``peers``). So each file is fetched once,
however often it is announced, and also if this process is killed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from trollmoves.chains import Runtime
from trollmoves.config.options import ClientOptions, MirrorOptions
from trollmoves.errors import MessageError, StartError
from trollmoves.journal import BACKLOG, DONE, FRESH, SourcePosition, Task
from trollmoves.messaging import payload, sockets
from trollmoves.messaging.messages import Message
from trollmoves.messaging.requester import Requester
from trollmoves.messaging.subscriber import PublisherEndpoint, Subscriber
from trollmoves.receiver.fetch_tasks import KIND, FetchTasks, client_name, file_key
from trollmoves.receiver.fleet_addresses import FleetAddresses
from trollmoves.receiver.legacy_servers import LegacyServers
from trollmoves.receiver.peers import Peers
from trollmoves.receiver.replay import ReplayClient
from trollmoves.spool import Spool, SpoolQueue

logger = logging.getLogger(__name__)

PEER_SEEN = "peer_seen"  # kind of the task that records a message of a peer
PEER = "peer"  # kind of the tasks that record known peers
HEARTBEAT_PREFIX = "/heartbeat/move_it"  # prefix of the publisher names of servers, mirrors and clients


class AnnouncementReceiver:
    """Receives the announcements of one chain, and submits new fetch tasks to the scheduler."""

    def __init__(
        self,
        options: ClientOptions,
        runtime: Runtime,
        requester: Requester,
        fetches: FetchTasks,
        peers: Peers,
        fleets: FleetAddresses,
    ) -> None:
        """Connect to the providers; StartError if an address is invalid."""
        self.name = options.name
        self._journal = journal = runtime.journal
        self._scheduler = runtime.scheduler
        self._fetches = fetches
        self.replayed = 0  # announcements that were missed and requested, since the start
        self._connected: dict[str, float] = {}  # by provider: the time (monotonic) of the newest connection
        self._peers = peers
        self._fleets = fleets
        peers.seen = bool(journal.keys(options.name, PEER_SEEN))
        self._topics = _topics_by_provider(options)
        self._replay_client = ReplayClient(self.name, self._topics, journal, requester, self._on_replayed)
        self._legacy_servers = LegacyServers(self.name, journal, requester, peers)
        self._queue = SpoolQueue(runtime.spool, self.name, self._on_kept, partial(journal.set_aside, self.name))
        heartbeat_topics = [HEARTBEAT_PREFIX] if options.heartbeat else []
        self._subscriber = Subscriber(
            self.name,
            [PublisherEndpoint(address, (*topics, *heartbeat_topics)) for address, topics in self._topics.items()],
            self._on_messages,
            alarm_scale=options.heartbeat_alarm_scale if options.heartbeat else 0.0,
            on_connected=self._on_connected,
            on_poll=peers.tick,
            set_aside=partial(journal.set_aside, self.name),
        )

    def start(self) -> None:
        """Request missed announcements and start to receive."""
        self._replay_client.request_all()
        self._queue.start()
        self._subscriber.start()

    def stop(self) -> None:
        """Stop receiving."""
        self._subscriber.stop()
        self._queue.stop()

    def provider_states(self) -> dict[str, bool]:
        """Return whether each provider is connected, by address. Any thread."""
        return self._subscriber.connection_states()

    def _on_connected(self, provider: str) -> None:
        """Request announcements that were missed while the provider was disconnected; its sources are not known."""
        self._connected[provider] = time.monotonic()
        self._peers.record_gap()
        for address in self._replay_client.request_all():
            self._scheduler.resume_lane(self.name, f"{KIND} {address}")
        self._legacy_servers.request_all()

    # -- messages

    def _on_messages(self, provider: str, messages: list[Message]) -> None:
        if announcements := list(filter(is_announcement, messages)):
            self._queue.pass_on(announcements, lambda: self._handle(provider, messages))
        else:
            self._handle(provider, messages)

    def _on_kept(self, messages: list[Message]) -> None:
        """Record announcements that were kept while the journal could not be written; those of a log may be known."""
        by_rank: dict[int, list[Message]] = {}
        for message in messages:
            rank = BACKLOG if payload.announcement_metadata(message.data) else FRESH
            by_rank.setdefault(rank, []).append(message)
        for rank, announcements in by_rank.items():
            self._record(announcements, [], rank)

    def _handle(self, provider: str, messages: list[Message]) -> None:
        announcements: list[Message] = []
        positions: dict[str, tuple[str, SourcePosition]] = {}
        done_keys: list[str] = []
        for message in messages:
            data = message.data
            if message.type == "beat":
                self._on_heartbeat(provider, data)
                self._on_peer_heartbeat(message)
            elif is_announcement(message):
                announcements.append(message)
                positions |= self._position(provider, message.subject, data)
            else:
                done_keys += self._on_peer_message(message)
        if announcements:
            connected = time.monotonic() - self._connected.get(provider, time.monotonic())
            self._record(announcements, list(positions.values()), FRESH, connected)
            self._replay_client.mark_saved()
        if done_keys:
            self._fetches.finish_for_peer(done_keys, lambda: self._scheduler.in_flight_ids(self.name))

    def _position(self, provider: str, subject: str, data: dict[str, Any]) -> dict[str, tuple[str, SourcePosition]]:
        """Record the number of an announcement; return the log and the (chain, position) to store, if any."""
        address, metadata = data["request_address"], payload.announcement_metadata(data)
        if not payload.is_address(address):
            return {}  # the announcement is rejected when it is recorded
        if not metadata:
            self._legacy_servers.on_announced(address, subject)
            return {}
        previous = metadata.get(payload.PREVIOUS)
        number = metadata["number"]
        first = previous + 1 if payload.is_number(previous) and previous < number else number
        position = self._replay_client.on_announced(provider, metadata["log"], number, address, first)
        return {metadata["log"]: position} if position else {}

    def _on_peer_message(self, message: Message) -> list[str]:
        """Record the activity of a peer client; return the key of a file that it has received, if any."""
        if message.type not in ("push", "ack", *payload.FILE_TYPES) or not isinstance(message.data, dict):
            return []
        try:
            key = file_key(message.data)
        except MessageError:
            return []
        self._record_peer()
        if message.type == "push":
            self._peers.on_push(key)
            return []
        self._peers.on_done(key)
        return [key]

    def _record_peer(self) -> None:
        """Record that this client has a peer, also for the next process: a legacy one has no name."""
        if not self._peers.seen:
            self._journal.add_tasks([Task(self.name, PEER_SEEN, PEER_SEEN, PEER_SEEN, "", state=DONE)])
            self._peers.seen = True

    def _on_peer_heartbeat(self, message: Message) -> None:
        """Record the name of a peer client, also for requests by the next process."""
        name = message.data.get("client") if isinstance(message.data, dict) else None
        if name == client_name(self._journal, self.name):
            return  # another member of the fleet: servers reply to it as to this one
        if message.subject == f"{HEARTBEAT_PREFIX}_{self.name}" and isinstance(name, str):
            self._peers.add(name)
            ((_, is_new),) = self._journal.add_tasks([Task(self.name, PEER, name, PEER, "", state=DONE)])
            if is_new:
                logger.info("[%s] found peer client %s, sharing the work with it", self.name, message.sender)

    def _on_heartbeat(self, provider: str, data: Any) -> None:
        logs = data.get("logs") if isinstance(data, dict) else None
        for entry in logs if isinstance(logs, list) else ():
            if not isinstance(entry, dict):
                continue
            name, number, address = entry.get("log"), entry.get("number"), entry.get("request_address")
            is_subscribed = any(
                str(entry.get("topic", "")).startswith(topic) for topic in self._topics.get(provider, ())
            )
            if is_subscribed and isinstance(name, str) and payload.is_number(number) and payload.is_address(address):
                members = self._fleets.update(provider, name, entry.get("members"))
                self._replay_client.on_heartbeat(provider, name, number, address, members)
                self._scheduler.resume_lane(self.name, f"{KIND} {address}")

    def _on_replayed(self, messages: list[Message], sources: list[tuple[str, SourcePosition]]) -> None:
        if messages:
            self.replayed += len(messages)
            self._peers.record_gap()
        self._record(messages, sources, BACKLOG)

    def _record(
        self, messages: list[Message], sources: list[tuple[str, SourcePosition]], rank: int, connected: float = 0.0
    ) -> None:
        new_tasks = self._fetches.record_announcements(messages, sources, rank, connected)
        if new_tasks:
            self._scheduler.submit(new_tasks)
        for source in {str(message.data.get("request_address")) for message in messages}:
            self._scheduler.resume_lane(self.name, f"{KIND} {source}")  # the source is reachable


def is_announcement(message: Message) -> bool:
    """Return True for an announcement of a server."""
    return message.type in payload.FILE_TYPES and isinstance(message.data, dict) and "request_address" in message.data


def _topics_by_provider(options: ClientOptions) -> dict[str, list[str]]:
    """Return the subscribed topics by address; a provider may be configured several times, with several topics."""
    client_topic = options.client_topic if isinstance(options, MirrorOptions) else ""
    found: dict[str, list[str]] = {}
    for provider in options.providers:
        topics = found.setdefault(sockets.tcp(provider.host, provider.port), [])
        topics += [text for text in (provider.topic or client_topic or options.topic,) if text and text not in topics]
    return found


def keeping_subscribers(sections: Iterable[ClientOptions], spool: Spool) -> list[Subscriber]:
    """Return a subscriber for each section that keeps announcements until the chain is started.

    Sections with an invalid address have none: the start of their chains logs it.
    """
    subscribers: list[Subscriber] = []
    for options in sections:
        topics = _topics_by_provider(options)
        endpoints = [PublisherEndpoint(address, tuple(t)) for address, t in topics.items()]
        with suppress(StartError):
            subscribers.append(Subscriber(options.name, endpoints, partial(_keep, spool, options.name)))
    return subscribers


def _keep(spool: Spool, name: str, _: str, messages: list[Message]) -> None:
    if announcements := list(filter(is_announcement, messages)):
        spool.keep(name, announcements)
