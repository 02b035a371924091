"""The rows of pushes in the journal: compacted when they are finished, repeated by an order."""

from __future__ import annotations

import json
from typing import Any

from trollmoves.journal import BACKLOG, AnnouncementRecord, Journal, Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.net import urls
from trollmoves.provider.destinations import resolve_url


def task_again(journal: Journal, task: Task) -> Task | None:
    """Return the task that repeats a finished push; None if its announcement is pruned.

    Passwords in the URL of the destination are kept for some minutes after the push only.
    """
    announced = journal.get_announcement(task.chain, task.announcement_number or 0)
    if announced is None:
        return None
    if task.body == "" or task.body.startswith("{"):
        added = compacted(task) | {"destination": task.key.partition(" ")[2]}  # not that of a backup target
        task.body = Message.decode(announced.message).derive("push", added)
    task.rank = BACKLOG
    return task


def task_to(chain: str, announced: AnnouncementRecord, destination: str) -> Task:
    """Return a task that delivers the files of an announcement to a destination; BadDestination if it is invalid."""
    resolved = resolve_url(destination, ())  # whether it is allowed is checked when the task runs
    body = Message.decode(announced.message).derive("push", {"destination": destination})
    key = f"{announced.number} {resolved.without_password}"
    return Task(chain, "push", key, resolved.lane, body, rank=BACKLOG, announcement_number=announced.number)


def compact_body(task: Task) -> str:
    """Return the part of a finished push to keep: the request id, and the destination if a backup target was used."""
    kept: dict[str, Any] = {}
    id_ = payload.request_id(task.body)
    if id_:
        kept["request"] = {"id": id_}
    destination = Message.decode(task.reply).data["destination"] if task.reply else compacted(task).get("destination")
    if destination and destination != requested_destination(task):
        kept["destination"] = destination
    return json.dumps(kept) if kept else ""


def compacted(task: Task) -> dict[str, Any]:
    """Return the kept part of the body of a finished push; {} if it is not compacted."""
    return dict(json.loads(task.body)) if task.body.startswith("{") else {}


def requested_destination(task: Task) -> str:
    """Return the destination of a push, without its login."""
    return urls.without_login(task.key.partition(" ")[2])
