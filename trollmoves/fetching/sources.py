"""Where a file that a message names is read from."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import ParseResult, unquote

from trollmoves.errors import BadDestination, MessageError, OriginMissing, PermanentTransferError
from trollmoves.fetching.descriptions import LOCAL, S3, Description, check_uri, is_chained, parse_description
from trollmoves.movers import PartialId, move_it
from trollmoves.movers import options as mover_options
from trollmoves.net import hosts, urls

S3Download = Callable[[ParseResult, BinaryIO, Mapping[str, Any]], None]


class Source(ABC):
    """A file to fetch.

    ``name`` is the last part of its path, ``endpoint`` identifies its host; neither contains a secret.
    """

    def __init__(self, name: str, endpoint: str) -> None:
        """Raise MessageError if the name cannot be that of a file."""
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise MessageError(f"its uri must end in the name of a file: {urls.excerpt(name)!r}")
        self.name = name
        self.endpoint = endpoint

    @abstractmethod
    def read_to(self, stream: BinaryIO) -> None:
        """Write the content to ``stream``, which is empty and seekable; raise TransferError if it is incomplete."""


class LocalSource(Source):
    """A file on this host."""

    def __init__(self, path: str) -> None:
        super().__init__(unquote(os.path.basename(path)), "this host")
        self.path = path

    def copy_to(self, path: str, partial_id: PartialId | None) -> int:
        """Copy the file to ``path`` and return its size in bytes; raises as ``move_it``."""
        size = 0

        def on_opened(descriptor: int) -> None:
            nonlocal size
            size = os.fstat(descriptor).st_size

        move_it(self.path, ParseResult("file", "", path, "", "", ""), on_opened=on_opened, partial_id=partial_id)
        return size

    def read_to(self, stream: BinaryIO) -> None:
        """Raise: a file on this host is copied."""
        raise NotImplementedError


class S3Source(Source):
    """An object; ``url`` is ``s3://bucket/key``."""

    def __init__(self, url: ParseResult, attrs: Mapping[str, Any], download: S3Download, name: str) -> None:
        super().__init__(name, urls.endpoint(url))
        self._url = url
        self._attrs = attrs
        self._download = download

    def read_to(self, stream: BinaryIO) -> None:
        """Write the object to ``stream``."""
        try:
            self._download(self._url, stream, self._attrs)
        except FileNotFoundError:
            raise OriginMissing(f"{urls.redacted(self._url)}: the object does not exist") from None


class RemoteSource(Source):
    """A file that fsspec reads."""

    def __init__(self, uri: str, path: str = "", description: Description | None = None) -> None:
        """Raise MessageError if a file system is not allowed; opens no connection."""
        check_uri(uri)
        super().__init__(unquote(_last_part(path or uri)), _endpoint(uri, description))
        self._uri = uri
        self._path = path
        self._description = description

    def read_to(self, stream: BinaryIO) -> None:
        """Write the content of the file to ``stream``."""
        with _need_library("fetcher"):
            from trollmoves.fetching import filesystems
        filesystems.read(self._uri, self._path, self._description, stream)


class Sources:
    """Finds the sources of files; any thread. It keeps the clients for S3."""

    def __init__(self) -> None:
        self._reader: Any = None

    def source(self, data: Mapping[str, Any]) -> Source:
        """Return the source of a file by ``path`` and ``filesystem``, else by ``uri``.

        Raises MessageError if the data name no file that can be read.
        """
        path, description = data.get("path"), data.get("filesystem")
        if path and description:
            return self._described(path, description)
        uri = data.get("uri")
        if not isinstance(uri, str) or not uri:
            raise MessageError(f"its uri must be a non-empty string: {urls.excerpt(str(uri), 100)!r}")
        if is_chained(uri):
            return RemoteSource(uri)
        url = _parse(uri)
        if url.scheme in LOCAL:
            if not hosts.is_local(url.hostname):
                raise MessageError(f"{urls.redacted(url)} is on another host")
            return LocalSource(url.path)
        return self.s3_object(url, {}) if url.scheme in S3 else RemoteSource(uri)

    def s3_object(self, url: ParseResult, attrs: Mapping[str, Any], name: str | None = None) -> S3Source:
        """Return the source of the object ``s3://bucket/key``.

        ``attrs`` are connection parameters; ``name`` is by default the last part of the key, without URL quoting.
        """
        if not url.netloc.rpartition("@")[2]:
            raise MessageError("the uri of an object must be s3://BUCKET/KEY")
        name = unquote(os.path.basename(url.path)) if name is None else name
        return S3Source(url, attrs, self._download, name)

    def _described(self, path: Any, given: Any) -> Source:
        if not isinstance(path, str):
            raise MessageError("its path must be a string")
        description = parse_description(given)
        if description.protocol in LOCAL:
            return LocalSource(path)
        if description.protocol in S3:
            attrs = {name: value for name, value in description.options.items() if mover_options.is_known(name, "s3")}
            return self.s3_object(_parse(f"s3://{path.removeprefix('s3://')}"), attrs)
        return RemoteSource("", path, description)

    def _download(self, url: ParseResult, stream: BinaryIO, attrs: Mapping[str, Any]) -> None:
        if self._reader is None:
            with _need_library("s3"):
                from trollmoves.movers.s3_download import S3Reader
            self._reader = S3Reader()
        self._reader.download(url, stream, attrs)


def _parse(uri: str) -> ParseResult:
    try:
        return urls.parse(uri)
    except BadDestination as error:
        raise MessageError(str(error)) from None


def _last_part(uri: str) -> str:
    """Return the last part of the path of a URL, for a chained one of its first URL."""
    first = uri.partition("::")[0] if is_chained(uri) else uri
    if first.startswith(("http://", "https://")):
        first = first.partition("?")[0].partition("#")[0]
    return first.rpartition("/")[2]


def _endpoint(uri: str, description: Description | None) -> str:
    if description is None:
        return urls.endpoint(_parse(uri.rpartition("::")[2] if is_chained(uri) else uri))
    options = description.options
    inner = options["target_options"] if isinstance(options.get("target_options"), dict) else options
    protocol = options.get("target_protocol") or description.protocol
    return f"{protocol}://{urls.excerpt(str(inner.get('host') or ''))}"


@contextmanager
def _need_library(extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise PermanentTransferError(
            f"fetching needs {error.name}, which is not installed: pip install 'trollmoves[{extra}]'"
        ) from error
