"""Destination URLs of a chain, composed from the metadata of each file."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Literal
from urllib.parse import ParseResult

from trollmoves.errors import BadDestination, NameRejected
from trollmoves.matching.patterns import Pattern
from trollmoves.messaging.messages import Message
from trollmoves.movers.file import LocalBackend
from trollmoves.net import hosts, urls

logger = logging.getLogger(__name__)

CACHE_TTL = 10.0  # s for which a composed destination is reused without checking its directory
CACHE_SIZE = 1_000  # destinations


class Destinations:
    """The destinations of one chain. Any thread.

    ``ftp_root`` is the local directory that is prepended to the path of a destination with another scheme than file.
    """

    def __init__(self, name: str, text: str, *, login: str | None, make: bool, ftp_root: str) -> None:
        self.name = name
        self._text = text
        self._pattern = Pattern(text)
        self._fixed = _fixed(text)
        self._allows_parent_reference = ".." in text.split("/")
        self._login = login or ""
        self._create = make
        self._ftp_root = ftp_root.rstrip("/")
        self._prepared: dict[str, tuple[str, float]] = {}

    def url_for(self, message: Message, below: str = "") -> str:
        """Return the URL, with login, of the directory for the files of an announcement, or of ``below`` in it.

        A directory on this host is created, so a dead file system may block this call. Raises BadDestination,
        NameRejected and the errors of ``Pattern.compose``.
        """
        text = self._compose(message, below)
        url = self._prepare(text)
        if not below:  # otherwise used only once
            if len(self._prepared) > CACHE_SIZE:
                self._prepared.clear()
            self._prepared[text] = (url, time.monotonic() + CACHE_TTL)
        return url

    def cached_url(self, message: Message) -> str:
        """Return the URL that ``url_for`` returned in the last ``CACHE_TTL`` seconds; empty if it must be called."""
        url, until = self._prepared.get(self._compose(message, ""), ("", 0.0))
        return url if time.monotonic() <= until else ""

    def _compose(self, message: Message, below: str) -> str:
        text = self._text if self._fixed is None else self._checked(self._pattern.compose(message.data))
        return f"{text.rstrip('/')}/{below}" if below else text

    def _checked(self, text: str) -> str:
        """Return ``text``; raise NameRejected if metadata make it invalid or lead out of the configured destination."""
        try:
            fixed, url = self._fixed, urls.parse(text)
        except BadDestination as error:
            raise NameRejected(str(error)) from None
        has_parent_reference = ".." in text.replace("\\", "/").split("/") and not self._allows_parent_reference
        if has_parent_reference or (fixed and (url.scheme, url.netloc) != (fixed.scheme, fixed.netloc)):
            raise NameRejected(f"metadata must not lead out of the configured destination: {urls.redacted(text)}")
        return text

    def compose(self, message: Message, below: str = "") -> ParseResult:
        """Return the same URL as ``url_for``, without login and without creating the directory."""
        return urls.parse(self._compose(message, below))

    def local_path(self, url: ParseResult) -> str:
        """Return the local path of a destination on this host."""
        return url.path if url.scheme == "file" else f"{self._ftp_root}/{url.path.lstrip('/')}"

    def _prepare(self, text: str) -> str:
        url = urls.parse(text)
        if self._create and hosts.is_local(url.hostname):
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
            logger.warning("[%s] cannot create the directory %s: %s", self.name, path, error.strerror)


def _fixed(text: str) -> ParseResult | Literal[False] | None:
    """Return the URL before the first field, False if it has no complete host there; None without a field."""
    head, field, _ = text.partition("{")
    if not field:
        return None
    _, separator, rest = head.partition("://")
    return urls.parse(head) if head.startswith("/") or (separator and "/" in rest) else False
