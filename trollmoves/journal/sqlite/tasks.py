"""The tasks of a journal, identified by (chain, kind, key)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

from trollmoves.errors import JournalError
from trollmoves.journal.common.lanes import STORE_LANE, UnstoredLanes
from trollmoves.journal.common.queries import placeholders, prefix_range
from trollmoves.journal.common.sources import UPSERT_SOURCE, source_rows
from trollmoves.journal.common.tasks import TaskQueries
from trollmoves.journal.interface import MergeFunction
from trollmoves.journal.records import (
    BACKLOG,
    FAILED,
    FRESH,
    MARK_SLACK,
    NO_DELIVERY,
    UNFLUSHED_SECONDS,
    WAITING,
    Finished,
    Outcome,
    SourcePosition,
    Task,
    to_sqlite_text,
)
from trollmoves.journal.sqlite.database import JournalDatabase
from trollmoves.journal.sqlite.files import write_times

COLUMNS = "id, chain, kind, key, lane, rank, due, state, tries, created, announcement_number, body, reply, finished"
_SELECT_KEY = f"SELECT {COLUMNS} FROM tasks WHERE chain = ? AND kind = ? AND key = ?"
_SELECT_PENDING = f"SELECT {COLUMNS} FROM tasks WHERE announcement_number = ? AND chain = ? AND kind = ? AND state = 0"
_FINISH = (
    "UPDATE tasks SET state = ?, rank = ?, tries = ?, due = ?, reply = ?, finished = ?, size = ?, seconds = ?, "
    "destination = ?, peer = ? WHERE id = ?"
)
_FINISH_FAILED = _FINISH.replace(" WHERE", ", failure = ? WHERE")


class TaskTable(JournalDatabase, TaskQueries):
    """The tasks of a journal. Their unique (chain, kind, key) suppresses duplicates, also after a restart."""

    COLUMNS = COLUMNS

    def __init__(
        self, path: str, *, synchronous: str = "normal", damage: str = "", on_damage: Callable[[], None] | None = None
    ) -> None:
        self._unstored_lanes = UnstoredLanes()
        super().__init__(path, synchronous=synchronous, damage=damage, on_damage=on_damage)

    def add_tasks(
        self, tasks: Iterable[Task], sources: Iterable[tuple[str, SourcePosition]] = ()
    ) -> list[tuple[Task, bool]]:
        now = self.now()
        added: list[tuple[Task, bool]] = []
        with self._transaction() as db:
            for task in tasks:
                added.append((task, True) if _insert(db, task, now) else (_existing(db, task), False))
                self._last_write = now if added[-1][1] else self._last_write
            db.executemany(UPSERT_SOURCE, source_rows(sources))
        return added

    def merge(
        self, tasks: Iterable[Task], sources: Iterable[tuple[str, SourcePosition]], how: MergeFunction
    ) -> list[Task]:
        now = self.now()
        found: list[Task] = []
        with self._transaction() as db:
            editor = _Editor(db, now)
            for task in tasks:
                stored, is_new = editor.add(task)
                found += [task] if is_new else how(editor, task, stored)
            if editor.has_added:
                self._last_write = now
            db.executemany(UPSERT_SOURCE, source_rows(sources))
        return found

    def task_of(self, row: Any) -> Task:
        return task_of(row)

    def find(self, chain: str, kind: str, key: str) -> Task | None:
        rows = self._read(_SELECT_KEY, (chain, kind, to_sqlite_text(key)))
        return task_of(rows[0]) if rows else None

    def reset_tasks(self, tasks: Iterable[Task], *, unless_done: bool = False) -> list[Task]:
        with self._transaction() as db:
            return [task for task in tasks if _reset(db, task, unless_done=unless_done)]

    def renew_tasks(self, tasks: Iterable[Task]) -> None:
        now = self.now()
        with self._transaction() as db:
            for t in tasks:
                t.lane, t.due, t.created = to_sqlite_text(t.lane), now, now
                t.state, t.tries, t.finished, t.reply = WAITING, 0, None, None
                (new_id,) = db.execute(
                    "UPDATE tasks SET id = (SELECT max(id) + 1 FROM tasks), body = ?, lane = ?, rank = ?, due = ?, "
                    "state = 0, tries = 0, created = ?, finished = NULL, reply = NULL WHERE id = ? RETURNING id",
                    (to_sqlite_text(t.body), t.lane, t.rank, now, now, t.id),
                ).fetchone()
                t.id = int(new_id)

    def claim(self, chain: str, lane: str, limit: int, now: float, *, in_flight: Collection[int] = ()) -> list[Task]:
        claimed: list[Task] = []
        n_placeholders = 1 << len(in_flight).bit_length()  # few different statements, because SQLite caches them
        excluded = (*in_flight, *(0 for _ in range(n_placeholders - len(in_flight))))
        for rank in (FRESH, BACKLOG):
            rows = self._read(
                f"SELECT {COLUMNS} FROM tasks WHERE chain = ? AND lane = ? AND rank = ? AND due <= ? AND state = 0 "
                f"AND id NOT IN ({','.join('?' * n_placeholders)}) ORDER BY due, id LIMIT ?",
                (chain, lane, rank, now, *excluded, limit - len(claimed)),
            )
            claimed += [task_of(row) for row in rows]
            if len(claimed) >= limit:
                break
        return claimed

    def next_due(
        self,
        chain: str,
        lane: str,
        now: float,
        *,
        in_flight: Collection[int] = (),  # noqa: ARG002  (none is locked)
    ) -> float | None:
        rows = self._read(
            "SELECT min(due) FROM tasks WHERE chain = ?1 AND lane = ?2 AND rank = 0 AND state = 0 AND due > ?3 "
            "UNION ALL "
            "SELECT min(due) FROM tasks WHERE chain = ?1 AND lane = ?2 AND rank = 1 AND state = 0 AND due > ?3",
            (chain, lane, now),
        )
        return min((float(due) for (due,) in rows if due is not None), default=None)

    def lanes(self, chain: str) -> list[tuple[str, str]]:
        rows = self._read(
            "WITH RECURSIVE lanes (lane) AS (SELECT min(lane) FROM tasks WHERE chain = ?1 AND state = 0 UNION ALL "
            "SELECT (SELECT min(lane) FROM tasks t WHERE t.chain = ?1 AND t.state = 0 AND t.lane > lanes.lane) "
            "FROM lanes WHERE lanes.lane IS NOT NULL) "
            "SELECT lane, (SELECT kind FROM tasks t WHERE t.chain = ?1 AND t.state = 0 AND t.lane = lanes.lane "
            "LIMIT 1) FROM lanes WHERE lane IS NOT NULL",
            (chain,),
        )
        return [(str(lane), str(kind)) for lane, kind in rows]

    def finish(self, outcomes: Iterable[Outcome]) -> Finished:
        now, outcomes = self.now(), list(outcomes)
        new: list[Task] = []
        with self._unstored_lanes.storing(outcomes, now) as lanes, self._transaction() as db:
            for outcome in outcomes:
                _store_outcome(db, outcome, now)
                if outcome.state != WAITING:
                    self._last_finish = self._last_write = now
                new += [following for following in outcome.follow_ups if _insert(db, following, now)]
            db.executemany(STORE_LANE, lanes)
        return Finished(new, ())

    def _store_rest(self) -> None:
        self._db.executemany(STORE_LANE, self._unstored_lanes.rows(self.now()))

    def store_lanes(self) -> None:
        storing = self._unstored_lanes.storing((), self.now(), must_store=True)
        with storing as lanes, self._transaction() as db:
            db.executemany(STORE_LANE, lanes)

    def mark_alive(self) -> float:
        finished = self._last_finish
        if finished <= self._alive:
            return float("inf")
        now = self.now()
        if now <= finished + UNFLUSHED_SECONDS:
            return finished + UNFLUSHED_SECONDS - now + MARK_SLACK
        self._alive = now
        write_times(self._lock_file, now, self._last_write)
        if self._unstored_lanes:
            with suppress(JournalError):  # they stay in memory
                self.store_lanes()
        return float("inf")

    def finished_before_kill(self, chain: str, kinds: Sequence[str], seconds: float) -> list[Task]:
        if self._killed_at is None:
            return []
        rows = self._read(
            f"SELECT {COLUMNS} FROM tasks INDEXED BY tasks_finished WHERE state <> 0 AND finished BETWEEN ? AND ? "
            "AND chain = ? "
            f"AND state = 1 AND kind IN ({placeholders(kinds)}) ORDER BY finished, id",
            (self._killed_at - seconds, self._killed_at, chain, *kinds),
        )
        return [task_of(row) for row in rows]

    def newer_keys(self, task: Task, prefix: str) -> list[str]:
        rows = self._read(
            "SELECT key FROM tasks WHERE chain = ? AND kind = ? AND key >= ? AND key < ? AND id > ? "
            "AND state IN (0, 1)",
            (task.chain, task.kind, *prefix_range(to_sqlite_text(prefix)), task.id),
        )
        return [str(key) for (key,) in rows]

    def states(self, chain: str, kind: str, prefix: str, part: str) -> list[tuple[int, int]]:
        rows = self._read(
            "SELECT id, state FROM tasks WHERE chain = ? AND kind = ? AND key >= ? AND key < ? AND instr(key, ?) > 0",
            (chain, kind, *prefix_range(to_sqlite_text(prefix)), to_sqlite_text(part)),
        )
        return [(int(id_), int(state)) for id_, state in rows]

    def make_due_now(self, chain: str, kind: str, number: int) -> list[Task]:
        now = self.now()
        with self._transaction() as db:
            rows = db.execute(_SELECT_PENDING, (number, chain, kind)).fetchall()
            db.executemany("UPDATE tasks SET due = ? WHERE id = ?", [(now, row[0]) for row in rows])
        tasks = [task_of(row) for row in rows]
        for task in tasks:
            task.due = now
        return tasks

    def release(self, chain: str, lane: str | None = None) -> None:
        now = self.now()
        with self._transaction() as db:
            db.execute(
                "UPDATE tasks INDEXED BY tasks_waiting SET due = ?1 WHERE chain = ?2 AND state = 0 AND tries > 0 "
                "AND due > ?1 AND (?3 IS NULL OR lane = ?3)",
                (now, chain, lane),
            )

    def retry(self, ids: Iterable[int]) -> list[Task]:
        now = self.now()
        retried: list[Task] = []
        with self._transaction() as db:
            for id_ in ids:
                cursor = db.execute(
                    "UPDATE tasks SET state = 0, tries = 0, due = ?1, created = ?1, finished = NULL, reply = NULL, "
                    "failure = NULL WHERE id = ?2 AND state = 2",
                    (now, id_),
                )
                if cursor.rowcount:
                    retried.append(task_of(db.execute(f"SELECT {COLUMNS} FROM tasks WHERE id = ?", (id_,)).fetchone()))
        return retried

    def make_all_due_now(self, chain: str, kind: str) -> None:
        now = self.now()
        with self._transaction() as db:
            db.execute(
                "UPDATE tasks INDEXED BY tasks_waiting SET due = ? WHERE chain = ? AND state = 0 AND kind = ? "
                "AND due > ?",
                (now, chain, kind, now),
            )

    def fail_pending(
        self, chain: str, lane: str, *, exclude: Collection[int] = (), failure: str | None = None
    ) -> list[int]:
        with self._transaction() as db:
            rows = db.execute("SELECT id FROM tasks WHERE chain = ? AND lane = ? AND state = 0", (chain, lane))
            ids = [row[0] for row in rows if row[0] not in exclude]
            now = self.now()
            db.executemany(
                "UPDATE tasks SET state = 2, finished = ?, failure = ? WHERE id = ?",
                [(now, failure, id_) for id_ in ids],
            )
        return ids


def _store_outcome(db: sqlite3.Connection, outcome: Outcome, now: float) -> None:
    task, delivery = outcome.task, outcome.delivery or NO_DELIVERY
    # A column less for nearly all tasks, because ``failure`` is in an index.
    failed = outcome.failure is not None or task.tries > 1
    db.execute(
        _FINISH_FAILED if failed else _FINISH,
        (
            outcome.state,
            task.rank,
            task.tries,
            outcome.due or task.due,
            None if outcome.reply is None else to_sqlite_text(outcome.reply),
            now if outcome.state != WAITING else None,
            delivery.size,
            delivery.seconds,
            delivery.destination and to_sqlite_text(delivery.destination),
            delivery.peer and to_sqlite_text(delivery.peer),
            *((outcome.failure,) if failed else ()),
            task.id,
        ),
    )


def _insert(db: sqlite3.Connection, task: Task, now: float) -> bool:
    task.lane = to_sqlite_text(task.lane)
    cursor = db.execute(
        "INSERT OR IGNORE INTO tasks "
        "(chain, kind, key, lane, rank, due, state, tries, created, finished, announcement_number, body, failure) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)",
        (
            task.chain,
            task.kind,
            to_sqlite_text(task.key),
            task.lane,
            task.rank,
            task.due or now,
            task.state,
            now,
            None if task.state == WAITING else now,
            task.announcement_number,
            to_sqlite_text(task.body),
            "failed" if task.state == FAILED else None,
        ),
    )
    if cursor.rowcount != 1:
        return False
    task.id, task.created, task.due = cursor.lastrowid or 0, now, task.due or now
    return True


class _Editor:
    """The tasks within a transaction."""

    def __init__(self, db: sqlite3.Connection, now: float) -> None:
        self._db = db
        self._now = now
        self.has_added = False

    def add(self, task: Task) -> tuple[Task, bool]:
        if not _insert(self._db, task, self._now):
            return _existing(self._db, task), False
        self.has_added = True
        return task, True

    def find(self, chain: str, kind: str, key: str) -> Task | None:
        row = self._db.execute(_SELECT_KEY, (chain, kind, to_sqlite_text(key))).fetchone()
        return task_of(row) if row else None

    def update_body(self, task: Task) -> None:
        self._db.execute("UPDATE tasks SET body = ? WHERE id = ?", (to_sqlite_text(task.body), task.id))

    def reset(self, task: Task) -> None:
        _reset(self._db, task)


def _reset(db: sqlite3.Connection, t: Task, *, unless_done: bool = False) -> bool:
    t.lane = to_sqlite_text(t.lane)
    cursor = db.execute(
        "UPDATE tasks SET body = ?, lane = ?, rank = ?, due = ?, state = ?, tries = ?, created = ?, failure = NULL "
        "WHERE id = ? AND NOT (? AND state = 1)",
        (to_sqlite_text(t.body), t.lane, t.rank, t.due, t.state, t.tries, t.created, t.id, unless_done),
    )
    return cursor.rowcount == 1


def _existing(db: sqlite3.Connection, task: Task) -> Task:
    row = db.execute(_SELECT_KEY, (task.chain, task.kind, to_sqlite_text(task.key))).fetchone()
    return task_of(row)


def row_of(t: Task) -> tuple[Any, ...]:
    """Return the columns of a task."""
    return (
        *(t.id, t.chain, t.kind, t.key, t.lane, t.rank, t.due, t.state, t.tries, t.created),
        *(t.announcement_number, t.body, t.reply, t.finished),
    )


def task_of(row: Any) -> Task:
    """Return the task with these columns."""
    id_, chain, kind, key, lane, rank, due, state, tries, created, announcement_number, body, reply, finished = row
    return Task(
        chain, kind, key, lane, body, due, rank, announcement_number, id_, state, tries, created, reply, finished
    )
