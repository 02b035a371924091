"""The position of each receiving chain in the log of each of its sources."""

from __future__ import annotations

from collections.abc import Sequence

from trollmoves.journal.postgresql.database import Connection
from trollmoves.journal.records import SourcePosition, to_sqlite_text


def upsert_sources(db: Connection, sources: Sequence[tuple[str, SourcePosition]]) -> None:
    """Store positions of chains in logs, in the order of their keys; a position never decreases."""
    for chain, source in sorted(sources, key=lambda item: (item[0], to_sqlite_text(item[1].log))):
        db.execute(
            "INSERT INTO sources AS s VALUES (%s, %s, %s, %s) ON CONFLICT (chain, log) DO UPDATE SET "
            "address = excluded.address, received_through = greatest(s.received_through, excluded.received_through)",
            (chain, to_sqlite_text(source.log), to_sqlite_text(source.address), source.received_through),
        )
