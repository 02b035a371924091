"""The file of a journal: opening, locking, and reading and writing in serialized transactions."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from trollmoves.errors import JournalError, JournalFull
from trollmoves.journal.clock import MonotonicWallClock
from trollmoves.journal.location import LOCK_SUFFIX
from trollmoves.journal.records import to_sqlite_text
from trollmoves.journal.sqlite.files import (
    WAL_SUFFIXES,
    acquire_lock,
    connect_read_only,
    file_id,
    location_of,
    make_private,
    open_private,
    read_times,
    to_journal_error,
    write_times,
)
from trollmoves.journal.sqlite.recovery import NotAJournal, is_corruption, quarantine, restore, salvage
from trollmoves.journal.sqlite.wanted_pushes import add_functions
from trollmoves.journal.views import MemberRow

logger = logging.getLogger(__name__)

QUICK_CHECK_MAX_BYTES = 256_000_000  # size in bytes up to which a journal is checked at startup, in less than a second
CLOCK_SAVE_INTERVAL = 60.0  # s between two stored times
CLOCK_SLACK = 0.001  # s; precision of times in the journal and its lock file
SCHEMA_VERSION = 1
WAL_SIZE_LIMIT = 16_000_000  # bytes to which the write-ahead log is truncated after a checkpoint
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY, chain TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, lane TEXT NOT NULL,
    rank INTEGER NOT NULL, due REAL NOT NULL, state INTEGER NOT NULL, tries INTEGER NOT NULL, created REAL NOT NULL,
    finished REAL, announcement_number INTEGER, body TEXT NOT NULL, reply TEXT,
    failure TEXT, size INTEGER, seconds REAL, destination TEXT, peer TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS tasks_key ON tasks (chain, kind, key);
CREATE INDEX IF NOT EXISTS tasks_waiting ON tasks (chain, lane, rank, due) WHERE state = 0;
CREATE INDEX IF NOT EXISTS tasks_announcement ON tasks (announcement_number, chain)
    WHERE announcement_number IS NOT NULL;
CREATE INDEX IF NOT EXISTS tasks_finished ON tasks (finished) WHERE state <> 0;
CREATE INDEX IF NOT EXISTS tasks_failed ON tasks (chain, kind) WHERE state = 2;
CREATE INDEX IF NOT EXISTS tasks_failure ON tasks (chain, lane, failure, id) WHERE failure IS NOT NULL;
CREATE TABLE IF NOT EXISTS announcements (
    id INTEGER PRIMARY KEY, chain TEXT NOT NULL, number INTEGER NOT NULL, uri TEXT NOT NULL, uid TEXT NOT NULL,
    size INTEGER, mtime INTEGER, created REAL NOT NULL, message TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS announcements_number ON announcements (chain, number);
CREATE INDEX IF NOT EXISTS announcements_uri ON announcements (chain, uri, number);
CREATE TABLE IF NOT EXISTS sources (
    chain TEXT NOT NULL, log TEXT NOT NULL, address TEXT NOT NULL, received_through INTEGER NOT NULL,
    PRIMARY KEY (chain, log)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lanes (
    chain TEXT NOT NULL, lane TEXT NOT NULL, done INTEGER NOT NULL, bytes INTEGER NOT NULL, last_done REAL,
    last_id INTEGER, failure TEXT, error TEXT, failing_since REAL, updated REAL NOT NULL,
    PRIMARY KEY (chain, lane)) WITHOUT ROWID;
"""


