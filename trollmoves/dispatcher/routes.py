"""Routes of a target: which messages match its dispatch configs, and the destination of each file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import ParseResult

from trollmoves.config.options import Alias, DispatchConfig, TargetOptions
from trollmoves.config.targets import base_url, pattern_of
from trollmoves.dispatcher.files import LocalFile
from trollmoves.errors import NameRejected
from trollmoves.matching.patterns import Pattern
from trollmoves.matching.received_time import text_of
from trollmoves.net import urls

CREATION_TIME = "file_creation_time"


class Route:
    """One dispatch config of a target. Thread-safe."""

    def __init__(self, number: int, config: DispatchConfig) -> None:
        self.number = number
        self._config = config
        base = base_url(config.host)
        self._base = base._replace(netloc=urls.netloc_without_password(base.netloc))
        text = pattern_of(config)
        self._pattern = Pattern(text)
        self._keeps_name = not config.filepattern
        self._allows_parent = ".." in text.split("/")
        self._uses_creation_time = CREATION_TIME in text

    def mismatch_reason(self, subject: str | None, metadata: Mapping[str, Any]) -> str:
        """Return the reason why a message does not match, or an empty string if it matches.

        If ``subject`` is None, as for files found by a directory watch, topics are not compared.
        """
        topics = self._config.topics
        if subject is not None and not subject.startswith(topics):
            return f"its subject does not begin with {' or '.join(topics) or 'any topic of the dispatch config'}"
        return self._config.conditions.mismatch_reason(metadata) if self._config.conditions else ""

    def destination(self, file: LocalFile) -> ParseResult:
        """Return the destination URL of a file, without a password.

        Raises:
            ComposeError: metadata are missing or do not fit the pattern.
            NameRejected: metadata lead above the directory.
        """
        metadata = with_aliases(file.metadata, self._config.aliases)
        if self._uses_creation_time:
            # As in earlier versions: the local time of the last change of name, content or permissions.
            metadata[CREATION_TIME] = datetime.fromtimestamp(file.ctime_ns / 1e9)  # noqa: DTZ006
        path = self._with_file_name(self._pattern.compose(metadata), file.path)
        if not self._allows_parent and ".." in path.split("/"):
            raise NameRejected(f"metadata would lead above the directory: {path}")
        return self._url(path)

    def pattern(self, path: str) -> ParseResult:
        """Return the destination URL of a file with unknown metadata, without a password; fields stay in braces."""
        return self._url(self._with_file_name(pattern_of(self._config), path))

    def _with_file_name(self, destination: str, path: str) -> str:
        return os.path.join(destination, os.path.basename(path)) if self._keeps_name else destination

    def _url(self, path: str) -> ParseResult:
        if "://" in self._config.host and not path.startswith("/"):
            path = f"/{path}"
        return self._base._replace(path=path)


def routes(options: TargetOptions) -> list[Route]:
    """Return the routes of a target."""
    return [Route(number, config) for number, config in enumerate(options.dispatch_configs, start=1)]


def logins(options: TargetOptions) -> dict[tuple[str, str], ParseResult]:
    """Return the base URLs of a target, including passwords, by scheme and netloc without password."""
    bases = [base_url(config.host) for config in options.dispatch_configs]
    return {(base.scheme, urls.netloc_without_password(base.netloc)): base for base in bases}


def with_aliases(metadata: Mapping[str, Any], aliases: tuple[Alias, ...]) -> dict[str, Any]:
    """Return metadata with values replaced by their aliases, or with the aliases added under another name."""
    result = dict(metadata)
    for alias in aliases:
        if alias.key in metadata:
            value = metadata[alias.key]
            if _is_hashable(value):
                value = alias.values.get(value, alias.values.get(text_of(value), value))
            result[alias.name] = value
    return result


def _is_hashable(value: object) -> bool:
    return not isinstance(value, dict | list)


def format_destination(url: ParseResult) -> str:
    """Return a destination for log lines, without a password."""
    return urls.redacted(url) if url.netloc else url.path
