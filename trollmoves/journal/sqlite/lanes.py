"""The states of lanes in the journal, so that they are known while the daemon is down."""

from __future__ import annotations

import sqlite3

from trollmoves.journal.lane_states import MAX_ERROR, MAX_SIZE, LaneChanges
from trollmoves.journal.records import to_sqlite_text


def store_lanes(db: sqlite3.Connection, changes: LaneChanges, now: float) -> None:
    """Add changes to the rows of their lanes."""
    for (chain, lane), change in changes.items():
        failure = change.failure
        db.execute(
            "INSERT INTO lanes (chain, lane, done, bytes, last_done, last_id, failure, error, failing_since, updated) "
            "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (chain, lane) DO UPDATE SET "
            "done = done + ?3, bytes = bytes + ?4, last_done = coalesce(?5, last_done), "
            "last_id = coalesce(?6, last_id), "
            # A failure, or a success, replaces the earlier state; an error of one file changes nothing.
            "failure = iif(?7 IS NOT NULL OR ?3, ?7, failure), error = iif(?7 IS NOT NULL OR ?3, ?8, error), "
            "failing_since = iif(?7 IS NOT NULL, coalesce(failing_since, ?9), iif(?3, NULL, failing_since)), "
            "updated = ?10",
            (
                chain,
                to_sqlite_text(lane),
                change.done,
                min(change.size, MAX_SIZE),
                now if change.done else None,
                change.last_id,
                failure,
                to_sqlite_text(change.error[:MAX_ERROR]) if failure and change.error else None,
                now if failure else None,
                now,
            ),
        )
