"""Journal pruning: compact finished tasks, delete old rows, release free pages."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trollmoves.journal.common.pruning import PruningQueries, compacted_body
from trollmoves.journal.records import BATCH_SIZE, Compactors
from trollmoves.journal.sqlite.database import JournalDatabase
from trollmoves.journal.sqlite.tasks import COLUMNS, row_of, task_of

VACUUM_PAGES = 100  # pages released in one step
MAX_FREE_FRACTION = 0.25  # of the file that may be free before pages are released; new rows reuse free pages
FREE_PAGES = 1000  # pages (4 MB) that may be free in any case

_COLUMNS = f"{COLUMNS}, failure, size, seconds, destination, peer"
_FINISHED = COLUMNS.count(",")  # index of the last column of a task


class Pruning(JournalDatabase, PruningQueries):
    """Pruning of a journal."""

    DROP_FINISHED = (
        "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks INDEXED BY tasks_finished WHERE state <> 0 "
        f"AND finished <= ? AND id < (SELECT max(id) FROM tasks) ORDER BY finished LIMIT {BATCH_SIZE}) "
        "RETURNING finished"
    )

    def _run(self, work: Callable[[sqlite3.Connection], int]) -> int:
        with self._transaction() as db:
            return work(db)

    def _execute(self, db: sqlite3.Connection, statement: str, parameters: Sequence[Any]) -> list[Any]:
        return db.execute(statement, parameters).fetchall()

    def _compact(
        self, db: sqlite3.Connection, before: float, after: tuple[float, int], compactors: Compactors
    ) -> list[tuple[float, int]]:
        """Replace rows by compacted ones: SQLite frees pages for deleted rows, but not for shortened ones."""
        rows = db.execute(
            f"SELECT {_COLUMNS} FROM tasks INDEXED BY tasks_finished WHERE state <> 0 AND finished <= ? "
            "AND (finished, id) > (?, ?) ORDER BY finished, id LIMIT ?",
            (before, *after, BATCH_SIZE),
        ).fetchall()
        compacted = []
        for row in rows:
            task = task_of(row[: _FINISHED + 1])
            body = compacted_body(task, compactors)
            if body is not None:
                task.body, task.reply = body, None
                compacted.append((*row_of(task), *row[_FINISHED + 1 :]))
        db.executemany("DELETE FROM tasks WHERE id = ?", [row[:1] for row in compacted])
        marks = ", ".join("?" * (_COLUMNS.count(",") + 1))
        db.executemany(f"INSERT INTO tasks ({_COLUMNS}) VALUES ({marks})", compacted)
        return [(row[_FINISHED], row[0]) for row in rows]

    def _release(self) -> Iterator[int]:
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
