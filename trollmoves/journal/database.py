"""The file of a journal: opened, locked, written and read, one transaction after the other."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from trollmoves.errors import JournalError, JournalFull
from trollmoves.journal.clock import MonotonicWallClock
from trollmoves.journal.location import LOCK_SUFFIX, acquire_lock, to_journal_error
from trollmoves.journal.recovery import NotAJournal, is_corruption, quarantine, restore, salvage

log = logging.getLogger(__name__)

QUICK_CHECK_MAX_BYTES = 256_000_000  # bytes of a journal that are looked through at the start, in less than a second
CLOCK_SAVE_INTERVAL = 60.0  # s between writings of the time
_SCHEMA_VERSION = 1
WAL_SIZE_LIMIT = 16_000_000  # bytes that the write-ahead log may keep when all of it is in the file
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY, chain TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, lane TEXT NOT NULL,
    rank INTEGER NOT NULL, due REAL NOT NULL, state INTEGER NOT NULL, tries INTEGER NOT NULL, created REAL NOT NULL,
    finished REAL, announcement_number INTEGER, body TEXT NOT NULL, reply TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS tasks_key ON tasks (chain, kind, key);
CREATE INDEX IF NOT EXISTS tasks_waiting ON tasks (chain, lane, rank, due) WHERE state = 0;
CREATE INDEX IF NOT EXISTS tasks_announcement ON tasks (announcement_number, chain)
    WHERE announcement_number IS NOT NULL;
CREATE INDEX IF NOT EXISTS tasks_finished ON tasks (finished) WHERE state <> 0;
CREATE TABLE IF NOT EXISTS announcements (
    id INTEGER PRIMARY KEY, chain TEXT NOT NULL, number INTEGER NOT NULL, uri TEXT NOT NULL, uid TEXT NOT NULL,
    size INTEGER, mtime INTEGER, created REAL NOT NULL, message TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS announcements_number ON announcements (chain, number);
CREATE INDEX IF NOT EXISTS announcements_uri ON announcements (chain, uri, number);
CREATE TABLE IF NOT EXISTS sources (
    chain TEXT NOT NULL, log TEXT NOT NULL, address TEXT NOT NULL, received_through INTEGER NOT NULL,
    PRIMARY KEY (chain, log)) WITHOUT ROWID;
"""


