"""A journal in one SQLite file, which belongs to one process. Only this package uses sqlite3.

Tables: ``tasks`` has pending, finished and failed tasks; ``announcements`` is the numbered log of each chain;
``sources`` has the position of each receiving chain in the log of each source; ``lanes`` has the state of each lane.
"""

from __future__ import annotations

from trollmoves.journal.common.sources import SourceQueries
from trollmoves.journal.common.statistics import StatisticsQueries
from trollmoves.journal.sqlite.announcements import AnnouncementTable
from trollmoves.journal.sqlite.export import exported
from trollmoves.journal.sqlite.files import journal_size
from trollmoves.journal.sqlite.orders import OrderTable, record_offline
from trollmoves.journal.sqlite.placement import network_warning, place_journal
from trollmoves.journal.sqlite.pruning import Pruning
from trollmoves.journal.sqlite.reader import SqliteReader, running_pid
from trollmoves.journal.sqlite.wanted_pushes import WANTED

__all__ = [
    "SqliteJournal",
    "SqliteReader",
    "exported",
    "network_warning",
    "place_journal",
    "record_offline",
    "running_pid",
]


class SqliteJournal(OrderTable, AnnouncementTable, Pruning, StatisticsQueries, SourceQueries):
    """An open journal. It owns its file until ``close``."""

    WANTED = WANTED
    LAST_ANNOUNCED = (
        "SELECT chain, (SELECT created FROM announcements WHERE id = last) FROM "
        "(SELECT chain, max(id) AS last FROM announcements GROUP BY chain)"
    )
    sharing = None

    def open_reader(self) -> SqliteReader:
        return SqliteReader(self.path)

    def size(self) -> int:
        return journal_size(self.path)
