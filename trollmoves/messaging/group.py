"""Groups: one request to a server for several announced files, and one reply with a result for each of them.

A group saves messages, not tasks: each file keeps its task on both sides, with the id that a single request would have.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trollmoves.errors import MessageError, RequestRejected
from trollmoves.journal import AnnouncementRecord
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.replier import Request

KEY = "group"  # of the data of requests and replies, and of announcements that can be requested by group
MAX_FILES = 64  # of one group
TIMEOUT = 2.0  # s after which files that are not delivered yet get the result "wait", so that the others are reported
WAIT = "wait"  # the result of a file that is not delivered yet

Result = Any  # of a file in a group: None for a delivery as requested, WAIT, or a dictionary


def encode_request(subject: str, log: str, client: str, files: Mapping[int, int], added: Mapping[str, Any]) -> str:
    """Return a request for files.

    Args:
        subject: of the announcements.
        log: the announcement log of the files.
        client: the name of the client.
        files: the id of the task by the number of the announcement; ``CLIENT/ID`` is the id of the request for a file.
        added: what the requests for the files have in common.
    """
    group = {"log": log, "client": client, "files": list(files.items())}
    return Message(subject, "push", {**added, KEY: group}).encode()


def results(reply: Message, numbers: Mapping[int, Any]) -> dict[int, Result]:
    """Return the result for each of these numbers; MessageError if the reply has another form."""
    found = reply.data.get(KEY) if isinstance(reply.data, dict) else None
    if not isinstance(found, dict):
        raise MessageError("the reply to a group has no results")
    return {number: found.get(str(number)) for number in numbers}


class GroupReply:
    """Collects the replies to the requests for the files of a group; the last one sends the reply to the group."""

    def __init__(self, request: Request, numbers: Collection[int]) -> None:
        self._request = request
        self._missing = set(numbers)
        self._results: dict[str, Result] = {}
        self._lock = threading.Lock()

    def add(self, number: int, result: Result) -> None:
        """Record the first result of a file. Any thread."""
        with self._lock:
            if number not in self._missing:
                return
            self._missing.remove(number)
            if result is not None:
                self._results[str(number)] = result
            is_complete = not self._missing
        if is_complete:
            self._request.reply("file", {KEY: self._results})


@dataclass(frozen=True, slots=True)
class GroupMember(Request):
    """The request for one file of a group, as if it were a single request; its reply becomes a result."""

    group: GroupReply | None = None
    number: int = 0

    def reply(self, type_: str, data: object = "") -> None:
        """Record the result of this file."""
        assert self.group
        if type_ == "err":
            result: Result = {"error": data}
        elif type_ == WAIT:
            result = WAIT
        else:
            assert isinstance(data, dict)
            result = {key: data[key] for key in ("destination", "request") if key in data}
        self.group.add(self.number, result)

    def reply_encoded(self, text: str) -> None:
        """Record the result of this file."""
        message = Message.decode(text)
        self.reply(message.type, message.data)

    def reply_delivered(self) -> None:
        """Record that the file was delivered as requested."""
        assert self.group
        self.group.add(self.number, None)


def is_group(request: Request) -> bool:
    return isinstance(request.message.data, dict) and KEY in request.message.data


def references(requests: Iterable[Request]) -> Iterator[dict[str, Any]]:
    """Yield the log and the number of the announcement of each requested file."""
    for request in requests:
        if is_group(request):
            group = request.message.data[KEY]
            for number, _ in group["files"]:
                yield {"log": group["log"], "number": number}
        elif metadata := payload.announcement_metadata(request.message.data):
            yield metadata


def members(request: Request, announcements: Mapping[int, AnnouncementRecord]) -> list[Request]:
    """Return the request for each file of a group."""
    data = request.message.data
    group = data[KEY]
    reply = GroupReply(request, [number for number, _ in group["files"]])
    common = {key: value for key, value in data.items() if key not in (KEY, "request")}
    found: list[Request] = []
    text = json.dumps({**common, "request": {**data["request"], "id": f"{group['client']}/"}})[1:-3]
    head = f"{request.message.raw.partition(' application/json ')[0]} application/json "
    for number, id_ in group["files"]:
        announced = announcements.get(number)
        if announced is None:
            reply.add(number, {"error": {"error": f"not announced by this chain: {number}", "temporary": False}})
            continue
        message = Message.decode(announced.message)
        message.data = {**message.data, **common, "request": {**data["request"], "id": f"{group['client']}/{id_}"}}
        message.type = "push"
        message.sender = request.message.sender
        message.raw = f'{head}{message.raw.split(None, 6)[6][:-1]}, {text}{id_}"}}}}'
        found.append(GroupMember(message, [], request._replier, request.sender, reply, number))
    return found
