"""A file appears here: announce it, hand it out on request."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from trollmoves.announcer import Announcement
from trollmoves.daemon import Chain, Daemon, House
from trollmoves.errors import ConfigError
from trollmoves.messaging.publisher import Publisher
from trollmoves.options import ServerOptions
from trollmoves.patterns import Origin
from trollmoves.provider import Provider
from trollmoves.watch import Found, Watch

log = logging.getLogger(__name__)

PUBLISH_PORT = 9010


class ServerChain:
    """One section of a server, running."""

    def __init__(
        self, options: ServerOptions, house: House, publisher: Publisher, *, backlog: bool, polling: bool
    ) -> None:
        """Bind the request port; StartError when it is taken."""
        if options.origin is None or options.request_port is None:
            missing = "origin" if options.origin is None else "request_port"
            raise ConfigError("is missing", section=options.name, option=missing)
        self.name = options.name
        self._options = options
        self._backlog = backlog
        self.provider = Provider(options, options.request_port, house.journal, publisher, house.workers)
        self._watch = Watch(
            Origin(options.origin),
            self._announce,
            backlog=backlog,
            polling=options.watchdog_timeout if polling else None,
            name=options.name,
        )

    def start(self) -> None:
        """Answer requests, then announce."""
        self.provider.start(again=self._backlog)
        self._watch.start()

    def stop(self) -> None:
        """Announce nothing more, then answer nothing more."""
        self._watch.stop()
        self.provider.stop()

    def _announce(self, found: list[Found]) -> None:
        self.provider.announcer.announce([self._announcement(one) for one in found])

    def _announcement(self, found: Found) -> Announcement:
        uid = os.path.basename(found.path)
        data: dict[str, Any] = {**self._options.info, **found.fields, "uri": found.path, "uid": uid}
        return Announcement(found.path, uid, data, found.size, found.mtime_ns)


class Server(Daemon[ServerOptions]):
    """The server daemon: one publisher for all its chains."""

    role = "server"
    options = ServerOptions

    def open(self, house: House) -> None:
        """Bind the publish port."""
        self._publisher = Publisher(
            "move_it_server",
            self.arguments.port,
            bind_address=house.options.bind_address,
            beat_data=self._beat,
        )
        self._publisher.start()

    def close(self) -> None:
        """Give the publish port back."""
        self._publisher.stop()

    def chain(self, options: ServerOptions, house: House) -> Chain:
        """Make the chain of one section."""
        return ServerChain(
            options,
            house,
            self._publisher,
            backlog=not self.arguments.disable_backlog,
            polling=self.arguments.watchdog,
        )

    def _beat(self) -> dict[str, Any]:
        return {"logs": [c.provider.announcer.beat() for c in self.running() if isinstance(c, ServerChain)]}


def arguments() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = Server.parser("Announce files that appear here, and push them where clients want them.")
    add = parser.add_argument
    add("-p", "--port", type=int, default=PUBLISH_PORT, help="port on which files are announced (%(default)s)")
    add("--disable-backlog", action="store_true", help="leave alone the files that are there at the start")
    add("-w", "--watchdog", action="store_true", help="poll the directories instead of waiting for kernel events")
    add("--chain-check-interval", type=float, default=30.0, help="accepted; chains look after themselves")
    add("--max-notifier-restarts", type=int, default=10, help="accepted; there is no limit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``move_it_server.py``; give its exit status."""
    return Server(arguments().parse_args(argv)).run()


if __name__ == "__main__":
    sys.exit(main())
