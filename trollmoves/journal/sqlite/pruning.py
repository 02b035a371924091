"""Journal pruning: compact finished tasks, delete old rows, release free pages."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trollmoves.journal.records import BATCH_SIZE, COMPACT_AFTER, DONE, Compactors, Retention, Task, to_sqlite_text
from trollmoves.journal.sqlite.database import JournalDatabase
from trollmoves.journal.sqlite.tasks import COLUMNS, row_of, task_of

logger = logging.getLogger(__name__)

VACUUM_PAGES = 100  # pages released in one step
MAX_FREE_FRACTION = 0.25  # of the file that may be free before pages are released; new rows reuse free pages
FREE_PAGES = 1000  # pages (4 MB) that may be free in any case

_COLUMNS = f"{COLUMNS}, failure, size, seconds, destination, peer"
_FINISHED = COLUMNS.count(",")  # index of the last column of a task


class Pruning(JournalDatabase):
    """Pruning of a journal."""

    def prune(self, retention: Retention, compactors: Compactors, min_age: float = COMPACT_AFTER) -> Iterator[int]:
        before = self.now() - min_age
        yield from self._compact_finished(before, compactors)
        finished_before = min(self._finished_before(retention), before)
        yield from self._drop_finished(finished_before)
        self._drop_lanes(finished_before)
        for chain in self._announcing_chains():
            yield from self._drop_announced(chain, retention)
        yield from self._vacuum()

    def history_seconds(self) -> float:
        rows = self._read("SELECT value FROM meta WHERE key = 'forgotten'")
        return self.now() - float(rows[0][0]) if rows else float("inf")

    # -- finished tasks

    def _compact_finished(self, before: float, compactors: Compactors) -> Iterator[int]:
        at, last = self._compacted_to(before)
        while True:
            with self._transaction() as db:
                rows = db.execute(
                    f"SELECT {_COLUMNS} FROM tasks INDEXED BY tasks_finished WHERE state <> 0 AND finished <= ? "
                    "AND (finished, id) > (?, ?) ORDER BY finished, id LIMIT ?",
                    (before, at, last, BATCH_SIZE),
                ).fetchall()
                if rows:
                    _replace(db, rows, compactors)
                    at, last = rows[-1][_FINISHED], rows[-1][0]
                    _set_meta(db, "shortened", f"{at!r} {last}")
            if not rows:
                return
            yield len(rows)

    def _compacted_to(self, before: float) -> tuple[float, int]:
        """Return the finish time and the id of the last task that was examined."""
        rows = self._read("SELECT value FROM meta WHERE key = 'shortened'")
        at, _, last = rows[0][0].partition(" ") if rows else ("0", "", "0")
        return (float(at), int(last)) if float(at) <= before else (0.0, 0)  # the clock was set back

    def _finished_before(self, retention: Retention) -> float:
        """Return the finish time of the last task to delete."""
        by_age = self.now() - retention.finished_for
        ((span,),) = self._read("SELECT (SELECT max(id) FROM tasks) - (SELECT min(id) FROM tasks)")
        if not span or span < retention.most_finished:
            return by_age
        # On a separate connection: it scans many rows and must not block other transactions.
        rows = self._read_on_own_connection(
            "SELECT finished FROM tasks WHERE state <> 0 ORDER BY finished DESC LIMIT 1 OFFSET ?",
            (retention.most_finished,),
        )
        return max(by_age, *(float(finished) for (finished,) in rows)) if rows else by_age

    def _drop_finished(self, before: float) -> Iterator[int]:
        while True:
            with self._transaction() as db:
                rows = db.execute(
                    "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks INDEXED BY tasks_finished WHERE state <> 0 "
                    "AND finished <= ? AND id < (SELECT max(id) FROM tasks) ORDER BY finished LIMIT ?) "
                    "RETURNING finished",
                    (before, BATCH_SIZE),
                ).fetchall()
                if rows:
                    _set_meta(db, "forgotten", repr(max(finished for (finished,) in rows)))
            if not rows:
                return
            yield len(rows)

    def _drop_lanes(self, before: float) -> None:
        with self._transaction() as db:
            db.execute(
                "DELETE FROM lanes WHERE updated < ? AND NOT EXISTS (SELECT 1 FROM tasks t "
                "WHERE t.chain = lanes.chain AND t.lane = lanes.lane AND t.state = 0)",
                (before,),
            )

    # -- announcements

    def _announcing_chains(self) -> list[str]:
        """Return the chains that have announcements, by a loose index scan."""
        return [
            str(chain)
            for (chain,) in self._read(
                "WITH RECURSIVE chains (chain) AS (SELECT min(chain) FROM announcements UNION ALL "
                "SELECT (SELECT min(chain) FROM announcements a WHERE a.chain > chains.chain) FROM chains "
                "WHERE chains.chain IS NOT NULL) SELECT chain FROM chains WHERE chain IS NOT NULL"
            )
        ]

    def _drop_announced(self, chain: str, retention: Retention) -> Iterator[int]:
        before = self.now() - retention.announced_for
        while True:
            with self._transaction() as db:
                ((last,),) = db.execute("SELECT max(number) FROM announcements WHERE chain = ?", (chain,))
                oldest = db.execute(
                    "SELECT id, number, created FROM announcements WHERE chain = ? AND number < ? "
                    "ORDER BY number LIMIT ?",
                    (chain, last, BATCH_SIZE),
                ).fetchall()
                ids: list[tuple[int]] = []
                for id_, number, created in oldest:
                    if created >= before and number > last - retention.most_announced:
                        break
                    ids.append((id_,))
                db.executemany("DELETE FROM announcements WHERE id = ?", ids)
            if not ids:
                return
            yield len(ids)

    # -- space

    def _vacuum(self) -> Iterator[int]:
        """Release free pages if there are many."""
        max_free = max(FREE_PAGES, int(self._pragma("page_count") * MAX_FREE_FRACTION))
        if self._pragma("freelist_count") <= max_free:
            return
        while (free := self._pragma("freelist_count")) > max_free // 2:
            with self._transaction() as db:
                db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
            if self._pragma("freelist_count") >= free:
                return  # the file was created without auto_vacuum
            yield VACUUM_PAGES

    def _pragma(self, name: str) -> int:
        return int(self._read(f"PRAGMA {name}")[0][0])


def _replace(db: sqlite3.Connection, rows: Sequence[Any], compactors: Compactors) -> None:
    """Replace rows by compacted ones: SQLite frees pages for deleted rows, but not for shortened ones."""
    compacted = []
    for row in rows:
        task = task_of(row[: _FINISHED + 1])
        if task.state != DONE or task.kind not in compactors:
            continue
        body = _compacted_body(task, compactors[task.kind])
        if body != task.body or task.reply is not None:
            task.body, task.reply = body, None
            compacted.append((*row_of(task), *row[_FINISHED + 1 :]))
    db.executemany("DELETE FROM tasks WHERE id = ?", [row[:1] for row in compacted])
    db.executemany(f"INSERT INTO tasks ({_COLUMNS}) VALUES ({', '.join('?' * (_COLUMNS.count(',') + 1))})", compacted)


def _compacted_body(task: Task, compact: Callable[[Task], str]) -> str:
    try:
        return to_sqlite_text(compact(task))
    except Exception:  # an unreadable body stays as it is
        logger.exception("[%s] %s %s: cannot compact its body, keeping it", task.chain, task.kind, task.key)
        return task.body


def _set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))
