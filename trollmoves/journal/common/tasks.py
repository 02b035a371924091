"""Queries of tasks that are the same in all engines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar

from trollmoves.journal.common.queries import OpenQueries, placeholders
from trollmoves.journal.records import DONE, DROPPED, FAILED, SET_ASIDE, WAITING, SourcePosition, Task, to_sqlite_text

_STATES = {WAITING: "waiting", DONE: "done", FAILED: "failed", DROPPED: "dropped"}


class TaskQueries(OpenQueries):
    """The tasks of a journal."""

    COLUMNS: ClassVar[str]  # of a row for ``task_of``

    @abstractmethod
    def task_of(self, row: Any) -> Task:
        """Return the task with these columns."""

    @abstractmethod
    def add_tasks(
        self, tasks: Iterable[Task], sources: Iterable[tuple[str, SourcePosition]] = ()
    ) -> list[tuple[Task, bool]]: ...

    def _tasks(self, where: str, *parameters: Any) -> list[Task]:
        rows = self._read(f"SELECT {self.COLUMNS} FROM tasks WHERE {where}", parameters)
        return [self.task_of(row) for row in rows]

    def set_aside(self, chain: str, item: str, reason: str) -> None:
        self.add_tasks([Task(chain, SET_ASIDE, item, SET_ASIDE, reason, state=FAILED)])

    def keys(self, chain: str, kind: str) -> list[str]:
        return [key for (key,) in self._read("SELECT key FROM tasks WHERE chain = ? AND kind = ?", (chain, kind))]

    def finished_for(self, chain: str, kinds: Sequence[str], number: int) -> list[Task]:
        where = f"announcement_number = ? AND chain = ? AND state = 1 AND kind IN ({placeholders(kinds)}) ORDER BY id"
        return self._tasks(where, number, chain, *kinds)

    def ended(self, ids: Collection[int]) -> list[Task]:
        return self._tasks(f"id IN ({placeholders(ids)}) AND state <> 0", *ids) if ids else []

    def has_pending_for(self, chain: str, kind: str, number: int) -> bool:
        where = "announcement_number = ? AND chain = ? AND kind = ? AND state = 0 LIMIT 1"
        return bool(self._read(f"SELECT 1 FROM tasks WHERE {where}", (number, chain, kind)))

    def pending_for(self, chain: str, kind: str, number: int) -> list[Task]:
        where = "announcement_number = ? AND chain = ? AND kind = ? AND state = 0 ORDER BY id"
        return self._tasks(where, number, chain, kind)

    def pending_numbers(self, chain: str, kind: str) -> set[int]:
        rows = self._read(
            "SELECT announcement_number FROM tasks INDEXED BY tasks_waiting WHERE chain = ? AND state = 0 AND kind = ? "
            "AND announcement_number IS NOT NULL",
            (chain, kind),
        )
        return {number for (number,) in rows}

    def count(self, chain: str | None = None) -> dict[str, int]:
        where, parameters = ("WHERE chain = ?", (chain,)) if chain is not None else ("", ())
        rows = self._read(f"SELECT state, count(*) FROM tasks {where} GROUP BY state", parameters)
        return {"waiting": 0, "done": 0, "failed": 0} | {_STATES[state]: number for state, number in rows}

    def count_waiting(self, chain: str, lane: str) -> int:
        where = "chain = ? AND lane = ? AND state = 0"
        ((count,),) = self._read(f"SELECT count(*) FROM tasks WHERE {where}", (chain, to_sqlite_text(lane)))
        return int(count)
