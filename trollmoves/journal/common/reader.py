"""Queries that read a journal for lists and statistics, the same in all engines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

from trollmoves.journal.common.queries import Queries, placeholders
from trollmoves.journal.views import AnnouncedRow, FailureRow, FinishedRow, JournalFacts, LaneRow, TaskRow, WaitingRow

_TASK = (
    "t.id, t.chain, t.kind, t.key, t.lane, t.due, t.state, t.tries, t.created, t.finished, t.announcement_number, "
    "t.body, t.reply, t.failure, t.size, t.seconds, t.destination, t.peer"
)
_IN_HELD_LANE = "EXISTS (SELECT 1 FROM lanes l WHERE l.chain = t.chain AND l.lane = t.lane AND l.failure = 'held')"
_NO_LIMIT = 2**63 - 1


class ReaderQueries(Queries):
    """A journal that is only read. One thread."""

    WANTED: ClassVar[str]  # see ``wanted``
    OLDEST_REPLY: ClassVar[str]  # of the tasks of a group
    STEP: ClassVar[str]  # number of the step of ``?`` seconds in which a task finished

    meta: dict[str, str]

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    # -- the state of lanes

    def waiting(self) -> list[WaitingRow]:
        return self._named(
            WaitingRow,
            "SELECT chain, lane, number, due, (SELECT created FROM tasks WHERE id = first) FROM (SELECT chain, lane, "
            "count(*) AS number, min(due) AS due, min(id) AS first FROM tasks INDEXED BY tasks_waiting "
            "WHERE state = 0 AND chain <> '' GROUP BY chain, lane) groups ORDER BY chain, lane",
        )

    def failures(self) -> list[FailureRow]:
        return self._named(
            FailureRow,
            "SELECT t.chain, t.lane, t.failure, count(*), count(*) FILTER (WHERE t.state = 2), "
            f"min(coalesce(a.created, t.created)), {self.OLDEST_REPLY} "
            "FROM tasks t INDEXED BY tasks_failure LEFT JOIN announcements a "
            "ON a.chain = t.chain AND a.number = t.announcement_number "
            f"WHERE t.failure IS NOT NULL AND t.state IN (0, 2) AND {self.WANTED} GROUP BY t.chain, t.lane, t.failure "
            "ORDER BY t.chain, t.lane, t.failure",
        )

    def lanes(self) -> list[LaneRow]:
        return self._named(
            LaneRow,
            "SELECT l.chain, l.lane, l.done, l.bytes, l.last_done, t.key, t.announcement_number, a.uid, l.failure, "
            "l.error, l.failing_since FROM lanes l LEFT JOIN tasks t ON t.id = l.last_id LEFT JOIN announcements a "
            "ON a.chain = t.chain AND a.number = t.announcement_number WHERE l.chain <> '' ORDER BY l.chain, l.lane",
        )

    def finished_since(self, since: float, limit: int) -> list[FinishedRow]:
        return self._named(
            FinishedRow,
            "SELECT t.chain, t.lane, t.finished, t.size, coalesce(a.created, t.created) FROM tasks t "
            "INDEXED BY tasks_finished LEFT JOIN announcements a "
            "ON a.chain = t.chain AND a.number = t.announcement_number "
            "WHERE t.state <> 0 AND t.finished >= ? AND t.state = 1 AND t.seconds IS NOT NULL "
            "ORDER BY t.finished DESC LIMIT ?",
            (since, limit),
        )

    def count_finished(self, since: float, until: float, step: float) -> list[tuple[str, int, int]]:
        return self._read(
            f"SELECT chain, {self.STEP}, count(*) FROM tasks INDEXED BY tasks_finished WHERE state <> 0 "
            "AND finished >= ? AND finished < ? AND state = 1 AND seconds IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2",
            (step, since, until),
        )

    def last_announcements(self) -> dict[str, AnnouncedRow]:
        condition = "chain = ? AND number = (SELECT max(number) FROM announcements WHERE chain = ?)"
        rows = [row for (chain,) in self._read(self.CHAINS) for row in self._announced(condition, (chain, chain))]
        return {row.chain: row for row in rows}

    def pauses(self) -> dict[str, str]:
        return dict(self._read("SELECT key, body FROM tasks WHERE chain = '' AND kind = 'pause' AND state = 0"))

    # -- lists of tasks

    def listed(self, name: str, limit: int) -> list[TaskRow]:
        return self._tasks(self._condition(name), limit=limit)

    def count_listed(self, name: str) -> int:
        return int(self._read(f"SELECT count(*) FROM tasks t WHERE t.chain <> '' AND {self._condition(name)}")[0][0])

    def _condition(self, name: str) -> str:
        """Return the condition of a list of ``listed``."""
        if name == "failed":
            return "t.state = 2 AND t.failure = 'failed'"
        # A push that failed waits for the next request of its client, unless its failure is "failed".
        queued = (
            "t.kind NOT IN ('remove', 'delete_archive', 'republish') AND (t.state = 0 OR (t.state = 2 "
            f"AND t.failure IN ('held', 'outage', 'retry') AND {self.WANTED}))"
        )
        is_held = f"(t.failure = 'held' OR (t.failure IS NULL AND {_IN_HELD_LANE}))"
        return {"queue": queued, "held": f"{queued} AND {is_held}"}[name]

    def tasks_for(self, chain: str, number: int) -> list[TaskRow]:
        return self._tasks("t.chain = ? AND t.announcement_number = ?", (chain, number))

    def tasks_of_file(self, name: str, without: Sequence[str], limit: int) -> list[TaskRow]:
        base = name.rsplit("/", 1)[-1]
        keys, patterns = self.glob_condition(
            ["t.key"] * 7,
            (
                *(base, f"{base}\n*", f"*\n{base}", f"*\n{base}\n*"),  # fetch, relay, route: names of files, one a line
                f"{base} to *" if base == name else f"{base} to *\n{name} *",  # deliver
                name,  # a file that was set aside
                f"*/{base} *" if base == name else f"{name} *",  # unpack: path, size and time
            ),
            name,
        )
        of_kind = f"AND t.kind NOT IN ({placeholders(without)})" if without else ""
        condition = f"t.id BETWEEN ? AND ? {of_kind} AND {keys}"
        found: list[TaskRow] = []
        for low, high in self._ranges("tasks"):
            found += self._tasks(condition, (low, high, *without, *patterns), "t.id DESC", limit - len(found))
            if len(found) >= limit:
                break
        return found

    def _tasks(
        self, where: str, parameters: Sequence[Any] = (), order: str = "t.id", limit: int = _NO_LIMIT
    ) -> list[TaskRow]:
        statement = f"SELECT {_TASK} FROM tasks t WHERE t.chain <> '' AND {where} ORDER BY {order} LIMIT ?"
        return self._named(TaskRow, statement, (*parameters, limit))

    def announcement(self, chain: str, number: int) -> AnnouncedRow | None:
        return next(iter(self._announced("chain = ? AND number = ?", (chain, number))), None)

    def find_announcements(self, name: str, pattern: str, limit: int) -> list[AnnouncedRow]:
        matches = f"(uid = ? OR uri = ? OR uid {self.GLOB} ? OR uri {self.GLOB} ?)"
        names = (name, name, *[self.glob(pattern, brackets=True)] * 2)
        found: list[AnnouncedRow] = []
        for low, high in self._ranges("announcements"):
            condition = f"id BETWEEN ? AND ? AND {matches} ORDER BY id DESC LIMIT ?"
            found += self._announced(condition, (low, high, *names, limit - len(found)))
            if len(found) >= limit:
                break
        return found

    def _announced(self, condition: str, parameters: Sequence[Any]) -> list[AnnouncedRow]:
        columns = "chain, number, uri, uid, size, mtime, created, message"
        return self._named(AnnouncedRow, f"SELECT {columns} FROM announcements WHERE {condition}", parameters)

    @abstractmethod
    def _ranges(self, table: str) -> Iterator[tuple[int, int]]:
        """Yield ranges of ids, newest first, each of which is read by one query."""

    # -- sizes

    @abstractmethod
    def _sizes(self) -> tuple[int, int, int]:
        """Return the first fields of ``JournalFacts``."""

    def facts(self) -> JournalFacts:
        tasks = self._read("SELECT chain, kind, state, count(*) FROM tasks GROUP BY chain, kind, state")
        announced = self._read("SELECT chain, count(*), min(created) FROM announcements GROUP BY chain")
        ((oldest,),) = self._read("SELECT min(finished) FROM tasks INDEXED BY tasks_finished WHERE state <> 0")
        return JournalFacts(
            *self._sizes(),
            {(chain, kind, state): count for chain, kind, state, count in tasks},
            {chain: count for chain, count, _ in announced},
            oldest,
            min((created for _, _, created in announced), default=None),
        )

    def count_prunable(self, finished_before: float, announced_before: float) -> tuple[int, int]:
        sql = "SELECT count(*) FROM tasks INDEXED BY tasks_finished WHERE state <> 0 AND finished <= ?"
        ((tasks,),) = self._read(sql, (finished_before,))
        ((announced,),) = self._read("SELECT count(*) FROM announcements WHERE created < ?", (announced_before,))
        return int(tasks), int(announced)

    def _named(self, row_type: Any, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        return [row_type(*row) for row in self._read(statement, parameters)]


def wanted(requester: str) -> str:
    """Return the condition that the client of a failed push, a task ``t``, still wants it; true for other tasks.

    It is false if the client got the file from another source, or has requested it to another destination since.
    ``requester`` is the SQL expression for the client in the body ``{}`` of a push, NULL if it is not known.
    """
    later, failed = requester.format("k.body"), requester.format("t.body")
    return (
        "(t.failure = 'failed' OR t.announcement_number IS NULL OR NOT EXISTS (SELECT 1 FROM tasks k "
        "WHERE k.announcement_number = t.announcement_number AND k.chain = t.chain AND (k.kind = 'ack' OR "
        f"(k.kind = 'push' AND k.created > t.created AND {later} = {failed}))))"
    )
