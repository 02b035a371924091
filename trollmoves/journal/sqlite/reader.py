"""Reads a journal without changing or locking it, while its daemon runs or is down."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from trollmoves.errors import JournalError
from trollmoves.journal.location import LOCK_SUFFIX
from trollmoves.journal.sqlite.database import SCHEMA_VERSION
from trollmoves.journal.sqlite.files import to_journal_error
from trollmoves.journal.sqlite.statistics import journal_size
from trollmoves.journal.sqlite.wanted import WANTED, add_functions
from trollmoves.journal.views import (
    AnnouncedRow,
    FailureRow,
    FinishedRow,
    JournalFacts,
    LaneRow,
    MemberRow,
    TaskRow,
    WaitingRow,
)

READ_TIMEOUT = 5.0  # s to wait for a lock of the file
SCAN_BATCH = 20_000  # rows examined in one query, so that the write-ahead log of the daemon can be truncated
_TASK = (
    "t.id, t.chain, t.kind, t.key, t.lane, t.due, t.state, t.tries, t.created, t.finished, t.announcement_number, "
    "t.body, t.reply, t.failure, t.size, t.seconds, t.destination, t.peer"
)
CHAINS = (
    "WITH RECURSIVE chains (chain) AS (SELECT min(chain) FROM announcements UNION ALL SELECT (SELECT min(chain) "
    "FROM announcements a WHERE a.chain > chains.chain) FROM chains WHERE chains.chain IS NOT NULL) "
    "SELECT chain FROM chains WHERE chain IS NOT NULL"
)


# A push that failed waits for the next request of its client, unless its failure is "failed".
_QUEUED = (
    "t.kind NOT IN ('remove', 'delete_archive', 'republish') AND (t.state = 0 OR (t.state = 2 "
    f"AND t.failure IN ('held', 'outage', 'retry') AND {WANTED}))"
)
_IN_HELD_LANE = "EXISTS (SELECT 1 FROM lanes l WHERE l.chain = t.chain AND l.lane = t.lane AND l.failure = 'held')"
_CONDITIONS = {
    "queue": _QUEUED,
    "held": f"{_QUEUED} AND (t.failure = 'held' OR (t.failure IS NULL AND {_IN_HELD_LANE}))",
    "failed": "t.state = 2 AND t.failure = 'failed'",
}


class SqliteReader:
    """A read-only connection to a journal. One thread.

    Never used in the process that has the journal open with another library than SQLite: closing a file releases the
    locks that the process has on it.
    """

    def __init__(self, path: str) -> None:
        """Open the journal; JournalError if it does not exist, cannot be read, or was written by another version."""
        self.path = path
        self._db = self._connect()
        self._check_version()
        self.meta: dict[str, str] = dict(self._rows("SELECT key, value FROM meta"))

    def __enter__(self) -> SqliteReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def now(self) -> float:
        return max(time.time(), float(self.meta.get("time", 0)))

    # -- the state of lanes

    def waiting(self) -> list[WaitingRow]:
        return self._named(
            WaitingRow,
            "SELECT chain, lane, number, due, (SELECT created FROM tasks WHERE id = first) FROM (SELECT chain, lane, "
            "count(*) AS number, min(due) AS due, min(id) AS first FROM tasks INDEXED BY tasks_waiting "
            "WHERE state = 0 AND chain <> '' GROUP BY chain, lane)",
        )

    def failures(self) -> list[FailureRow]:
        return self._named(
            FailureRow,
            "SELECT t.chain, t.lane, t.failure, count(*), sum(t.state = 2), min(coalesce(a.created, t.created)), "
            "t.reply FROM tasks t INDEXED BY tasks_failure LEFT JOIN announcements a "
            "ON a.chain = t.chain AND a.number = t.announcement_number "
            f"WHERE t.failure IS NOT NULL AND t.state IN (0, 2) AND {WANTED} GROUP BY t.chain, t.lane, t.failure",
        )

    def lanes(self) -> list[LaneRow]:
        return self._named(
            LaneRow,
            "SELECT l.chain, l.lane, l.done, l.bytes, l.last_done, t.key, t.announcement_number, a.uid, l.failure, "
            "l.error, l.failing_since FROM lanes l LEFT JOIN tasks t ON t.id = l.last_id "
            "LEFT JOIN announcements a ON a.chain = t.chain AND a.number = t.announcement_number WHERE l.chain <> ''",
        )

    def finished_since(self, since: float, limit: int) -> list[FinishedRow]:
        return self._named(
            FinishedRow,
            "SELECT t.chain, t.lane, t.finished, t.size, coalesce(a.created, t.created) FROM tasks t "
            "INDEXED BY tasks_finished LEFT JOIN announcements a "
            "ON a.chain = t.chain AND a.number = t.announcement_number "
            "WHERE t.state <> 0 AND t.finished >= ? AND t.state = 1 AND t.seconds IS NOT NULL "
            "ORDER BY t.finished DESC LIMIT ?",
            (since, limit),
        )

    def count_finished(self, since: float, until: float, step: float) -> list[tuple[str, int, int]]:
        return self._rows(
            "SELECT chain, CAST(finished / ? AS INTEGER), count(*) FROM tasks INDEXED BY tasks_finished "
            "WHERE state <> 0 AND finished >= ? AND finished < ? AND state = 1 AND seconds IS NOT NULL GROUP BY 1, 2",
            (step, since, until),
        )

    def last_announcements(self) -> dict[str, AnnouncedRow]:
        chains = self._rows(CHAINS)  # a loose index scan, because there may be a million rows
        condition = "chain = ? AND number = (SELECT max(number) FROM announcements WHERE chain = ?)"
        rows = [row for (chain,) in chains for row in self._announced(condition, (chain, chain))]
        return {row.chain: row for row in rows}

    def pauses(self) -> dict[str, str]:
        return dict(self._rows("SELECT key, body FROM tasks WHERE chain = '' AND kind = 'pause' AND state = 0"))

    # -- lists of tasks

    def listed(self, name: str, limit: int) -> list[TaskRow]:
        return self._tasks(_CONDITIONS[name], limit=limit)

    def count_listed(self, name: str) -> int:
        return int(self._rows(f"SELECT count(*) FROM tasks t WHERE t.chain <> '' AND {_CONDITIONS[name]}")[0][0])

    def tasks_for(self, chain: str, number: int) -> list[TaskRow]:
        return self._tasks("t.chain = ? AND t.announcement_number = ?", (chain, number))

    def tasks_of_file(self, name: str, without: Sequence[str], limit: int) -> list[TaskRow]:
        pattern = name if "*" in name or "?" in name else name.replace("[", "[[]")
        base = pattern.rsplit("/", 1)[-1]
        patterns = (
            *(base, f"{base}\n*", f"*\n{base}", f"*\n{base}\n*"),  # fetch, relay, route: names of files, one per line
            f"{base} to *" if base == pattern else f"{base} to *\n{pattern} *",  # deliver
            pattern,  # a file that was set aside
            f"*/{base} *" if base == pattern else f"{pattern} *",  # unpack: path, size and time
        )
        kinds, keys = ", ".join("?" * len(without)), " OR ".join(["t.key GLOB ?"] * len(patterns))
        condition = f"t.id BETWEEN ? AND ? AND t.kind NOT IN ({kinds}) AND ({keys})"
        found: list[TaskRow] = []
        for low, high in self._ranges("tasks"):
            found += self._tasks(condition, (low, high, *without, *patterns), "t.id DESC")
            if len(found) >= limit:
                break
        return found[:limit]

    def _tasks(
        self, where: str, parameters: Sequence[object] = (), order: str = "t.id", limit: int = -1
    ) -> list[TaskRow]:
        sql = f"SELECT {_TASK} FROM tasks t WHERE t.chain <> '' AND {where} ORDER BY {order} LIMIT ?"
        return self._named(TaskRow, sql, (*parameters, limit))

    def announcement(self, chain: str, number: int) -> AnnouncedRow | None:
        rows = self._announced("chain = ? AND number = ?", (chain, number))
        return rows[0] if rows else None

    def find_announcements(self, name: str, pattern: str, limit: int) -> list[AnnouncedRow]:
        found: list[AnnouncedRow] = []
        for low, high in self._ranges("announcements"):
            condition = "id BETWEEN ? AND ? AND (uid = ? OR uri = ? OR uid GLOB ? OR uri GLOB ?) ORDER BY id DESC"
            found += self._announced(condition, (low, high, name, name, pattern, pattern))
            if len(found) >= limit:
                break
        return found[:limit]

    def _announced(self, condition: str, parameters: Sequence[object]) -> list[AnnouncedRow]:
        columns = "chain, number, uri, uid, size, mtime, created, message"
        return self._named(AnnouncedRow, f"SELECT {columns} FROM announcements WHERE {condition}", parameters)

    def _ranges(self, table: str) -> Iterator[tuple[int, int]]:
        """Yield ranges of ids, newest first."""
        ((first, last),) = self._rows(f"SELECT min(id), max(id) FROM {table}")
        high = last or 0
        while high >= (first or 1):
            yield high - SCAN_BATCH + 1, high
            high -= SCAN_BATCH

    # -- the file

    def members(self) -> list[MemberRow]:
        return []

    def size(self) -> int:
        return journal_size(self.path)

    def facts(self) -> JournalFacts:
        ((page_size,),), ((free,),) = self._rows("PRAGMA page_size"), self._rows("PRAGMA freelist_count")
        tasks = self._rows("SELECT chain, kind, state, count(*) FROM tasks GROUP BY chain, kind, state")
        announced = self._rows("SELECT chain, count(*), min(created) FROM announcements GROUP BY chain")
        ((oldest,),) = self._rows("SELECT min(finished) FROM tasks INDEXED BY tasks_finished WHERE state <> 0")
        return JournalFacts(
            _size(self.path),
            _size(f"{self.path}-wal"),
            int(free) * int(page_size),
            {(chain, kind, state): count for chain, kind, state, count in tasks},
            {chain: count for chain, count, _ in announced},
            oldest,
            min((created for _, _, created in announced), default=None),
        )

    def count_prunable(self, finished_before: float, announced_before: float) -> tuple[int, int]:
        sql = "SELECT count(*) FROM tasks INDEXED BY tasks_finished WHERE state <> 0 AND finished <= ?"
        ((tasks,),) = self._rows(sql, (finished_before,))
        ((announced,),) = self._rows("SELECT count(*) FROM announcements WHERE created < ?", (announced_before,))
        return int(tasks), int(announced)

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
        uri = f"{Path(self.path).absolute().as_uri()}?mode=ro{'&immutable=1' if self._immutable else ''}"
        try:
            db = sqlite3.connect(uri, uri=True, timeout=READ_TIMEOUT, isolation_level=None)
            add_functions(db)
            return db
        except sqlite3.Error as error:
            raise to_journal_error(f"the journal {self.path} cannot be read: {error}", error) from error

    def _check_version(self) -> None:
        ((version,),) = self._rows("PRAGMA user_version")
        if version != SCHEMA_VERSION or not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'lanes'"):
            raise JournalError(f"the journal {self.path} was written by another version: start its daemon once")

    def _named(self, row_type: Any, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        return [row_type(*row) for row in self._rows(sql, parameters)]

    def _rows(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        try:
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            if self._immutable and os.path.exists(f"{self.path}-wal"):  # the daemon was started
                self._db.close()
                self._db = self._connect()
                return self._rows(sql, parameters)
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


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
