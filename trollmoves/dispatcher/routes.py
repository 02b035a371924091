"""Where a target wants which files: its dispatch configs, ready for use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import ParseResult

from trollmoves.config.options import Alias, DispatchConfig, TargetOptions
from trollmoves.config.targets import base_url, pattern_of
from trollmoves.dispatcher.files import LocalFile
from trollmoves.errors import BadDestination
from trollmoves.matching.patterns import Pattern
from trollmoves.net import urls

CREATION_TIME = "file_creation_time"


class Route:
    """One dispatch config of a target; any thread may use it."""

    def __init__(self, number: int, config: DispatchConfig) -> None:
        self.number = number
        self._config = config
        base = base_url(config.host)
        self._base = base._replace(netloc=without_password(base.netloc))
        text = pattern_of(config)
        self._pattern = Pattern(text, compose_only=True)
        self._keeps_name = not config.filepattern
        self._climbs = ".." in text.split("/")
        self._wants_time = CREATION_TIME in text

    def mismatch_reason(self, subject: str | None, metadata: Mapping[str, Any]) -> str:
        """Give the reason why a message does not go this way, empty when it does.

        Without a ``subject`` it is of no importance, as for files that are found.
        """
        topics = self._config.topics
        if subject is not None and not subject.startswith(topics):
            return f"its subject does not begin with {' or '.join(topics) or 'anything that is asked for'}"
        return self._config.conditions.mismatch_reason(metadata) if self._config.conditions else ""

    def destination(self, file: LocalFile) -> ParseResult:
        """Give the URL, without a password, of the place for a file.

        Raises:
            ComposeError: metadata are missing, or do not fit.
            BadDestination: metadata lead to a place above the directory.
        """
        metadata = with_aliases(file.metadata, self._config.aliases)
        if self._wants_time:
            # As ever: the local time at which the file got its name, content and rights.
            metadata[CREATION_TIME] = datetime.fromtimestamp(file.ctime_ns / 1e9)  # noqa: DTZ006
        path = self._named(self._pattern.compose(metadata), file.path)
        if not self._climbs and ".." in path.split("/"):
            raise BadDestination(f"metadata would lead above the directory: {path}")
        return self._url(path)

    def pattern(self, path: str) -> ParseResult:
        """Give the URL, without a password, of the place for a file of which no metadata are known: fields stay."""
        return self._url(self._named(pattern_of(self._config), path))

    def _named(self, place: str, path: str) -> str:
        return os.path.join(place, os.path.basename(path)) if self._keeps_name else place

    def _url(self, path: str) -> ParseResult:
        if "://" in self._config.host and not path.startswith("/"):
            path = f"/{path}"
        return self._base._replace(path=path)


def routes(options: TargetOptions) -> list[Route]:
    """Give the ways to a target."""
    return [Route(number, config) for number, config in enumerate(options.dispatch_configs, start=1)]


def logins(options: TargetOptions) -> dict[tuple[str, str], ParseResult]:
    """Give the URL with password, if any, of each (scheme, place) that a target delivers to."""
    bases = [base_url(config.host) for config in options.dispatch_configs]
    return {(base.scheme, without_password(base.netloc)): base for base in bases}


def without_password(netloc: str) -> str:
    """Give user, host and port."""
    login, at, place = netloc.rpartition("@")
    return f"{login.partition(':')[0]}{at}{place}"


def with_aliases(metadata: Mapping[str, Any], aliases: tuple[Alias, ...]) -> dict[str, Any]:
    """Give metadata in which aliases stand for values, or beside them under another name."""
    found = dict(metadata)
    for alias in aliases:
        if alias.key in metadata:
            value = metadata[alias.key]
            found[alias.name] = alias.values.get(value, value) if _is_hashable(value) else value
    return found


def _is_hashable(value: object) -> bool:
    return not isinstance(value, dict | list)


def format_destination(url: ParseResult) -> str:
    """Give a destination for people."""
    return urls.redacted(url) if url.netloc else url.path
