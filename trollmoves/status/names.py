"""The names of files in the rows of tasks."""

from __future__ import annotations

import json

from trollmoves.errors import MessageError
from trollmoves.messaging.messages import MAGIC, Message


def file_of_key(kind: str, key: str) -> str:
    """Return the names of the files of a task, as far as its key has them."""
    if kind == "deliver":
        return key.partition("\n")[0].rpartition(" to ")[0]
    if kind == "route":
        return key.rpartition("\n")[0]
    lines = [line for line in key.split("\n") if not line.startswith(("#", "/"))]
    return ", ".join(lines) or key


def destination_of(kind: str, key: str, stored: str | None) -> str:
    """Return the destination of a task without a login, an empty string if its row has none."""
    if kind == "push":
        return stored or key.partition(" ")[2]
    if kind == "deliver":
        return key.partition("\n")[0].rpartition(" to ")[2]
    return stored or ""


def sources_of(body: str) -> dict[str, str]:
    """Return the path of a file at each source that announced it, from the body of a fetch or relay task."""
    try:
        return {source: str(version[0]) for source, (version, _) in json.loads(body)[1].items()} if body else {}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def error_of(reply: str | None) -> str:
    """Return the error of a failed attempt: the text, or the text in the reply that a client got."""
    if not reply:
        return ""
    if reply.startswith(MAGIC):
        try:
            data = Message.decode(reply).data
        except MessageError:
            return reply
        return str(data.get("error", reply) if isinstance(data, dict) else data)
    try:
        return "" if isinstance(json.loads(reply), list) else reply
    except ValueError:
        return reply
