"""Command ``s3downloader.py``: fetch the objects of one bucket that messages name, and publish where they are."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import ParseResult

from trollmoves.config import parsers
from trollmoves.config.config_file import Configuration
from trollmoves.config.fetch_files import read_s3downloader_config
from trollmoves.config.fetch_options import S3DownloaderOptions
from trollmoves.daemon import nameservers_of
from trollmoves.errors import MessageError
from trollmoves.fetching.chain import Rules
from trollmoves.fetching.daemon import Endpoints, FetchDaemon
from trollmoves.fetching.sources import Source, Sources
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.net import urls
from trollmoves.utils import logs
from trollmoves.utils.log_writer import LogWriter, Rotation

_NOT_PUBLISHED = ("dataset", "collection", "filename", "compress", "tst", "uri", "uid", "file_list", "path")


class S3DownloaderRules(Rules):
    """The objects of one bucket, to an existing directory.

    A message with a ``uri`` names one object; one without names those of its dataset or collection, each of which is
    published in a message.
    """

    make_directory = False

    def __init__(self, options: S3DownloaderOptions) -> None:
        self._options = options
        self._sources = Sources()

    def items(self, message: Message) -> Sequence[dict[str, Any]]:
        """Return the message's data, else those of each file in them."""
        if not isinstance(message.data, dict):
            raise MessageError("its data must be a dictionary")
        if "uri" in message.data:
            return [message.data]
        if found := payload.file_items(message.data):
            return found
        raise MessageError("it names no file")

    def source(self, item: dict[str, Any]) -> Source:
        """Return the object with the last part of the ``uri``."""
        uri = item["uri"]
        if not isinstance(uri, str):
            raise MessageError(f"its uri must be a string: {urls.excerpt(str(uri), 100)!r}")
        name = os.path.basename(urls.parse(uri).path if "://" in uri else uri)
        url = ParseResult("s3", self._options.bucket, f"/{name}", "", "", "")
        return self._sources.s3_object(url, self._options.connection_parameters, name=name)

    def path(self, message: Message, source: Source) -> str:  # noqa: ARG002  (the directory is fixed)
        """Return the path of the object in the directory."""
        return os.path.join(self._options.download_destination, source.name)

    def receipt(self, message: Message, path: str) -> Message:
        """Return the message with the local path."""
        kept = {key: value for key, value in message.data.items() if key not in _NOT_PUBLISHED}
        return Message(self._options.publish_topic, "file", {**kept, "uri": path})


class S3Downloader(FetchDaemon[S3DownloaderOptions]):
    """The process."""

    role = "s3downloader"
    options = S3DownloaderOptions
    types = payload.FILE_TYPES

    def read_file(self) -> Configuration[S3DownloaderOptions]:
        """Return the parsed configuration file; raise ``ConfigError`` if it is unusable."""
        return read_s3downloader_config(self._file)

    def set_up_log(self) -> LogWriter:
        """Set up the log as the configuration says; raise ``ConfigError`` if it is not usable."""
        (options,) = self.read_file().sections.values()
        verbose = self.arguments.verbose or options.logging__logging_mode.upper() == "DEBUG"
        rotation = Rotation(options.logging__log_rotation_days, options.logging__log_rotation_backup, utc=True)
        return logs.set_up(file=self.arguments.log, verbose=verbose, rotation=rotation)

    def endpoints(self, options: S3DownloaderOptions) -> Endpoints:
        """Return the endpoints of the process; the name servers are those of the command line."""
        return Endpoints(
            options.subscribe_topic,
            options.subscriber_addresses,
            options.services,
            parsers.nameserver(self.arguments.subscribe_nameserver),
            self.role,
            nameservers=nameservers_of(self.arguments.nameservers),
        )

    def rules(self, options: S3DownloaderOptions) -> Rules:
        """Return the rules of the chain."""
        return S3DownloaderRules(options)

    @classmethod
    def make_parser(cls, description: str) -> argparse.ArgumentParser:
        """Return the parser of the command line."""
        parser = argparse.ArgumentParser(description=description)
        add = parser.add_argument
        add("config_file", nargs="?", metavar="FILE", help="the configuration file (YAML)")
        add("-c", "--config-file", dest="config_option", metavar="FILE", help="the same")
        add(
            "-r",
            "--subscribe-nameserver",
            default="localhost",
            metavar="HOST",
            help="host of the name server to ask for publishers; false: none (default: localhost)",
        )
        add(
            "-n",
            "--nameservers",
            nargs="*",
            metavar="HOST",
            help="register the port with these nameservers; without HOST, or with false: none; without it: multicast",
        )
        cls.add_arguments(parser)
        return parser


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    return S3Downloader.make_parser("Fetch the objects of a bucket that messages name, and publish where they are.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s3downloader.py`` and return its exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    arguments.config_file = arguments.config_option or arguments.config_file
    if not arguments.config_file:
        sys.stderr.write(f"{parser.prog}: no configuration file: name it with -c FILE\n")
        return 1
    return S3Downloader(arguments).run()


if __name__ == "__main__":
    sys.exit(main())
