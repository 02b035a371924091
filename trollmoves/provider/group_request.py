"""Requests for groups of files, which are answered with one reply."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trollmoves.errors import RequestRejected
from trollmoves.journal import AnnouncementRecord
from trollmoves.messaging import group, payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.replier import Request
from trollmoves.provider.file_store import first_uri
from trollmoves.provider.push_request import PushRequest


class GroupRequest:
    """A request for a group. Each file is requested and answered separately; the last answer sends the reply."""

    def __init__(self, request: Request) -> None:
        """Parse a request; raise RequestRejected if its form is invalid."""
        data = request.message.data
        requested = data[group.KEY]
        files = requested.get("files") if isinstance(requested, dict) else None
        if not isinstance(files, list) or not 0 < len(files) <= group.MAX_FILES or not all(map(_is_file, files)):
            raise RequestRejected(f"a group must have 1 to {group.MAX_FILES} files, each with a number and an id")
        log, client = requested.get("log"), requested.get("client")
        if not (isinstance(log, str) and isinstance(client, str)):
            raise RequestRejected("a group must name its announcement log and its client")
        self.log = log
        self.files: dict[int, int] = dict(files)
        self._request = request
        self._client = client
        self._missing = set(self.files)
        self._results: dict[str, tuple[str, object]] = {}
        self._lock = threading.Lock()

    def members(self, announced: Mapping[int, AnnouncementRecord]) -> Iterator[tuple[Request, PushRequest]]:
        """Yield the request for each file, as the client would send it alone; reject those that were not announced.

        Raise RequestRejected if the destination or the backup targets are invalid.
        """
        received = self._request.message
        # Only known keys: another one may name a file.
        common = {key: received.data[key] for key in ("destination", "backup_targets") if key in received.data}
        timeout = payload.request_metadata(received.data).get("timeout", 0.0)
        request = {"timeout": timeout, "id": f"{self._client}/"}
        uri = next(iter(announced.values())).uri
        parsed = PushRequest.parse(Message(received.subject, "push", common | {"uri": uri, "request": request}))
        head = received.raw.partition(" application/json ")[0]
        tail = json.dumps(common | {"request": request})[1:-3]  # without the end of the id
        for number, id_ in self.files.items():
            record = announced.get(number)
            if record is None or not group.has_one_file(record.message):
                error = RequestRejected(f"announcement {number} is not one of a single file of this chain")
                self.answer(number, "err", payload.error_payload(received.data, error))
                continue
            text = f'{head} application/json {record.message.split(None, 6)[6][:-1]}, {tail}{id_}"}}}}'
            reference = {"log": self.log, "number": number}
            file = {"uri": first_uri(record), "request": request, "announcement": reference}
            message = Message(received.subject, "push", common | file, received.sender, received.time, raw=text)
            push = PushRequest(
                *(message, [file], reference, parsed.destination, parsed.backup_targets),
                id=f"{self._client}/{id_}",
                timeout=parsed.timeout,
            )
            yield GroupMember(message, [], self._request.replier, self._request.sender, self, number), push

    def answer(self, number: int, type_: str, data: object) -> None:
        """Record the first answer for a file, and reply if it is the last one. Any thread."""
        with self._lock:
            if number not in self._missing:
                return
            self._missing.remove(number)
            if (type_, data) != group.AS_REQUESTED:
                self._results[str(number)] = (type_, data)
            is_complete = not self._missing
        if is_complete:
            self._request.reply(group.DELIVERED, {group.KEY: self._results})


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
        self.reply(group.DELIVERED, dict(changes))


def is_group(request: Request) -> bool:
    """Return True if a push request is for a group."""
    return isinstance(request.message.data, dict) and group.KEY in request.message.data


def _is_file(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(payload.is_number, value))
