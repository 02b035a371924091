"""Rows of the journal: tasks and their outcomes, announcements, and positions in the logs of sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WAITING, DONE, FAILED, DROPPED = 0, 1, 2, 3  # states; an operator drops tasks that are not to run any longer
FRESH, BACKLOG = 0, 1  # ranks: tasks of the lower rank are claimed first
UNFLUSHED_SECONDS = 0.5  # s before a kill in which published messages may not have been sent
MARK_SLACK = 0.01  # s; a journal notes that a process is alive later than UNFLUSHED_SECONDS after its last task
COMPACT_AFTER = 300.0  # s after which a finished task is compacted; clients may repeat a request within this time
BATCH_SIZE = 200  # rows in one transaction, so that other ones wait a few ms at most
MAX_SELECTED = 100_000  # tasks of one order
SET_ASIDE = "set_aside"  # kind of the records of files and messages that cannot be processed
ORDER = "order"  # kind
PAUSE = "pause"  # kind


@dataclass(slots=True)
class Task:
    """A unit of work, identified by (chain, kind, key), that runs in a lane.

    ``due``, ``created`` and ``finished`` are seconds since the epoch by the journal's clock (``now``).
    ``announcement_number`` is the announcement that the task concerns. A task may be added as ``DONE``, as a record
    only. ``held`` is False if another member of the fleet can claim the task; ``tried_by`` has the lives of the members
    that may have run it. Members of a fleet run tasks of one chain with the same ``turn`` one after the other;
    ``overtaken`` is True if a newer one was done when the task was claimed. ``context`` is data of the submitter for
    the handler, and ``owner`` the sender of the request. They are not stored, so they are empty on a task that was read
    from the journal.
    """

    chain: str
    kind: str
    key: str
    lane: str
    body: str
    due: float = 0.0
    rank: int = FRESH
    announcement_number: int | None = None
    id: int = 0
    state: int = WAITING
    tries: int = 0
    created: float = 0.0
    reply: str | None = None
    finished: float | None = None
    context: Any = None
    owner: str = ""
    held: bool = True
    tried_by: Sequence[str] = ()
    turn: str = ""
    overtaken: bool = False

    def may_have_run(self, started: float) -> bool:
        """Return True if the task may have run before, in this process or in one that ended before ``started``."""
        return self.tries > 1 or self.finished is not None or self.created < started


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery, as kept in the row of its task: bytes and seconds (None if unknown), and both sides of it.

    ``destination`` is the directory without login, None if the key of the task has it. ``peer`` is the client that
    requested the files, or the source that delivered them.
    """

    size: int | None
    seconds: float | None
    destination: str | None = None
    peer: str | None = None


NO_DELIVERY = Delivery(None, None)


@dataclass(slots=True)
class Outcome:
    """Result of one run of a task: ``DONE`` or ``FAILED`` with a reply, or ``WAITING`` for an attempt at ``due``.

    ``failure`` is the kind of failure (``TrollmovesError.failure``) and ``error`` its text; None without one.
    """

    task: Task
    state: int
    reply: str | None = None
    due: float = 0.0
    follow_ups: Sequence[Task] = field(default_factory=tuple)
    failure: str | None = None
    error: str | None = None
    delivery: Delivery | None = None


class Finished(NamedTuple):
    """Result of storing outcomes: the follow-up tasks that are new, and the outcomes that were lost."""

    new: list[Task]
    lost: Sequence[Outcome]


Version = tuple[int | None, int | None]  # size and mtime in ns of a file; None if unknown


@dataclass(slots=True)
class AnnouncementRecord:
    """One announcement in a chain's log: the file (uri, size, mtime in ns; None if unknown) and the encoded message.

    The journal sets ``created``, the time of the announcement by its clock.
    """

    number: int
    uri: str
    uid: str
    size: int | None
    mtime: int | None
    message: str
    created: float = field(default=0.0, compare=False)


@dataclass(slots=True)
class SourcePosition:
    """Position of a chain in a source's log: all numbers up to ``received_through``; requests go to ``address``."""

    log: str
    address: str
    received_through: int


@dataclass(frozen=True, slots=True)
class Retention:
    """Retention limits of a journal, in seconds and in numbers of rows; announcements are counted per chain."""

    finished_for: float
    announced_for: float
    most_finished: int
    most_announced: int


class Selection(NamedTuple):
    """Which tasks an order concerns: ``states`` and ``kinds``, and optionally one chain, file, and time.

    ``file`` is the name or path of a file, with ``*``, ``?`` and ``[...]`` as in a shell; empty for all files.
    Tasks that do not wait were finished between ``since`` and ``until`` (s since the epoch).
    """

    states: Collection[int]
    kinds: Collection[str]
    chain: str = ""
    file: str = ""
    since: float = 0.0
    until: float = math.inf
    only_final: bool = False  # of failed tasks only those that nothing repeats, not those that a client requests again


Compactors = Mapping[str, Callable[[Task], str]]


def batches(tasks: Sequence[Task]) -> Iterator[Sequence[Task]]:
    """Return the tasks in parts of at most BATCH_SIZE, in order."""
    return (tasks[start : start + BATCH_SIZE] for start in range(0, len(tasks), BATCH_SIZE))


def drop_body(task: Task) -> str:  # noqa: ARG001
    """Return an empty body: the key suffices to recognize the task."""
    return ""


def to_sqlite_time(ns: int) -> int:
    """Return a file time in ns that SQLite can store: a time outside of 1970 to 2262 is folded into that range."""
    return ns % 2**63


def to_sqlite_text(text: str) -> str:
    """Return a text that each engine can store: NUL, and bytes that are not UTF-8, become backslash escapes."""
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
