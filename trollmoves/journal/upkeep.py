"""Removes from a journal what is old or too much."""

from __future__ import annotations

from typing import Any

from trollmoves.journal.file import File

_AT_ONCE = 2000  # rows in one transaction, so that pruning holds up nobody for long


class Upkeep(File):
    """The upkeep of a journal."""

    def prune(self, *, finished_before: float, announced_before: float, most_announcements: int) -> int:
        """Remove what is old (times by the journal's clock) or too many; give how many lines went.

        The newest announcement of each chain stays, so that its numbers go on.
        """
        removed = self._prune(
            "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE state <> 0 AND finished < ? LIMIT ?)",
            finished_before,
        )
        rows = self._read("SELECT chain, max(number), count(*) FROM announcements GROUP BY chain")
        for chain, last, count in rows:
            oldest_kept = last - most_announcements if count > most_announcements else 0
            removed += self._prune(
                "DELETE FROM announcements WHERE id IN (SELECT id FROM announcements WHERE chain = ? AND number < ? "
                "AND (noted < ? OR number <= ?) LIMIT ?)",
                chain,
                last,
                announced_before,
                oldest_kept,
            )
        return removed

    def _prune(self, sql: str, *parameters: Any) -> int:
        removed = 0
        while True:
            with self._transaction() as db:
                count = db.execute(sql, (*parameters, _AT_ONCE)).rowcount
            removed += count
            if count < _AT_ONCE:
                return removed
