"""A file appears here: announce it, hand it out on request."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from trollmoves.config.options import ServerOptions
from trollmoves.daemon import Chain, Daemon, Runtime
from trollmoves.matching.patterns import Origin
from trollmoves.messaging.publisher import Publisher
from trollmoves.provider import pushes
from trollmoves.provider.announcer import Announcer
from trollmoves.provider.request_handler import RequestHandler, security_warning
from trollmoves.server.file_sources import DirectorySource, MessageSource
from trollmoves.server.local_files import LocalFileStore
from trollmoves.server.remote_files import RemoteFileDescriber
from trollmoves.server.symlink_policy import SymlinkPolicy

log = logging.getLogger(__name__)

PUBLISH_PORT = 9010


class ServerChain:
    """One section of a server, running: what an inlet finds is announced, and handed out by a provider.

    Without a request port nothing is handed out: the announcements tell where a file can be read.
    """

    def __init__(
        self, options: ServerOptions, house: Runtime, publisher: Publisher, *, backlog: bool, polling: bool
    ) -> None:
        """Bind the request port; StartError when it is taken."""
        self.name = options.name
        self._backlog = backlog
        self._provider = None
        root = Origin(options.origin).root if options.origin else None
        self._whereabouts = SymlinkPolicy(self.name, root, options.external_symlinks)
        holdings = LocalFileStore(self.name, house.journal, self._whereabouts)
        if options.request_port is not None:
            self._provider = RequestHandler(
                options, options.request_port, house.journal, publisher, house.workers, holdings
            )
            self.announcer = self._provider.announcer
        else:
            show = RemoteFileDescriber(options)
            self.announcer = Announcer(
                self.name,
                options.topic,
                house.journal,
                publisher,
                file_store=holdings,
                address=None,
                describe=show.describe,
            )
        self._inlet = self._make_source(options, house, backlog, polling)

    def _make_source(
        self, options: ServerOptions, house: Runtime, backlog: bool, polling: bool
    ) -> DirectorySource | MessageSource:
        announce = self.announcer.announce
        if options.origin is None:
            return MessageSource(options, self._whereabouts, announce)
        return DirectorySource(
            options, house.journal, house.workers, self._whereabouts, announce, backlog=backlog, polling=polling
        )

    @property
    def takes_requests(self) -> bool:
        """Whether it takes requests."""
        return self._provider is not None

    def start(self) -> None:
        """Answer requests, then announce."""
        if self._provider:
            self._provider.start(republish=self._backlog)
        else:
            self.announcer.start(republish=False)
        self._inlet.start()

    def stop(self) -> None:
        """Announce nothing more, then answer nothing more."""
        self._inlet.stop()
        if self._provider:
            self._provider.stop()
        else:
            self.announcer.stop()


class Server(Daemon[ServerOptions]):
    """The server daemon: one publisher for all its chains."""

    role = "server"
    options = ServerOptions
    compactors = {"push": pushes.compact_body}

    def open_shared(self, house: Runtime) -> None:
        """Bind the publish port."""
        self._publisher = Publisher(
            "move_it_server",
            self.arguments.port,
            bind_address=house.options.bind_address,
            clients=house.options.allowed_clients,
            beat_data=self._heartbeat_data,
        )
        self._publisher.start()

    def startup_warning(self, chains: Iterable[ServerOptions]) -> str:
        """Say what these chains allow that may not be meant."""
        return security_warning(chains)

    def close_shared(self) -> None:
        """Give the publish port back."""
        self._publisher.stop()

    def make_chain(self, options: ServerOptions, house: Runtime) -> Chain:
        """Make the chain of one section."""
        return ServerChain(
            options,
            house,
            self._publisher,
            backlog=not self.arguments.disable_backlog,
            polling=self.arguments.watchdog,
        )

    def _heartbeat_data(self) -> dict[str, Any]:
        return {
            "logs": [
                c.announcer.heartbeat_data()
                for c in self.running_chains()
                if isinstance(c, ServerChain) and c.takes_requests
            ]
        }


def make_parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = Server.make_parser("Announce files that appear here, and push them where clients want them.")
    add = parser.add_argument
    add("-p", "--port", type=int, default=PUBLISH_PORT, help="port on which files are announced (%(default)s)")
    add("--disable-backlog", action="store_true", help="leave alone the files that are there at the start")
    add("-w", "--watchdog", action="store_true", help="poll the directories instead of waiting for kernel events")
    add("--chain-check-interval", type=float, default=30.0, help="accepted; chains look after themselves")
    add("--max-notifier-restarts", type=int, default=10, help="accepted; there is no limit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``move_it_server.py``; give its exit status."""
    return Server(make_parser().parse_args(argv)).run()
