"""The position of each receiving chain in the log of each of its sources."""

from __future__ import annotations

import sqlite3

from trollmoves.journal.records import SourcePosition, to_sqlite_text
from trollmoves.journal.sqlite.database import JournalDatabase


class SourceTable(JournalDatabase):
    """The sources in a journal. ``TaskTable.add_tasks`` stores them together with the tasks created from them."""

    def sources(self, chain: str) -> list[SourcePosition]:
        rows = self._read("SELECT log, address, received_through FROM sources WHERE chain = ?", (chain,))
        return [SourcePosition(*row) for row in rows]

    def rewind_source(self, chain: str, log: str) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE sources SET received_through = 0 WHERE chain = ? AND log = ?", (chain, to_sqlite_text(log))
            )

    def forget_source(self, chain: str, log: str) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM sources WHERE chain = ? AND log = ?", (chain, to_sqlite_text(log)))


def upsert_source(db: sqlite3.Connection, chain: str, source: SourcePosition) -> None:
    """Store the position of a chain in a log; it never decreases."""
    db.execute(
        "INSERT INTO sources VALUES (?, ?, ?, ?) ON CONFLICT (chain, log) DO UPDATE "
        "SET address = excluded.address, received_through = max(received_through, excluded.received_through)",
        (chain, to_sqlite_text(source.log), to_sqlite_text(source.address), source.received_through),
    )
