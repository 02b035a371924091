"""The position of each receiving chain in the log of each of its sources."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from trollmoves.journal.common.queries import OpenQueries
from trollmoves.journal.records import SourcePosition, to_sqlite_text

UPSERT_SOURCE = (  # a position never decreases
    "INSERT INTO sources AS s VALUES (?, ?, ?, ?) ON CONFLICT (chain, log) DO UPDATE SET address = excluded.address, "
    "received_through = CASE WHEN excluded.received_through > s.received_through THEN excluded.received_through "
    "ELSE s.received_through END"
)


def source_rows(sources: Iterable[tuple[str, SourcePosition]]) -> list[tuple[str, str, str, int]]:
    """Return the rows for ``UPSERT_SOURCE`` from the positions of chains in logs, in the order of their keys."""
    rows = [
        (chain, to_sqlite_text(source.log), to_sqlite_text(source.address), source.received_through)
        for chain, source in sources
    ]
    return sorted(rows, key=itemgetter(0, 1))


class SourceQueries(OpenQueries):
    """The sources in a journal. ``Journal.add_tasks`` stores them together with the tasks created from them."""

    def sources(self, chain: str) -> list[SourcePosition]:
        rows = self._read("SELECT log, address, received_through FROM sources WHERE chain = ?", (chain,))
        return [SourcePosition(*row) for row in rows]

    def rewind_source(self, chain: str, log: str) -> None:
        change = "UPDATE sources SET received_through = 0 WHERE chain = ? AND log = ?"
        self._write(change, (chain, to_sqlite_text(log)))

    def forget_source(self, chain: str, log: str) -> None:
        self._write("DELETE FROM sources WHERE chain = ? AND log = ?", (chain, to_sqlite_text(log)))
