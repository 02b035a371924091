"""Orders of an operator on PostgreSQL: see ``trollmoves.journal.sqlite.orders``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from trollmoves.journal.common.orders import OrderQueries
from trollmoves.journal.postgresql.database import Connection
from trollmoves.journal.postgresql.schema import ident
from trollmoves.journal.postgresql.tasks import COLUMNS, OF_KEY, PostgresTasks, key_values
from trollmoves.journal.records import DROPPED, ORDER, WAITING, Task, batches, to_sqlite_text

_STORE = (
    "INSERT INTO tasks (chain, kind, key, lane, rank, due, state, tries, created, body) "
    "VALUES ('', %(kind)s, %(key)s, %(kind)s, 0, %(now)s, 0, 0, %(now)s, %(body)s) "
    f"ON CONFLICT (chain, kind, {ident('key')}) "
    "DO UPDATE SET state = 0, body = excluded.body, created = excluded.created, finished = NULL, reply = NULL"
)
_RESTART = (
    "UPDATE tasks SET lane = %(lane)s, rank = %(rank)s, due = %(now)s, state = 0, tries = 0, created = %(now)s, "
    "announcement_number = %(number)s, body = %(body)s, reply = NULL, finished = NULL, failure = NULL, size = NULL, "
    "seconds = NULL, destination = NULL, peer = NULL, holder = NULL, done_by = NULL "
    f"WHERE id = %(id)s AND (holder IS NULL OR holder = %(me)s) RETURNING {COLUMNS}"
)


def store_order(db: Connection, key: str, body: str, now: float, kind: str = ORDER) -> None:
    """Store an order, or a pause; it replaces the one with the same key."""
    values = {"kind": kind, "key": to_sqlite_text(key), "now": now, "body": to_sqlite_text(body)}
    db.execute(_STORE.encode(), values)


class PostgresOrders(PostgresTasks, OrderQueries):
    """The orders in a journal, and the changes of tasks that they cause."""

    NEWEST_FILES = (
        "SELECT chain, number, uri, uid, size, mtime, message, created FROM (SELECT DISTINCT ON (a.chain, a.uri) a.* "
        "FROM announcements a WHERE {where} ORDER BY a.chain, a.uri, a.number DESC) newest "
        "ORDER BY id DESC LIMIT {limit}"
    )

    def _store(self, kind: str, key: str, body: str) -> None:
        self._database.run_statement(lambda db: store_order(db, key, body, self.now(), kind))

    def _end(self, kind: str, key: str, state: int, reply: str) -> None:
        change = f"UPDATE tasks SET state = %s, finished = %s, reply = %s WHERE {OF_KEY}"
        values = (state, self.now(), to_sqlite_text(reply), *key_values("", kind, key))
        self._database.run_statement(lambda db: db.execute(change.encode(), values))

    def restart(self, tasks: Sequence[Task]) -> list[Task]:
        for batch in batches(tasks):
            now = self.now()
            restarted = self._database.run(partial(self._restart, batch=batch, now=now), now)
            for task, id_ in zip(batch, restarted, strict=True):
                task.state, task.tries, task.due, task.created = WAITING, 0, now, now
                task.reply, task.finished, task.lane = None, None, to_sqlite_text(task.lane)
                task.id, task.held = id_ or task.id, False
        return list(tasks)

    def _restart(self, db: Connection, *, batch: Sequence[Task], now: float) -> list[int]:
        """Store a batch of restarted tasks in a transaction; return their ids."""
        ids = []
        for task in batch:
            if not task.id:
                by_key = f"DELETE FROM tasks WHERE {OF_KEY}"
                db.execute(by_key.encode(), key_values(task.chain, task.kind, task.key))
                new = replace(task, due=0.0, state=WAITING)
                self._add(db, [new], now)
                ids.append(new.id)
                continue
            values = {
                "lane": to_sqlite_text(task.lane),
                "rank": task.rank,
                "now": now,
                "id": task.id,
                "number": task.announcement_number,
                "body": self._stored_text(task.body),
                "me": self._membership.id,
            }
            db.execute(_RESTART.encode(), values)
            ids.append(task.id)
        return ids

    def make_due(self, tasks: Sequence[Task]) -> None:
        statement = (
            "UPDATE tasks SET due = least(due, %s) WHERE id = ANY(%s::bigint[]) AND state = 0 "
            "AND (holder IS NULL OR holder = %s) RETURNING id"
        )
        for batch in batches(tasks):
            self._database.fetch(statement, (self.now(), [task.id for task in batch], self._membership.id))

    def drop(self, tasks: Sequence[Task]) -> list[Task]:
        statement = (
            f"UPDATE tasks SET state = {DROPPED}, finished = %s "
            "FROM unnest(%s::bigint[], %s::float8[]) AS wanted (id, created) WHERE tasks.id = wanted.id "
            "AND tasks.created = wanted.created AND state IN (0, 2) AND (holder IS NULL OR holder = %s) "
            "RETURNING tasks.id"
        )
        ids, times = [task.id for task in tasks], [task.created for task in tasks]
        dropped = {row[0] for row in self._database.fetch(statement, (self.now(), ids, times, self._membership.id))}
        return [task for task in tasks if task.id in dropped]
