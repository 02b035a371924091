"""A file is announced there: have it sent here, tell our side."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from trollmoves import urls
from trollmoves.daemon import Chain, Daemon, House
from trollmoves.journal import nothing
from trollmoves.messaging.publisher import Publisher
from trollmoves.messaging.requester import Requester
from trollmoves.options import ClientOptions
from trollmoves.receiver.arrivals import Arrivals
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.ears import PEER, Receiver
from trollmoves.receiver.fetcher import Attempt, Fetcher, client_name
from trollmoves.receiver.fetches import KIND, Fetches, remains
from trollmoves.receiver.peers import Peers

log = logging.getLogger(__name__)


class ClientChain:
    """One section of a client, running: what arrives is told on a port of its own."""

    def __init__(self, options: ClientOptions, house: House) -> None:
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
        self._arrivals = Arrivals(options, house.journal, self._destinations, house.workers, self._publisher)
        fetches = Fetches(self.name, house.journal, peers, options.processing_delay, self._acknowledge)
        self._fetcher = Fetcher(
            options,
            house.journal,
            self._requester,
            fetches,
            peers,
            prepare=lambda _, message: self._destinations.url(message),
            asking=self._tell_asking,
            arrived=self._arrivals.arrived,
        )
        self._receiver = Receiver(options, options.topic, house.journal, house.workers, self._requester, fetches, peers)

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
        self._workers.forget(self.name)
        self._requester.stop()
        self._publisher.stop()

    def _acknowledge(self, source: str, announcement: str) -> None:
        self._fetcher.acknowledge(source, announcement)

    def _tell_asking(self, attempt: Attempt) -> None:
        """Publish that a file is being asked for."""
        added: dict[str, Any] = {"destination": urls.without_login(attempt.destination)}
        if self._options.backup_targets:
            added["backup_targets"] = list(self._options.backup_targets)
        self._publisher.send_texts([attempt.message.variant("push", added)])


class Client(Daemon[ClientOptions]):
    """The client daemon."""

    role = "client"
    options = ClientOptions
    remains = {KIND: remains, "tell": nothing, "unpack": nothing}

    def chain(self, options: ClientOptions, house: House) -> Chain:
        """Make the chain of one section."""
        return ClientChain(options, house)


def arguments() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    return Client.parser("Have files sent here that servers announce.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``move_it_client.py``; give its exit status."""
    return Client(arguments().parse_args(argv)).run()


if __name__ == "__main__":
    sys.exit(main())
