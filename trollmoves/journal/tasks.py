"""The tasks of a journal, identified by (chain, kind, key)."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

from trollmoves.errors import JournalError
from trollmoves.journal.database import JournalDatabase
from trollmoves.journal.lanes import LANE_INTERVAL, LaneChanges, merge_changes, record_outcome, store_lanes
from trollmoves.journal.location import write_times
from trollmoves.journal.records import (
    BACKLOG,
    DONE,
    DROPPED,
    FAILED,
    FRESH,
    UNFLUSHED_SECONDS,
    WAITING,
    Delivery,
    Outcome,
    SourcePosition,
    Task,
    to_sqlite_text,
)
from trollmoves.journal.sources import upsert_source

SET_ASIDE = "set_aside"  # kind of the records of files and messages that cannot be processed
COLUMNS = "id, chain, kind, key, lane, rank, due, state, tries, created, announcement_number, body, reply, finished"
SELECT_PENDING = f"SELECT {COLUMNS} FROM tasks WHERE announcement_number = ? AND chain = ? AND kind = ? AND state = 0"


_NO_DELIVERY = Delivery(None, None)
_FINISH = (
    "UPDATE tasks SET state = ?, rank = ?, tries = ?, due = ?, reply = ?, finished = ?, size = ?, seconds = ?, "
    "destination = ?, peer = ? WHERE id = ?"
)
_FINISH_FAILED = _FINISH.replace(" WHERE", ", failure = ? WHERE")
MARK_SLACK = 0.01  # s; the stored time must be later than that of the task by more than UNFLUSHED_SECONDS


class TaskTable(JournalDatabase):
    """The tasks of a journal. Their unique (chain, kind, key) suppresses duplicates, also after a restart."""

    def __init__(
        self, path: str, *, synchronous: str = "normal", damage: str = "", on_damage: Callable[[], None] | None = None
    ) -> None:
        self._lane_changes: LaneChanges = {}  # not stored yet
        self._lanes_lock = threading.Lock()  # guards it, and is acquired before the lock of the database
        self._lanes_stored = 0.0
        self._failing: set[tuple[str, str]] = set()  # lanes whose failure is stored
        super().__init__(path, synchronous=synchronous, damage=damage, on_damage=on_damage)

    def add_tasks(
        self, tasks: Iterable[Task], sources: Iterable[tuple[str, SourcePosition]] = ()
    ) -> list[tuple[Task, bool]]:
        """Store tasks and the (chain, position) of ``sources``; return (task, created) in the order of ``tasks``.

        For a task that exists already, the stored one is returned.
        """
        now = self.now()
        added: list[tuple[Task, bool]] = []
        with self._transaction() as db:
            for task in tasks:
                added.append((task, True) if _insert(db, task, now) else (_existing(db, task), False))
                self._last_write = now if added[-1][1] else self._last_write
            for chain, source in sources:
                upsert_source(db, chain, source)
        return added

    def set_aside(self, chain: str, item: str, reason: str) -> None:
        """Store a file or message that cannot be processed as a failed task, for a person to find."""
        self.add_tasks([Task(chain, SET_ASIDE, item, SET_ASIDE, reason, state=FAILED)])

    def find(self, chain: str, kind: str, key: str) -> Task | None:
        """Return the task with this identity, in any state; None if there is none."""
        rows = self._read(
            f"SELECT {COLUMNS} FROM tasks WHERE chain = ? AND kind = ? AND key = ?", (chain, kind, to_sqlite_text(key))
        )
        return task_of(rows[0]) if rows else None

    def keys(self, chain: str, kind: str) -> list[str]:
        """Return the keys of all tasks of a kind, in any state."""
        rows = self._read("SELECT key FROM tasks WHERE chain = ? AND kind = ?", (chain, kind))
        return [str(key) for (key,) in rows]

    def finished_for(self, chain: str, kinds: Sequence[str], number: int) -> list[Task]:
        """Return the tasks of these kinds for an announcement that are done."""
        rows = self._read(
            f"SELECT {COLUMNS} FROM tasks WHERE announcement_number = ? AND chain = ? AND state = 1 "
            f"AND kind IN ({','.join('?' * len(kinds))})",
            (number, chain, *kinds),
        )
        return [task_of(row) for row in rows]

    def reset_tasks(self, tasks: Iterable[Task]) -> None:
        """Store the body, lane, rank, due time, state, tries and creation time of existing tasks, to restart them."""
        with self._transaction() as db:
            for t in tasks:
                t.lane = to_sqlite_text(t.lane)
                db.execute(
                    "UPDATE tasks SET body = ?, lane = ?, rank = ?, due = ?, state = ?, tries = ?, created = ?, "
                    "failure = NULL WHERE id = ?",
                    (to_sqlite_text(t.body), t.lane, t.rank, t.due, t.state, t.tries, t.created, t.id),
                )

    def renew_tasks(self, tasks: Iterable[Task]) -> None:
        """Restart different finished tasks as new ones: each gets a new id, and its body and lane are stored."""
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

    def update_bodies(self, tasks: Iterable[Task]) -> None:
        """Store only the body of existing tasks."""
        with self._transaction() as db:
            changes = [(to_sqlite_text(task.body), task.id) for task in tasks]
            db.executemany("UPDATE tasks SET body = ? WHERE id = ?", changes)

    def claim(self, chain: str, lane: str, limit: int, now: float, *, in_flight: Collection[int] = ()) -> list[Task]:
        """Return up to ``limit`` tasks of a lane due at ``now``, by rank and due time, without the ids ``in_flight``.

        The journal does not record which tasks run: a row stays waiting until it is finished, so tasks that ran when
        the process died are due again after the restart.
        """
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

    def next_due(self, chain: str, lane: str, now: float) -> float | None:
        """Return the time after ``now`` at which the next waiting task of a lane is due, None if there is none."""
        rows = self._read(
            "SELECT min(due) FROM tasks WHERE chain = ?1 AND lane = ?2 AND rank = 0 AND state = 0 AND due > ?3 "
            "UNION ALL "
            "SELECT min(due) FROM tasks WHERE chain = ?1 AND lane = ?2 AND rank = 1 AND state = 0 AND due > ?3",
            (chain, lane, now),
        )
        return min((float(due) for (due,) in rows if due is not None), default=None)

    def lanes(self, chain: str) -> list[tuple[str, str]]:
        """Return (lane, kind) of each lane with waiting tasks in a chain, by a loose index scan."""
        rows = self._read(
            "WITH RECURSIVE lanes (lane) AS (SELECT min(lane) FROM tasks WHERE chain = ?1 AND state = 0 UNION ALL "
            "SELECT (SELECT min(lane) FROM tasks t WHERE t.chain = ?1 AND t.state = 0 AND t.lane > lanes.lane) "
            "FROM lanes WHERE lanes.lane IS NOT NULL) "
            "SELECT lane, (SELECT kind FROM tasks t WHERE t.chain = ?1 AND t.state = 0 AND t.lane = lanes.lane "
            "LIMIT 1) FROM lanes WHERE lane IS NOT NULL",
            (chain,),
        )
        return [(str(lane), str(kind)) for lane, kind in rows]

    def finish(self, outcomes: Iterable[Outcome]) -> list[Task]:
        """Store outcomes and their follow-up tasks in one transaction; return the follow-ups that are new."""
        with self._lanes_lock:
            return self._finish(outcomes)

    def _finish(self, outcomes: Iterable[Outcome]) -> list[Task]:
        now = self.now()
        new: list[Task] = []
        changes: LaneChanges = {}
        with self._transaction() as db:
            for outcome in outcomes:
                _store_outcome(db, outcome, now)
                if outcome.state != WAITING:
                    self._last_finish = self._last_write = now
                record_outcome(changes, outcome)
                new += [following for following in outcome.follow_ups if _insert(db, following, now)]
            merge_changes(changes, self._lane_changes)
            failing = {lane for lane, change in changes.items() if change.failure}
            is_due = now - self._lanes_stored > LANE_INTERVAL or failing or not self._failing.isdisjoint(changes)
            if is_due:
                store_lanes(db, changes, now)
        self._lane_changes = {} if is_due else changes
        if is_due:
            self._lanes_stored = now
            self._failing = self._failing - {lane for lane, change in changes.items() if change.done} | failing
        return new

    def _store_rest(self) -> None:
        store_lanes(self._db, self._lane_changes, self.now())
        self._lane_changes = {}

    def store_lanes(self) -> None:
        """Store the states of lanes that ``finish`` has kept in memory, because many tasks finished."""
        now = self.now()
        with self._lanes_lock:
            with self._transaction() as db:
                store_lanes(db, self._lane_changes, now)
            self._lane_changes = {}
            self._lanes_stored = now

    def mark_alive(self) -> float:
        """Record once, in the lock file, that this process outlived its last finished task by UNFLUSHED_SECONDS.

        Return the seconds until the next call is due, infinite without a finished task that is not recorded. It does
        not wait for the disk.
        """
        finished = self._last_finish
        if finished <= self._alive:
            return float("inf")
        now = self.now()
        if now <= finished + UNFLUSHED_SECONDS:
            return finished + UNFLUSHED_SECONDS - now + MARK_SLACK
        self._alive = now
        write_times(self._lock_file, now, self._last_write)
        if self._lane_changes:
            with suppress(JournalError):  # they stay in memory
                self.store_lanes()
        return float("inf")

    def finished_before_kill(self, chain: str, kinds: Sequence[str], seconds: float) -> list[Task]:
        """Return the tasks of these kinds that were done in the last ``seconds`` of the previous process, if killed.

        Messages that it had queued for sending may be lost although these tasks are done.
        """
        if self._killed_at is None:
            return []
        rows = self._read(
            f"SELECT {COLUMNS} FROM tasks INDEXED BY tasks_finished WHERE state <> 0 AND finished BETWEEN ? AND ? "
            "AND chain = ? "
            f"AND state = 1 AND kind IN ({','.join('?' * len(kinds))}) ORDER BY finished, id",
            (self._killed_at - seconds, self._killed_at, chain, *kinds),
        )
        return [task_of(row) for row in rows]

    def count(self, chain: str | None = None) -> dict[str, int]:
        """Return the numbers of tasks by state, of one chain or of all. This scans all of them."""
        where, parameters = ("WHERE chain = ?", (chain,)) if chain is not None else ("", ())
        rows = self._read(f"SELECT state, count(*) FROM tasks {where} GROUP BY state", parameters)
        names = {WAITING: "waiting", DONE: "done", FAILED: "failed", DROPPED: "dropped"}
        return {"waiting": 0, "done": 0, "failed": 0} | {names[state]: number for state, number in rows}

    def has_pending_for(self, chain: str, kind: str, number: int) -> bool:
        """Return True if a task of this kind for this announcement is waiting or running."""
        return bool(
            self._read(
                "SELECT 1 FROM tasks WHERE announcement_number = ? AND chain = ? AND kind = ? AND state = 0 LIMIT 1",
                (number, chain, kind),
            )
        )

    def newer_keys(self, task: Task, prefix: str) -> list[str]:
        """Return the keys that begin with ``prefix``, of the newer tasks of this kind that wait, run or are done."""
        start = to_sqlite_text(prefix)
        end = start[:-1] + chr(ord(start[-1]) + 1)
        rows = self._read(
            "SELECT key FROM tasks WHERE chain = ? AND kind = ? AND key >= ? AND key < ? AND id > ? "
            "AND state IN (0, 1)",
            (task.chain, task.kind, start, end, task.id),
        )
        return [str(key) for (key,) in rows]

    def states(self, chain: str, kind: str, prefix: str, part: str) -> list[tuple[int, int]]:
        """Return (id, state) of the tasks of a kind with a key that begins with ``prefix`` and contains ``part``."""
        start = to_sqlite_text(prefix)
        end = start[:-1] + chr(ord(start[-1]) + 1)
        rows = self._read(
            "SELECT id, state FROM tasks WHERE chain = ? AND kind = ? AND key >= ? AND key < ? AND instr(key, ?) > 0",
            (chain, kind, start, end, to_sqlite_text(part)),
        )
        return [(int(id_), int(state)) for id_, state in rows]

    def pending_for(self, chain: str, kind: str, number: int) -> list[Task]:
        """Return the tasks of this kind for an announcement that are waiting or running."""
        return [task_of(row) for row in self._read(SELECT_PENDING, (number, chain, kind))]

    def make_due_now(self, chain: str, kind: str, number: int) -> list[Task]:
        """Make the waiting tasks for an announcement due now, and return them."""
        now = self.now()
        with self._transaction() as db:
            rows = db.execute(SELECT_PENDING, (number, chain, kind)).fetchall()
            db.executemany("UPDATE tasks SET due = ? WHERE id = ?", [(now, row[0]) for row in rows])
        tasks = [task_of(row) for row in rows]
        for task in tasks:
            task.due = now
        return tasks

    def release(self, chain: str, lane: str | None = None) -> None:
        """Make the failed attempts that wait in a chain, or in one of its lanes, due now."""
        now = self.now()
        with self._transaction() as db:
            db.execute(
                "UPDATE tasks INDEXED BY tasks_waiting SET due = ?1 WHERE chain = ?2 AND state = 0 AND tries > 0 "
                "AND due > ?1 AND (?3 IS NULL OR lane = ?3)",
                (now, chain, lane),
            )

    def count_waiting(self, chain: str, lane: str) -> int:
        """Return the number of tasks of a lane that are waiting or running."""
        ((count,),) = self._read(
            "SELECT count(*) FROM tasks WHERE chain = ? AND lane = ? AND state = 0", (chain, to_sqlite_text(lane))
        )
        return int(count)

    def held(self, chain: str, limit: int = 1000) -> list[Task]:
        """Return the waiting tasks of a chain whose last attempt failed, by due time; ``reply`` is the error."""
        rows = self._read(
            f"SELECT {COLUMNS} FROM tasks WHERE chain = ? AND state = 0 AND reply IS NOT NULL ORDER BY due, id LIMIT ?",
            (chain, limit),
        )
        return [task_of(row) for row in rows]

    def failed(self, chain: str, limit: int = 1000) -> list[Task]:
        """Return the failed tasks of a chain, the newest first; ``reply`` is the error."""
        rows = self._read(
            f"SELECT {COLUMNS} FROM tasks WHERE chain = ? AND state = 2 ORDER BY finished DESC, id DESC LIMIT ?",
            (chain, limit),
        )
        return [task_of(row) for row in rows]

    def retry(self, ids: Iterable[int]) -> list[Task]:
        """Make failed tasks waiting again, due now; return those that had failed, to be submitted to the scheduler."""
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
        """Make all waiting tasks of a kind due now."""
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
        """Mark all waiting tasks of a lane as failed, without the ids in ``exclude``; return their ids."""
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
    task, delivery = outcome.task, outcome.delivery or _NO_DELIVERY
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


def _existing(db: sqlite3.Connection, task: Task) -> Task:
    row = db.execute(
        f"SELECT {COLUMNS} FROM tasks WHERE chain = ? AND kind = ? AND key = ?",
        (task.chain, task.kind, to_sqlite_text(task.key)),
    ).fetchone()
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
