"""The position of each receiving chain in the log of each of its sources."""

from __future__ import annotations

from trollmoves.journal.common.queries import OpenQueries
from trollmoves.journal.records import SourcePosition, to_sqlite_text


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
