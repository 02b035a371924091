"""Where a chain has its files sent: composed with the metadata of each."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Literal
from urllib.parse import ParseResult

from trollmoves.errors import BadDestination
from trollmoves.matching.patterns import Pattern
from trollmoves.messaging.messages import Message
from trollmoves.movers.file import LocalBackend
from trollmoves.net import hosts, urls

log = logging.getLogger(__name__)

CACHE_TTL = 10.0  # s for which a composed destination is used without a look at its directory
CACHE_SIZE = 1_000  # of them


class Destinations:
    """The destinations of one chain. The clerk's thread and workers call.

    ``ftp_root`` is what stands on this host before the path of a destination that is not a file system's.
    """

    def __init__(self, name: str, text: str, *, login: str | None, make: bool, ftp_root: str) -> None:
        self.name = name
        self._text = text
        self._pattern = Pattern(text, compose_only=True)
        self._fixed = _fixed(text)
        self._climbs = ".." in text.split("/")
        self._login = login or ""
        self._make = make
        self._ftp_root = ftp_root.rstrip("/")
        self._prepared: dict[str, tuple[str, float]] = {}

    def url_for(self, message: Message, below: str = "") -> str:
        """Give the URL, with login, of the directory for the files of an announcement; ``below`` it if given.

        A directory on this host is made. Raises what composing raises, and BadDestination.
        """
        text = self._compose(message, below)
        if below:
            return self._prepare(text)  # each is used once
        made, until = self._prepared.get(text, ("", 0.0))
        if time.monotonic() > until:
            made = self._prepare(text)
            if len(self._prepared) > CACHE_SIZE:
                self._prepared.clear()
            self._prepared[text] = (made, time.monotonic() + CACHE_TTL)
        return made

    def _compose(self, message: Message, below: str) -> str:
        text = self._text if self._fixed is None else self._checked(self._pattern.compose(message.data))
        return f"{text.rstrip('/')}/{below}" if below else text

    def _checked(self, text: str) -> str:
        """Give a composed text back; BadDestination when metadata, which a stranger may have made, lead elsewhere."""
        fixed, url = self._fixed, urls.parse(text)
        climbs = ".." in text.replace("\\", "/").split("/") and not self._climbs
        if climbs or (fixed and (url.scheme, url.netloc) != (fixed.scheme, fixed.netloc)):
            raise BadDestination(f"metadata would lead out of the destination: {urls.redacted(text)}")
        return text

    def compose(self, message: Message, below: str = "") -> ParseResult:
        """Give the same directory, without login and without making it."""
        return urls.parse(self._compose(message, below))

    def local_path(self, url: ParseResult) -> str:
        """Give the path that a destination on this host has here."""
        return url.path if url.scheme == "file" else f"{self._ftp_root}/{url.path.lstrip('/')}"

    def _prepare(self, text: str) -> str:
        url = urls.parse(text)
        if self._make and hosts.is_local(url.hostname):
            self._make_directory(self.local_path(url))
        if not url.netloc:
            url = url._replace(netloc=socket.gethostname())
        return urls.with_login(url, self._login)

    def _make_directory(self, path: str) -> None:
        if os.path.isdir(path):
            return
        try:
            LocalBackend().make_directories(path)
        except OSError as error:
            log.warning("[%s] cannot make the directory %s: %s", self.name, path, error.strerror)


def _fixed(text: str) -> ParseResult | Literal[False] | None:
    """Give what stands before the fields of a destination, if that is a URL with its host; None without a field."""
    head, field, _ = text.partition("{")
    if not field:
        return None
    _, mark, rest = head.partition("://")
    return urls.parse(head) if head.startswith("/") or (mark and "/" in rest) else False
