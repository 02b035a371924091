"""What stands in the journal: tasks and how they ended, announcements, and how far sources are had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WAITING, DONE, FAILED = 0, 1, 2
FRESH, BACKLOG = 0, 1  # ranks: what waits in a lower rank is claimed first
UNFLUSHED_SECONDS = 0.5  # s before a kill, in which what was published may not have left the process


@dataclass(slots=True)
class Task:
    """Something to do: who does it (chain, kind), its identity (key), what it must not crowd (lane), and its body.

    ``due``, ``noted`` and ``finished`` are seconds since the epoch by the journal's clock (``now``). ``about`` is the
    number of the announcement that it concerns. A task may be noted as ``DONE`` already: then it only says so.
    ``context`` is what its maker wants to find again when it runs; it is not written, so it may be None on a task that
    was read from the journal.
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

    def may_have_run(self, began: float) -> bool:
        """Tell whether it may have been tried before, by a process that was there before ``began`` or by this one."""
        return self.tries > 1 or self.finished is not None or self.created < began


@dataclass(slots=True)
class Outcome:
    """How one run of a task ended: ``DONE`` or ``FAILED`` with a reply, or ``WAITING`` for another try when ``due``."""

    task: Task
    state: int
    reply: str | None = None
    due: float = 0.0
    follow_ups: Sequence[Task] = field(default_factory=tuple)


@dataclass(slots=True)
class AnnouncementRecord:
    """One line of a chain's log: the file (uri, size, mtime in ns; None where unknown) and the message about it."""

    number: int
    uri: str
    uid: str
    size: int | None
    mtime: int | None
    message: str


@dataclass(slots=True)
class SourcePosition:
    """How far a chain has a source's log: everything up to number ``have``; ``address`` takes requests."""

    log: str
    address: str
    received_through: int


def to_sqlite_text(text: str) -> str:
    """Give a text that SQLite can hold: the bytes of a file name that are no UTF-8 are written out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
