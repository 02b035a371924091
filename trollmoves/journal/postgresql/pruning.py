"""Pruning of a journal on PostgreSQL: compact finished tasks and delete old rows; autovacuum releases the space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from psycopg.types.json import Json

from trollmoves.journal.common.pruning import PruningQueries, compacted_body
from trollmoves.journal.postgresql.database import Connection
from trollmoves.journal.postgresql.queries import translated
from trollmoves.journal.postgresql.tasks import COLUMNS, PostgresTasks
from trollmoves.journal.records import BATCH_SIZE, COMPACT_AFTER, Compactors, Retention

PRUNING = "pruning"  # the lease of the member that prunes
MEMBERS_FOR = 7 * 86400.0  # s for which former members are kept
_NEXT = (
    f"SELECT {COLUMNS} FROM tasks WHERE state <> 0 AND finished <= %s AND (finished, id) > (%s, %s) "
    f"ORDER BY finished, id LIMIT {BATCH_SIZE}"
)


class PostgresPruning(PostgresTasks, PruningQueries):
    """Pruning of a journal."""

    DROP_FINISHED = (
        "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE state <> 0 AND finished <= ? "
        f"ORDER BY finished LIMIT {BATCH_SIZE} FOR UPDATE SKIP LOCKED) RETURNING finished"
    )

    def prune(self, retention: Retention, compactors: Compactors, min_age: float = COMPACT_AFTER) -> Iterator[int]:
        if self._membership.take(PRUNING):
            yield from super().prune(retention, compactors, min_age)

    def _run(self, work: Callable[[Connection], int]) -> int:
        return self._database.run(work)

    def _execute(self, db: Connection, statement: str, parameters: Sequence[Any]) -> list[Any]:
        cursor = db.execute(translated(statement).encode(), parameters)
        return cursor.fetchall() if cursor.description else []

    def _compact(
        self, db: Connection, before: float, after: tuple[float, int], compactors: Compactors
    ) -> list[tuple[float, int]]:
        tasks = [self.task_of(row) for row in db.execute(_NEXT.encode(), (before, *after)).fetchall()]
        bodies = [(task.id, compacted_body(task, compactors)) for task in sorted(tasks, key=lambda task: task.id)]
        changes = [{"id": id_, "body": self._stored_text(body)} for id_, body in bodies if body is not None]
        if changes:
            db.execute(
                "UPDATE tasks t SET body = c.body, reply = NULL "
                "FROM json_to_recordset(%s::json) AS c (id bigint, body text) WHERE t.id = c.id",
                (Json(changes),),
            )
        return [(task.finished or 0.0, task.id) for task in tasks]

    def _release(self) -> Iterator[int]:
        """Delete former members; autovacuum releases the space."""
        self._write("DELETE FROM members WHERE gone AND renewed < ?", (self.now() - MEMBERS_FOR,))
        yield from ()
