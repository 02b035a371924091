"""Orders of an operator on PostgreSQL: see ``trollmoves.journal.sqlite.orders``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from trollmoves.journal.postgresql.database import Connection
from trollmoves.journal.postgresql.schema import ident
from trollmoves.journal.postgresql.tasks import COLUMNS, COLUMNS_OF_T, PostgresTasks
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
    batches,
    to_sqlite_text,
)

RECENT_TASKS = 100_000  # newest tasks that are searched for the names of destinations
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


class PostgresOrders(PostgresTasks):
    """The orders in a journal, and the changes of tasks that they cause."""

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

    def _store(self, kind: str, key: str, body: str) -> None:
        self._database.run_statement(lambda db: store_order(db, key, body, self.now(), kind))

    def _of_kind(self, kind: str) -> list[Task]:
        return self._tasks("chain = '' AND kind = %s AND state = 0 ORDER BY created, id", kind)

    def _end(self, kind: str, key: str, state: int, reply: str) -> None:
        change = (
            "UPDATE tasks SET state = %s, finished = %s, reply = %s WHERE chain = '' AND kind = %s "
            f"AND {ident('key')} = {ident('%s::text')}"
        )
        keys = [to_sqlite_text(key)] * ident("%s").count("%s")
        values = (state, self.now(), to_sqlite_text(reply), kind, *keys)
        self._database.run_statement(lambda db: db.execute(change.encode(), values))

    # -- tasks of an order

    def recent_lanes(self) -> set[tuple[str, str]]:
        return set(
            self._database.read(
                "SELECT chain, lane FROM lanes UNION "
                "SELECT chain, lane FROM (SELECT chain, lane FROM tasks ORDER BY id DESC LIMIT %s) t",
                (RECENT_TASKS,),
            )
        )

    def select(self, selection: Selection) -> list[Task]:
        where = "t.state = ANY(%s::smallint[]) AND t.kind = ANY(%s::text[])"
        parameters: list[Any] = [list(selection.states), list(selection.kinds)]
        if WAITING not in selection.states:
            where += " AND t.state <> 0 AND t.finished BETWEEN %s AND %s"
            parameters += [selection.since, selection.until]
        if selection.only_final:
            where += " AND t.failure = 'failed'"
        if selection.chain:
            where += " AND t.chain = %s"
            parameters.append(selection.chain)
        if selection.file:
            matches, patterns = _file_condition(selection.file)
            where += f" AND ({matches})"
            parameters += patterns
        rows = self._database.read(
            f"SELECT {COLUMNS_OF_T} FROM tasks t LEFT JOIN announcements a "
            "ON a.chain = t.chain AND a.number = t.announcement_number "
            f"WHERE t.chain <> '' AND {where} ORDER BY t.id DESC LIMIT {MAX_SELECTED}",
            parameters,
        )
        return [self.task_of(row) for row in rows]

    def announced_files(self, chain: str, file: str, since: float) -> list[tuple[str, AnnouncementRecord]]:
        where = "a.created >= %s"
        parameters: list[Any] = [since]
        if chain:
            where += " AND a.chain = %s"
            parameters.append(chain)
        if file:
            given = "*" in file or "?" in file
            name = glob_regex(file, brackets=given)
            where += " AND (a.uid ~ %s OR a.uri ~ %s)"
            parameters += [name, name if file.startswith("/") else glob_regex(f"*/{file}", brackets=given)]
        rows = self._database.read(
            "SELECT chain, number, uri, uid, size, mtime, message FROM (SELECT DISTINCT ON (a.chain, a.uri) a.* "
            f"FROM announcements a WHERE {where} ORDER BY a.chain, a.uri, a.number DESC) newest "
            f"ORDER BY id DESC LIMIT {MAX_SELECTED}",
            parameters,
        )
        return [(chain_, AnnouncementRecord(*record)) for chain_, *record in rows]

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
                by_key = f"DELETE FROM tasks WHERE chain = %s AND kind = %s AND {ident('key')} = {ident('%s::text')}"
                keys = [to_sqlite_text(task.key)] * ident("%s").count("%s")
                db.execute(by_key.encode(), (task.chain, task.kind, *keys))
                new = Task(
                    task.chain, task.kind, task.key, task.lane, task.body, 0.0, task.rank, task.announcement_number
                )
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


def _file_condition(file: str) -> tuple[str, list[Any]]:
    """Return an SQL condition for the tasks of a file, and its parameters."""
    anywhere = file if file.startswith("/") else f"*/{file}"
    name = file.rsplit("/", 1)[-1]
    by_key = [
        *(name, f"{name}\n*", f"*\n{name}", f"*\n{name}\n*"),  # fetch: the names of all files, one per line
        f"{name} to *\n{anywhere} *",  # deliver: also the path of the file
        anywhere,  # a file that was set aside
    ]
    given = "*" in file or "?" in file
    patterns = [glob_regex(pattern, brackets=given) for pattern in by_key]
    condition = f"t.announcement_number IS NULL AND ({' OR '.join(['t.key ~ %s'] * len(by_key))})"
    full = [glob_regex(name, brackets=given), glob_regex(anywhere, brackets=given)]
    return f"a.uid ~ %s OR a.uri ~ %s OR {condition}", [*full, *patterns]


def glob_regex(pattern: str, *, brackets: bool) -> str:
    """Return a regular expression of PostgreSQL for a pattern with ``*``, ``?`` and ``[...]`` as in a shell.

    ``brackets``: whether ``[`` begins a set.
    """
    parts, rest = [], pattern
    while rest:
        end = rest.find("]", 2) if brackets and rest[0] == "[" else -1
        if end > 0:
            inner = rest[1:end].replace("\\", "\\\\")
            parts.append(f"[{inner}]")
            rest = rest[end + 1 :]
            continue
        parts.append({"*": ".*", "?": "."}.get(rest[0]) or _escaped(rest[0]))
        rest = rest[1:]
    return f"^(?:{''.join(parts)})$"


def _escaped(character: str) -> str:
    return character if character.isalnum() or character in "_/ \n-" else f"\\{character}"
