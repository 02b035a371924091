"""What stands in the data of announcements, requests and answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from trollmoves.errors import MessageError, TrollmovesError
from trollmoves.net import urls

FILE_TYPES = ("file", "dataset", "collection")  # message types that announce or confirm files
# Keys with which servers and clients coordinate a transfer; they mean nothing to other receivers of a message.
TRANSPORT_KEYS = ("request_address", "destination", "announcement", "request")
_NUMBERS = ("size", "mtime")  # of an announcement; what the journal cannot hold is left out
MAX_INT64 = 2**63 - 1  # what the journal, and most of the world, can hold


def file_items(data: Any) -> list[dict[str, Any]]:
    """Give each dictionary with a ``uri``, at any depth: the files that a message is about."""
    found: list[dict[str, Any]] = []
    if isinstance(data, (dict, list)):
        _collect(data, found)
    return found


def _collect(data: dict[str, Any] | list[Any], found: list[dict[str, Any]]) -> None:
    if isinstance(data, dict):
        if "uri" in data:
            found.append(data)
        values: Iterable[Any] = data.values()
    else:
        values = data
    for value in values:
        if type(value) is not str and isinstance(value, (dict, list)):  # most are texts
            _collect(value, found)


def file_uris(data: Any) -> list[Any]:
    """Give the ``uri`` of each file; whoever sent it may have put anything there."""
    return [item["uri"] for item in file_items(data)]


def file_names(data: Any) -> str:
    """Give the base names of the files, for people."""
    return ", ".join(file_name(str(uri)) for uri in file_uris(data))


def file_name(uri: str) -> str:
    """Give the last part of a path or URL; that of a URL without a path is its host, and may be its login."""
    return os.path.basename(urls.redacted(uri) if "://" in uri and "@" in uri else uri)


def check_file_item(item: dict[str, Any]) -> None:
    """Check that a file that somebody told of stays where it is to go; MessageError when it has no such name."""
    uri, below = item["uri"], item.get("path")
    if not isinstance(uri, str) or os.path.basename(uri) in ("", ".", "..") or "\0" in uri:
        raise MessageError(f"{uri!r:.100} is no name of a file")
    if below and (not isinstance(below, str) or escapes_directory(below)):
        raise MessageError(f"{below!r:.100} is no path below the destination")


def escapes_directory(path: str) -> bool:
    """Tell whether a sub-path may lead out of its directory, on whatever system it is used."""
    return path.startswith(("/", "\\")) or ".." in path.replace("\\", "/").split("/") or "\0" in path


def reply_type(data: dict[str, Any]) -> str:
    """Give the type under which the files in ``data`` are told as delivered."""
    return "file" if "uri" in data else "dataset" if "dataset" in data else "collection"


def request_metadata(data: Any) -> dict[str, Any]:
    """Return what clients of ours say about a request: ``id``, ``timeout`` (s), ``unless_delivered_to``; else {}.

    An ``id`` is a string, a ``timeout`` a finite number, ``unless_delivered_to`` a list; other values are left out.
    """
    mark = data.get("request") if isinstance(data, dict) else None
    if not isinstance(mark, dict):
        return {}
    checks: dict[str, Callable[[Any], bool]] = {
        "id": lambda value: isinstance(value, str),
        "timeout": is_seconds,
        "unless_delivered_to": lambda value: isinstance(value, list),
    }
    return {key: value for key, value in mark.items() if key not in checks or checks[key](value)}


def is_number(value: Any) -> bool:
    """Tell whether a value that was sent can be the number of an announcement, or a count."""
    return type(value) is int and 0 <= value <= MAX_INT64


def is_seconds(value: Any) -> bool:
    """Tell whether a value that was sent can be a time span in seconds."""
    return type(value) in (int, float) and 0 <= value <= MAX_INT64


def request_id(text: str) -> str | None:
    """Give the id in the text of a request, without reading all of it; None where there is none."""
    start = text.find('"request": {')
    if start < 0:
        return None
    try:
        mark, _ = json.JSONDecoder().raw_decode(text, start + len('"request": '))
    except ValueError:
        return None
    id_ = mark.get("id") if isinstance(mark, dict) else None
    return id_ if isinstance(id_, str) else None


def announcement_metadata(data: Any) -> dict[str, Any]:
    """Give what our own servers say about an announcement: ``log``, ``number``, ``size``, ``mtime``; {} from others."""
    mark = data.get("announcement") if isinstance(data, dict) else None
    if not isinstance(mark, dict) or not isinstance(mark.get("log"), str) or not is_number(mark.get("number")):
        return {}
    if all(is_number(mark.get(key, 0)) for key in _NUMBERS):
        return mark
    return {key: value for key, value in mark.items() if key not in _NUMBERS or is_number(value)}


def error_payload(data: Any, error: TrollmovesError, again_in: float = 0.0) -> Any:
    """Give what an ``err`` says about a request: a text, and to our own clients also whether to try again."""
    text = urls.redact_text(str(error))
    if request_metadata(data):
        return {"error": text, "temporary": error.temporary, "retry_after": again_in}
    return text
