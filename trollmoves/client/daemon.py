"""A file is announced there: have it sent here, tell our side."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

from trollmoves.client.receipts import ReceiptPublisher
from trollmoves.config.options import ClientOptions
from trollmoves.daemon import Chain, Daemon, Runtime
from trollmoves.journal import drop_body
from trollmoves.messaging.publisher import Publisher
from trollmoves.messaging.requester import Requester
from trollmoves.net import urls
from trollmoves.receiver.announcements import PEER, AnnouncementReceiver
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.fetch_tasks import KIND, FetchTasks, compact_body
from trollmoves.receiver.fetcher import FetchAttempt, Fetcher, client_name
from trollmoves.receiver.peers import Peers

log = logging.getLogger(__name__)


class ClientChain:
    """One section of a client, running: what arrives is told on a port of its own."""

    def __init__(self, options: ClientOptions, house: Runtime) -> None:
        """Bind the port and connect; StartError when that fails."""
        self.name = options.name
        self._options = options
        self._workers = house.workers
        self._destinations = Destinations(
            options.name,
            options.destination,
            login=options.login,
            make=options.create_target_directory,
            ftp_root=options.ftp_root,
        )
        self._publisher = Publisher(
            f"move_it_{options.name}",
            options.publish_port,
            nameservers=options.nameservers,
            bind_address=options.bind_address,
            clients=options.allowed_clients,
            beat_data=lambda: {"client": client_name(house.journal, options.name)},
        )
        peers = Peers(options.takeover_after, house.journal.keys(options.name, PEER))
        self._requester = Requester(self.name)
        self._arrivals = ReceiptPublisher(options, house.journal, self._destinations, house.workers, self._publisher)
        fetches = FetchTasks(self.name, house.journal, peers, options.processing_delay, self._acknowledge)
        self._fetcher = Fetcher(
            options,
            house.journal,
            self._requester,
            fetches,
            peers,
            prepare=lambda _, message: self._destinations.url_for(message),
            asking=self._publish_push,
            arrived=self._arrivals.on_delivered,
        )
        self._receiver = AnnouncementReceiver(
            options, options.topic, house.journal, house.workers, self._requester, fetches, peers
        )

    def start(self) -> None:
        """Begin to fetch and to hear."""
        self._publisher.start()
        self._requester.start()
        self._arrivals.start()
        self._fetcher.start(self._workers)
        self._receiver.start()

    def stop(self) -> None:
        """Hear nothing more, ask for nothing more; what is unanswered is asked for again at the next start."""
        self._receiver.stop()
        self._workers.unregister(self.name)
        self._requester.stop()
        self._publisher.stop()

    def _acknowledge(self, source: str, announcement: str) -> None:
        self._fetcher.acknowledge(source, announcement)

    def _publish_push(self, attempt: FetchAttempt) -> None:
        """Publish that a file is being asked for."""
        added: dict[str, Any] = {"destination": urls.without_login(attempt.destination)}
        if self._options.backup_targets:
            added["backup_targets"] = list(self._options.backup_targets)
        self._publisher.send_encoded([attempt.message.derive("push", added)])


class Client(Daemon[ClientOptions]):
    """The client daemon."""

    role = "client"
    options = ClientOptions
    compactors = {KIND: compact_body, "republish": drop_body, "unpack": drop_body}

    def make_chain(self, options: ClientOptions, house: Runtime) -> Chain:
        """Make the chain of one section."""
        return ClientChain(options, house)


def make_parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    return Client.make_parser("Have files sent here that servers announce.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``move_it_client.py``; give its exit status."""
    return Client(make_parser().parse_args(argv)).run()