class JournalDatabase:
    """An open journal; the owner of its file until ``close``."""

    def __init__(
        self, path: str, *, synchronous: str = "normal", damage: str = "", on_damage: Callable[[], None] | None = None
    ) -> None:
        """Open or make the journal at ``path``.

        ``synchronous``: "normal" (no committed line is lost when the process dies) or "full" (nor when power fails).
        JournalError says what to do when it cannot be used, JournalFull that its disk is full.

        A damaged one is set aside, and what can be read of it is taken over into a new one; with ``damage``, which says
        what was found before, that is done in any case. ``on_damage`` is called once, by any thread, when damage is
        found later: then all methods raise JournalError until the journal is opened anew.
        """
        self.path = path
        self.damage = ""
        self.identity = ""
        self._on_damage = on_damage
        self._synchronous = synchronous
        self._lock = threading.Lock()
        self._lock_file, ours = acquire_lock(path)
        self._clock = MonotonicWallClock()
        self._time_written = 0.0
        self._killed_at: float | None = None
        try:
            self._open_or_recover(damage, ours)
        except (sqlite3.Error, OSError) as error:
            os.close(self._lock_file)
            if not ours:
                os.unlink(path + LOCK_SUFFIX)  # what is there is not ours
            raise to_journal_error(f"the journal {path} cannot be used: {error}", error) from error

    def _open_or_recover(self, damage: str, ours: bool) -> None:
        if not damage:
            try:
                self._open()
                return
            except sqlite3.Error as error:
                if not (ours and is_corruption(error)):
                    raise
                damage = str(error)
        aside = quarantine(self.path)
        log.error("the journal %s is damaged (%s): it is set aside as %s", self.path, damage, aside)
        try:
            self._open()
            count = salvage(aside, self._db)
        except BaseException:
            self._db.close()
            restore(aside, self.path)
            raise
        log.error("a new journal begins with %d lines that could be read of the damaged one", count)

    def _open(self) -> None:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=200)
        try:
            self.identity = self._set_up(self._synchronous)
        except BaseException:
            self._db.close()
            raise

    def _set_up(self, synchronous: str) -> str:
        """Make the tables if there are none; give the identity of the journal."""
        db = self._db
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _SCHEMA_VERSION):
            raise NotAJournal(f"it was written by another version of this program (layout {found})")
        if not found and db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise NotAJournal("it is a database of another program")
        if found and os.path.getsize(self.path) <= QUICK_CHECK_MAX_BYTES:
            ((verdict,),) = db.execute("PRAGMA quick_check(1)")
            if verdict != "ok":
                raise NotAJournal(verdict)
        if not found:
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # counts only before the first table is made
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if synchronous == 'full' else 'NORMAL'}")
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute("PRAGMA wal_autocheckpoint=2000")
        db.execute(f"PRAGMA journal_size_limit={WAL_SIZE_LIMIT}")
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION}; COMMIT")
        db.execute("INSERT OR IGNORE INTO meta VALUES ('identity', ?)", (uuid.uuid4().hex[:12],))
        if found and not db.execute("DELETE FROM meta WHERE key = 'closed'").rowcount:
            # It was alive when it last wrote the time, too: what it did well before that has left the process.
            self._killed_at = db.execute(
                "SELECT max(max(finished), coalesce((SELECT CAST(value AS REAL) FROM meta WHERE key = 'time'), 0)) "
                "FROM tasks WHERE state <> 0"
            ).fetchone()[0]
        row = db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        self._restore_clock()
        return str(row[0])

    def now(self) -> float:
        """Give the time (s since the epoch) by which tasks are due; it never jumps, and restarts do not set it back.

        It is the wall clock's at the start, or a later one that the journal has seen. Any thread.
        """
        return self._clock.now()

    def _restore_clock(self) -> None:
        row = self._db.execute("SELECT value FROM meta WHERE key = 'time'").fetchone()
        self._clock = MonotonicWallClock(at_least=float(row[0]) if row else 0.0)

    def _save_clock(self) -> float:
        now = self.now()
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('time', ?)", (f"{now:.3f}",))
        return now

    def close(self) -> None:
        """Write everything to the file itself and let another process have it. May be called twice."""
        with self._lock:
            if self._lock_file >= 0:
                if not self.damage:
                    with suppress(sqlite3.Error):
                        self._save_clock()
                        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('closed', '')")
                try:
                    self._db.close()
                finally:
                    os.close(self._lock_file)
                    self._lock_file = -1

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._check()
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                written = self._time_written
                if self.now() - written > CLOCK_SAVE_INTERVAL:
                    written = self._save_clock()
                self._db.execute("COMMIT")
                self._time_written = written
            except (sqlite3.Error, OverflowError) as error:
                self._roll_back()
                raise self._to_journal_error("written", error) from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):  # the first error is the one to tell
            if self._db.in_transaction:  # SQLite itself has rolled back when the disk was full
                self._db.execute("ROLLBACK")

    def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            self._check()
            try:
                return self._db.execute(sql, parameters).fetchall()
            except (sqlite3.Error, OverflowError) as error:
                raise self._to_journal_error("read", error) from error

    def _check(self) -> None:
        if self.damage:
            raise JournalError(f"the journal {self.path} is damaged: {self.damage}")

    def _to_journal_error(self, what: str, error: Exception) -> JournalError:
        if is_corruption(error) and not self.damage:
            self.damage = str(error)
            if self._on_damage:
                self._on_damage()
        told = to_journal_error(f"the journal {self.path} cannot be {what}: {error}", error)
        if isinstance(told, JournalFull):
            with suppress(sqlite3.Error):  # the write-ahead log may be what fills the disk
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return told
