"""Reads a journal on PostgreSQL without being a member of its fleet."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from trollmoves.errors import JournalError
from trollmoves.journal.postgresql.database import PostgresDatabase
from trollmoves.journal.postgresql.location import parse_location
from trollmoves.journal.postgresql.members import members_of
from trollmoves.journal.postgresql.orders import glob_regex
from trollmoves.journal.postgresql.secrets import without_encrypted
from trollmoves.journal.views import (
    AnnouncedRow,
    FailureRow,
    FinishedRow,
    JournalFacts,
    LaneRow,
    MemberRow,
    TaskRow,
    WaitingRow,
)

_TASK = (
    "t.id, t.chain, t.kind, t.key, t.lane, t.due, t.state, t.tries, t.created, t.finished, t.announcement_number, "
    "t.body, t.reply, t.failure, t.size, t.seconds, t.destination, t.peer"
)
# The client in the body of a push; NULL if the body is encrypted, or of a legacy client.
_REQUESTER = """substring({}.body from '"request": \\{{"id": "((?:[^"\\\\]|\\\\.)*)/')"""
# Of tasks ``t`` with a failure: without pushes of files that the client got from another source, or has requested to
# another destination since.
WANTED = (
    "(t.failure = 'failed' OR t.announcement_number IS NULL OR NOT EXISTS (SELECT 1 FROM tasks k "
    "WHERE k.announcement_number = t.announcement_number AND k.chain = t.chain AND (k.kind = 'ack' OR "
    f"(k.kind = 'push' AND k.created > t.created AND {_REQUESTER.format('k')} = {_REQUESTER.format('t')}))))"
)
# A push that failed waits for the next request of its client, unless its failure is "failed".
_QUEUED = (
    "t.kind NOT IN ('remove', 'delete_archive', 'republish') AND (t.state = 0 OR (t.state = 2 "
    f"AND t.failure IN ('held', 'outage', 'retry') AND {WANTED}))"
)
_IN_HELD_LANE = "EXISTS (SELECT 1 FROM lanes l WHERE l.chain = t.chain AND l.lane = t.lane AND l.failure = 'held')"
_CONDITIONS = {
    "queue": _QUEUED,
    "held": f"{_QUEUED} AND (t.failure = 'held' OR (t.failure IS NULL AND {_IN_HELD_LANE}))",
    "failed": "t.state = 2 AND t.failure = 'failed'",
}


class PostgresReader:
    """A connection to a journal that only reads. One thread."""

    def __init__(self, url: str) -> None:
        """Connect; JournalError if the journal does not exist, or was written by another version."""
        self._database = PostgresDatabase(parse_location(url), creates=False)
        self.path = self._database.path
        self._rows = self._database.read
        self.meta: dict[str, str] = dict(self._rows("SELECT key, value FROM meta"))

    def __enter__(self) -> PostgresReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close_connections()

    def now(self) -> float:
        return self._database.now()

    # -- the state of lanes

    def waiting(self) -> list[WaitingRow]:
        return self._named(
            WaitingRow,
            "SELECT chain, lane, number, due, (SELECT created FROM tasks WHERE id = first) FROM (SELECT chain, lane, "
            "count(*) AS number, min(due) AS due, min(id) AS first FROM tasks WHERE state = 0 AND chain <> '' "
            "GROUP BY chain, lane) lanes ORDER BY chain, lane",
        )

    def failures(self) -> list[FailureRow]:
        return self._named(
            FailureRow,
            "SELECT t.chain, t.lane, t.failure, count(*), count(*) FILTER (WHERE t.state = 2), "
            "min(coalesce(a.created, t.created)), (array_agg(t.reply ORDER BY coalesce(a.created, t.created)))[1] "
            "FROM tasks t LEFT JOIN announcements a ON a.chain = t.chain AND a.number = t.announcement_number "
            f"WHERE t.failure IS NOT NULL AND t.state IN (0, 2) AND {WANTED} GROUP BY t.chain, t.lane, t.failure "
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
            "LEFT JOIN announcements a ON a.chain = t.chain AND a.number = t.announcement_number "
            "WHERE t.state <> 0 AND t.finished >= %s AND t.state = 1 AND t.seconds IS NOT NULL "
            "ORDER BY t.finished DESC LIMIT %s",
            (since, limit),
        )

    def count_finished(self, since: float, until: float, step: float) -> list[tuple[str, int, int]]:
        return self._rows(
            "SELECT chain, trunc(finished / %s)::bigint AS step, count(*) FROM tasks WHERE state <> 0 "
            "AND finished >= %s AND finished < %s AND state = 1 AND seconds IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2",
            (step, since, until),
        )

    def last_announcements(self) -> dict[str, AnnouncedRow]:
        condition = (
            "number = (SELECT max(number) FROM announcements b WHERE b.chain = announcements.chain) "
            "AND chain IN (SELECT chain FROM logs)"
        )
        chains = [chain for (chain,) in self._rows("SELECT chain FROM logs ORDER BY chain")]
        rows = [row for chain in chains for row in self._announced(f"chain = %s AND {condition}", (chain,))]
        return {row.chain: row for row in rows}

    def pauses(self) -> dict[str, str]:
        return dict(self._rows("SELECT key, body FROM tasks WHERE chain = '' AND kind = 'pause' AND state = 0"))

    # -- lists of tasks

    def listed(self, name: str, limit: int) -> list[TaskRow]:
        return self._tasks(_CONDITIONS[name], limit=limit)

    def count_listed(self, name: str) -> int:
        return int(self._rows(f"SELECT count(*) FROM tasks t WHERE t.chain <> '' AND {_CONDITIONS[name]}")[0][0])

    def tasks_for(self, chain: str, number: int) -> list[TaskRow]:
        return self._tasks("t.chain = %s AND t.announcement_number = %s", (chain, number))

    def tasks_of_file(self, name: str, without: Sequence[str], limit: int) -> list[TaskRow]:
        base = name.rsplit("/", 1)[-1]
        patterns = (
            *(base, f"{base}\n*", f"*\n{base}", f"*\n{base}\n*"),  # fetch, relay, route: names of files, one per line
            f"{base} to *" if base == name else f"{base} to *\n{name} *",  # deliver
            name,  # a file that was set aside
            f"*/{base} *" if base == name else f"{name} *",  # unpack: path, size and time
        )
        brackets = "*" in name or "?" in name
        condition = "t.kind <> ALL(%s::text[]) AND (" + " OR ".join(["t.key ~ %s"] * len(patterns)) + ")"
        values = [glob_regex(pattern, brackets=brackets) for pattern in patterns]
        return self._tasks(condition, (list(without), *values), "t.id DESC", limit)

    def _tasks(
        self, where: str, parameters: Sequence[Any] = (), order: str = "t.id", limit: int | None = None
    ) -> list[TaskRow]:
        statement = f"SELECT {_TASK} FROM tasks t WHERE t.chain <> '' AND {where} ORDER BY {order} LIMIT %s"
        limit = None if limit is None or limit < 0 else limit
        rows = self._named(TaskRow, statement, (*parameters, limit))
        return [row._replace(body=without_encrypted(row.body)) for row in rows]

    def announcement(self, chain: str, number: int) -> AnnouncedRow | None:
        rows = self._announced("chain = %s AND number = %s", (chain, number))
        return rows[0] if rows else None

    def find_announcements(self, name: str, pattern: str, limit: int) -> list[AnnouncedRow]:
        expression = glob_regex(pattern, brackets=True)
        condition = "(uid = %s OR uri = %s OR uid ~ %s OR uri ~ %s) ORDER BY id DESC LIMIT %s"
        return self._announced(condition, (name, name, expression, expression, limit))

    def _announced(self, condition: str, parameters: Sequence[Any]) -> list[AnnouncedRow]:
        columns = "chain, number, uri, uid, size, mtime, created, message"
        return self._named(AnnouncedRow, f"SELECT {columns} FROM announcements WHERE {condition}", parameters)

    # -- the database

    def members(self) -> list[MemberRow]:
        return members_of(self._database)

    def size(self) -> int:
        return self._database.size()

    def facts(self) -> JournalFacts:
        tasks = self._rows("SELECT chain, kind, state::int, count(*) FROM tasks GROUP BY chain, kind, state")
        announced = self._rows("SELECT chain, count(*), min(created) FROM announcements GROUP BY chain")
        ((oldest,),) = self._rows("SELECT min(finished) FROM tasks WHERE state <> 0")
        return JournalFacts(
            self._database.size(),
            0,
            0,
            {(chain, kind, state): count for chain, kind, state, count in tasks},
            {chain: count for chain, count, _ in announced},
            oldest,
            min((created for _, _, created in announced), default=None),
        )

    def count_prunable(self, finished_before: float, announced_before: float) -> tuple[int, int]:
        ((tasks,),) = self._rows("SELECT count(*) FROM tasks WHERE state <> 0 AND finished <= %s", (finished_before,))
        ((announced,),) = self._rows("SELECT count(*) FROM announcements WHERE created < %s", (announced_before,))
        return int(tasks), int(announced)

    def back_up(self, copy: str) -> None:
        """Raise JournalError: PostgreSQL has programs for backups."""
        schema = self._database.location.schema
        raise JournalError(f"cannot write the backup {copy}: use pg_dump --schema={schema}, or a backup of the cluster")

    def _named(self, row_type: Any, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        return [row_type(*row) for row in self._rows(statement, parameters)]
