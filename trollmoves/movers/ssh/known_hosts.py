"""The known_hosts files of OpenSSH: host keys by host name, with patterns, hashed names and markers."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import functools
import hashlib
import hmac
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

logger = logging.getLogger(__name__)
REVOKED, CERTIFICATE_AUTHORITY = "@revoked", "@cert-authority"
DEFAULT_PORT = 22
MAX_LOGGED = 5  # damaged lines of one file that are logged


class Line(NamedTuple):
    """One key: for the hosts in ``names``, with a marker or none."""

    place: str  # FILE:LINE
    marker: str
    names: tuple[str, ...]
    kind: str
    blob: bytes

    def is_for(self, name: str) -> bool:
        """Return True if one of ``names`` matches ``name``, in lower case, and no negated one does."""
        matched = False
        for pattern in self.names:
            if pattern.startswith("!"):
                if _matches(pattern[1:], name):
                    return False
            elif _matches(pattern, name):
                matched = True
        return matched


def lines_for(paths: Sequence[str], host: str, port: int) -> tuple[list[Line], list[Line]]:
    """Return the lines for ``host`` at ``port``, and those for ``host`` at the default port, of all existing files.

    Raises:
        OSError: a file cannot be read.
    """
    lines = [line for path in paths if os.path.exists(path) for line in _read(path)]
    host = host.lower()
    plain = [line for line in lines if line.is_for(host)]
    if port == DEFAULT_PORT:
        return plain, plain
    return [line for line in lines if line.is_for(f"[{host}]:{port}")], plain


def _read(path: str) -> tuple[Line, ...]:
    status = os.stat(path)
    return _parse_file(path, status.st_ino, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=16)
def _parse_file(path: str, *version: int) -> tuple[Line, ...]:  # noqa: ARG001  (a part of the key)
    with open(path, encoding="utf-8", errors="replace") as file:
        found = list(_parse(path, file.read().split("\n")))
    damaged = [line for line in found if isinstance(line, str)]
    for place in damaged[:MAX_LOGGED]:
        logger.warning("%s: ignored a line that is not a host key", place)
    if len(damaged) > MAX_LOGGED:
        logger.warning("%s: ignored %d lines that are not host keys", path, len(damaged))
    return tuple(line for line in found if isinstance(line, Line))


def _parse(path: str, texts: Sequence[str]) -> Iterator[Line | str]:
    """Yield a ``Line``, or the place of a damaged one, for each line that is not empty or a comment."""
    for number, text in enumerate(texts, 1):
        words = text.split()
        if not words or words[0].startswith("#"):
            continue
        place = f"{path}:{number}"
        marker = words.pop(0) if words[0].startswith("@") else ""
        yield _parse_line(place, marker, words) or place


def _parse_line(place: str, marker: str, words: Sequence[str]) -> Line | None:
    if len(words) < 3 or marker not in ("", REVOKED, CERTIFICATE_AUTHORITY):
        return None
    names, kind, key = words[:3]
    try:
        blob = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        return None
    encoded = kind.encode("utf-8", "replace")
    if not blob.startswith(len(encoded).to_bytes(4, "big") + encoded):  # the key begins with its type
        return None
    lower = tuple(name if name.startswith("|") else name.lower() for name in names.split(","))
    return Line(place, marker, lower, kind, blob)


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("|1|"):
        return _hash_matches(pattern, name)
    return _expression(pattern).fullmatch(name) is not None


@functools.lru_cache(maxsize=4096)
def _expression(pattern: str) -> re.Pattern[str]:
    """Return the expression, without backtracking, of a name in which ``*`` and ``?`` are wildcards, brackets not."""
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))


def _hash_matches(hashed: str, name: str) -> bool:
    _, _, salt, digest = (*hashed.split("|"), "", "")[:4]
    try:
        expected = base64.b64decode(digest, validate=True)
        actual = hmac.new(base64.b64decode(salt, validate=True), name.encode(), hashlib.sha1).digest()
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(actual, expected)
