"""Orders of an operator: recorded before they are carried out, and the tasks that they concern.

An order and a pause are tasks of the chain ``""``, so that a new journal takes them over from a damaged one. A waiting
order is carried out at the next start. A waiting pause is in effect; its key is the name of a chain or destination.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from trollmoves.journal.common.queries import placeholders
from trollmoves.journal.common.tasks import TaskQueries
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
)

RECENT_TASKS = 100_000  # newest tasks that are searched for the names of destinations
_RECENT_LANES = (
    "SELECT chain, lane FROM lanes UNION "
    "SELECT chain, lane FROM (SELECT chain, lane FROM tasks ORDER BY id DESC LIMIT ?) newest"
)


class OrderQueries(TaskQueries):
    """The orders in a journal, and the tasks that they concern."""

    NEWEST_FILES: ClassVar[str]  # the last announcement of each file with ``{where}``, newest first

    @abstractmethod
    def _store(self, kind: str, key: str, body: str) -> None:
        """Store an order or a pause, or replace that of the same key."""

    @abstractmethod
    def _end(self, kind: str, key: str, state: int, reply: str) -> None:
        """Store the end of an order or a pause."""

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

    def _of_kind(self, kind: str) -> list[Task]:
        return self._tasks("chain = '' AND kind = ? AND state = 0 ORDER BY created, id", kind)

    # -- tasks of an order

    def recent_lanes(self) -> set[tuple[str, str]]:
        return set(self._read_many(_RECENT_LANES, (RECENT_TASKS,)))

    def select(self, selection: Selection) -> list[Task]:
        where = f"t.state IN ({placeholders(selection.states)}) AND t.kind IN ({placeholders(selection.kinds)})"
        parameters: list[Any] = [*selection.states, *selection.kinds]
        if WAITING not in selection.states:
            where += " AND t.state <> 0 AND t.finished BETWEEN ? AND ?"
            parameters += [selection.since, selection.until]
        if selection.only_final:
            where += " AND t.failure = 'failed'"
        if selection.chain:
            where += " AND t.chain = ?"
            parameters.append(selection.chain)
        if selection.file:
            matches, patterns = self._file_condition(selection.file)
            where += f" AND {matches}"
            parameters += patterns
        columns = ", ".join(f"t.{name}" for name in self.COLUMNS.split(", "))
        rows = self._read_many(
            f"SELECT {columns} FROM tasks t LEFT JOIN announcements a "
            "ON a.chain = t.chain AND a.number = t.announcement_number "
            f"WHERE t.chain <> '' AND {where} ORDER BY t.id DESC LIMIT {MAX_SELECTED}",
            parameters,
        )
        return [self.task_of(row) for row in rows]

    def announced_files(self, chain: str, file: str, since: float) -> list[tuple[str, AnnouncementRecord]]:
        where = "a.created >= ?"
        parameters: list[Any] = [since]
        if chain:
            where += " AND a.chain = ?"
            parameters.append(chain)
        if file:
            matches, patterns = self.glob_condition(("a.uid", "a.uri"), (file, _anywhere(file)), file)
            where += f" AND {matches}"
            parameters += patterns
        rows = self._read_many(self.NEWEST_FILES.format(where=where, limit=MAX_SELECTED), parameters)
        return [(chain_, AnnouncementRecord(*record)) for chain_, *record in rows]

    def _file_condition(self, file: str) -> tuple[str, list[str]]:
        """Return an SQL condition for the tasks of a file, and its parameters."""
        name = file.rsplit("/", 1)[-1]
        by_key = [
            *(name, f"{name}\n*", f"*\n{name}", f"*\n{name}\n*"),  # fetch: the names of all files, one per line
            f"{name} to *\n{_anywhere(file)} *",  # deliver: also the path of the file
            _anywhere(file),  # a file that was set aside
        ]
        keys, patterns = self.glob_condition(["t.key"] * len(by_key), by_key, file)
        announced, full = self.glob_condition(("a.uid", "a.uri"), (name, _anywhere(file)), file)
        return f"({announced} OR (t.announcement_number IS NULL AND {keys}))", [*full, *patterns]


def _anywhere(file: str) -> str:
    return file if file.startswith("/") else f"*/{file}"
