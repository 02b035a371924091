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
from trollmoves.daemon import Chain, Daemon, House
from trollmoves.errors import BadDestination
from trollmoves.fetcher import Attempt
from trollmoves.lanes import Result
from trollmoves.messaging import contents
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.options import ClientOptions
from trollmoves.patterns import Pattern
from trollmoves.receiver import Receiver

log = logging.getLogger(__name__)

PREPARED_FOR = 10.0  # s for which a composed destination is used without a look at its directory
MOST_PREPARED = 1_000  # of them

_OURS = ("request_address", "destination", "announcement", "request", "backup_targets")


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
        self._receiver = Receiver(
            options,
            house.journal,
            house.workers,
            prepare=self._prepare,
            asking=self._tell_asking,
            arrived=self._tell_arrived,
        )

    def start(self) -> None:
        """Begin to hear and to fetch."""
        self._publisher.start()
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

    def _tell_arrived(self, attempt: Attempt, answer: Message) -> Result:
        """Publish that the source is done with, then where the files are now."""
        message = attempt.message
        data = self._receipt(attempt, answer)
        receipt = Message(message.subject, contents.reply_type(data), data)
        self._publisher.send_texts([message.variant("ack"), receipt.encode()])
        log.info(
            "[%s] received %s from %s (%.2f s, try %d)",
            self.name,
            contents.names(message.data),
            attempt.source,
            time.monotonic() - attempt.started,
            attempt.task.tries,
        )
        return Result()

    # -- what is told

    def _receipt(self, attempt: Attempt, answer: Message) -> dict[str, Any]:
        url = _reached(answer) or urls.parse(attempt.destination)
        base = url.path if urls.is_local(url.hostname) else _with_user(url, attempt.destination)
        data: dict[str, Any] = _moved(attempt.message.data, base.rstrip("/"))
        for key in _OURS:
            data.pop(key, None)
        data["origin"] = attempt.source
        for key, replacement in self._options.replacements.items():
            if key in data:
                data[key] = replacement.apply(data[key])
        return data


def _with_user(url: ParseResult, asked: str) -> str:
    """Give a URL with the user, but not the password, under which it was asked for."""
    place = url.netloc.rpartition("@")[2]
    user = urls.parse(asked).netloc.rpartition("@")[0].partition(":")[0]
    return urls.with_login(url._replace(netloc=f"{user}@{place}" if user else place), "")


def _reached(answer: Message) -> ParseResult | None:
    """Give the destination that a server says it has reached: with a backup target it is not the one asked for."""
    said = answer.data.get("destination") if isinstance(answer.data, dict) else None
    try:
        url = urls.parse(said) if isinstance(said, str) else None
    except BadDestination:
        return None
    return url if url and url.hostname else None


def _moved(value: Any, base: str) -> Any:
    """Give a copy of a message's data in which each ``uri`` says where the file is now."""
    if isinstance(value, list):
        return [_moved(item, base) if isinstance(item, (dict, list)) else item for item in value]
    moved = {key: _moved(item, base) if isinstance(item, (dict, list)) else item for key, item in value.items()}
    if "uri" in moved:
        path = moved.get("path")
        name = os.path.basename(str(value.get("uid") or value["uri"]))
        moved["uri"] = (
            "/".join(filter(None, (base, str(path).strip("/") if path else "", name))) if base else f"/{name}"
        )
    return moved


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