class JournalDatabase:
    """An open journal file. It owns the file until ``close``."""

    life = ""  # one process at a time uses the journal, so attempts of all processes have the same partial

    def __init__(
        self, path: str, *, synchronous: str = "normal", damage: str = "", on_damage: Callable[[], None] | None = None
    ) -> None:
        """Open or create the journal at ``path``, see ``trollmoves.journal.open_journal``."""
        self.path = path
        self.damage = ""
        self.identity = ""
        self._on_damage = on_damage
        self._synchronous = synchronous
        self._lock = threading.Lock()
        self._lock_file, is_journal = acquire_lock(path)
        self._clock = MonotonicWallClock()
        self._time_written = 0.0
        self._killed_at: float | None = None
        self._after_kill = 0.0
        self._alive, self._last_finish = 0.0, 0.0
        self._last_write = self._marked_write = 0.0  # times of the newest rows, and of those in the lock file
        self.replaced = False
        try:
            self._has_lock_file = is_journal
            self._open_or_recover(damage, is_journal)
        except (sqlite3.Error, OSError) as error:
            os.close(self._lock_file)
            if not is_journal:
                os.unlink(path + LOCK_SUFFIX)  # the existing file is not a journal
            raise to_journal_error(f"the journal {path} cannot be used: {error}", error) from error

    def _open_or_recover(self, damage: str, is_journal: bool) -> None:
        if not damage:
            try:
                self._open()
                return
            except sqlite3.Error as error:
                if not (is_journal and is_corruption(error)):
                    raise
                damage = str(error)
        renamed = quarantine(self.path)
        logger.error("the journal %s is damaged (%s); renamed it to %s", self.path, damage, renamed)
        try:
            self._open()
            count = salvage(renamed, self._db)
        except BaseException:
            self._db.close()
            restore(renamed, self.path)
            raise
        logger.error("recovered %d rows from the damaged journal into a new one", count)

    def _open(self) -> None:
        is_ours = _is_empty_or_journal(open_private(self.path))
        for suffix in ("", *WAL_SUFFIXES):  # SQLite creates the others with the permissions of the first
            if os.path.lexists(self.path + suffix):
                os.close(open_private(self.path + suffix))
                if is_ours:
                    make_private(self.path + suffix)
        self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=200)
        try:
            self.identity = self._set_up(self._synchronous)
            self._files = {suffix: file_id(self.path + suffix) for suffix in ("", *WAL_SUFFIXES)}
        except BaseException:
            self._db.close()
            raise

    def _set_up(self, synchronous: str) -> str:
        """Create missing tables; return the identity of the journal."""
        db = self._db
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise NotAJournal(f"it was written by another version of this program (schema version {version})")
        if not version and db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise NotAJournal("it is a database of another program")
        if version and os.path.getsize(self.path) <= QUICK_CHECK_MAX_BYTES:
            ((result,),) = db.execute("PRAGMA quick_check(1)")
            if result != "ok":
                raise NotAJournal(result)
        if not version:
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # has no effect after the first table is created
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if synchronous == 'full' else 'NORMAL'}")
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute("PRAGMA wal_autocheckpoint=2000")
        db.execute(f"PRAGMA journal_size_limit={WAL_SIZE_LIMIT}")
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT")
        db.execute("INSERT OR IGNORE INTO meta VALUES ('identity', ?)", (uuid.uuid4().hex[:12],))
        if version and not db.execute("DELETE FROM meta WHERE key = 'closed'").rowcount:
            # The process was alive when it last stored the time: messages published well before that have been sent.
            self._killed_at = db.execute(
                "SELECT max(coalesce(max(finished), 0), "
                "coalesce((SELECT CAST(value AS REAL) FROM meta WHERE key = 'time'), 0), ?) "
                "FROM tasks WHERE state <> 0",
                (read_times(self._lock_file)[0],),
            ).fetchone()[0]
        self._renew_identity(bool(version))
        row = db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        self._restore_clock()
        self._after_kill = max(0.0, self.now() - self._killed_at) if self._killed_at else 0.0
        return str(row[0])

    def _renew_identity(self, existed: bool) -> None:
        """Store a new identity if the journal is older than its last process, or a copy; store its location.

        Otherwise numbers of announcements would be used twice, or by two servers.
        """
        location = location_of(self.path)
        row = self._db.execute("SELECT value FROM meta WHERE key = 'location'").fetchone()
        if existed and row and (reason := self._copied(row[0] != location)):
            logger.error(
                "the journal %s %s: starting new logs of announcements; clients request them from the beginning",
                self.path,
                reason,
            )
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'identity'", (uuid.uuid4().hex[:12],))
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('location', ?)", (location,))

    def _copied(self, has_moved: bool) -> str:
        """Return how the journal came here if it is a copy, an empty text otherwise."""
        if has_moved or not self._has_lock_file:
            return "was copied, or restored from a backup"
        ((newest,),) = self._db.execute(
            "SELECT max(coalesce((SELECT max(created) FROM tasks WHERE id = (SELECT max(id) FROM tasks)), 0), "
            "coalesce((SELECT max(finished) FROM tasks WHERE state <> 0), 0), "
            "coalesce((SELECT created FROM announcements WHERE id = (SELECT max(id) FROM announcements)), 0), "
            "coalesce((SELECT CAST(value AS REAL) FROM meta WHERE key = 'time'), 0))"
        )
        written = read_times(self._lock_file)[1]
        return f"lacks what was written in the last {written - newest:.3f} s" if newest < written - CLOCK_SLACK else ""

    def keep_on_host(self, chain: str, kind: str, *, until_shared: bool = False) -> None:
        """Do nothing: a file belongs to one host."""

    def still(self) -> bool:
        return True  # the lock of the file excludes other processes

    def record_owner(self, role: str, config_file: str) -> None:
        with self._transaction() as db:
            for key, value in (("role", role), ("config", os.path.abspath(config_file))):
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, to_sqlite_text(value)))

    def check_writable(self) -> None:
        with self._transaction():
            self._save_clock()

    def check_file(self) -> None:
        with self._lock:
            if self._lock_file < 0 or self.damage or self.replaced:
                return
            try:
                self._check_lock_file()
                now = file_id(self.path)
                if now is None:
                    logger.error("the journal %s was removed while it was in use; writing it again", self.path)
                    self._write_again()
                elif now != self._files[""]:
                    self.replaced = True
            except (sqlite3.Error, OSError) as error:
                logger.error("the journal %s cannot be written again, next attempt in a minute: %s", self.path, error)
        if self.replaced and self._on_damage:
            self._on_damage()

    def _check_lock_file(self) -> None:
        if file_id(self.path + LOCK_SUFFIX) != file_id(f"/proc/self/fd/{self._lock_file}"):
            logger.error("the lock file of the journal %s was removed while it was in use; writing it again", self.path)
            previous, (self._lock_file, _) = self._lock_file, acquire_lock(self.path)
            os.close(previous)
            write_times(self._lock_file, self._alive, self._last_write)

    def _write_again(self) -> None:
        copy = f"{self.path}.new"
        with suppress(FileNotFoundError):
            os.unlink(copy)
        os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(copy)) as new:
            self._db.backup(new)
            new.execute("INSERT OR REPLACE INTO meta VALUES ('location', ?)", (location_of(copy),))
            new.commit()
        self._close_database(has_moved=True)
        os.rename(copy, self.path)
        self._has_lock_file = True
        self._open()

    def _close_database(self, *, has_moved: bool) -> None:
        """Close the connection; if its file was removed or replaced, also remove the write-ahead log it had."""
        self._db.close()
        for suffix in WAL_SUFFIXES if has_moved else ():
            if file_id(self.path + suffix) == self._files[suffix] is not None:
                os.unlink(self.path + suffix)

    def now(self) -> float:
        return self._clock.now()

    def seconds_after_kill(self) -> float:
        return self._after_kill

    def take(self, what: str) -> bool:  # noqa: ARG002
        return True  # the lock of the file is the lease

    def members(self) -> list[MemberRow]:
        return []

    def _restore_clock(self) -> None:
        row = self._db.execute("SELECT value FROM meta WHERE key = 'time'").fetchone()
        self._clock = MonotonicWallClock(at_least=float(row[0]) if row else 0.0)

    def _save_clock(self) -> float:
        now = self.now()
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('time', ?)", (f"{now:.3f}",))
        return now

    def close(self) -> None:
        with self._lock:
            if self._lock_file >= 0:
                if not self.damage and not self.replaced:
                    with suppress(sqlite3.Error):
                        self._save_clock()
                        self._store_rest()
                        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('closed', '')")
                try:
                    self._close_database(has_moved=self.replaced)
                finally:
                    os.close(self._lock_file)
                    self._lock_file = -1

    def _store_rest(self) -> None:
        """Write the states that are kept in memory; called before the file is closed."""

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
                if self._last_write > self._marked_write:
                    write_times(self._lock_file, self._alive, self._last_write)
                    self._marked_write = self._last_write
            except (sqlite3.Error, OverflowError) as error:
                self._roll_back()
                raise self._to_journal_error("written", error) from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):  # the first error is the one to report
            if self._db.in_transaction:  # SQLite has rolled back already if the disk was full
                self._db.execute("ROLLBACK")

    def _write(self, statement: str, parameters: Sequence[Any]) -> None:
        """Execute one statement in a transaction."""
        with self._transaction() as db:
            db.execute(statement, parameters)

    def _read(
        self, statement: str, parameters: Sequence[Any] = (), enough: Callable[[Any], bool] | None = None
    ) -> list[Any]:
        """Return the rows of a query, through the first one for which ``enough`` returns True."""
        with self._lock:
            self._check()
            try:
                with closing(self._db.execute(statement, parameters)) as cursor:
                    if enough is None:
                        return cursor.fetchall()
                    rows = []
                    for row in cursor:
                        rows.append(row)
                        if enough(row):
                            break
                    return rows
            except (sqlite3.Error, OverflowError) as error:
                raise self._to_journal_error("read", error) from error

    @contextmanager
    def _reading(self) -> Iterator[Callable[..., list[Any]]]:
        try:
            with closing(connect_read_only(self.path)) as db:
                add_functions(db)
                db.execute("BEGIN")  # all queries read the same state

                def read(statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
                    return db.execute(statement, parameters).fetchall()

                yield read
        except sqlite3.Error as error:
            raise to_journal_error(f"the journal {self.path} cannot be read: {error}", error) from error

    def _check(self) -> None:
        if self.damage:
            raise JournalError(f"the journal {self.path} is damaged: {self.damage}")
        if self.replaced:
            raise JournalError(f"the file of the journal {self.path} was replaced while it was in use")

    def _to_journal_error(self, participle: str, error: Exception) -> JournalError:
        if is_corruption(error) and not self.damage:
            self.damage = str(error)
            if self._on_damage:
                self._on_damage()
        journal_error = to_journal_error(f"the journal {self.path} cannot be {participle}: {error}", error)
        if isinstance(journal_error, JournalFull):
            with suppress(sqlite3.Error):  # the write-ahead log may have filled the disk
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return journal_error


def _is_empty_or_journal(descriptor: int) -> bool:
    """Return True if a file is empty or looks like a journal; close the descriptor."""
    with os.fdopen(descriptor, "rb") as file:
        header = file.read(100)  # https://sqlite.org/fileformat2.html#the_database_header
    return not header or (header.startswith(b"SQLite format 3\0") and header[60:64] != b"\0\0\0\0")
