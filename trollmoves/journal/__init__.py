"""The journal of a daemon: its tasks, announcements and source positions.

``Journal`` and ``JournalReader`` are the interface; each package below implements it with one engine: ``sqlite`` with a
file on the local disk, ``postgresql`` for several hosts.
"""

from __future__ import annotations

from collections.abc import Callable

from trollmoves.journal import sqlite
from trollmoves.journal.interface import Journal, JournalReader, TaskEditor
from trollmoves.journal.location import (
    JOURNAL_SUFFIX,
    LOCK_SUFFIX,
    POSTGRESQL,
    control_path,
    fallback_directories,
    find_journal,
    is_shared,
    journal_path,
    state_directories,
)
from trollmoves.journal.records import (
    BACKLOG,
    BATCH_SIZE,
    DONE,
    DROPPED,
    FAILED,
    FRESH,
    SET_ASIDE,
    UNFLUSHED_SECONDS,
    WAITING,
    AnnouncementRecord,
    Compactors,
    Delivery,
    Outcome,
    Retention,
    Selection,
    SourcePosition,
    Task,
    Version,
    batches,
    drop_body,
    to_sqlite_time,
)
from trollmoves.journal.sharing import LaneDemand, Outage, Sharing
from trollmoves.journal.sqlite import network_warning, place_journal
from trollmoves.journal.views import (
    AnnouncedRow,
    FailureRow,
    FinishedRow,
    JournalFacts,
    JournalStatistics,
    LaneBacklog,
    LaneRow,
    MemberRow,
    TaskRow,
    WaitingRow,
)

__all__ = [
    "BACKLOG",
    "BATCH_SIZE",
    "DONE",
    "DROPPED",
    "FAILED",
    "FRESH",
    "JOURNAL_SUFFIX",
    "LOCK_SUFFIX",
    "SET_ASIDE",
    "UNFLUSHED_SECONDS",
    "WAITING",
    "AnnouncedRow",
    "AnnouncementRecord",
    "Compactors",
    "Delivery",
    "FailureRow",
    "FinishedRow",
    "Journal",
    "JournalFacts",
    "JournalReader",
    "JournalStatistics",
    "LaneBacklog",
    "LaneDemand",
    "LaneRow",
    "MemberRow",
    "Outage",
    "Outcome",
    "Retention",
    "Selection",
    "Sharing",
    "SourcePosition",
    "Task",
    "TaskEditor",
    "TaskRow",
    "Version",
    "WaitingRow",
    "batches",
    "control_path",
    "copy_journal",
    "drop_body",
    "fallback_directories",
    "find_journal",
    "is_shared",
    "journal_path",
    "migrate_journal",
    "network_warning",
    "open_journal",
    "open_reader",
    "place_journal",
    "record_offline",
    "running_pid",
    "state_directories",
    "to_sqlite_time",
]


def open_journal(
    where: str,
    *,
    synchronous: str = "normal",
    damage: str = "",
    on_damage: Callable[[], None] | None = None,
    sharing: bool = False,
    lease: float = 10.0,
) -> Journal:
    """Open or create the journal at a path, or at a URL of PostgreSQL.

    ``synchronous``: "normal" (a committed row survives the death of the process) or "full" (also a power failure).

    A damaged journal is renamed, and its readable rows are copied into a new one. A nonempty ``damage``, the text of an
    error found earlier, forces this. ``on_damage`` is called once, on any thread, when damage is found later: then all
    methods raise JournalError until the journal is reopened.

    Only on PostgreSQL: ``sharing``: several members of a fleet work at the same time; ``lease``: seconds without
    contact to the engine after which another member takes over.

    Raises:
        JournalFull: the disk is full.
        JournalError: the journal is in use by another process, or cannot be opened.
    """
    if where.startswith(POSTGRESQL):
        from trollmoves.journal.postgresql import PostgresJournal

        return PostgresJournal(where, synchronous=synchronous, on_damage=on_damage, sharing=sharing, lease=lease)
    return sqlite.SqliteJournal(where, synchronous=synchronous, damage=damage, on_damage=on_damage)


def open_reader(where: str) -> JournalReader:
    """Open a journal for reading; JournalError if it does not exist, or was written by another version."""
    if where.startswith(POSTGRESQL):
        from trollmoves.journal.postgresql import PostgresReader

        return PostgresReader(where)
    return sqlite.SqliteReader(where)


def running_pid(where: str) -> int | None:
    """Return the id of the process on this host that has a journal open, None if there is none."""
    if where.startswith(POSTGRESQL):
        from trollmoves.journal import postgresql

        return postgresql.running_pid(where)
    return sqlite.running_pid(where)


def record_offline(where: str, key: str, body: str) -> None:
    """Store an order in the journal of a daemon that does not run; it is carried out at the next start.

    Raises:
        JournalUnusable: a daemon on another host uses the journal.
        JournalError: the journal does not exist, is in use, or cannot be written.
    """
    if where.startswith(POSTGRESQL):
        from trollmoves.journal import postgresql

        postgresql.record_offline(where, key, body)
        return
    sqlite.record_offline(where, key, body)


def migrate_journal(url: str) -> str:
    """Create the tables of a journal on PostgreSQL, or migrate them; return its URL without a password.

    Raises:
        JournalError: the URL is wrong, the engine rejects the login or cannot be reached, or its user has no right.
    """
    from trollmoves.journal import postgresql

    return postgresql.migrate(url)


def copy_journal(path: str, url: str) -> dict[str, int]:
    """Copy the journal in a file to an empty one on PostgreSQL, with numbers and identity; return the numbers of rows.

    Raises:
        JournalError: a daemon uses the file or the target, the target is not empty, or one of both cannot be used.
    """
    from trollmoves.journal import postgresql

    with sqlite.exported(path) as tables:
        return postgresql.load(url, tables)
