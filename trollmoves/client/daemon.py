"""The client daemon: fetch announced files and publish receipts."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

from trollmoves.chains import Chain, Runtime
from trollmoves.client.receipts import ReceiptPublisher
from trollmoves.config.config_file import Configuration
from trollmoves.config.options import ClientOptions
from trollmoves.daemon import Daemon, Receiver
from trollmoves.journal import drop_body
from trollmoves.messaging.publisher import Publisher
from trollmoves.messaging.requester import Requester
from trollmoves.net import urls
from trollmoves.orders.executor import Resender
from trollmoves.receiver.announcements import PEER, AnnouncementReceiver, keeping_subscribers
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.fetch_attempt import FetchAttempt
from trollmoves.receiver.fetch_sources import compact_body
from trollmoves.receiver.fetch_tasks import KIND, FetchTasks, client_name, task_again
from trollmoves.receiver.fetcher import Fetcher
from trollmoves.receiver.fleet_addresses import FleetAddresses
from trollmoves.receiver.peers import Peers
from trollmoves.spool import Spool

logger = logging.getLogger(__name__)


class ClientChain(Chain):
    """One running section of a client, with its own publisher of receipts."""

    def __init__(self, options: ClientOptions, runtime: Runtime) -> None:
        """Bind the publish port and connect; StartError if that fails."""
        self.name = options.name
        self._options = options
        self._scheduler = runtime.scheduler
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
            heartbeat_data=lambda: {"client": client_name(runtime.journal, options.name)},
        )
        peers = Peers(options.takeover_after, runtime.journal.keys(options.name, PEER))
        fleets = FleetAddresses()
        self._requester = Requester(self.name)
        self._receipts = ReceiptPublisher(
            options, runtime.journal, self._destinations, runtime.scheduler, self._publisher
        )
        fetches = FetchTasks(
            self.name,
            runtime.journal,
            peers,
            options.processing_delay,
            lambda source, announcement: self._fetcher.acknowledge(source, announcement),
            repeat_after=options.repeat_after,
            target=options.destination,
        )
        self._fetcher = Fetcher(
            options,
            runtime.journal,
            runtime.scheduler,
            self._requester,
            fetches,
            peers,
            fleets,
            prepare=lambda _, message: self._destinations.url_for(message),
            destinations=self._destinations,
            on_request=self._publish_pushes,
            on_delivered=self._receipts.on_delivered,
            publish=self._receipts.publish,
            delay=self._publisher.grace,
        )
        self._receiver = AnnouncementReceiver(options, runtime, self._requester, fetches, peers, fleets)

    def start(self) -> None:
        """Start to receive announcements and to fetch files."""
        self._publisher.start()
        self._requester.start()
        self._receipts.start()
        self._fetcher.start()
        self._receiver.start()

    def stop(self) -> None:
        """Stop receiving and requesting; requests without a reply are repeated at the next start."""
        self._receiver.stop()
        self._scheduler.unregister(self.name)
        self._fetcher.stop()
        self._requester.stop()
        self._publisher.stop()

    def repeat_last_messages(self) -> None:
        """Publish the last messages of a killed member of the fleet again."""
        self._receipts.republish_lost()

    def provider_states(self) -> dict[str, bool]:
        """Return whether each provider is connected, by address. Any thread."""
        return self._receiver.provider_states()

    @property
    def replayed(self) -> int:
        """The number of announcements that the chain had missed and requested since its start."""
        return self._receiver.replayed

    def _publish_pushes(self, attempts: Sequence[FetchAttempt]) -> None:
        """Publish that files of one destination are requested."""
        added: dict[str, Any] = {"destination": urls.without_login(attempts[0].destination)}
        if self._options.backup_targets:
            added["backup_targets"] = [urls.host_without_login(host) for host in self._options.backup_targets]
        self._publisher.send_encoded([attempt.message.derive("push", added) for attempt in attempts])


class Client(Daemon[ClientOptions]):
    """The client daemon."""

    role = "client"
    last_event = "received"
    options = ClientOptions
    compactors = {KIND: compact_body, "republish": drop_body, "unpack": drop_body}
    resenders = {KIND: Resender(task_again)}

    def make_chain(self, options: ClientOptions, runtime: Runtime) -> Chain:
        """Return a new chain for one section."""
        return ClientChain(options, runtime)

    def keep_messages(self, found: Configuration[ClientOptions], spool: Spool) -> Sequence[Receiver]:
        """Return a subscriber for each chain with valid addresses."""
        return keeping_subscribers(found.sections.values(), spool)


def make_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    return Client.make_parser("Fetch files that servers announce.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``move_it_client.py``; return its exit status."""
    return Client(make_parser().parse_args(argv)).run()
