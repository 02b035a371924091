"""How far a receiving chain has the log of each of its sources."""

from __future__ import annotations

import sqlite3

from trollmoves.journal.file import File
from trollmoves.journal.rows import Source, storable


class Sources(File):
    """The sources in a journal. They are written together with the tasks that came from them: see ``Tasks.note``."""

    def sources(self, chain: str) -> list[Source]:
        """Give the sources that a chain has heard of, and how far it has each."""
        rows = self._read("SELECT log, address, have FROM sources WHERE chain = ?", (chain,))
        return [Source(*row) for row in rows]

    def forget_source(self, chain: str, log: str) -> None:
        """Forget a log that its source does not keep any more."""
        with self._transaction() as db:
            db.execute("DELETE FROM sources WHERE chain = ? AND log = ?", (chain, storable(log)))


def remember(db: sqlite3.Connection, chain: str, source: Source) -> None:
    """Write down how far a chain has a log; it never goes back."""
    db.execute(
        "INSERT INTO sources VALUES (?, ?, ?, ?) ON CONFLICT (chain, log) DO UPDATE "
        "SET address = excluded.address, have = max(have, excluded.have)",
        (chain, storable(source.log), storable(source.address), source.have),
    )
