"""Read all rows of the journal of a stopped daemon, for a copy on another engine."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from trollmoves.errors import JournalError
from trollmoves.journal.location import LOCK_SUFFIX
from trollmoves.journal.records import to_sqlite_text
from trollmoves.journal.sqlite.database import SCHEMA_VERSION
from trollmoves.journal.sqlite.files import acquire_lock, connect_read_only, to_journal_error
from trollmoves.journal.sqlite.recovery import SOURCES, TABLES
from trollmoves.journal.views import TableRows

_COPIED_META = ("identity", "time", "forgotten", "role", "config")
_LANES = ("chain", "lane", "done", "bytes", "last_done", "last_id", "failure", "error", "failing_since", "updated")
_TABLES = {**TABLES, "sources": SOURCES, "lanes": _LANES}


@contextmanager
def exported(path: str) -> Iterator[list[TableRows]]:
    """Lock a journal, and yield the rows of its tables, the texts as each engine can store them.

    Raises:
        JournalError: the journal does not exist, is in use, or cannot be read.
    """
    if not (os.path.exists(path) and os.path.exists(path + LOCK_SUFFIX)):
        raise JournalError(f"the journal {path} does not exist: name the file of a daemon that has run")
    lock, _ = acquire_lock(path)
    try:
        with closing(connect_read_only(path)) as db:
            if db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                raise JournalError(f"the journal {path} was written by another version: start its daemon once")
            marks = ", ".join("?" * len(_COPIED_META))
            meta = db.execute(f"SELECT key, value FROM meta WHERE key IN ({marks})", _COPIED_META).fetchall()
            tables = [
                TableRows(table, list(columns), _texts(db.execute(f"SELECT {', '.join(columns)} FROM {table}")))
                for table, columns in _TABLES.items()
            ]
            yield [TableRows("meta", ["key", "value"], iter(meta)), *tables]
    except sqlite3.Error as error:
        raise to_journal_error(f"the journal {path} cannot be read: {error}", error) from error
    finally:
        os.close(lock)


def _texts(rows: sqlite3.Cursor) -> Iterator[tuple[object, ...]]:
    for row in rows:
        yield tuple(to_sqlite_text(value) if isinstance(value, str) else value for value in row)
