"""The file of a journal: opened, locked, written and read, one transaction after the other."""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from trollmoves.clock import SteadyClock
from trollmoves.errors import JournalError
from trollmoves.journal.place import lock_for_this_process

_TIME_EVERY = 60.0  # s between writings of the time
_SCHEMA_VERSION = 1
_WAL_STAYS = 16_000_000  # bytes that the write-ahead log may keep when all of it is in the file
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY, chain TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, lane TEXT NOT NULL,
    rank INTEGER NOT NULL, due REAL NOT NULL, state INTEGER NOT NULL, tries INTEGER NOT NULL, noted REAL NOT NULL,
    finished REAL, about INTEGER, body TEXT NOT NULL, reply TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS tasks_key ON tasks (chain, kind, key);
CREATE INDEX IF NOT EXISTS tasks_waiting ON tasks (chain, lane, rank, due) WHERE state = 0;
CREATE INDEX IF NOT EXISTS tasks_about ON tasks (about, chain) WHERE about IS NOT NULL;
CREATE INDEX IF NOT EXISTS tasks_finished ON tasks (finished) WHERE state <> 0;
CREATE TABLE IF NOT EXISTS announcements (
    id INTEGER PRIMARY KEY, chain TEXT NOT NULL, number INTEGER NOT NULL, uri TEXT NOT NULL, uid TEXT NOT NULL,
    size INTEGER, mtime INTEGER, noted REAL NOT NULL, message TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS announcements_number ON announcements (chain, number);
CREATE INDEX IF NOT EXISTS announcements_uri ON announcements (chain, uri, number);
CREATE TABLE IF NOT EXISTS sources (
    chain TEXT NOT NULL, log TEXT NOT NULL, address TEXT NOT NULL, have INTEGER NOT NULL,
    PRIMARY KEY (chain, log)) WITHOUT ROWID;
"""


class File:
    """An open journal; the owner of its file until ``close``."""

    def __init__(self, path: str, *, synchronous: str = "normal") -> None:
        """Open or make the journal at ``path``.

        ``synchronous``: "normal" (no committed line is lost when the process dies) or "full" (nor when power fails).
        JournalError says what to do when it cannot be used.
        """
        self.path = path
        self._lock = threading.Lock()
        self._lock_file = lock_for_this_process(path)
        self._clock = SteadyClock()
        self._time_written = 0.0
        try:
            self._db = self._open()
        except (sqlite3.Error, OSError) as error:
            os.close(self._lock_file)
            raise JournalError(f"the journal {path} cannot be used: {error}") from error
        self.identity = ""
        self._killed_at: float | None = None
        try:
            self.identity = self._set_up(synchronous)
        except sqlite3.Error as error:
            self.close()
            raise JournalError(f"the journal {path} cannot be used: {error}") from error

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        return sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=200)

    def _set_up(self, synchronous: str) -> str:
        """Make the tables if there are none; give the identity of the journal."""
        db = self._db
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"it was written by another version of this program (layout {found})")
        if not found and db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise sqlite3.DatabaseError("it is a database of another program")
        if not found:
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # counts only before the first table is made
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if synchronous == 'full' else 'NORMAL'}")
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute("PRAGMA wal_autocheckpoint=2000")
        db.execute(f"PRAGMA journal_size_limit={_WAL_STAYS}")
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION}; COMMIT")
        db.execute("INSERT OR IGNORE INTO meta VALUES ('identity', ?)", (uuid.uuid4().hex[:12],))
        if found and not db.execute("DELETE FROM meta WHERE key = 'closed'").rowcount:
            self._killed_at = db.execute("SELECT max(finished) FROM tasks WHERE state <> 0").fetchone()[0]
        row = db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        self._take_up_time()
        return str(row[0])

    def now(self) -> float:
        """Give the time (s since the epoch) by which tasks are due; it never jumps, and restarts do not set it back.

        It is the wall clock's at the start, or a later one that the journal has seen. Any thread.
        """
        return self._clock.now()

    def _take_up_time(self) -> None:
        row = self._db.execute("SELECT value FROM meta WHERE key = 'time'").fetchone()
        self._clock = SteadyClock(at_least=float(row[0]) if row else 0.0)

    def _write_time(self) -> float:
        now = self.now()
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('time', ?)", (f"{now:.3f}",))
        return now

    def close(self) -> None:
        """Write everything to the file itself and let another process have it. May be called twice."""
        with self._lock:
            if self._lock_file >= 0:
                if self.identity:
                    with suppress(sqlite3.Error):
                        self._write_time()
                        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('closed', '')")
                try:
                    self._db.close()
                finally:
                    os.close(self._lock_file)
                    self._lock_file = -1

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                written = self._time_written
                if self.now() - written > _TIME_EVERY:
                    written = self._write_time()
                self._db.execute("COMMIT")
                self._time_written = written
            except (sqlite3.Error, OverflowError) as error:
                self._roll_back()
                raise JournalError(f"the journal {self.path} cannot be written: {error}") from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):  # the first error is the one to tell
            if self._db.in_transaction:  # SQLite itself has rolled back when the disk was full
                self._db.execute("ROLLBACK")

    def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(sql, parameters).fetchall()
            except (sqlite3.Error, OverflowError) as error:
                raise JournalError(f"the journal {self.path} cannot be read: {error}") from error
