"""Where a file that a message names is read from."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO
from urllib.parse import ParseResult, unquote

from trollmoves.errors import BadDestination, MessageError, OriginMissing, PermanentTransferError
from trollmoves.movers import PartialId, move_it
from trollmoves.movers import options as mover_options
from trollmoves.net import hosts, urls

_LOCAL = ("file", "local")
_S3 = ("s3", "s3a")
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

    def copy_to(self, path: str, partial_id: PartialId | None) -> None:
        """Copy the file to ``path``; raises as ``move_it``."""
        move_it(self.path, ParseResult("file", "", path, "", "", ""), partial_id=partial_id)

    def read_to(self, stream: BinaryIO) -> None:
        """Raise: a file on this host is copied."""
        raise NotImplementedError


class S3Source(Source):
    """An object; ``url`` is ``s3://bucket/key``."""

    def __init__(self, url: ParseResult, attrs: Mapping[str, Any], download: S3Download) -> None:
        endpoint = f"{urls.endpoint(url)} {attrs.get('endpoint_url') or ''}".rstrip()
        super().__init__(unquote(os.path.basename(url.path)), endpoint)
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

    def __init__(self, uri: str, path: str = "", description: Mapping[str, Any] | None = None) -> None:
        super().__init__(unquote(_last_part(path or uri)), _endpoint(uri, description))
        try:
            from trollmoves.fetching.filesystems import RemoteFile
        except ModuleNotFoundError as error:
            raise PermanentTransferError(
                f"fetching needs {error.name}, which is not installed: pip install 'trollmoves[fetcher]'"
            ) from error
        self._file = RemoteFile(uri, path, description)

    def read_to(self, stream: BinaryIO) -> None:
        """Write the content of the file to ``stream``."""
        self._file.read_to(stream)


class Sources:
    """Finds the sources of files; any thread. It keeps the clients for S3."""

    def __init__(self) -> None:
        self._reader: Any = None

    def source(self, data: Mapping[str, Any]) -> Source:
        """Return the source of a file by ``path`` and ``filesystem``, else by ``uri``.

        Raises:
            MessageError: the data name no file that can be read.
            PermanentTransferError: a library is not installed.
        """
        path, description = data.get("path"), data.get("filesystem")
        if path and description:
            return self._described(path, description)
        uri = data.get("uri")
        if not isinstance(uri, str) or not uri:
            raise MessageError(f"its uri must be a non-empty string: {urls.excerpt(str(uri), 100)!r}")
        if "::" in uri:
            return RemoteSource(uri)
        url = _parse(uri)
        if url.scheme in _LOCAL:
            if not hosts.is_local(url.hostname):
                raise MessageError(f"{urls.redacted(url)} is on another host")
            return LocalSource(url.path)
        return self.s3_object(url, {}) if url.scheme in _S3 else RemoteSource(uri)

    def s3_object(self, url: ParseResult, attrs: Mapping[str, Any]) -> S3Source:
        """Return the source of the object ``s3://bucket/key``; ``attrs`` are connection parameters."""
        if not url.netloc.rpartition("@")[2]:
            raise MessageError("the uri of an object must be s3://BUCKET/KEY")
        return S3Source(url, attrs, self._download)

    def _described(self, path: Any, description: Any) -> Source:
        if not isinstance(path, str) or not isinstance(description, dict):
            raise MessageError("its path must be a string, and its filesystem a dictionary")
        protocol = description.get("protocol")
        protocol = protocol[0] if isinstance(protocol, list) and protocol else protocol
        if protocol in _LOCAL:
            return LocalSource(path)
        if protocol in _S3:
            attrs = {name: value for name, value in description.items() if mover_options.is_known(name, "s3")}
            return self.s3_object(_parse(f"s3://{path.removeprefix('s3://')}"), attrs)
        return RemoteSource("", path, description)

    def _download(self, url: ParseResult, stream: BinaryIO, attrs: Mapping[str, Any]) -> None:
        if self._reader is None:
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
    first = uri.partition("::")[0]
    if first.startswith(("http://", "https://")):
        first = first.partition("?")[0].partition("#")[0]
    return first.rpartition("/")[2]


def _endpoint(uri: str, description: Mapping[str, Any] | None) -> str:
    if description is None:
        return urls.endpoint(_parse(uri.rpartition("::")[2]))
    inner = description.get("target_options")
    inner = inner if isinstance(inner, dict) else description
    protocol = description.get("target_protocol") or description.get("protocol")
    return f"{urls.excerpt(str(protocol))}://{urls.excerpt(str(inner.get('host') or ''))}"
