"""The journal: the tasks, announcements and source positions of a process, in one SQLite file.

Only this package uses sqlite3. A journal file belongs to one process; opening it in a second process fails. All methods
may be called from any thread. Each method is one transaction, so pass many rows per call where possible.

Tables: ``tasks`` has pending, finished and failed tasks; ``announcements`` is the numbered log of each chain;
``sources`` has the position of each receiving chain in the log of each source.
"""

from __future__ import annotations

from trollmoves.journal.announcements import AnnouncementTable
from trollmoves.journal.location import journal_path
from trollmoves.journal.orders import OrderTable
from trollmoves.journal.placement import network_warning, place_journal
from trollmoves.journal.pruning import Compactors, Pruning, Retention, drop_body
from trollmoves.journal.records import (
    BACKLOG,
    DONE,
    DROPPED,
    FAILED,
    FRESH,
    UNFLUSHED_SECONDS,
    WAITING,
    AnnouncementRecord,
    Delivery,
    Outcome,
    SourcePosition,
    Task,
    to_sqlite_time,
)
from trollmoves.journal.sources import SourceTable
from trollmoves.journal.tasks import TaskTable

__all__ = [
    "BACKLOG",
    "DONE",
    "DROPPED",
    "FAILED",
    "FRESH",
    "UNFLUSHED_SECONDS",
    "WAITING",
    "AnnouncementRecord",
    "Compactors",
    "Delivery",
    "Journal",
    "Outcome",
    "Retention",
    "SourcePosition",
    "Task",
    "drop_body",
    "journal_path",
    "network_warning",
    "place_journal",
    "to_sqlite_time",
]


class Journal(TaskTable, AnnouncementTable, SourceTable, OrderTable, Pruning):
    """An open journal. It owns its file until ``close``."""
