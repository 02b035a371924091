"""Copy new files to several destinations: the directory watch of the server, the deliveries of the dispatcher."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial

from trollmoves.chains import Chain, Runtime
from trollmoves.config.config_file import Configuration
from trollmoves.config.options import ChainOptions, MoveItOptions, TargetOptions
from trollmoves.config.targets import config_of
from trollmoves.daemon import Daemon
from trollmoves.dispatcher.deliveries import COMPACTORS, RESENDERS, Deliveries
from trollmoves.matching.patterns import Origin
from trollmoves.messaging import sockets
from trollmoves.messaging.publisher import Publisher
from trollmoves.net import hosts, urls
from trollmoves.provider.announcer import Announcement
from trollmoves.server import explain as server_explain
from trollmoves.server.daemon import add_watch_arguments
from trollmoves.server.file_sources import DirectorySource
from trollmoves.server.symlink_policy import SymlinkPolicy
from trollmoves.status.explanation import Explanation, Subject
from trollmoves.utils.symlinks import is_below


class MoveItChain(Chain):
    """A running section: each file that its source finds is delivered to all destinations."""

    def __init__(
        self, options: MoveItOptions, runtime: Runtime, publisher: Publisher | None, *, backlog: bool, polling: bool
    ) -> None:
        self.name = options.name
        self._runtime = runtime
        self._root = Origin(options.origin or "").root
        self._symlink_policy = SymlinkPolicy(self.name, self._root, options.external_symlinks)
        self._metadata = _request_address(options)
        self._source = DirectorySource(
            options,
            runtime.journal,
            runtime.scheduler,
            self._symlink_policy,
            partial(self._deliver, removes=options.delete),
            backlog=backlog,
            polling=polling,
            announce_unpacked=partial(self._deliver, removes=True),
            accept=lambda file: self._deliveries.is_new(file),
            empty=True,
        )
        self._deliveries = Deliveries(
            delivery_options(options),
            runtime.journal,
            runtime.scheduler,
            publisher,
            check_opened=self._check_opened,
            remove=self._source.remove,
        )

    def start(self) -> None:
        """Resume pending deliveries, then start watching the directory."""
        self._deliveries.start()
        self._source.start()

    def stop(self) -> None:
        """Stop watching the directory; pending deliveries stay in the journal."""
        self._source.stop()
        self._runtime.scheduler.unregister(self.name)

    def _deliver(self, files: Sequence[Announcement], *, removes: bool) -> None:
        """Store the deliveries of files. Watch thread; for unpacked files a worker thread."""
        self._deliveries.add_files((file.data | self._metadata for file in files), removes=removes)

    def _check_opened(self, path: str, fd: int) -> None:
        """Raise RequestRejected if a file of the origin was replaced by a link that must not be followed."""
        if is_below(path, self._root):
            self._symlink_policy.check_opened(path, fd)


class MoveIt(Daemon[MoveItOptions]):
    """The daemon: at most one publisher for all its sections."""

    role = "move_it"
    options = MoveItOptions
    last_event = "delivered"
    compactors = COMPACTORS
    resenders = RESENDERS
    _publisher: Publisher | None = None

    def open_shared(self, runtime: Runtime) -> None:
        """Start the publisher if it has a port."""
        if self.arguments.port is not None:
            self._publisher = Publisher(
                "move_it",
                self.arguments.port,
                nameservers=False,
                bind_address=runtime.options.bind_address,
                clients=runtime.options.allowed_clients,
                option="the port of -p",
            )
            self._publisher.start()

    def close_shared(self) -> None:
        """Stop the publisher."""
        if self._publisher:
            self._publisher.stop()

    def make_chain(self, options: MoveItOptions, runtime: Runtime) -> Chain:
        """Return the chain of one section."""
        return MoveItChain(
            options,
            runtime,
            self._publisher,
            backlog=not self.arguments.disable_backlog,
            polling=self.arguments.watchdog,
        )


def delivery_options(options: MoveItOptions) -> TargetOptions:
    """Return the section as a target of a dispatcher, with a dispatch config for each destination."""
    return TargetOptions(
        **{field.name: getattr(options, field.name) for field in fields(ChainOptions)},
        origin=options.origin or "",
        quiet_time=options.quiet_time,
        publish_topic=options.topic,
        connection_parameters=options.connection_parameters,
        dispatch_configs=tuple(map(config_of, options.destinations)),
    )


def explain(configuration: Configuration[MoveItOptions], subject: Subject) -> list[Explanation]:
    """Return the decision of each section about a file, or about each file that a message names."""
    to = {name: ", ".join(map(urls.redacted, one.destinations)) for name, one in configuration.sections.items()}
    return [
        replace(found, destination=to[found.section] if found.matches else "")
        for found in server_explain.explain(configuration, subject)
    ]


def _request_address(options: MoveItOptions) -> dict[str, str]:
    """Return the metadata that contains the request address, empty without a request port."""
    if options.request_port is None:
        return {}
    address = sockets.tcp(options.request_address or hosts.own_address(), options.request_port)
    return {"request_address": address.removeprefix("tcp://")}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = MoveIt.make_parser("Copy new files to several destinations.")
    parser.add_argument(
        "-p",
        "--port",
        type=int,
        help="port for publishing messages about delivered files; without it none are published",
    )
    add_watch_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``move_it.py``; return its exit status."""
    return MoveIt(make_parser().parse_args(argv)).run()


if __name__ == "__main__":
    sys.exit(main())
