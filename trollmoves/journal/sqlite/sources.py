"""The position of each receiving chain in the log of each of its sources."""

from __future__ import annotations

import sqlite3

from trollmoves.journal.records import SourcePosition, to_sqlite_text


def upsert_source(db: sqlite3.Connection, chain: str, source: SourcePosition) -> None:
    """Store the position of a chain in a log; it never decreases."""
    db.execute(
        "INSERT INTO sources VALUES (?, ?, ?, ?) ON CONFLICT (chain, log) DO UPDATE "
        "SET address = excluded.address, received_through = max(received_through, excluded.received_through)",
        (chain, to_sqlite_text(source.log), to_sqlite_text(source.address), source.received_through),
    )
