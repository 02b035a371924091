"""Rows read from a journal without the daemon: for lists, the state of lanes, and numbers of tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class TaskRow(NamedTuple):
    """A task; times are seconds since the epoch by the journal's clock. See ``records`` for the columns."""

    id: int
    chain: str
    kind: str
    key: str
    lane: str
    due: float
    state: int
    tries: int
    created: float
    finished: float | None
    number: int | None
    body: str
    reply: str | None
    failure: str | None
    size: int | None
    seconds: float | None
    destination: str | None
    peer: str | None


class AnnouncedRow(NamedTuple):
    """An announcement: its file (mtime in ns) and when it was appended to the log."""

    chain: str
    number: int
    uri: str
    uid: str
    size: int | None
    mtime: int | None
    created: float
    message: str


class WaitingRow(NamedTuple):
    """The waiting tasks of a lane: their number, and when the first one is due and was created."""

    chain: str
    lane: str
    number: int
    due: float
    created: float


class FailureRow(NamedTuple):
    """The tasks of a lane with one kind of failure.

    ``refused`` is how many of them wait for the next request of a client: a server ends a push that fails.
    """

    chain: str
    lane: str
    failure: str
    number: int
    refused: int
    oldest: float
    reply: str | None  # of the oldest


class LaneRow(NamedTuple):
    """The state of a lane as of its last finished attempt; ``failure`` is "held" or "outage", None if it works."""

    chain: str
    lane: str
    done: int
    size: int
    last_done: float | None
    last_key: str | None
    last_number: int | None
    last_file: str | None
    failure: str | None
    error: str | None
    failing_since: float | None


class FinishedRow(NamedTuple):
    """A task that was done recently; ``appeared`` is when its file was announced, or else when it was created."""

    chain: str
    lane: str
    finished: float
    size: int | None
    appeared: float


class MemberRow(NamedTuple):
    """A member of a fleet: ``renewed`` is how many seconds ago it renewed its lease."""

    life: str
    name: str
    version: str
    renewed: float
    leases: list[str]
    held: int  # tasks
    lanes: list[str]  # chain, lane and part of the limit, of the lanes that it shares with other members


class TableRows(NamedTuple):
    """The rows of a table, to copy them to another engine."""

    table: str
    columns: list[str]
    rows: Iterable[tuple[object, ...]]


@dataclass(frozen=True)
class JournalFacts:
    """The contents of a journal: bytes, pages, and rows by table, or by chain, kind and state."""

    size: int
    wal_size: int
    free: int
    tasks: dict[tuple[str, str, int], int]
    announcements: dict[str, int]
    oldest_finished: float | None
    oldest_announcement: float | None


@dataclass(frozen=True, slots=True)
class LaneBacklog:
    """The tasks of a lane that wait or run.

    ``oldest`` is when the oldest one was created, by the journal's clock; ``held`` is the number of tasks that failed
    for a cause that an operator must repair.
    """

    chain: str
    lane: str
    count: int
    oldest: float
    held: int


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    """The tasks that are not done: those that wait or run, by lane, and the number of failed ones by chain and kind.

    ``failing`` are the (chain, lane) that had an outage since their last success, and have tasks that are not done.
    """

    backlog: tuple[LaneBacklog, ...]
    failed: Mapping[tuple[str, str], int]
    failing: Collection[tuple[str, str]] = ()
