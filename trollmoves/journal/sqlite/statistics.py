"""Counts the tasks of a journal on a separate connection, so that other threads do not wait."""

from __future__ import annotations

from trollmoves.journal.common.statistics import StatisticsQueries
from trollmoves.journal.sqlite.database import JournalDatabase
from trollmoves.journal.sqlite.files import journal_size
from trollmoves.journal.sqlite.wanted import WANTED


class Statistics(JournalDatabase, StatisticsQueries):
    """The statistics of a journal."""

    WANTED = WANTED
    LAST_ANNOUNCED = (
        "SELECT chain, (SELECT created FROM announcements WHERE id = last) FROM "
        "(SELECT chain, max(id) AS last FROM announcements GROUP BY chain)"
    )

    def size(self) -> int:
        return journal_size(self.path)
