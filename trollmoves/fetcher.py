"""Command ``pytroll-fetcher``: fetch the file that a message names, and publish where it is."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trollmoves.config.config_file import Configuration
from trollmoves.config.diagnostics import Diagnostics
from trollmoves.config.fetch_files import fetcher_config, read_fetcher_config
from trollmoves.config.fetch_options import FetcherOptions
from trollmoves.errors import MessageError
from trollmoves.fetching.chain import Rules
from trollmoves.fetching.daemon import Endpoints, FetchDaemon
from trollmoves.fetching.fetch import fetch
from trollmoves.fetching.sources import Source, Sources
from trollmoves.messaging.messages import Message
from trollmoves.receiver.destinations import Destinations

_FUNCTION = "fetch_from_subscriber"
_NOT_PUBLISHED = ("filesystem", "path", "uid", "uri")


class FetcherRules(Rules):
    """The files of ``file`` messages, to a directory that is composed from their metadata."""

    make_directory = True

    def __init__(self, destination: str) -> None:
        """Raise ValueError if the destination is not a valid pattern."""
        self._destinations = Destinations("fetcher", destination, login=None, make=False, ftp_root="")
        self._sources = Sources()

    def items(self, message: Message) -> Sequence[dict[str, Any]]:
        """Return the data of the message."""
        if not isinstance(message.data, dict):
            raise MessageError("its data must be a dictionary")
        return [message.data]

    def source(self, item: dict[str, Any]) -> Source:
        """Return the source by ``path`` and ``filesystem``, else by ``uri``."""
        return self._sources.source(item)

    def path(self, message: Message, source: Source) -> str:
        """Return the path: the composed directory and the name of the source."""
        return os.path.join(self._destinations.compose(message).path, source.name)

    def receipt(self, message: Message, path: str) -> Message:
        """Return the message of the same subject with the local path."""
        kept = {key: value for key, value in message.data.items() if key not in _NOT_PUBLISHED}
        return Message(message.subject, "file", {**kept, "uri": path, "uid": os.path.basename(path)})


class Fetcher(FetchDaemon[FetcherOptions]):
    """The process."""

    role = "fetcher"
    options = FetcherOptions
    types = ("file",)

    def read_file(self) -> Configuration[FetcherOptions]:
        """Return the parsed configuration file; raise ``ConfigError`` if it is unusable."""
        return read_fetcher_config(self._file)

    def endpoints(self, options: FetcherOptions) -> Endpoints:
        """Return the endpoints, by the rules of posttroll's ``create_..._from_dict_config``."""
        ports = options.publisher_config__min_port, options.publisher_config__max_port
        return Endpoints(
            options.subscriber_config__topics,
            options.subscriber_config__addresses,
            options.subscriber_config__services,
            options.subscriber_config__nameserver,
            options.publisher_config__name,
            options.publisher_config__port,
            options.publisher_config__nameservers,
            (ports[0] or 49152, ports[1] or 65536) if any(ports) else None,
        )

    def rules(self, options: FetcherOptions) -> Rules:
        """Return the rules of the chain."""
        return FetcherRules(options.destination)


def fetch_from_message(message: Any, destination: str | os.PathLike[str]) -> Path:
    """Fetch the file of a message to a directory, in the calling thread, and return its path.

    Args:
        message: a message of posttroll about a file.
        destination: the directory, created if missing; it may contain metadata fields.

    Raises:
        MessageError: the message names no file that can be read.
        ComposeError: the metadata do not fit the destination.
        TransferError: the file was not fetched; ``temporary`` is True if it may be fetched later.
    """
    rules = FetcherRules(os.fspath(destination))
    own = Message(message.subject, message.type, message.data)
    (item,) = rules.items(own)
    source = rules.source(item)
    path = rules.path(own, source)
    fetch(source, path, make_directory=rules.make_directory)
    return Path(path)


def fetch_from_subscriber(
    destination: str | os.PathLike[str], subscriber_config: Mapping[str, Any], publisher_config: Mapping[str, Any]
) -> None:
    """Fetch the files of received messages and publish where they are, until KeyboardInterrupt.

    The journal of pending fetches belongs to this destination and name of the publisher.

    Args:
        destination: the directory, created if missing; it may contain metadata fields.
        subscriber_config: as for ``create_subscriber_from_dict_config`` of posttroll.
        publisher_config: as for ``create_publisher_from_dict_config`` of posttroll.

    Raises:
        StartError: the configuration is invalid, or the port or the journal is in use.
    """
    given = {"destination": os.fspath(destination), "subscriber_config": dict(subscriber_config)}
    _ScriptFetcher({**given, "publisher_config": dict(publisher_config)}).run_in_script()


class _ScriptFetcher(Fetcher):
    """A fetcher with a configuration that is not in a file."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        identity = json.dumps([given["destination"], given["publisher_config"].get("name")])
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        super().__init__(argparse.Namespace(config_file=f"/{_FUNCTION}-{digest}", check=False))
        self._given = given

    def read_file(self) -> Configuration[FetcherOptions]:
        return fetcher_config(Diagnostics(_FUNCTION), self._given)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    return Fetcher.make_parser("Fetch the files that messages name to this host, and publish where they are.")


def cli(args: Sequence[str] | None = None) -> int:
    """Run ``pytroll-fetcher`` and return its exit status."""
    return Fetcher(make_parser().parse_args(args)).run()


if __name__ == "__main__":
    sys.exit(cli())
