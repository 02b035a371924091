"""The journal: what was announced, what is still to do, what was answered.

The only user of sqlite3. One file, one process: a second one on the same file is refused. All methods may be called
from any thread; each is one transaction, so hand over many things at a time where many are at hand.

Three tables, each a room: ``tasks`` holds whatever happens later or again; ``announcements`` (``log``) is the numbered
log of each chain, ``sources`` how far a receiving chain has the log of each of its sources.
"""

from __future__ import annotations

from trollmoves.journal.announcements import AnnouncementTable
from trollmoves.journal.location import journal_path
from trollmoves.journal.pruning import Compactors, Pruning, Retention, drop_body
from trollmoves.journal.records import (
    BACKLOG,
    DONE,
    FAILED,
    FRESH,
    UNFLUSHED_SECONDS,
    WAITING,
    AnnouncementRecord,
    Outcome,
    SourcePosition,
    Task,
)
from trollmoves.journal.sources import SourceTable
from trollmoves.journal.tasks import TaskTable

__all__ = [
    "BACKLOG",
    "DONE",
    "FAILED",
    "FRESH",
    "UNFLUSHED_SECONDS",
    "WAITING",
    "AnnouncementRecord",
    "Compactors",
    "Journal",
    "Outcome",
    "Retention",
    "SourcePosition",
    "Task",
    "drop_body",
    "journal_path",
]


class Journal(TaskTable, AnnouncementTable, SourceTable, Pruning):
    """An open journal; the owner of its file until ``close``."""
