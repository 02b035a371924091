"""The history of a file in one journal: each step with its time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trollmoves.journal import DONE, FAILED, WAITING, AnnouncedRow, JournalReader, TaskRow
from trollmoves.messaging import payload
from trollmoves.net import urls
from trollmoves.status.names import destination_of, error_of, file_of_key, sources_of

MAX_FOUND = 200  # announcements and tasks of one request
# Kinds of tasks that are found by the number of their announcement.
_OF_A_NUMBER = ("push", "ack", "remove", "delivered_to", "left", "unpack")


@dataclass(frozen=True)
class Step:
    """One step of a file: ``time`` in seconds since the epoch, None if it has not happened yet.

    ``event`` is a short text, as listed in doc/operating.md. The other fields are empty if they do not apply.
    """

    time: float | None
    event: str
    chain: str
    file: str
    destination: str = ""
    peer: str = ""  # the client, or the source
    number: int | None = None  # of the announcement
    size: int | None = None  # bytes
    seconds: float | None = None
    attempts: int | None = None
    text: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def history(reader: JournalReader, name: str) -> list[Step]:
    """Return the steps of the files with a name, a path, or a pattern with ``*`` and ``?``, oldest first.

    At most ``MAX_FOUND`` announcements and as many tasks are searched for, newest first.
    """
    steps: list[Step] = []
    seen: set[int] = set()
    found: list[TaskRow] = []
    for row in reader.find_announcements(name, name, MAX_FOUND):
        tasks = reader.tasks_for(row.chain, row.number)
        steps += _announced(row, tasks)
        seen |= {task.id for task in tasks}
    for task in reader.tasks_of_file(name, tuple(_OF_A_NUMBER), MAX_FOUND):
        if task.id not in seen:
            steps += _steps(task, file_of_key(task.kind, task.key))
            found.append(task)
    steps += _receipts(found)
    return sorted(steps, key=time_of)


def steps_of_announcement(reader: JournalReader, row: AnnouncedRow) -> list[Step]:
    """Return the steps of an announced file, oldest first; only those that the number of the announcement finds."""
    return sorted(_announced(row, reader.tasks_for(row.chain, row.number)), key=time_of)


def time_of(step: Step) -> float:
    """Return the time by which steps are sorted: those that have not happened yet are the last."""
    return math.inf if step.time is None else step.time


def _receipts(tasks: list[TaskRow]) -> Iterator[Step]:
    """Yield the receipts that a client published: with the delivery, or after it unpacked the files."""
    packed = {(task.chain, task.key) for task in tasks if task.kind == "unpack"}
    for task in tasks:
        unpacked = task.kind == "unpack" and not task.key.startswith("/")  # a path: of a server
        fetched = task.kind == "fetch" and task.seconds is not None and (task.chain, task.key) not in packed
        if (unpacked or fetched) and task.number is None and task.state == DONE:
            yield Step(task.finished, "receipt published", task.chain, file_of_key(task.kind, task.key))


def _announced(row: AnnouncedRow, tasks: Iterable[TaskRow]) -> Iterator[Step]:
    if row.mtime:
        yield Step(row.mtime / 1e9, "written", row.chain, row.uid, size=row.size)
    yield Step(row.created, "announced", row.chain, row.uid, number=row.number, size=row.size, text=row.uri)
    for task in tasks:
        yield from _steps(task, row.uid)


def _steps(task: TaskRow, file: str) -> Iterator[Step]:
    describe = _STEPS.get(task.kind)
    if describe:
        yield from describe(task, file)


def _push(task: TaskRow, file: str) -> Iterator[Step]:
    destination = urls.redacted(destination_of(task.kind, task.key, task.destination))
    client = task.peer or _client_of(task.body)
    yield _step(task, task.created, "requested", file, destination, client)
    yield from _result(task, file, destination, "delivered", client)


def _transfer(task: TaskRow, file: str) -> Iterator[Step]:
    event = {"fetch": "fetched", "relay": "relayed"}.get(task.kind, "delivered")
    source = task.lane.partition(" ")[2] if task.kind in ("fetch", "relay") else ""
    destination = urls.redacted(destination_of(task.kind, task.key, task.destination))
    details = {"sources": sources_of(task.body)} if source else {}
    yield _step(task, task.created, "received", file, "", source, details=details)
    yield from _result(task, file, destination, event, task.peer or source)


def _result(task: TaskRow, file: str, destination: str, done: str, peer: str) -> Iterator[Step]:
    error = " ".join(urls.redact_text(error_of(task.reply)).split()) if task.failure else ""
    if task.state == DONE:
        is_done = task.seconds is not None or task.kind in ("relay", "route", "unpack")
        text = "" if is_done else "a peer received it, or a newer version exists"
        yield _step(task, task.finished, done if is_done else "not needed", file, destination, peer, text)
    elif task.state == FAILED:
        event = {"failed": "failed", "superseded": "superseded"}.get(task.failure or "failed", "refused")
        yield _step(task, task.finished, event, file, destination, peer, error)
    elif task.state == WAITING:
        held = "held" if task.failure == "held" else "waiting"
        yield _step(task, None, held, file, destination, peer, error, {"next_attempt": task.due})
    else:
        yield _step(task, task.finished, "dropped", file, destination, peer, "by an operator")


def _record(event: str) -> Callable[[TaskRow, str], Iterator[Step]]:
    def describe(task: TaskRow, file: str) -> Iterator[Step]:
        peer = task.key.partition(" ")[2] if task.kind in ("delivered_to", "left") else ""
        yield _step(task, task.finished, event, file, "", peer)

    return describe


def _removal(task: TaskRow, file: str) -> Iterator[Step]:
    if task.state == DONE:
        yield Step(task.finished, "removed", task.chain, file, number=task.number)
    elif task.state == WAITING:
        yield _step(task, None, "removal planned", file, details={"next_attempt": task.due})


def _set_aside(task: TaskRow, file: str) -> Iterator[Step]:
    yield _step(task, task.created, "failed", file, text=task.body)


def _step(
    task: TaskRow,
    time: float | None,
    event: str,
    file: str,
    destination: str = "",
    peer: str = "",
    text: str = "",
    details: dict[str, Any] | None = None,
) -> Step:
    finished = time is not None and time == task.finished
    return Step(
        *(time, event, task.chain, file, destination, peer, task.number),
        size=task.size if finished else None,
        seconds=task.seconds if finished else None,
        attempts=(task.tries or None) if finished or time is None else None,
        text=text,
        details=details or {},
    )


def _client_of(body: str) -> str:
    """Return the client that sent a request, or the id of the request if only that is left of it."""
    parts = body.split(" ", 3)
    if body.startswith("pytroll:/") and len(parts) > 2:
        return parts[2]
    try:
        return str(json.loads(body)["request"]["id"]) if body else ""
    except (ValueError, KeyError, TypeError):
        return payload.request_id(body) or ""


_STEPS: Mapping[str, Callable[[TaskRow, str], Iterator[Step]]] = {
    "push": _push,
    "fetch": _transfer,
    "relay": _transfer,
    "deliver": _transfer,
    "route": _transfer,
    "unpack": lambda task, file: _result(task, file, "", "unpacked", ""),
    "ack": _record("acknowledged"),
    "delivered_to": _record("replied to a further client"),
    "left": _record("left to a peer"),
    "remove": _removal,
    "delete_archive": _removal,
    "set_aside": _set_aside,
}
