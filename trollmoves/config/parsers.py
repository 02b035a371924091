"""Parsers for the text of options.

Each function takes the text from the file, without leading and trailing blanks. It raises ``ValueError`` for invalid
text; the text of the error follows the names of section and option.
"""

from __future__ import annotations

import configparser
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from trollmoves.errors import BadDestination
from trollmoves.matching.received_time import text_of
from trollmoves.net import urls

MAX_SECONDS = 1e9  # seconds, about 31 years: accepted by every clock and timeout of Python
FALSE_WORDS = ("none", "false", "no", "off", "0")


def quoted(value: str) -> str:
    """Return the text for an error: quoted, on one line, shortened, without secrets of URLs."""
    return repr(urls.excerpt(value))


def text(value: str) -> str:
    """Return the text unchanged."""
    return value


def subject(value: str) -> str:
    """Return the subject of messages; it must not contain blanks, which separate the parts of a message."""
    if value.split() != ([value] if value else []):
        raise ValueError(f"a subject must not contain blanks: {quoted(value)}")
    return value


def boolean(value: str) -> bool:
    """Parse ``true``, ``yes``, ``on``, ``1`` and their opposites, in any case."""
    try:
        return configparser.RawConfigParser.BOOLEAN_STATES[value.lower()]
    except KeyError:
        raise ValueError(f"must be true or false: {quoted(value)}") from None


def number(value: str) -> float:
    """Parse a finite number, 0 or more."""
    try:
        found = float(value)
    except ValueError:
        raise ValueError(f"must be a number: {quoted(value)}") from None
    if not math.isfinite(found) or found < 0:
        raise ValueError(f"must be a finite number, 0 or more: {quoted(value)}")
    return found


def seconds(value: str) -> float:
    """Parse a time in seconds."""
    return _check_max(number(value), MAX_SECONDS, value)


def positive_seconds(value: str) -> float:
    """Parse a time in seconds greater than 0."""
    found = seconds(value)
    if not found:
        raise ValueError("must be more than 0")
    return found


def command(value: str) -> tuple[str, ...]:
    """Parse a command into its words, with quotes as in a shell; the shell has no other part in it."""
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise ValueError(f"must be a command with complete quotes ({error}): {quoted(value)}") from None


def days(value: str) -> float:
    """Parse a time in days."""
    return _check_max(number(value), MAX_SECONDS // 86400, value)


def integer(lowest: int, highest: int) -> Callable[[str], int]:
    """Return a parser of integers from ``lowest`` to ``highest``."""

    def parse(value: str) -> int:
        if not value.isascii() or not value.removeprefix("-").isdigit() or len(value) > 20:
            raise ValueError(f"must be an integer: {quoted(value)}")
        if not lowest <= int(value) <= highest:
            raise ValueError(f"must be between {lowest} and {highest}: {quoted(value)}")
        return int(value)

    return parse


port = integer(1, 65535)


def processors(value: str) -> tuple[int, ...]:
    """Parse numbers and ranges of processors, such as ``0,2-3``, as ``CPUAffinity=`` of systemd has them."""
    parse = integer(0, 4095)
    found = set[int]()
    for word in word_list(value):
        first, dash, last = word.partition("-")
        numbers = range(parse(first), parse(last if dash else first) + 1)
        if not numbers:
            raise ValueError(f"the range ends before it begins: {quoted(word)}")
        found.update(numbers)
    return tuple(sorted(found))


def choice(*allowed: str) -> Callable[[str], str]:
    """Return a parser of one of the allowed words."""

    def parse(value: str) -> str:
        if value.lower() not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}: {quoted(value)}")
        return value.lower()

    return parse


def choice_or_none(*allowed: str) -> Callable[[str], str | None]:
    """Return a parser of one of the allowed words; ``none`` and all words for false are None."""
    parse_choice = choice(*allowed, "none")

    def parse(value: str) -> str | None:
        return None if value.lower() in FALSE_WORDS else parse_choice(value)

    return parse


def word_list(value: str) -> tuple[str, ...]:
    """Split a list at blanks, line ends and commas."""
    return tuple(value.replace(",", " ").split())


def destinations(value: str) -> tuple[str, ...]:
    """Split a list of destination URLs and paths at blanks and line ends, without duplicates."""
    found = tuple(dict.fromkeys(value.split()))
    for word in found:
        try:
            urls.parse(word)
        except BadDestination:
            raise ValueError(f"invalid URL: {urls.redacted(word)}") from None
    return found


