"""Pruning of a journal on PostgreSQL: compact finished tasks and delete old rows; autovacuum releases the space."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from psycopg.types.json import Json

from trollmoves.journal.postgresql.database import Connection
from trollmoves.journal.postgresql.tasks import COLUMNS, PostgresTasks
from trollmoves.journal.records import BATCH_SIZE, COMPACT_AFTER, DONE, Compactors, Retention, Task, to_sqlite_text

logger = logging.getLogger(__name__)

UPKEEP = "upkeep"  # the lease of the member that prunes
MEMBERS_FOR = 7 * 86400.0  # s for which former members are kept
_FINISHED = COLUMNS.split(", ").index("finished")
_NEXT = (
    f"SELECT {COLUMNS} FROM tasks WHERE state <> 0 AND finished <= %s AND (finished, id) > (%s, %s) "
    f"ORDER BY finished, id LIMIT {BATCH_SIZE}"
)
_SET_META = "INSERT INTO meta VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


class PostgresPruning(PostgresTasks):
    """Pruning of a journal."""

    def prune(self, retention: Retention, compactors: Compactors, min_age: float = COMPACT_AFTER) -> Iterator[int]:
        if not self._membership.take(UPKEEP):
            return
        before = self.now() - min_age
        yield from self._compact_finished(before, compactors)
        finished_before = min(self._finished_before(retention), before)
        yield from self._in_batches(lambda db: self._drop_finished(db, finished_before))
        self._database.run_statement(
            lambda db: db.execute(
                "DELETE FROM lanes WHERE updated < %s AND NOT EXISTS (SELECT 1 FROM tasks t "
                "WHERE t.chain = lanes.chain AND t.lane = lanes.lane AND t.state = 0)",
                (finished_before,),
            )
        )
        self._database.run_statement(
            lambda db: db.execute("DELETE FROM members WHERE gone AND renewed < %s", (self.now() - MEMBERS_FOR,))
        )
        for (chain,) in self._database.read("SELECT chain FROM logs ORDER BY chain"):
            yield from self._drop_announced(chain, retention)

    def history_seconds(self) -> float:
        rows = self._database.read("SELECT value FROM meta WHERE key = 'forgotten'")
        return self.now() - float(rows[0][0]) if rows else float("inf")

    def _in_batches(self, work: Callable[[Connection], int]) -> Iterator[int]:
        while count := self._database.run(work):
            yield count

    def _compact_finished(self, before: float, compactors: Compactors) -> Iterator[int]:
        rows = self._database.read("SELECT value FROM meta WHERE key = 'shortened'")
        at, _, last = rows[0][0].partition(" ") if rows else ("0", "", "0")
        position = (float(at), int(last)) if float(at) <= before else (0.0, 0)

        def work(db: Connection) -> int:
            nonlocal position
            found = db.execute(_NEXT.encode(), (before, *position)).fetchall()
            if found:
                self._compact(db, found, compactors)
                position = found[-1][_FINISHED], found[-1][0]
                db.execute(_SET_META, ("shortened", f"{position[0]!r} {position[1]}"))
            return len(found)

        yield from self._in_batches(work)

    def _compact(self, db: Connection, rows: Sequence[Any], compactors: Compactors) -> None:
        changes = []
        for row in rows:
            task = self.task_of(row)
            if task.state != DONE or task.kind not in compactors:
                continue
            body = _compacted_body(task, compactors[task.kind])
            if body != task.body or task.reply is not None:
                changes.append({"id": task.id, "body": self._stored_text(body)})
        if changes:
            db.execute(
                "UPDATE tasks t SET body = c.body, reply = NULL "
                "FROM json_to_recordset(%s::json) AS c (id bigint, body text) WHERE t.id = c.id",
                (Json(sorted(changes, key=lambda change: int(str(change["id"])))),),
            )

    def _finished_before(self, retention: Retention) -> float:
        """Return the finish time of the last task to delete."""
        by_age = self.now() - retention.finished_for
        ((span,),) = self._database.read("SELECT (SELECT max(id) FROM tasks) - (SELECT min(id) FROM tasks)")
        if not span or span < retention.most_finished:
            return by_age
        rows = self._database.read(
            "SELECT finished FROM tasks WHERE state <> 0 ORDER BY finished DESC LIMIT 1 OFFSET %s",
            (retention.most_finished,),
        )
        return max(by_age, *(float(finished) for (finished,) in rows)) if rows else by_age

    @staticmethod
    def _drop_finished(db: Connection, before: float) -> int:
        rows = db.execute(
            "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE state <> 0 AND finished <= %s "
            f"ORDER BY finished LIMIT {BATCH_SIZE} FOR UPDATE SKIP LOCKED) "
            "RETURNING finished",
            (before,),
        ).fetchall()
        if rows:
            db.execute(_SET_META, ("forgotten", repr(max(finished for (finished,) in rows))))
        return len(rows)

    def _drop_announced(self, chain: str, retention: Retention) -> Iterator[int]:
        before = self.now() - retention.announced_for

        def work(db: Connection) -> int:
            return db.execute(
                "DELETE FROM announcements WHERE id IN (SELECT id FROM (SELECT id, number, created FROM announcements "
                "WHERE chain = %(chain)s AND number < (SELECT max(number) FROM announcements WHERE chain = %(chain)s) "
                f"ORDER BY number LIMIT {BATCH_SIZE}) oldest WHERE created < %(before)s OR number <= "
                "(SELECT max(number) FROM announcements WHERE chain = %(chain)s) - %(most)s)",
                {"chain": chain, "before": before, "most": retention.most_announced},
            ).rowcount

        yield from self._in_batches(work)


def _compacted_body(task: Task, compact: Callable[[Task], str]) -> str:
    try:
        return to_sqlite_text(compact(task))
    except Exception:  # an unreadable body stays as it is
        logger.exception("[%s] %s %s: cannot compact its body, keeping it", task.chain, task.kind, task.key)
        return task.body
