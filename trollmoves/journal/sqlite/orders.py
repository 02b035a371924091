"""Orders of an operator, and the changes of tasks that they cause."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing

from trollmoves.errors import JournalError
from trollmoves.journal.common.orders import OrderQueries
from trollmoves.journal.common.queries import placeholders
from trollmoves.journal.location import LOCK_SUFFIX
from trollmoves.journal.records import DROPPED, ORDER, WAITING, Task, batches, to_sqlite_text
from trollmoves.journal.sqlite.database import SCHEMA_VERSION
from trollmoves.journal.sqlite.files import acquire_lock
from trollmoves.journal.sqlite.tasks import COLUMNS, TaskTable, row_of

_INSERT = (
    "INSERT INTO tasks (chain, kind, key, lane, rank, due, state, tries, created, body) "
    "VALUES ('', ?1, ?2, ?1, 0, ?3, 0, 0, ?3, ?4) ON CONFLICT (chain, kind, key) "
    "DO UPDATE SET state = 0, body = excluded.body, created = excluded.created, finished = NULL, reply = NULL"
)


class OrderTable(TaskTable, OrderQueries):
    """The orders in a journal, and the changes of tasks that they cause."""

    NEWEST_FILES = (
        "SELECT a.chain, max(a.number), a.uri, a.uid, a.size, a.mtime, a.message, a.created FROM announcements a "
        "WHERE {where} GROUP BY a.chain, a.uri ORDER BY a.id DESC LIMIT {limit}"
    )

    def _store(self, kind: str, key: str, body: str) -> None:
        with self._transaction() as db:
            self._last_write = self.now()
            db.execute(_INSERT, (kind, to_sqlite_text(key), self._last_write, to_sqlite_text(body)))

    def _end(self, kind: str, key: str, state: int, reply: str) -> None:
        self._write(
            "UPDATE tasks SET state = ?, finished = ?, reply = ? WHERE chain = '' AND kind = ? AND key = ?",
            (state, self.now(), to_sqlite_text(reply), kind, to_sqlite_text(key)),
        )

    def restart(self, tasks: Sequence[Task]) -> list[Task]:
        for batch in batches(tasks):
            now = self.now()
            with self._transaction() as db:
                for task in batch:
                    task.state, task.tries, task.due, task.created = WAITING, 0, now, now
                    task.reply, task.finished, task.lane = None, None, to_sqlite_text(task.lane)
                    id_, chain, kind, key, *rest = row_of(task)
                    values = (id_ or None, chain, kind, to_sqlite_text(key), *rest)
                    cursor = db.execute(
                        f"INSERT OR REPLACE INTO tasks ({COLUMNS}) VALUES ({placeholders(values)})",
                        values,
                    )
                    task.id = cursor.lastrowid or task.id
                self._last_write = now
        return list(tasks)

    def make_due(self, tasks: Sequence[Task]) -> None:
        for batch in batches(tasks):
            now = self.now()
            with self._transaction() as db:
                db.executemany(
                    "UPDATE tasks SET due = min(due, ?) WHERE id = ? AND state = 0", [(now, task.id) for task in batch]
                )

    def drop(self, tasks: Sequence[Task]) -> list[Task]:
        now = self.now()
        sql = f"UPDATE tasks SET state = {DROPPED}, finished = ? WHERE id = ? AND state IN (0, 2) AND created = ?"
        with self._transaction() as db:
            return [task for task in tasks if db.execute(sql, (now, task.id, task.created)).rowcount]


def record_offline(path: str, key: str, body: str) -> None:
    """Store an order in the journal of a daemon that does not run; it is carried out at the next start.

    Raises:
        JournalError: the journal does not exist, is in use, or cannot be written.
    """
    if not (os.path.exists(path) and os.path.exists(path + LOCK_SUFFIX)):
        raise JournalError(f"the journal {path} does not exist: start the daemon once, then repeat the command")
    lock, _ = acquire_lock(path)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            if db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                raise JournalError(f"the journal {path} was written by another version of this program")
            db.execute("PRAGMA synchronous=FULL")
            stored = db.execute("SELECT CAST(value AS REAL) FROM meta WHERE key = 'time'").fetchone()
            db.execute(_INSERT, (ORDER, to_sqlite_text(key), max(time.time(), stored[0] if stored else 0.0), body))
    except sqlite3.Error as error:
        raise JournalError(f"the journal {path} cannot be written: {error}") from error
    finally:
        os.close(lock)