def comma_list(value: str) -> tuple[str, ...]:
    """Split a list at commas; blanks around the items are removed, empty items are ignored."""
    return tuple(filter(None, map(str.strip, value.split(","))))


def templates(value: str) -> tuple[str, ...]:
    """Parse a list of path patterns; the last part of each must be a pattern of names."""
    found = comma_list(value)
    for template in found:
        if template.rstrip("/").rpartition("/")[2] in ("", ".", ".."):
            raise ValueError(f"must end with the pattern of a name: {quoted(template)}")
    return found


def host(value: str) -> str:
    """Parse a host name or address."""
    if len(word_list(value)) != 1 or "/" in value:
        raise ValueError(f"must be one host: {quoted(value)}")
    return value


def nameserver(value: str) -> str | Literal[False]:
    """Parse the host of a name server; words for false disable it."""
    return False if value.lower() in FALSE_WORDS else host(value)


def nameservers(value: str) -> tuple[str, ...] | Literal[False]:
    """Parse a list of name server hosts; words for false disable them."""
    return False if value.lower() in FALSE_WORDS else tuple(host(word) for word in word_list(value))


def info(value: str) -> dict[str, str | list[str]]:
    """Parse ``key=value;key=a,b``: a comma makes a list, empty items are ignored, values may contain ``=``."""
    found: dict[str, str | list[str]] = {}
    for item in filter(None, map(str.strip, value.split(";"))):
        key, equals, content = map(str.strip, item.partition("="))
        if not equals or not key:
            raise ValueError(f"each item must be key=value: {quoted(item)}")
        found[key] = [part.strip() for part in content.split(",")] if "," in content else content
    return found


@dataclass(frozen=True)
class ProviderAddress:
    """A publisher that a chain subscribes to, and the topic for it if it differs from that of the chain."""

    host: str
    port: int
    topic: str | None = None

    @property
    def address(self) -> str:
        """The ZeroMQ address to connect to."""
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.address.removeprefix("tcp://") + (self.topic or "")


def provider(word: str) -> ProviderAddress:
    """Parse ``host:port`` or ``host:port/topic``, optionally after ``tcp://``; an IPv6 address must be in brackets."""
    address, _, topic = word.removeprefix("tcp://").partition("/")
    name, colon, port_text = address.rpartition(":")
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
        is_name_valid = ":" in name
    else:
        is_name_valid = bool(name) and not set(name) & set(":[]@")
    if not colon or not is_name_valid:
        raise ValueError(f"a provider must be host:port or host:port/topic: {quoted(word)}")
    try:
        found = port(port_text)
    except ValueError as error:
        raise ValueError(f"port of {quoted(word)}: {error}") from None
    topic = topic.lstrip("/")
    return ProviderAddress(name, found, f"/{topic}" if topic else None)


def providers(value: str) -> tuple[ProviderAddress, ...]:
    """Parse a list of providers."""
    return tuple(map(provider, word_list(value)))


@dataclass(frozen=True)
class MetadataReplacement:
    """Replacement of a metadata item: a fixed text, or a map of its values."""

    text: str
    mapping: Mapping[str, str] | None = None

    def apply(self, value: object) -> object:
        """Return the replacement of ``value``, which is not modified. Lists and values not in the map are returned."""
        if self.mapping is None:
            return self.text
        text = text_of(value)
        return self.mapping.get(str(text), value) if isinstance(text, str | int | float) else value


def replacement(value: str) -> MetadataReplacement:
    """Parse ``a:b|c:d`` as a map, and any other value as a fixed text."""
    pairs = [[part.strip() for part in item.split(":")] for item in value.split("|")]
    if "://" in value or any(len(pair) != 2 for pair in pairs):
        return MetadataReplacement(value)
    return MetadataReplacement(value, dict(pairs))


def group(value: str) -> object:  # noqa: ARG001  (not shown: it may contain a secret)
    """Reject a text for a group of connection parameters."""
    raise ValueError("is a group: it must have names below it, in INI files with __ between group and name")


def parameter(value: str) -> str | bool:
    """Parse a connection parameter of unknown type: ``0``, ``false``, ``1`` and ``true`` are booleans."""
    return {"0": False, "false": False, "1": True, "true": True}.get(value.lower(), value)


def _check_max(found: float, highest: float, value: str) -> float:
    if found > highest:
        raise ValueError(f"must be at most {highest:.0f}: {quoted(value)}")
    return found
