"""A file is announced there: have it sent here, tell our side."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import ParseResult

from trollmoves import urls
from trollmoves.arrivals import Arrivals
from trollmoves.daemon import Chain, Daemon, House
from trollmoves.fetcher import Attempt
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.options import ClientOptions
from trollmoves.patterns import Pattern
from trollmoves.receiver import Receiver

log = logging.getLogger(__name__)

PREPARED_FOR = 10.0  # s for which a composed destination is used without a look at its directory
MOST_PREPARED = 1_000  # of them


class ClientChain:
    """One section of a client, running: what arrives is published on a port of its own."""

    def __init__(self, options: ClientOptions, house: House) -> None:
        """Bind the port and connect; StartError when that fails."""
        self.name = options.name
        self._options = options
        self._prepared: dict[str, tuple[str, float]] = {}
        self._destination = Pattern(options.destination, compose_only=True)
        self._publisher = Publisher(
            f"move_it_{options.name}",
            options.publish_port,
            nameservers=options.nameservers,
            bind_address=options.bind_address,
        )
        self._arrivals = Arrivals(options, house.workers, self._publisher)
        self._receiver = Receiver(
            options,
            house.journal,
            house.workers,
            prepare=self._prepare,
            asking=self._tell_asking,
            arrived=self._arrivals.arrived,
        )

    def start(self) -> None:
        """Begin to hear and to fetch."""
        self._publisher.start()
        self._arrivals.start()
        self._receiver.start()

    def stop(self) -> None:
        """Hear and publish nothing more."""
        self._receiver.stop()
        self._publisher.stop()

    # -- the receiver asks

    def _prepare(self, message: Message) -> str:
        """Give the URL to which a file goes: composed with its metadata, with scheme, login and host filled in."""
        text = self._options.destination
        if "{" in text:
            text = self._destination.compose(message.data)
        made, until = self._prepared.get(text, ("", 0.0))
        if time.monotonic() > until:
            made = self._make_ready(text)
            if len(self._prepared) > MOST_PREPARED:
                self._prepared.clear()
            self._prepared[text] = (made, time.monotonic() + PREPARED_FOR)
        return made

    def _make_ready(self, text: str) -> str:
        url = urls.parse(text)
        local = urls.is_local(url.hostname)
        if local and self._options.create_target_directory:
            self._make_directory(url)
        if not url.netloc:
            url = url._replace(netloc=socket.gethostname())
        return urls.with_login(url, self._options.login or "")

    def _make_directory(self, url: ParseResult) -> None:
        path = url.path
        if url.scheme != "file" and self._options.ftp_root != "/":
            path = os.path.join(self._options.ftp_root, path.lstrip("/"))
        if os.path.isdir(path):
            return
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            log.warning("[%s] cannot make the directory %s: %s", self.name, path, error.strerror)

    def _tell_asking(self, attempt: Attempt) -> None:
        added: dict[str, Any] = {"destination": urls.without_login(attempt.destination)}
        if self._options.backup_targets:
            added["backup_targets"] = list(self._options.backup_targets)
        self._publisher.send_texts([attempt.message.variant("push", added)])


class Client(Daemon[ClientOptions]):
    """The client daemon."""

    role = "client"
    options = ClientOptions

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
