"""Allowlist of destinations in requests: URL patterns with scheme, user, host and path.

The comparison uses the same parts of the same parsed URL as the movers. The password is ignored. A path that can be
read in two ways (``%2e%2e``, a backslash) is allowed only if neither reading leaves the allowed directory.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import ParseResult, quote, unquote

from trollmoves.errors import AccessDenied
from trollmoves.net import hosts, urls

DEFAULT_PORTS = {"ftp": 21, "ftps": 21, "scp": 22, "sftp": 22}
ANY_PORT = -1
LOCAL = "file"  # the scheme of this host; the host in the URL is ignored, and ``*`` does not include it
MAX_DECODE_ROUNDS = 3  # nested encodings (%25) that are decoded

_FORM = re.compile(r"(?P<scheme>\*|[A-Za-z][A-Za-z0-9+.-]*)://(?P<place>[^/]*)(?P<path>/.*)?", re.DOTALL)
_PLACE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.*?~-]*)(?::(?P<port>\*|[0-9]{1,5}))?")
_ADDRESSES_ONLY = re.compile(r"[0-9.*?]*[0-9][0-9.*?]*")


@dataclass(frozen=True)
class DestinationPattern:
    """One pattern: a directory and everything below it.

    ``*`` and ``?`` match any characters of a host or of one directory name. A ``port`` of None is the default port of
    the scheme. An empty ``host`` or ``path`` matches any, and so does a ``user`` of None. The scheme ``*`` matches
    every scheme but ``file``.
    """

    scheme: str
    host: str
    port: int | None
    path: str
    user: str | None = None

    def __str__(self) -> str:
        port = "" if self.port is None else ":*" if self.port == ANY_PORT else f":{self.port}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        login = "" if self.user is None else f"{quote(self.user, safe='*?')}@"
        return f"{self.scheme}://{login}{host}{port}{self.path or '/'}"

    def matches(self, url: ParseResult) -> bool:
        """Return True if a parsed destination is this directory or below it.

        Args:
            url: the URL as the movers get it, without ``..`` in its path.

        Raises:
            BadDestination: the URL is invalid.
        """
        if url.scheme == LOCAL:
            return self.scheme == LOCAL and self._matches_path(url.path)
        if self.scheme not in ("*", url.scheme):
            return False
        return self._matches_user(url) and self._matches_host(url) and self._matches_path(url.path)

    def _matches_user(self, url: ParseResult) -> bool:
        return self.user is None or _fits(urls.user(url) or "", self.user)

    def _matches_host(self, url: ParseResult) -> bool:
        if url.scheme == "s3":
            bucket = url.netloc.rpartition("@")[2]
            return self.port in (None, ANY_PORT) and fnmatch.fnmatchcase(bucket, self.host or "*")
        bare = url._replace(path="")  # so that host and port are parsed as in the movers
        host = hosts.canonical(urls.host(bare) or "")
        if not self.host or self.host == "*":
            fits = True
        elif _ADDRESSES_ONLY.fullmatch(self.host) and not hosts.is_address(host):
            fits = False  # 10.* must not match 10.example.org
        else:
            fits = fnmatch.fnmatchcase(host, self.host)
        own = DEFAULT_PORTS.get(url.scheme)
        return fits and (self.port == ANY_PORT or (urls.port(bare) or own) == (self.port or own))

    def _matches_path(self, path: str) -> bool:
        expected, found = _parts(self.path), _parts(path)
        return len(found) >= len(expected) and all(map(_fits, found, expected))


def parse_pattern(word: str) -> DestinationPattern:
    """Return the pattern of a text: ``scheme://[user@]host[:port]/path``, or a path on this host.

    Raises:
        ValueError: the text is invalid; the error shows no password.
    """
    text = word if "://" in word else f"file://{word}"
    found = _FORM.fullmatch(text)
    login, _, host_and_port = found["place"].rpartition("@") if found else ("", "", "")
    place = _PLACE.fullmatch(host_and_port)
    if not found or not place or ("://" not in word and not word.startswith("/")):
        shown = urls.redacted(word)
        raise ValueError(f"a destination must be scheme://host/path or an absolute path: {shown!r}")
    port = None if place["port"] is None else ANY_PORT if place["port"] == "*" else int(place["port"])
    if port is not None and port > 65535:
        raise ValueError(f"port must be at most 65535: {port}")
    path = posixpath.normpath("/" + (found["path"] or "").lstrip("/"))
    return DestinationPattern(
        found["scheme"].lower(),
        hosts.canonical(place["host"]),
        port,
        "" if path == "/" else path,
        unquote(login.partition(":")[0]) or None,
    )


def check_allowed(allowed: Iterable[DestinationPattern], url: ParseResult, below: Iterable[str] = ()) -> ParseResult:
    """Return an allowed destination, with its ``..`` resolved unless every destination is allowed.

    Args:
        allowed: the patterns; without any, every destination is allowed.
        url: the destination of the request.
        below: the sub-paths below it that the request names.

    Raises:
        AccessDenied: the destination is not allowed.
    """
    allowed = tuple(allowed)
    if not allowed:
        return url
    if _parts(url.path).count(".."):
        url = url._replace(path=posixpath.normpath("/" + url.path.lstrip("/")).rstrip("/") + "/")
    if any(map(_escapes_when_decoded, (url.path, *below))) or not any(place.matches(url) for place in allowed):
        remedy = "add it to allowed_destinations, with its port unless that is the default"
        raise AccessDenied(f"{urls.redacted(url)} is not among the allowed destinations: {remedy}")
    return url


def _escapes_when_decoded(path: str) -> bool:
    for _ in range(MAX_DECODE_ROUNDS):
        if ".." in _SEPARATOR.split(path):
            return True
        decoded = unquote(path, errors="replace")
        if decoded == path:
            return False
        path = decoded
    return True


def _fits(text: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(text, pattern.replace("[", "[[]"))


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


_SEPARATOR = re.compile(r"[/\\]")
