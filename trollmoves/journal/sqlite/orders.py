"""Orders of an operator: recorded before they are carried out, and the tasks that they concern.

An order and a pause are tasks of the chain ``""``, so that a new journal takes them over from a damaged one. A waiting
order is carried out at the next start. A waiting pause is in effect; its key is the name of a chain or destination.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path

from trollmoves.errors import JournalError
from trollmoves.journal.location import LOCK_SUFFIX
from trollmoves.journal.records import (
    DONE,
    DROPPED,
    MAX_SELECTED,
    ORDER,
    PAUSE,
    WAITING,
    AnnouncementRecord,
    Selection,
    Task,
    batches,
    to_sqlite_text,
)
from trollmoves.journal.sqlite.database import SCHEMA_VERSION, JournalDatabase
from trollmoves.journal.sqlite.files import acquire_lock
from trollmoves.journal.sqlite.tasks import COLUMNS, row_of, task_of

RECENT_TASKS = 100_000  # newest tasks that are searched for the names of destinations

_INSERT = (
    "INSERT INTO tasks (chain, kind, key, lane, rank, due, state, tries, created, body) "
    "VALUES ('', ?1, ?2, ?1, 0, ?3, 0, 0, ?3, ?4) ON CONFLICT (chain, kind, key) "
    "DO UPDATE SET state = 0, body = excluded.body, created = excluded.created, finished = NULL, reply = NULL"
)

_LANES = (
    "SELECT chain, lane FROM lanes UNION "
    "SELECT chain, lane FROM (SELECT chain, lane FROM tasks ORDER BY id DESC LIMIT ?)"
)


class OrderTable(JournalDatabase):
    """The orders in a journal, and the changes of tasks that they cause."""

    def add_order(self, key: str, body: str) -> None:
        self._store(ORDER, key, body)

    def waiting_orders(self) -> list[Task]:
        return self._of_kind(ORDER)

    def end_order(self, key: str, reply: str, *, done: bool) -> None:
        self._end(ORDER, key, DONE if done else DROPPED, reply)

    def pauses(self) -> list[Task]:
        return self._of_kind(PAUSE)

    def add_pause(self, name: str, body: str) -> None:
        self._store(PAUSE, name, body)

    def end_pause(self, name: str) -> None:
        self._end(PAUSE, name, DONE, "")

    def _store(self, kind: str, key: str, body: str) -> None:
        with self._transaction() as db:
            self._last_write = self.now()
            db.execute(_INSERT, (kind, to_sqlite_text(key), self._last_write, to_sqlite_text(body)))

    def _of_kind(self, kind: str) -> list[Task]:
        rows = self._read(
            f"SELECT {COLUMNS} FROM tasks WHERE chain = '' AND kind = ? AND state = 0 ORDER BY created, id", (kind,)
        )
        return [task_of(row) for row in rows]

    def _end(self, kind: str, key: str, state: int, reply: str) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE tasks SET state = ?, finished = ?, reply = ? WHERE chain = '' AND kind = ? AND key = ?",
                (state, self.now(), to_sqlite_text(reply), kind, to_sqlite_text(key)),
            )

    # -- tasks of an order

    def recent_lanes(self) -> set[tuple[str, str]]:
        return recent_lanes(self.path)

    def select(self, selection: Selection) -> list[Task]:
        where = f"t.state IN ({_marks(selection.states)}) AND t.kind IN ({_marks(selection.kinds)})"
        parameters: list[object] = [*selection.states, *selection.kinds]
        if WAITING not in selection.states:
            where += " AND t.state <> 0 AND t.finished BETWEEN ? AND ?"
            parameters += [selection.since, selection.until]
        if selection.only_final:
            where += " AND t.failure = 'failed'"
        if selection.chain:
            where += " AND t.chain = ?"
            parameters.append(selection.chain)
        if selection.file:
            matches, patterns = _file_condition(selection.file)
            where += f" AND ({matches})"
            parameters += patterns
        columns = ", ".join(f"t.{name}" for name in COLUMNS.split(", "))
        rows = self._read_on_own_connection(
            f"SELECT {columns} FROM tasks t LEFT JOIN announcements a "
            "ON a.chain = t.chain AND a.number = t.announcement_number "
            f"WHERE t.chain <> '' AND {where} ORDER BY t.id DESC LIMIT {MAX_SELECTED}",
            *parameters,
        )
        return [task_of(row) for row in rows]

    def announced_files(self, chain: str, file: str, since: float) -> list[tuple[str, AnnouncementRecord]]:
        where = "a.created >= ?"
        parameters: list[object] = [since]
        if chain:
            where += " AND a.chain = ?"
            parameters.append(chain)
        if file:
            where += " AND (a.uid GLOB ? OR a.uri GLOB ?)"
            parameters += [_glob(file), _glob(file) if file.startswith("/") else f"*/{_glob(file)}"]
        rows = self._read_on_own_connection(
            "SELECT a.chain, max(a.number), a.uri, a.uid, a.size, a.mtime, a.message FROM announcements a "
            f"WHERE {where} GROUP BY a.chain, a.uri ORDER BY a.id DESC LIMIT {MAX_SELECTED}",
            *parameters,
        )
        return [(chain_, AnnouncementRecord(*record)) for chain_, *record in rows]

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
                        f"INSERT OR REPLACE INTO tasks ({COLUMNS}) VALUES ({_marks(values)})",
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


def recent_lanes(path: str) -> set[tuple[str, str]]:
    """Return (chain, lane) of finished and of the newest tasks in a journal; JournalError if it cannot be read."""
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            return set(db.execute(_LANES, (RECENT_TASKS,)))
    except sqlite3.Error as error:
        raise JournalError(f"the journal {path} cannot be read: {error}") from error


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
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA_VERSION:
                raise JournalError(f"the journal {path} was written by another version of this program")
            db.execute("PRAGMA synchronous=FULL")
            stored = db.execute("SELECT CAST(value AS REAL) FROM meta WHERE key = 'time'").fetchone()
            db.execute(_INSERT, (ORDER, to_sqlite_text(key), max(time.time(), stored[0] if stored else 0.0), body))
    except sqlite3.Error as error:
        raise JournalError(f"the journal {path} cannot be written: {error}") from error
    finally:
        os.close(lock)


def _file_condition(file: str) -> tuple[str, list[object]]:
    """Return an SQL condition for the tasks of a file, and its parameters."""
    path = _glob(file)
    name = path.rsplit("/", 1)[-1]
    anywhere = path if path.startswith("/") else f"*/{path}"
    by_key = [
        *(name, f"{name}\n*", f"*\n{name}", f"*\n{name}\n*"),  # fetch: the names of all files, one per line
        f"{name} to *\n{anywhere} *",  # deliver: also the path of the file
        anywhere,  # a file that was set aside
    ]
    condition = f"t.announcement_number IS NULL AND ({' OR '.join(['t.key GLOB ?'] * len(by_key))})"
    return f"a.uid GLOB ? OR a.uri GLOB ? OR {condition}", [name, anywhere, *by_key]


def _glob(file: str) -> str:
    """Return a pattern for GLOB; without ``*`` and ``?`` the text is literal."""
    return file if "*" in file or "?" in file else file.replace("[", "[[]")


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
