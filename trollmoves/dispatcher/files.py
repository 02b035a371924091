"""Finds the local files that a message names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trollmoves.errors import MessageError
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message

_GROUPS = ("dataset", "collection")


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file as found when its message arrived: size in bytes, times in ns.

    Destinations are composed from ``metadata``; ``published`` is the data of the message about its delivery.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    metadata: dict[str, Any]
    published: dict[str, Any]


class ReceivedMessage:
    """A message that caches the status of its files for all targets. Not thread-safe.

    ``was_kept``: the message has waited on the disk of this host, so that another host may have handled it too.
    """

    def __init__(self, message: Message, *, was_kept: bool = False) -> None:
        self.message = message
        self.was_kept = was_kept
        self._found: list[LocalFile | MessageError] | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata for conditions; raise MessageError if the data of the message is not a dictionary."""
        return metadata_of(self.message)

    def files(self) -> list[LocalFile | MessageError]:
        """Return its files, with an error in place of each missing one; raise MessageError if it names no file."""
        if self._found is None:
            self._found = [_try_look_up(metadata, published) for metadata, published in items(self.message)]
        return self._found


def _try_look_up(metadata: dict[str, Any], published: dict[str, Any]) -> LocalFile | MessageError:
    try:
        return look_up(metadata, published)
    except MessageError as error:
        return error


def metadata_of(message: Message) -> dict[str, Any]:
    """Return the metadata for conditions; raise MessageError if the data of the message is not a dictionary."""
    if not isinstance(message.data, dict):
        raise MessageError("its data must be a dictionary")
    return message.data


def items(message: Message) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the metadata and the published data of each file in a message; raise MessageError if it names no file.

    Fields at the level of a dataset or collection apply to each file in it.
    """
    found = list(_items(metadata_of(message), {}, outermost=True))
    if not found:
        raise MessageError("it names no file")
    return found


def look_up(metadata: dict[str, Any], published: dict[str, Any]) -> LocalFile:
    """Return a file with its status; raise MessageError if it is missing or on another host."""
    path = payload.local_path(metadata["uri"])
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise MessageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return LocalFile(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, metadata, published)


def _items(
    data: dict[str, Any], above: dict[str, Any], *, outermost: bool = False
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    own = {key: value for key, value in data.items() if key not in _GROUPS}
    if "uri" in own:
        own.setdefault("uid", os.path.basename(str(own["uri"])))
        published = own if outermost else {**above, "uid": own["uid"], "uri": own["uri"]}
        yield {**above, **own}, published
    for group in _GROUPS:
        members = data.get(group)
        for member in members if isinstance(members, list) else ():
            if isinstance(member, dict):
                yield from _items(member, {**above, **own})
