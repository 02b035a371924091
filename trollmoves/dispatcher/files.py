"""The files that a message tells of, on this host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trollmoves.errors import BadDestination, MessageError
from trollmoves.messaging.messages import Message
from trollmoves.net import hosts, urls

_GROUPS = ("dataset", "collection")


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file as it was when it was heard of: size in bytes, times in ns.

    ``metadata`` are what names are composed with, ``told`` what is published of it.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    metadata: dict[str, Any]
    published: dict[str, Any]


class ReceivedMessage:
    """A message, whose files are looked at once however many targets want them. One thread uses it."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self._found: list[LocalFile | MessageError] | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata that conditions are about; MessageError when there are none."""
        return metadata_of(self.message)

    def files(self) -> list[LocalFile | MessageError]:
        """Give its files, or why one is not to be had; MessageError when it names none."""
        if self._found is None:
            self._found = [_try_look_up(metadata, told) for metadata, told in items(self.message)]
        return self._found


def _try_look_up(metadata: dict[str, Any], told: dict[str, Any]) -> LocalFile | MessageError:
    try:
        return look_up(metadata, told)
    except MessageError as error:
        return error


def metadata_of(message: Message) -> dict[str, Any]:
    """Give the metadata that conditions are about; MessageError when there are none."""
    if not isinstance(message.data, dict):
        raise MessageError("its data is no dictionary")
    return message.data


def items(message: Message) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Give for each file of a message its metadata, and what is published of it; MessageError when there is none.

    What stands beside a dataset or collection counts for each file in it.
    """
    found = list(_items(metadata_of(message), {}, outermost=True))
    if not found:
        raise MessageError("it names no file")
    return found


def look_up(metadata: dict[str, Any], told: dict[str, Any]) -> LocalFile:
    """Look at a file; MessageError when it is not here."""
    path = local_path(metadata["uri"])
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise MessageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return LocalFile(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, metadata, told)


def local_path(uri: object) -> str:
    """Give the path of a file on this host; MessageError when it is on another one, or no file at all."""
    if not isinstance(uri, str) or not uri:
        raise MessageError(f"the name of a file is no text: {urls.excerpt(str(uri), 100)!r}")
    if "://" not in uri:
        return uri
    try:
        url = urls.parse(uri)
    except BadDestination as error:
        raise MessageError(str(error)) from None
    if not hosts.is_local(url.hostname):
        raise MessageError(f"{urls.redacted(url)} is on another host")
    return url.path


def _items(
    data: dict[str, Any], above: dict[str, Any], *, outermost: bool = False
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    own = {key: value for key, value in data.items() if key not in _GROUPS}
    if "uri" in own:
        own.setdefault("uid", os.path.basename(str(own["uri"])))
        told = own if outermost else {**above, "uid": own["uid"], "uri": own["uri"]}
        yield {**above, **own}, told
    for group in _GROUPS:
        members = data.get(group)
        for member in members if isinstance(members, list) else ():
            if isinstance(member, dict):
                yield from _items(member, {**above, **own})
