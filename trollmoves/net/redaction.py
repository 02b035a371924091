"""Removes secrets from texts by their value: for texts of libraries, which show a secret in any form."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, unquote

MASK = "***"
MIN_LENGTH = 5  # characters of a secret that is removed; shorter ones would remove parts of ordinary words
MIN_UNBOUND = 8  # characters of a secret that is also removed inside a word
MAX_SECRETS = 1000  # known values; the oldest ones are forgotten first
MAX_LENGTH = 4096  # characters of a secret that is removed
MAX_CHAIN = 20  # causes of an exception that are searched
SECRET_NAME = re.compile("login|secret|token|passw|passphrase|credential|(?<!host_)key(?!_file)")  # of a parameter


class KnownSecrets:
    """The secrets of the configuration of this process, also those of before a reload. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: tuple[str, ...] = ()

    def add(self, *secrets: str | None) -> None:
        """Remember secrets; texts no longer show them."""
        with self._lock:
            known = dict.fromkeys((*self._values, *_forms(secrets)))
            self._values = tuple(known)[-MAX_SECRETS:]

    def redact(self, text: str) -> str:
        """Return the text with ``***`` in the place of each secret."""
        return _without(text, self._values)


@functools.lru_cache(maxsize=1)
def known_secrets() -> KnownSecrets:
    """Return the secrets of this process."""
    return KnownSecrets()


def remove_from_error(error: BaseException, secrets: Iterable[str | None]) -> None:
    """Remove secrets from the texts of an exception and of its causes, for logs, replies and tracebacks."""
    values = tuple(_forms(secrets))
    if not values:
        return
    for item in _chain(error):
        item.args = tuple(_without(one, values) if isinstance(one, str) else one for one in item.args)
        if isinstance(item, OSError) and isinstance(item.strerror, str):
            item.strerror = _without(item.strerror, values)


def _chain(error: BaseException) -> Iterator[BaseException]:
    pending, seen = [error], set[int]()
    while pending and len(seen) < MAX_CHAIN:
        item = pending.pop()
        if id(item) not in seen:
            seen.add(id(item))
            yield item
            pending += [cause for cause in (item.__cause__, item.__context__) if cause is not None]


def _forms(secrets: Iterable[str | None]) -> Iterator[str]:
    """Yield each secret as it is, percent-encoded, decoded and as in a ``repr``, the longest form first."""
    found: set[str] = set()
    for secret in secrets:
        if isinstance(secret, str) and MIN_LENGTH <= len(secret) <= MAX_LENGTH:
            found |= {secret, _quoted(secret, ""), _quoted(secret, "/"), unquote(secret), repr(secret)[1:-1]}
    yield from sorted((form for form in found if len(form) >= MIN_LENGTH), key=len, reverse=True)


def _quoted(secret: str, safe: str) -> str:
    return quote(secret, safe=safe, errors="surrogateescape")


def _without(text: str, values: Iterable[str]) -> str:
    for value in values:
        if value in text:
            text = text.replace(value, MASK) if len(value) >= MIN_UNBOUND else _expression(value).sub(MASK, text)
    return text


@functools.lru_cache(maxsize=MAX_SECRETS)
def _expression(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\W_]){re.escape(value)}(?![^\W_])")


def values_of(group: Any) -> Iterator[str]:
    """Yield the secrets in nested groups of connection parameters, by their names, and the passwords in URLs."""
    for name, value in group.items() if isinstance(group, dict) else ():
        if not isinstance(value, str):
            yield from values_of(value)
        elif SECRET_NAME.search(str(name).lower()):
            yield value
        elif "://" in value:
            yield value.partition("://")[2].rpartition("@")[0].partition(":")[2]
