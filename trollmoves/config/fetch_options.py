"""The options of ``pytroll-fetcher`` and ``s3downloader.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from trollmoves.config import parsers
from trollmoves.config.option_table import option, optional, required
from trollmoves.config.options import ChainOptions, Nameservers, nameserver, publisher_addresses, services


@dataclass(frozen=True, kw_only=True, repr=False)
class FetcherOptions(ChainOptions):
    """What ``pytroll-fetcher`` fetches; ``group__name`` is the key ``name`` below ``group`` in its file."""

    role = "fetcher"
    destination: str = required(
        parsers.text, "directory on this host to fetch files to, created if missing; it may contain metadata fields"
    )
    subscriber_config__topics: tuple[str, ...] = option(
        parsers.word_list, "", "subjects to subscribe to; without it all"
    )
    subscriber_config__addresses: tuple[str, ...] = publisher_addresses()
    subscriber_config__services: tuple[str, ...] = services()
    subscriber_config__nameserver: str | Literal[False] = nameserver()
    publisher_config__name: str = option(parsers.text, "fetcher", "name of the service that is published")
    publisher_config__port: int = option(parsers.integer(0, 65535), "0", "port to publish on; 0 is any free port")
    publisher_config__nameservers: Nameservers = optional(  # noqa: RUF009  (returns a field)
        parsers.nameservers, "hosts of the name servers for that port; `false` disables them, without it multicast"
    )
    publisher_config__min_port: int | None = optional(parsers.port, "first port that may be chosen for port 0")
    publisher_config__max_port: int | None = optional(parsers.port, "port after the last that may be chosen")


@dataclass(frozen=True, kw_only=True, repr=False)
class S3DownloaderOptions(ChainOptions):
    """What ``s3downloader.py`` fetches; ``logging__name`` is the key ``name`` below ``logging`` in its file."""

    role = "s3downloader"
    subscribe_topic: tuple[str, ...] = required(parsers.word_list, "subjects to subscribe to")
    publish_topic: str = required(parsers.subject, "subject of the messages about fetched files")
    bucket: str = required(parsers.text, "bucket of the objects, whatever the `uri` of a message says")
    download_destination: str = option(parsers.text, ".", "existing directory on this host to fetch objects to")
    services: tuple[str, ...] = services()
    subscriber_addresses: tuple[str, ...] = publisher_addresses()
    logging__log_rotation_days: int = option(parsers.integer(1, 1000), "1", "days after which the log file is rotated")
    logging__log_rotation_backup: int = option(parsers.integer(0, 100000), "30", "old log files that are kept")
    logging__logging_mode: str = option(parsers.text, "info", "`DEBUG` logs more")
    connection_parameters: dict[str, Any] = field(default_factory=dict)
