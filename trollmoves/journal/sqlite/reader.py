"""Reads a journal without changing or locking it, while its daemon runs or is down."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from trollmoves.errors import JournalError
from trollmoves.journal.common.reader import ReaderQueries
from trollmoves.journal.location import LOCK_SUFFIX
from trollmoves.journal.sqlite.database import SCHEMA_VERSION
from trollmoves.journal.sqlite.files import connect_read_only, file_size, journal_size, to_journal_error
from trollmoves.journal.sqlite.wanted_pushes import WANTED, add_functions
from trollmoves.journal.views import MemberRow

SCAN_BATCH = 20_000  # rows examined in one query, so that the write-ahead log of the daemon can be truncated


class SqliteReader(ReaderQueries):
    """A read-only connection to a journal. One thread.

    Never used in the process that has the journal open with another library than SQLite: closing a file releases the
    locks that the process has on it.
    """

    WANTED = WANTED
    OLDEST_REPLY = "t.reply"  # of the row with the minimum
    STEP = "CAST(finished / ? AS INTEGER)"

    def __init__(self, path: str) -> None:
        """Open the journal; JournalError if it does not exist, cannot be read, or was written by another version."""
        self.path = path
        self._db = self._connect()
        self._check_version()
        self.meta: dict[str, str] = dict(self._read("SELECT key, value FROM meta"))

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def now(self) -> float:
        return max(time.time(), float(self.meta.get("time", 0)))

    def _ranges(self, table: str) -> Iterator[tuple[int, int]]:
        ((first, last),) = self._read(f"SELECT min(id), max(id) FROM {table}")
        high = last or 0
        while high >= (first or 1):
            yield high - SCAN_BATCH + 1, high
            high -= SCAN_BATCH

    # -- the file

    def members(self) -> list[MemberRow]:
        return []

    def size(self) -> int:
        return journal_size(self.path)

    def _sizes(self) -> tuple[int, int, int]:
        ((page_size,),), ((free,),) = self._read("PRAGMA page_size"), self._read("PRAGMA freelist_count")
        return file_size(self.path), file_size(f"{self.path}-wal"), int(free) * int(page_size)

    def back_up(self, copy: str) -> None:
        try:
            os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise JournalError(f"cannot create the backup {copy}: {error.strerror}") from None
        try:
            with closing(sqlite3.connect(copy)) as target:
                self._db.backup(target)
                target.execute("PRAGMA journal_mode=DELETE")  # one file
                ((result,),) = target.execute("PRAGMA quick_check(1)").fetchall()
            if result != "ok":
                raise JournalError(f"the backup {copy} is damaged: {result}")
        except (sqlite3.Error, JournalError) as error:
            with suppress(OSError):
                os.unlink(copy)
            raise to_journal_error(f"cannot write the backup {copy}: {error}", error) from error

    # -- queries

    def _connect(self) -> sqlite3.Connection:
        if not os.path.exists(self.path):
            raise JournalError(
                f"the journal {self.path} does not exist: its daemon has not run yet, or uses another one"
            )
        if not os.access(self.path, os.R_OK):
            raise JournalError(f"the journal {self.path} cannot be read: run this command as its owner or as root")
        # Without a write-ahead log no process writes; then SQLite must not create one.
        self._immutable = not os.path.exists(f"{self.path}-wal")
        try:
            db = connect_read_only(self.path, immutable=self._immutable)
            add_functions(db)
            return db
        except sqlite3.Error as error:
            raise to_journal_error(f"the journal {self.path} cannot be read: {error}", error) from error

    def _check_version(self) -> None:
        ((version,),) = self._read("PRAGMA user_version")
        if version != SCHEMA_VERSION:
            raise JournalError(f"the journal {self.path} was written by another version: start its daemon once")

    def _read(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            if self._immutable and os.path.exists(f"{self.path}-wal"):  # the daemon was started
                self._db.close()
                self._db = self._connect()
                return self._read(statement, parameters)
            raise to_journal_error(f"the journal {self.path} cannot be read: {error}", error) from error


def running_pid(path: str) -> int | None:
    """Return the id of the process that has locked a journal, None if there is none; without locking it."""
    try:
        inode = os.stat(path + LOCK_SUFFIX).st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in locks.splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
            return int(fields[4])
    return None
