"""The text of an option becomes a value.

Each function takes the text as it stands in the file, without the blanks around it. It raises ``ValueError`` when the
text cannot be read; the error is the end of a sentence that the reader of the file starts with section and option.
"""

from __future__ import annotations

import configparser
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from trollmoves.net import urls

MAX_SECONDS = 1e9  # seconds, about 31 years: what every clock and every wait of Python takes
NO = ("none", "false", "no", "off", "0")


def quoted(value: str) -> str:
    """Return the text as an error shows it: in quotes, on one line, not too long."""
    return repr(urls.excerpt(value))


def text(value: str) -> str:
    """Return the text as it is."""
    return value


def subject(value: str) -> str:
    """Return the subject of messages; it stands between blanks in a message, so none may be in it."""
    if value.split() != ([value] if value else []):
        raise ValueError(f"a subject holds no blanks: {quoted(value)}")
    return value


def boolean(value: str) -> bool:
    """Read ``true``, ``yes``, ``on``, ``1`` and their opposites, in any case."""
    try:
        return configparser.RawConfigParser.BOOLEAN_STATES[value.lower()]
    except KeyError:
        raise ValueError(f"neither true nor false: {quoted(value)}") from None


def number(value: str) -> float:
    """Read a number that is finite and not negative."""
    try:
        found = float(value)
    except ValueError:
        raise ValueError(f"no number: {quoted(value)}") from None
    if not math.isfinite(found) or found < 0:
        raise ValueError(f"must be a finite number, 0 or more: {quoted(value)}")
    return found


def seconds(value: str) -> float:
    """Read a time in seconds."""
    return _check_max(number(value), MAX_SECONDS, value)


def positive_seconds(value: str) -> float:
    """Read a time in seconds that is not 0."""
    found = seconds(value)
    if not found:
        raise ValueError("must be more than 0")
    return found


def days(value: str) -> float:
    """Read a time in days."""
    return _check_max(number(value), MAX_SECONDS // 86400, value)


def integer(lowest: int, highest: int) -> Callable[[str], int]:
    """Return a function that reads a whole number between two bounds, both allowed."""

    def read(value: str) -> int:
        if not value.isascii() or not value.removeprefix("-").isdigit() or len(value) > 20:
            raise ValueError(f"no whole number: {quoted(value)}")
        if not lowest <= int(value) <= highest:
            raise ValueError(f"must be between {lowest} and {highest}: {quoted(value)}")
        return int(value)

    return read


port = integer(1, 65535)


def choice(*allowed: str) -> Callable[[str], str]:
    """Return a function that reads one word of those allowed."""

    def read(value: str) -> str:
        if value.lower() not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}: {quoted(value)}")
        return value.lower()

    return read


def choice_or_none(*allowed: str) -> Callable[[str], str | None]:
    """Return a function that reads one word of those allowed; ``none`` and all words for no are none."""
    one = choice(*allowed, "none")

    def read(value: str) -> str | None:
        return None if value.lower() in NO else one(value)

    return read


def word_list(value: str) -> tuple[str, ...]:
    """Cut a list at blanks, line ends and commas."""
    return tuple(value.replace(",", " ").split())


def host(value: str) -> str:
    """Read one host name or address."""
    if len(word_list(value)) != 1 or "/" in value:
        raise ValueError(f"no host: {quoted(value)}")
    return value


def nameserver(value: str) -> str | Literal[False]:
    """Read the host of a name server; ``False`` is none."""
    return False if value.lower() in NO else host(value)


def nameservers(value: str) -> tuple[str, ...] | Literal[False]:
    """Read a list of name server hosts; ``False`` is none."""
    return False if value.lower() in NO else tuple(host(word) for word in word_list(value))


def info(value: str) -> dict[str, str | list[str]]:
    """Read ``key=value;key=a,b``: a comma makes a list, an empty item is nothing, further ``=`` belong to the value."""
    found: dict[str, str | list[str]] = {}
    for item in filter(None, map(str.strip, value.split(";"))):
        key, mark, content = map(str.strip, item.partition("="))
        if not mark or not key:
            raise ValueError(f"each item must read key=value: {quoted(item)}")
        found[key] = [part.strip() for part in content.split(",")] if "," in content else content
    return found


@dataclass(frozen=True)
class ProviderAddress:
    """One publisher that a chain listens to, with the topic to take from it, if it has one of its own."""

    host: str
    port: int
    topic: str | None = None

    @property
    def address(self) -> str:
        """Where to connect to, as ZeroMQ has it."""
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.address.removeprefix("tcp://") + (self.topic or "")


def provider(word: str) -> ProviderAddress:
    """Read ``host:port`` or ``host:port/topic``, also behind ``tcp://``; an IPv6 address stands in brackets."""
    place, _, topic = word.removeprefix("tcp://").partition("/")
    name, colon, port_text = place.rpartition(":")
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
        name_fits = ":" in name
    else:
        name_fits = bool(name) and not set(name) & set(":[]@")
    if not colon or not name_fits:
        raise ValueError(f"a provider must read host:port or host:port/topic: {quoted(word)}")
    try:
        found = port(port_text)
    except ValueError as error:
        raise ValueError(f"the port of {quoted(word)}: {error}") from None
    topic = topic.lstrip("/")
    return ProviderAddress(name, found, f"/{topic}" if topic else None)


def providers(value: str) -> tuple[ProviderAddress, ...]:
    """Read a list of providers."""
    return tuple(map(provider, word_list(value)))


@dataclass(frozen=True)
class MetadataReplacement:
    """What a metadata item becomes: the same text always, or what its value stands for in a map."""

    text: str
    mapping: Mapping[str, str] | None = None

    def apply(self, value: object) -> object:
        """Return what replaces ``value``. A value that is not in the map stays, a list with it; nothing is changed."""
        if self.mapping is None:
            return self.text
        return self.mapping.get(str(value), value) if isinstance(value, str | int | float) else value


def replacement(value: str) -> MetadataReplacement:
    """Read ``a:b|c:d`` as a map, and anything else as a text."""
    pairs = [[part.strip() for part in item.split(":")] for item in value.split("|")]
    if "://" in value or any(len(pair) != 2 for pair in pairs):
        return MetadataReplacement(value)
    return MetadataReplacement(value, dict(pairs))


def group(value: str) -> object:  # noqa: ARG001  (it may hold a secret, so it is not shown)
    """Refuse a text where a group of connection parameters is meant."""
    raise ValueError("is a group: give each of its names a line of its own, with __ and that name behind this one")


def parameter(value: str) -> str | bool:
    """Read a connection parameter whose type nobody knows: ``0``, ``false``, ``1`` and ``true`` are booleans."""
    return {"0": False, "false": False, "1": True, "true": True}.get(value.lower(), value)


def _check_max(found: float, highest: float, value: str) -> float:
    if found > highest:
        raise ValueError(f"must be at most {highest:.0f}: {quoted(value)}")
    return found
