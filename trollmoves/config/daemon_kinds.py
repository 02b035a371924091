"""Which daemon a configuration file belongs to, and how to read it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from trollmoves.config import config_file, removal_file
from trollmoves.config.config_file import Configuration
from trollmoves.config.diagnostics import Diagnostics
from trollmoves.config.dispatcher_file import SUBSCRIBER, read_dispatcher_config
from trollmoves.config.fetch_files import read_fetcher_config, read_s3downloader_config
from trollmoves.config.ini_and_yaml import DEFAULT, Document, is_ini, load_yaml, read_document, read_ini, read_text
from trollmoves.config.option_table import options_of
from trollmoves.config.options import ClientOptions, MirrorOptions, MoveItOptions, ProcessOptions, ServerOptions
from trollmoves.errors import ConfigError

READERS: Mapping[str, Callable[[str], Configuration[Any]]] = {
    "server": partial(config_file.read, role=ServerOptions),
    "client": partial(config_file.read, role=ClientOptions),
    "mirror": partial(config_file.read, role=MirrorOptions),
    "dispatcher": read_dispatcher_config,
    "move_it": partial(config_file.read, role=MoveItOptions),
    "fetcher": read_fetcher_config,
    "s3downloader": read_s3downloader_config,
    "remove_it": removal_file.read_configuration,
}
KINDS = tuple(READERS)
WITHOUT_JOURNAL = ("remove_it",)  # commands that end, for files only ``check`` and ``explain`` are about
_ONE_CHAIN = {"fetcher": ("subscriber_config", "publisher_config"), "s3downloader": ("bucket", "publish-topic")}
_OF_A_TARGET = {"host", "directory", "filepattern", "topics", "conditions", "aliases", "dispatch_configs"}


def detect_kind(path: str | os.PathLike[str]) -> str:
    """Return the kind of daemon or command that a configuration file is for: one of ``KINDS``.

    Raises:
        ConfigError: the file cannot be read, or it does not show its kind.
    """
    file = os.fspath(path)
    content = read_text(file)
    if not is_ini(content):
        return _kind_of_yaml(load_yaml(file, content, Diagnostics(file)))
    document = read_ini(file, content)
    kinds = Counter(filter(None, (_kind_of(name, options) for name, options in document.sections.items())))
    (kind, count), *others = kinds.most_common(2) or [("", 0)]
    if not kind or (others and others[0][1] == count):
        raise ConfigError(f"it may belong to any daemon: use --kind with one of {', '.join(KINDS)}", file=file)
    return kind


def _kind_of_yaml(names: Collection[Any]) -> str:
    return next((kind for kind, own in _ONE_CHAIN.items() if any(name in names for name in own)), "dispatcher")


def _kind_of(section: str, options: Collection[str]) -> str:
    """Return the kind of daemon that has a section with these options, an empty string if it is not known."""
    if "templates" in options:
        return "remove_it"
    if section == SUBSCRIBER or _OF_A_TARGET & {name.partition("__")[0] for name in options}:
        return "dispatcher"
    if "providers" in options or "client_topic" in options:
        return "mirror" if "request_port" in options else "client"
    if "destinations" in options:
        return "move_it"
    return "server" if "origin" in options or "listen" in options else ""


def section_names(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of all sections of a file, also of invalid ones; ConfigError if it cannot be parsed."""
    file = os.fspath(path)
    content = read_text(file)
    if not is_ini(content) and (kind := _kind_of_yaml(load_yaml(file, content, Diagnostics(file)))) in _ONE_CHAIN:
        return [kind]
    document: Document = read_document(file, Diagnostics(file), options_of(ProcessOptions))
    return [name for name in document.sections if name not in (SUBSCRIBER, DEFAULT)]
