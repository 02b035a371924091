"""The data of announcements, requests and replies."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

from trollmoves.errors import BadDestination, MessageError, Superseded, TrollmovesError
from trollmoves.net import hosts, urls

FILE_TYPES = ("file", "dataset", "collection")  # message types that announce or confirm files
# Keys with which servers and clients coordinate a transfer; other subscribers have no use for them.
TRANSPORT_KEYS = ("request_address", "destination", "announcement", "request")
RETURNED = "returned"  # in the metadata of an announcement: it is another file than the delivered one of this version
EARLY = "early"  # in the metadata of a replayed announcement, for its client: it is older than the first contact
LEGACY_CLIENT = "legacy"  # in ``unless_delivered_to``: a client without request ids, with the requested destination
PREVIOUS = "previous"  # in the metadata of an announcement: the previous number in its log, if it is not the next lower
_NUMBERS = ("size", "mtime")  # of an announcement; values that the journal cannot store are left out
MAX_INT64 = 2**63 - 1  # largest integer that the journal can store


def file_items(data: Any) -> list[dict[str, Any]]:
    """Return the files of a message: each dictionary in ``data`` with a ``uri``, at any depth."""
    items: list[dict[str, Any]] = []
    if isinstance(data, (dict, list)):
        _collect(data, items)
    return items


def _collect(data: dict[str, Any] | list[Any], items: list[dict[str, Any]]) -> None:
    if isinstance(data, dict):
        if "uri" in data:
            items.append(data)
        values: Iterable[Any] = data.values()
    else:
        values = data
    for value in values:
        if type(value) is not str and isinstance(value, (dict, list)):  # the cheap check first: most values are strings
            _collect(value, items)


def file_uris(data: Any) -> list[Any]:
    """Return the unchecked ``uri`` of each file: the sender may have set a value of any type."""
    return [item["uri"] for item in file_items(data)]


def count_files(data: Any) -> int:
    """Return the number of files of a message."""
    return 1 if "uri" in data else len(file_items(data))


def file_names(data: Any) -> str:
    """Return the base names of the files, for log lines."""
    return ", ".join(file_name(str(uri)) for uri in file_uris(data))


def file_name(uri: str) -> str:
    """Return the last part of a path or URL, without a login. That of a URL without a path is its host."""
    return os.path.basename(urls.redacted(uri) if "://" in uri and "@" in uri else uri)


def local_path(uri: object) -> str:
    """Return the path of a file on this host; raise MessageError if the URI is invalid, or on another host."""
    if not isinstance(uri, str) or not uri:
        raise MessageError(f"the URI of a file must be a non-empty string: {urls.excerpt(str(uri), 100)!r}")
    if "://" not in uri:
        return uri
    try:
        url = urls.parse(uri)
    except BadDestination as error:
        raise MessageError(str(error)) from None
    if not hosts.is_local(url.hostname):
        raise MessageError(f"{urls.redacted(url)} is on another host")
    return url.path


def check_file_item(item: dict[str, Any]) -> None:
    """Raise MessageError unless the received ``uri`` names a file and ``path`` stays inside the destination."""
    uri, rel_path = item["uri"], item.get("path")
    if not isinstance(uri, str) or os.path.basename(uri) in ("", ".", "..") or "\0" in uri:
        raise MessageError(f"invalid uri {uri!r:.100}: it must end in the name of a file")
    if rel_path and (not isinstance(rel_path, str) or escapes_directory(rel_path)):
        raise MessageError(f"invalid path {rel_path!r:.100}: it must be a relative path inside the destination")


def escapes_directory(path: str) -> bool:
    """Return True if a relative path may lead out of its directory, with POSIX or Windows separators."""
    return path.startswith(("/", "\\")) or ".." in path.replace("\\", "/").split("/") or "\0" in path


def reply_type(data: dict[str, Any]) -> str:
    """Return the message type (one of FILE_TYPES) that announces the files in ``data`` as delivered."""
    return "file" if "uri" in data else "dataset" if "dataset" in data else "collection"


def request_metadata(data: Any) -> dict[str, Any]:
    """Return ``id``, ``timeout`` (s) and ``unless_delivered_to`` of a request; {} for a legacy client.

    An ``id`` is a string, a ``timeout`` a finite number, ``unless_delivered_to`` a list; other values are left out.
    """
    metadata = data.get("request") if isinstance(data, dict) else None
    if not isinstance(metadata, dict):
        return {}
    checks: dict[str, Callable[[Any], bool]] = {
        "id": lambda value: isinstance(value, str),
        "timeout": is_seconds,
        "unless_delivered_to": lambda value: isinstance(value, list),
    }
    return {key: value for key, value in metadata.items() if key not in checks or checks[key](value)}


def is_number(value: Any) -> TypeGuard[int]:
    """Return True if a received value is a valid announcement number or count."""
    return type(value) is int and 0 <= value <= MAX_INT64


def is_seconds(value: Any) -> bool:
    """Return True if a received value is a valid time span in seconds."""
    return type(value) in (int, float) and 0 <= value <= MAX_INT64


def is_address(value: Any) -> TypeGuard[str]:
    """Return True if a received value is the address ``host:port`` of a server."""
    return isinstance(value, str) and hosts.is_host_and_port(value)


def request_id(text: str) -> str | None:
    """Return the id in the text of a request, without decoding the whole text; None if it has none."""
    id_ = _object_in(text, "request").get("id")
    return id_ if isinstance(id_, str) else None


def announcement_metadata_in(text: str) -> dict[str, Any]:
    """Return the metadata in the text of an announcement, without decoding the whole text; {} if it has none."""
    return announcement_metadata({"announcement": _object_in(text, "announcement")})


def _object_in(text: str, name: str) -> dict[str, Any]:
    start = text.find(f'"{name}": {{')
    if start < 0:
        return {}
    try:
        found, _ = json.JSONDecoder().raw_decode(text, start + len(f'"{name}": '))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def announcement_metadata(data: Any) -> dict[str, Any]:
    """Return ``log``, ``number``, ``size`` and ``mtime`` of an announcement; {} for a legacy server."""
    metadata = data.get("announcement") if isinstance(data, dict) else None
    if (
        not isinstance(metadata, dict)
        or not isinstance(metadata.get("log"), str)
        or not is_number(metadata.get("number"))
    ):
        return {}
    if all(is_number(metadata.get(key, 0)) for key in _NUMBERS):
        return metadata
    return {key: value for key, value in metadata.items() if key not in _NUMBERS or is_number(value)}


def error_payload(data: Any, error: TrollmovesError, retry_after: float = 0.0) -> Any:
    """Return the data of an ``err`` reply to the request with ``data``.

    It is the error text for legacy clients. Other clients also get ``temporary``, which is True if a retry may
    succeed, ``retry_after`` in seconds, ``held`` if an operator must repair the cause first, and ``superseded`` if a
    newer version was delivered instead.
    """
    text = urls.redact_text(str(error))
    if request_metadata(data):
        more = {"superseded": True} if isinstance(error, Superseded) else {"held": True} if error.held else {}
        return {"error": text, "temporary": error.temporary, "retry_after": retry_after, **more}
    return text
