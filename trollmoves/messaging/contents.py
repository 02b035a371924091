"""What stands in the data of announcements, requests and answers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from trollmoves.errors import TrollmovesError


def items(data: Any) -> Iterator[dict[str, Any]]:
    """Give each dictionary with a ``uri``, at any depth: the files that a message is about."""
    if isinstance(data, dict):
        if "uri" in data:
            yield data
        for value in data.values():
            if isinstance(value, (dict, list)):
                yield from items(value)
    elif isinstance(data, list):
        for value in data:
            if isinstance(value, (dict, list)):
                yield from items(value)


def uris(data: Any) -> list[Any]:
    """Give the ``uri`` of each file; whoever sent it may have put anything there."""
    return [item["uri"] for item in items(data)]


def names(data: Any) -> str:
    """Give the base names of the files, for people."""
    return ", ".join(os.path.basename(str(uri)) for uri in uris(data))


def reply_type(data: dict[str, Any]) -> str:
    """Give the type under which the files in ``data`` are told as delivered."""
    return "file" if "uri" in data else "dataset" if "dataset" in data else "collection"


def request_mark(data: Any) -> dict[str, Any]:
    """Give what our own clients say about a request: its ``id`` and their ``patience`` in seconds; {} from others."""
    mark = data.get("request") if isinstance(data, dict) else None
    return mark if isinstance(mark, dict) else {}


def request_id(text: str) -> str | None:
    """Give the id in the text of a request, without reading all of it; None where there is none."""
    start = text.find('"request": {')
    if start < 0:
        return None
    try:
        mark, _ = json.JSONDecoder().raw_decode(text, start + len('"request": '))
    except ValueError:
        return None
    return mark.get("id") if isinstance(mark, dict) else None


def announcement_mark(data: Any) -> dict[str, Any]:
    """Give what our own servers say about an announcement: ``log``, ``number``, ``size``, ``mtime``; {} from others."""
    mark = data.get("announcement") if isinstance(data, dict) else None
    if isinstance(mark, dict) and isinstance(mark.get("log"), str) and isinstance(mark.get("number"), int):
        return mark
    return {}


def failure(data: Any, error: TrollmovesError, again_in: float = 0.0) -> Any:
    """Give what an ``err`` says about a request: a text, and to our own clients also whether to try again."""
    if request_mark(data):
        return {"error": str(error), "temporary": error.temporary, "again_in": again_in}
    return str(error)
