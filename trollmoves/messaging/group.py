"""Groups: one request to a server for several announced files, and one reply with a result for each of them.

A group saves messages, not tasks: each file keeps its task on both sides, with the request id that a single request for
it would have. So each file fails, waits, is held, repeated or answered from the journal separately.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trollmoves.errors import MessageError, RequestRejected
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.replier import Request

KEY = "group"  # in the data of requests and replies; in the metadata of announcements, the accepted number of files
MAX_FILES = 64  # of one group
MAX_FILE_SIZE = 1_000_000  # bytes of a file in a group: the results of the others wait for its transfer
WAIT = "wait"  # type of the result of a file that is not delivered yet
TIMEOUT = 2.0  # s after which the server replies, with WAIT for the files that are not delivered yet
DELIVERED = "file"  # type of a result; DELIVERED without data: as requested
_AS_REQUESTED: tuple[str, object] = (DELIVERED, {})


def accepts(metadata: Mapping[str, Any]) -> bool:
    """Return True if a server accepts groups with the file that it announced with this metadata."""
    size = metadata.get("size")
    return payload.is_number(metadata.get(KEY)) and size is not None and size <= MAX_FILE_SIZE


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
        result = results.get(str(number), _AS_REQUESTED)
        if not (isinstance(result, (list, tuple)) and len(result) == 2 and isinstance(result[0], str)):
            raise MessageError(f"the result {result!r:.100} must be a type and data")
        found.append(Message(reply.subject, result[0], result[1], reply.sender, reply.time))
    return found


class GroupRequest:
    """A received request for a group. Each member is answered separately; the last answer sends the reply."""

    def __init__(self, request: Request) -> None:
        """Raise RequestRejected if the form of the request is invalid."""
        data = request.message.data
        group, metadata = data[KEY], data.get("request", {})
        files = group.get("files") if isinstance(group, dict) else None
        if not isinstance(files, list) or not 0 < len(files) <= MAX_FILES or not all(map(_is_file, files)):
            raise RequestRejected(f"a group must be 1 to {MAX_FILES} files, each a number and an id")
        if not (isinstance(group.get("log"), str) and isinstance(group.get("client"), str)):
            raise RequestRejected("a group must name its announcement log and its client")
        if not isinstance(metadata, dict):
            raise RequestRejected("the metadata of a request must be a dictionary")
        self.log: str = group["log"]
        self.files: dict[int, int] = dict(files)
        self._request = request
        self._client = group["client"]
        self._common = {key: value for key, value in data.items() if key not in (KEY, "request")}
        self._metadata = metadata
        self._missing = set(self.files)
        self._results: dict[str, tuple[str, object]] = {}
        self._lock = threading.Lock()

    def member(self, number: int, announcement: str) -> Request:
        """Return the request for one file, as the client would have sent it alone."""
        message, request = Message.decode(announcement), self._request
        added = {**self._common, "request": {**self._metadata, "id": f"{self._client}/{self.files[number]}"}}
        text = message.derive("push", added, sender=request.message.sender)
        member = Message(message.subject, "push", message.data | added, request.message.sender, raw=text)
        return GroupMember(member, [], request.replier, request.sender, self, number)

    def answer(self, number: int, type_: str, data: object) -> None:
        """Record the first answer to a member, and reply if it is the last one. Any thread."""
        with self._lock:
            if number not in self._missing:
                return
            self._missing.remove(number)
            if (type_, data) != _AS_REQUESTED:
                self._results[str(number)] = (type_, data)
            is_complete = not self._missing
        if is_complete:
            self._request.reply(DELIVERED, {KEY: self._results})


@dataclass(frozen=True, slots=True)
class GroupMember(Request):
    """The request for one file of a group; the reply to it becomes a result of the group."""

    group: GroupRequest | None = None
    number: int = 0

    def reply(self, type_: str, data: object = "") -> None:
        """Record a result with this type and data."""
        if self.group:
            self.group.answer(self.number, type_, data)

    def reply_encoded(self, text: str) -> None:
        """Record a result with the type and data of an encoded message."""
        message = Message.decode(text)
        self.reply(message.type, message.data)

    def reply_delivered(self, changes: Mapping[str, Any], encode: Callable[[], str]) -> None:  # noqa: ARG002
        """Record a delivery as requested, except for ``changes``."""
        self.reply(DELIVERED, dict(changes))


def is_group(request: Request) -> bool:
    """Return True if a push request is for a group."""
    return isinstance(request.message.data, dict) and KEY in request.message.data


def _is_file(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(payload.is_number, value))
