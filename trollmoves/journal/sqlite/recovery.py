"""Recovery of a damaged journal: it is renamed, and its readable rows are copied into a new one."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress

from trollmoves.journal.sqlite.files import WAL_SUFFIXES

_CORRUPTION_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SUFFIXES = ("", *WAL_SUFFIXES)
MAX_SKIP = 10_000  # largest number of unreadable rows skipped in one step

_TEXT, _INT, _REAL, _MAYBE_INT, _MAYBE_REAL, _MAYBE_TEXT = (
    (str,),
    (int,),
    (float, int),
    (int, type(None)),
    (float, int, type(None)),
    (str, type(None)),
)
Columns = Mapping[str, tuple[type, ...]]
TABLES: Mapping[str, Columns] = {  # with ids
    "tasks": {
        "id": _INT, "chain": _TEXT, "kind": _TEXT, "key": _TEXT, "lane": _TEXT, "rank": _INT, "due": _REAL,
        "state": _INT, "tries": _INT, "created": _REAL, "finished": _MAYBE_REAL,
        "announcement_number": _MAYBE_INT, "body": _TEXT, "reply": _MAYBE_TEXT, "failure": _MAYBE_TEXT,
        "size": _MAYBE_INT, "seconds": _MAYBE_REAL, "destination": _MAYBE_TEXT, "peer": _MAYBE_TEXT,
    },
    "announcements": {
        "id": _INT, "chain": _TEXT, "number": _INT, "uri": _TEXT, "uid": _TEXT, "size": _MAYBE_INT,
        "mtime": _MAYBE_INT, "created": _REAL, "message": _TEXT,
    },
}  # fmt: skip
SOURCES: Columns = {"chain": _TEXT, "log": _TEXT, "address": _TEXT, "received_through": _INT}


class NotAJournal(sqlite3.DatabaseError):
    """The database is not a journal of this version."""


def is_corruption(error: BaseException) -> bool:
    """Return True if an error means that the file is corrupted or not a journal."""
    code = getattr(error, "sqlite_errorcode", 0)
    short = code == sqlite3.SQLITE_IOERR_SHORT_READ
    return isinstance(error, NotAJournal) or short or code & 0xFF in _CORRUPTION_CODES


def quarantine(path: str) -> str:
    """Rename a journal with its WAL and shared-memory files; return its new path."""
    renamed = f"{path}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    while os.path.exists(renamed):
        renamed += "x"
    _rename(path, renamed)
    return renamed


def restore(renamed: str, path: str) -> None:
    """Undo ``quarantine``."""
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            os.unlink(path + suffix)
    _rename(renamed, path)


def _rename(before: str, after: str) -> None:
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            os.rename(before + suffix, after + suffix)


def salvage(renamed: str, db: sqlite3.Connection) -> int:
    """Copy the readable rows of a damaged journal into an empty one, in one transaction; return their number."""
    count = 0
    with closing(sqlite3.connect(renamed, isolation_level=None)) as damaged:
        damaged.text_factory = _text
        db.execute("BEGIN IMMEDIATE")
        try:
            for table, columns in TABLES.items():
                count += _copy(db, table, columns, _rows(damaged, table, columns))
            count += _copy(db, "sources", SOURCES, _sources(damaged))
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
    return count


def _copy(db: sqlite3.Connection, table: str, columns: Columns, rows: Iterator[tuple[object, ...]]) -> int:
    before = db.total_changes
    complete = (row for row in rows if all(map(isinstance, row, columns.values())))
    db.executemany(
        f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})", complete
    )
    return db.total_changes - before


def _rows(damaged: sqlite3.Connection, table: str, columns: Columns) -> Iterator[tuple[object, ...]]:
    """Yield the rows of a table, skipping unreadable ones."""
    try:
        last = damaged.execute(f"SELECT max(id) FROM {table}").fetchone()[0]
    except sqlite3.Error:
        return
    after, skip = 0, 1
    while isinstance(last, int) and after < last:
        try:
            for row in damaged.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE id > ? ORDER BY id", (after,)):
                after, skip = row[0], 1
                yield row
            return
        except sqlite3.Error:
            after, skip = after + skip, min(2 * skip, MAX_SKIP)


def _sources(damaged: sqlite3.Connection) -> Iterator[tuple[object, ...]]:
    with suppress(sqlite3.Error):
        yield from damaged.execute(f"SELECT {', '.join(SOURCES)} FROM sources")


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None  # rejected by the type check of every text column
