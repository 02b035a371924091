"""The server daemon: announces new files and pushes them to clients on request."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from trollmoves.chains import Chain, Runtime
from trollmoves.config.options import ServerOptions
from trollmoves.daemons.provider import ProviderChain, ProviderDaemon
from trollmoves.journal import Task
from trollmoves.matching.patterns import Origin
from trollmoves.messaging.publisher import Publisher
from trollmoves.provider.announcer import Announcer
from trollmoves.provider.request_handler import RequestHandler
from trollmoves.server.file_sources import DirectorySource, MessageSource
from trollmoves.server.local_files import LocalFileStore
from trollmoves.server.remote_files import RemoteFileDescriber
from trollmoves.server.symlink_policy import SymlinkPolicy


class ServerChain(ProviderChain):
    """A running section of a server: announces the files of a source, and serves them through a request handler.

    Without a request port it serves no files; its announcements say how to open a file remotely.
    """

    def __init__(
        self, options: ServerOptions, runtime: Runtime, publisher: Publisher, *, backlog: bool, polling: bool
    ) -> None:
        """Bind the request port; raise StartError if it is in use."""
        self.name = options.name
        self._backlog = backlog
        self.request_handler = None
        root = Origin(options.origin).root if options.origin else None
        policy = SymlinkPolicy(self.name, root, options.external_symlinks)
        file_store = LocalFileStore(self.name, policy, options.quiet_time)
        if options.request_port is not None:
            self.request_handler = RequestHandler(options, options.request_port, runtime, publisher, file_store)
            self.announcer = self.request_handler.announcer
        else:
            self.announcer = Announcer(
                self.name,
                options.topic,
                runtime.journal,
                publisher,
                file_store=file_store,
                address=None,
                describe=RemoteFileDescriber(options, policy).describe,
            )
        self.announcer.on_announced = runtime.on_announced
        if options.delete and self.request_handler:
            self.announcer.removals = self.request_handler.removals
        announce = self.announcer.announce
        self._source: DirectorySource | MessageSource
        if options.origin is None:
            self._source = MessageSource(options, runtime.journal, policy, announce)
        else:
            self._source = DirectorySource(
                options, runtime.journal, runtime.scheduler, policy, announce, backlog=backlog, polling=polling
            )

    def provider_states(self) -> dict[str, bool]:
        """Return whether each publisher of messages is connected, by address. Any thread."""
        return self._source.connection_states() if isinstance(self._source, MessageSource) else {}

    def start(self) -> None:
        """Start replying to requests, then start announcing."""
        if self.request_handler:
            self.request_handler.start(republish=self._backlog)
        else:
            self.announcer.start()
        self._source.start()

    def on_reload(self) -> None:
        """Repeat the undelivered announcements, unless the backlog is disabled."""
        if self._backlog:
            super().on_reload()

    def repeat_last_messages(self) -> None:
        """Publish announcements of killed members of the fleet again, of which they cannot answer the requests."""
        if self.request_handler:
            self.request_handler.repeat_last_messages()

    def on_dropped(self, tasks: Sequence[Task]) -> None:
        """Reject the requests for files that an operator dropped."""
        if self.request_handler:
            self.request_handler.pushes.on_dropped(tasks)

    def stop(self) -> None:
        """Stop announcing, then stop replying to requests."""
        self._source.stop()
        if self.request_handler:
            self.request_handler.stop()
        else:
            self.announcer.stop()


class Server(ProviderDaemon[ServerOptions]):
    """The server daemon: one publisher for all its chains."""

    role = "server"
    options = ServerOptions
    service = "move_it_server"

    def make_chain(self, options: ServerOptions, runtime: Runtime) -> Chain:
        """Return a new chain for a section."""
        return ServerChain(
            options,
            runtime,
            self._publisher,
            backlog=not self.arguments.disable_backlog,
            polling=self.arguments.watchdog,
        )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Server.make_parser("Announce new files and push them to clients on request.")
    add_watch_arguments(parser)
    return parser


def add_watch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that watches directories."""
    add = parser.add_argument
    add("--disable-backlog", action="store_true", help="ignore the files that exist at the start")
    add("-w", "--watchdog", action="store_true", help="poll the directories instead of using inotify events")
    add("--chain-check-interval", type=float, default=30.0, help="accepted and ignored: chains need no checks")
    add("--max-notifier-restarts", type=int, default=10, help="accepted and ignored: there is no limit")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``move_it_server.py``; return its exit status."""
    return Server(make_parser().parse_args(argv)).run()
