"""What ``--check`` finds in a valid configuration by looking at this host, without a network."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from errno import EACCES
from importlib.util import find_spec
from typing import Any

from trollmoves.config.config_file import Configuration
from trollmoves.config.diagnostics import Diagnostics, did_you_mean
from trollmoves.config.fetch_options import S3DownloaderOptions
from trollmoves.config.ini_and_yaml import DEFAULT
from trollmoves.config.options import (
    ChainOptions,
    ClientOptions,
    MirrorOptions,
    MoveItOptions,
    ProcessOptions,
    ServerOptions,
    TargetOptions,
)
from trollmoves.config.targets import base_url
from trollmoves.errors import TransferError
from trollmoves.movers import mover_for
from trollmoves.net import urls
from trollmoves.utils.users import permission_remedy

# Metadata that most messages contain; the metadata of a site may have other names.
COMMON_FIELDS = (
    *("uid", "uri", "start_time", "end_time", "nominal_time", "creation_time", "platform_name", "sensor", "series"),
    *("orbit_number", "channel", "segment", "product", "format", "data_processing_level", "variant", "station"),
)
_FIELD_NAME = re.compile(r"\{([A-Za-z_]\w*)")


def environment_warnings(configuration: Configuration[Any], publish_port: int | None) -> tuple[str, ...]:
    """Return warnings about the sections that name file, section and option; ``publish_port`` is that of ``-p``."""
    diagnostics = Diagnostics(configuration.file)
    for option, text in _process_warnings(configuration.process):
        diagnostics.warn(DEFAULT, option, text)
    for name, chain in configuration.sections.items():
        for option, text in _warnings(chain, publish_port):
            diagnostics.warn(name, option, urls.redact_text(text))
    return tuple(diagnostics.warnings)


def static_directory(text: str) -> str:
    """Return the part of a path or URL before the first directory or name with a field."""
    before, brace, _ = text.partition("{")
    return before.rpartition("/")[0] + "/" if brace else text


def _process_warnings(process: ProcessOptions) -> Iterator[tuple[str, str]]:
    for option in ("metrics_port", "metrics_file"):
        if getattr(process, option) and not find_spec("prometheus_client"):
            yield option, "prometheus_client is not installed: pip install 'trollmoves[metrics]'"
    if process.web_port and not (find_spec("uvicorn") and find_spec("starlette")):
        yield "web_port", "uvicorn or starlette is not installed: pip install 'trollmoves[web]'"
    if process.web_port and process.web_port == process.metrics_port:
        yield "web_port", f"port {process.web_port} is already that of metrics_port: choose another one"
    directory = os.path.dirname(process.metrics_file) or "."
    if process.metrics_file and not os.path.isdir(directory):
        yield "metrics_file", f"the directory {directory} does not exist: create it, or correct the path"


def _warnings(chain: ChainOptions, publish_port: int | None) -> Iterator[tuple[str, str]]:
    if isinstance(chain, ServerOptions):
        yield from _server_warnings(chain, publish_port)
    if isinstance(chain, ClientOptions):
        yield from _client_warnings(chain)
    if isinstance(chain, S3DownloaderOptions):
        yield from _s3downloader_warnings(chain)
    if isinstance(chain, MoveItOptions):
        schemes = [("destinations", urls.parse(destination).scheme) for destination in chain.destinations]
    elif isinstance(chain, TargetOptions):
        schemes = [("host", base_url(config.host).scheme) for config in chain.dispatch_configs]
    else:
        schemes = []
    for option, scheme in schemes:
        yield from _library_warnings(option, scheme)


def _s3downloader_warnings(chain: S3DownloaderOptions) -> Iterator[tuple[str, str]]:
    yield from _library_warnings("bucket", "s3")
    if not os.path.isdir(chain.download_destination):
        text = f"the directory {chain.download_destination} does not exist: create it, or correct the path"
        yield "download_destination", text


def _server_warnings(chain: ServerOptions, publish_port: int | None) -> Iterator[tuple[str, str]]:
    if chain.origin and not isinstance(chain, MirrorOptions):
        directory = static_directory(os.path.join(os.path.dirname(chain.origin), ""))
        if problem := _why_unreadable(directory):
            yield "origin", f"the directory {directory} {problem}"
    if isinstance(chain, MoveItOptions):
        return
    if chain.request_port and chain.request_port == publish_port:
        yield "request_port", f"{publish_port} is also the port for announcements (-p): use two different ports"
    if chain.request_port and not chain.request_address and _is_loopback(chain.bind_address):
        yield "bind_address", f"{chain.bind_address} is only reachable from this host: set request_address too"


def _why_unreadable(directory: str) -> str:
    """Return the reason why this user cannot list a directory, with the remedy; empty if it can."""
    try:
        with os.scandir(directory):
            return "" if os.access(directory, os.X_OK) else f"cannot be searched{permission_remedy(EACCES, 'search')}"
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist: create it, or correct the path"
    except OSError as error:
        return f"cannot be read: {error.strerror}{permission_remedy(error.errno, 'read and search')}"


def _client_warnings(chain: ClientOptions) -> Iterator[tuple[str, str]]:
    if not chain.destination:
        return
    for name in dict.fromkeys(_FIELD_NAME.findall(chain.destination)):
        if name not in COMMON_FIELDS and (meant := did_you_mean(name, COMMON_FIELDS)):
            yield "destination", f"the field {{{name}}} is not common in messages{meant}"
    if not isinstance(chain, MirrorOptions):  # a mirror fetches files to this host
        return
    yield from _library_warnings("destination", urls.parse(static_directory(chain.destination)).scheme)


def _library_warnings(option: str, scheme: str) -> Iterator[tuple[str, str]]:
    try:
        mover_for(scheme)
    except TransferError as error:
        yield option, str(error)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
