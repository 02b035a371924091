"""The state of each lane as of its last finished attempt, so that it is known while the daemon is down."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from trollmoves.journal.records import DONE, Outcome, to_sqlite_text

LANE_INTERVAL = 1.0  # s between two writes of a lane that works; a failure is written immediately
MAX_SIZE = 2**63 - 1  # bytes; a larger integer cannot be stored, and a remote source may announce such a size
MAX_ERROR = 1_000  # characters of an error that are kept

STORE_LANE = (
    "INSERT INTO lanes AS l (chain, lane, done, bytes, last_done, last_id, failure, error, failing_since, updated) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (chain, lane) DO UPDATE SET done = l.done + excluded.done, "
    f"bytes = CASE WHEN excluded.bytes > {MAX_SIZE} - l.bytes THEN {MAX_SIZE} ELSE l.bytes + excluded.bytes END, "
    "last_done = coalesce(excluded.last_done, l.last_done), last_id = coalesce(excluded.last_id, l.last_id), "
    # A failure, or a success, replaces the earlier state; an error of one file changes nothing.
    "failure = CASE WHEN excluded.failure IS NOT NULL OR excluded.done > 0 THEN excluded.failure ELSE l.failure END, "
    "error = CASE WHEN excluded.failure IS NOT NULL OR excluded.done > 0 THEN excluded.error ELSE l.error END, "
    "failing_since = CASE WHEN excluded.failure IS NOT NULL THEN coalesce(l.failing_since, excluded.failing_since) "
    "WHEN excluded.done > 0 THEN NULL ELSE l.failing_since END, updated = excluded.updated"
)
LaneRow = tuple[str, str, int, int, float | None, int | None, str | None, str | None, float | None, float]


@dataclass(slots=True)
class LaneChange:
    """The changes of one lane that are not stored: done tasks, their bytes, and the last failure."""

    done: int = 0
    size: int = 0
    last_id: int | None = None
    failure: str | None = None
    error: str | None = None


LaneChanges = dict[tuple[str, str], LaneChange]  # by chain and lane


class UnstoredLanes:
    """The changes of lanes that are kept in memory: those of a lane that works are stored together. Any thread."""

    def __init__(self) -> None:
        self._changes: LaneChanges = {}
        self._lock = threading.Lock()  # guards them, and is acquired before a lock of the database
        self._stored = 0.0  # time of the journal
        self._failing: set[tuple[str, str]] = set()  # lanes with a stored failure

    def __bool__(self) -> bool:
        return bool(self._changes)

    @contextmanager
    def storing(self, outcomes: Iterable[Outcome], now: float, *, must_store: bool = False) -> Iterator[list[LaneRow]]:
        """Yield the rows for ``STORE_LANE`` to execute in the transaction that stores these outcomes.

        They are none if the changes can wait, unless ``must_store``. If an exception is raised within the block,
        nothing is changed.
        """
        with self._lock:
            changes: LaneChanges = {}
            for outcome in outcomes:
                _record(changes, outcome)
            _merge(changes, self._changes)
            failing = {lane for lane, change in changes.items() if change.failure}
            is_due = must_store or now - self._stored > LANE_INTERVAL
            is_due = is_due or bool(failing) or not self._failing.isdisjoint(changes)
            yield lane_rows(changes, now) if is_due else []
            self._changes = {} if is_due else changes
            if is_due:
                self._stored = now
                self._failing = self._failing - {lane for lane, change in changes.items() if change.done} | failing

    def rows(self, now: float) -> list[LaneRow]:
        """Return the rows to store before the journal is closed."""
        return lane_rows(self._changes, now)


def lane_rows(changes: Mapping[tuple[str, str], LaneChange], now: float) -> list[LaneRow]:
    """Return the rows for ``STORE_LANE``, in the order of their keys."""
    return [
        (
            chain,
            to_sqlite_text(lane),
            change.done,
            min(change.size, MAX_SIZE),
            now if change.done else None,
            change.last_id,
            change.failure,
            to_sqlite_text(change.error[:MAX_ERROR]) if change.failure and change.error else None,
            now if change.failure else None,
            now,
        )
        for (chain, lane), change in sorted(changes.items())
    ]


def _record(changes: LaneChanges, outcome: Outcome) -> None:
    """Add an outcome to the changes of its lane."""
    key = outcome.task.chain, outcome.task.lane
    change = changes.get(key)
    if change is None:
        change = changes[key] = LaneChange()
    if outcome.state == DONE:
        change.done += 1
        change.last_id = outcome.task.id
        change.failure = None
        if outcome.delivery and outcome.delivery.size:
            change.size += outcome.delivery.size
    elif outcome.failure in ("held", "outage"):
        change.failure, change.error = outcome.failure, outcome.error


def _merge(changes: LaneChanges, earlier: LaneChanges) -> None:
    """Add earlier changes, which contain no failure, to later ones."""
    for key, before in earlier.items():
        change = changes.setdefault(key, before)
        if change is not before:
            change.done += before.done
            change.size += before.size
            change.last_id = before.last_id if change.last_id is None else change.last_id
