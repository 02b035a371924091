"""Groups: one request to a server for several announced files, and one reply with a result for each of them.

A group saves messages, not tasks: each file keeps its task on both sides, with the request id that a single request for
it would have. So each file fails, waits, is held, repeated or answered from the journal separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trollmoves.errors import MessageError
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message

KEY = "group"  # in the data of requests and replies; in the metadata of announcements, the accepted number of files
MAX_FILES = 64  # of one group
MAX_FILE_SIZE = 1_000_000  # bytes of a file in a group: the results of the others wait for its transfer
WAIT = "wait"  # type of the result of a file that is not delivered yet
TIMEOUT = 2.0  # s after which the server replies, with WAIT for the files that are not delivered yet
DELIVERED = "file"  # type of a result; DELIVERED without data: as requested
AS_REQUESTED: tuple[str, object] = (DELIVERED, {})


def has_one_file(text: str) -> bool:
    """Return True if an encoded announcement has one file, and no directory below the destination for it."""
    return text.count('"uri": ') == 1 and '"path": ' not in text


def accepts(metadata: Mapping[str, Any], text: str) -> bool:
    """Return True if the server that sent an announcement, with this text, accepts it in a group."""
    size = metadata.get("size")
    is_accepted = payload.is_number(metadata.get(KEY)) and size is not None and size <= MAX_FILE_SIZE
    return is_accepted and has_one_file(text)


def encode_request(subject: str, log: str, client: str, files: Mapping[int, int], added: Mapping[str, Any]) -> str:
    """Return the request for files of an announcement log.

    Args:
        subject: that of an announcement.
        log: the announcement log.
        client: the name of the client.
        files: the id of each file, by the number of its announcement; its request id is ``CLIENT/ID``.
        added: what single requests would add to the announcements; ``request`` without the id.
    """
    group = {"log": log, "client": client, "files": list(files.items())}
    return Message(subject, "push", {**added, KEY: group}).encode()


def replies(reply: Message, numbers: Iterable[int]) -> list[Message]:
    """Return the reply for each of these files, without the data of its request; MessageError for another reply."""
    results = reply.data.get(KEY) if isinstance(reply.data, dict) else None
    if reply.type != DELIVERED or not isinstance(results, dict):
        raise MessageError("the reply to a group must have results")
    found: list[Message] = []
    for number in numbers:
        result = results.get(str(number), AS_REQUESTED)
        if not (isinstance(result, (list, tuple)) and len(result) == 2 and isinstance(result[0], str)):
            raise MessageError(f"the result {result!r:.100} must be a type and data")
        found.append(Message(reply.subject, result[0], result[1], reply.sender, reply.time))
    return found
