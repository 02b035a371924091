"""The tasks of a journal on PostgreSQL.

A waiting task has a ``holder`` while a member runs it, or is about to: a new task is held by the member that stores it,
as long as that holds less than MAX_BORN_HELD; others are claimed. Each write leaves out the rows of other members. All
statements that change several rows do so in the order of their keys, so that members do not wait for each other in a
circle.

Of the tasks with one turn, members hold at most one at a time (index ``tasks_turn_held``); the others are free.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from psycopg.types.json import Json

from trollmoves.errors import JournalError
from trollmoves.journal.common.lanes import STORE_LANE, LaneRow, UnstoredLanes
from trollmoves.journal.common.queries import placeholders, prefix_range
from trollmoves.journal.common.sources import UPSERT_SOURCE, source_rows
from trollmoves.journal.common.tasks import TaskQueries
from trollmoves.journal.interface import MergeFunction
from trollmoves.journal.postgresql.database import Connection, PostgresDatabase
from trollmoves.journal.postgresql.members import TRIED, Membership
from trollmoves.journal.postgresql.queries import PostgresQueries, translated
from trollmoves.journal.postgresql.schema import IDENT_PREFIX, ident
from trollmoves.journal.postgresql.secrets import LoginCipher
from trollmoves.journal.postgresql.sharing import Allotment, Identity, PostgresSharing
from trollmoves.journal.records import (
    BACKLOG,
    FRESH,
    MARK_SLACK,
    NO_DELIVERY,
    UNFLUSHED_SECONDS,
    WAITING,
    Finished,
    Outcome,
    SourcePosition,
    Task,
    to_sqlite_text,
)

MAX_BORN_HELD = 2_000  # tasks; a burial takes 0.1 s for these
LOCKED_DELAY = 0.05  # s before the next look at a task that a transaction changes
HELD_DELAY = 1.0  # s before the next look at a task that another member holds
_NAMES = (
    *("id", "chain", "kind", "key", "lane", "rank", "due", "state", "tries", "created", "announcement_number", "body"),
    *("reply", "finished", "holder", "tried_by"),
)
COLUMNS = ", ".join(_NAMES)
COLUMNS_OF_T = ", ".join(f"t.{name}" for name in _NAMES)
OF_KEY = f"chain = %s AND kind = %s AND {ident('key')} = {ident('%s::text')}"  # with ``key_values``
_SELECT_KEY = f"SELECT {COLUMNS} FROM tasks WHERE {OF_KEY} "
_ALONE = "%(places)s::text[] IS NULL"  # without sharing, one member runs all
_HERE = f"({_ALONE} OR place = ANY(%(places)s::text[]))"
_OURS = "(holder IS NULL OR holder = %(me)s)"
_PRESENT = "EXISTS (SELECT 1 FROM members WHERE id = %(me)s AND NOT gone)"
_STAYS_PRESENT = "EXISTS (SELECT 1 FROM members WHERE id = %(me)s AND NOT gone FOR KEY SHARE)"  # until the commit


def _turn_is_held(table: str) -> str:
    """Return the condition that another task with the turn of a row is held; it is False without a turn."""
    return (
        f"({table}.turn IS NOT NULL AND EXISTS (SELECT 1 FROM tasks h WHERE h.chain = {table}.chain "
        f"AND h.turn = {table}.turn AND h.holder IS NOT NULL AND h.state = 0 AND h.id <> {table}.id))"
    )


_INSERT = (
    "INSERT INTO tasks (id, chain, kind, key, lane, rank, due, state, tries, created, finished, announcement_number, "
    "body, failure, holder, place, turn) "
    "SELECT id, chain, kind, key, lane, rank, due, state, 0, %(now)s, CASE WHEN state <> 0 THEN %(now)s END, number, "
    "body, CASE WHEN state = 2 THEN 'failed' END, "
    f"CASE WHEN state = 0 AND held AND home = host AND NOT {_turn_is_held('numbered')} THEN %(me)s::bigint END, "
    "home, turn "
    # Ids in the order given, rows in the order of their keys.
    "FROM (SELECT nextval('tasks_id_seq') AS id, g.* FROM (SELECT r.*, CASE WHEN host = '' OR number IS NULL THEN host "
    # An order may repeat the push of a file that another member has.
    "ELSE coalesce((SELECT nullif(a.place, '') FROM announcements a WHERE a.chain = r.chain AND a.number = r.number), "
    "host) END AS home FROM json_to_recordset(%(rows)s::json) AS r "
    "(position int, place int, chain text, kind text, key text, lane text, rank smallint, due float8, state smallint, "
    "number bigint, body text, held bool, host text, turn uuid) ORDER BY position) g OFFSET 0) numbered ORDER BY place "
    # Also if another member holds a task of the same turn since a moment ago.
    "ON CONFLICT DO NOTHING RETURNING id, chain, kind, key, holder IS NOT NULL"
)
_FINISH = (
    "UPDATE tasks t SET state = o.state, rank = o.rank, tries = o.tries, due = o.due, reply = o.reply, "
    "finished = CASE WHEN o.state <> 0 THEN %(now)s::float8 END, size = o.size, seconds = o.seconds, "
    "destination = o.destination, peer = o.peer, failure = CASE WHEN o.failed THEN o.failure ELSE t.failure END, "
    f"holder = NULL, done_by = %(token)s, tried_by = CASE WHEN o.state = 0 THEN {TRIED} ELSE tried_by END "
    "FROM json_to_recordset(%(rows)s::json) AS o (id bigint, state smallint, rank smallint, tries int, due float8, "
    "reply text, size bigint, seconds float8, destination text, peer text, failed bool, failure text) "
    f"WHERE t.id = o.id AND {_OURS} AND {_PRESENT} RETURNING t.id"
)
_FINISH_AND_FOLLOW = _FINISH.replace(_PRESENT, _STAYS_PRESENT)
_CLAIM = (
    "WITH picked AS (SELECT id FROM tasks c WHERE chain = %(chain)s AND lane = %(lane)s AND rank = %(rank)s "
    f"AND state = 0 AND due <= %(now)s AND {_OURS} AND {_HERE} "
    f"AND id <> ALL(%(taken)s::bigint[]) AND NOT {_turn_is_held('c')} "
    # The held one of a turn, or the first one. Because ids are compared too, no plan reads the tasks of all turns.
    "AND (turn IS NULL OR holder IS NOT NULL OR NOT EXISTS (SELECT 1 FROM tasks e WHERE e.chain = c.chain "
    "AND e.turn = c.turn AND e.id < c.id AND e.state = 0 AND e.rank <= c.rank AND e.due <= %(now)s "
    f"AND ({_ALONE} OR e.place = ANY(%(places)s::text[])))) ORDER BY due, id LIMIT %(limit)s "
    f"FOR UPDATE SKIP LOCKED) UPDATE tasks t SET holder = %(me)s FROM picked WHERE t.id = picked.id "
    f"RETURNING {COLUMNS_OF_T}, t.turn IS NOT NULL AND EXISTS (SELECT 1 FROM tasks n WHERE n.chain = t.chain "
    "AND n.turn = t.turn AND n.id > t.id AND n.state = 1)"
)
_STORED = (
    f"SELECT {COLUMNS_OF_T} FROM tasks t JOIN json_to_recordset(%s::json) AS k (chain text, kind text, key text) "
    f"ON t.chain = k.chain AND t.kind = k.kind AND {ident('t.key')} = {ident('k.key')}"
)
_OF_LANE = "FROM tasks WHERE chain = %(chain)s AND lane = %(lane)s AND state = 0"
# By ORDER BY and LIMIT, because without statistics the planner reads all rows for min().
_NEXT_DUE = " UNION ALL ".join(
    f"(SELECT due {_OF_LANE} AND rank = {rank} AND due > %(now)s AND {_OURS} AND {_HERE} "
    "ORDER BY due, id LIMIT 1) UNION ALL "
    # A due task that ``_CLAIM`` has skipped: a transaction changes it now, or a member holds it that may be buried.
    f"(SELECT %(now)s + CASE WHEN {_OURS} THEN {LOCKED_DELAY} ELSE {HELD_DELAY} END {_OF_LANE} AND rank = {rank} "
    f"AND due <= %(now)s AND ({_ALONE} OR ({_OURS} AND {_HERE})) "
    "AND id <> ALL(%(in_flight)s::bigint[]) ORDER BY due, id LIMIT 1)"
    for rank in (FRESH, BACKLOG)
)
_RESET = (
    "UPDATE tasks SET body = %(body)s, lane = %(lane)s, rank = %(rank)s, due = %(due)s, state = %(state)s, "
    "tries = %(tries)s, created = %(created)s, failure = NULL, "
    f"holder = CASE WHEN %(state)s = 0 AND NOT {_turn_is_held('tasks')} THEN %(me)s::bigint END WHERE id = %(id)s "
    f"AND NOT (%(unless_done)s::boolean AND state = 1) AND {_OURS} RETURNING holder IS NOT NULL"
)
_RENEW = (
    "UPDATE tasks SET id = nextval(pg_get_serial_sequence('tasks', 'id')), body = %(body)s, lane = %(lane)s, "
    "rank = %(rank)s, due = %(now)s, state = 0, tries = 0, created = %(now)s, finished = NULL, reply = NULL, "
    f"holder = CASE WHEN NOT {_turn_is_held('tasks')} THEN %(me)s::bigint END, done_by = NULL WHERE id = %(id)s "
    "RETURNING id, holder IS NOT NULL"
)


class PostgresTasks(PostgresQueries, TaskQueries):
    """The tasks of a journal. Their unique (chain, kind, key) suppresses duplicates in the whole fleet."""

    COLUMNS = COLUMNS

    def __init__(
        self,
        database: PostgresDatabase,
        membership: Membership,
        cipher: LoginCipher,
        sharing: PostgresSharing | None,
    ) -> None:
        self._sharing = sharing
        self._database = database
        self._membership = membership
        self._cipher = cipher
        self._unstored_lanes = UnstoredLanes()
        self._last_finish = 0.0
        self._after_kill: float | None = None  # s, as of the first question

    # -- adding

    def add_tasks(
        self, tasks: Iterable[Task], sources: Iterable[tuple[str, SourcePosition]] = ()
    ) -> list[tuple[Task, bool]]:
        now, tasks, positions = self.now(), list(tasks), source_rows(sources)
        if not tasks and not positions:
            return []

        def work(db: Connection) -> list[tuple[Task, bool]]:
            added = self._add(db, tasks, now)
            _execute_each(db, UPSERT_SOURCE, positions)
            return added

        return self._database.run(work, now)

    def _allot(self) -> Allotment | None:
        return Allotment(self._sharing) if self._sharing else None

    def _add(
        self,
        db: Connection,
        tasks: Sequence[Task],
        now: float,
        inserted_ids: set[int] | None = None,
        allotment: Allotment | None = None,
    ) -> list[tuple[Task, bool]]:
        """Insert tasks; return (task, created), with the stored task if it exists.

        ``inserted_ids`` are those of earlier calls within the transaction, to which new ones are added, and
        ``allotment`` is theirs.
        """
        if not tasks:
            return []
        allotment = allotment or self._allot()
        for task in tasks:
            task.lane = to_sqlite_text(task.lane)
        first: dict[Identity, Task] = {}
        for task in tasks:
            first.setdefault(_identity(task), task)
        is_full = self._membership.held >= MAX_BORN_HELD
        held = set() if is_full else _held_identities(first, allotment)
        rows = [
            {"position": position, "place": place, **self._row(identity, first[identity], now, identity in held)}
            for place, (identity, position) in enumerate(sorted(zip(first, range(len(first)), strict=True)))
        ]
        inserted = {
            (chain, kind, key): (id_, is_held)
            for id_, chain, kind, key, is_held in db.execute(
                _INSERT.encode(), {"rows": Json(rows), "now": now, "me": self._membership.id}
            ).fetchall()
        }
        self._membership.held += len(held & inserted.keys())
        if allotment and allotment.crowded and self._sharing:
            self._sharing.notify(db)
        for identity, (id_, is_held) in inserted.items():
            task = first[identity]
            task.id, task.created, task.due = id_, now, task.due or now
            task.held = is_held or task.state != WAITING
        fresh = inserted_ids if inserted_ids is not None else set()
        fresh.update(id_ for id_, _ in inserted.values())
        others = [task for task in tasks if first[_identity(task)] is not task or _identity(task) not in inserted]
        stored = self.stored_tasks(db, others) if others else {}
        if self._sharing:
            self._sharing.release_from_hosts(db, stored.values())
        others_ids = {id(task) for task in others}
        return [
            self._existing(db, task, stored.get(_identity(task)), now, fresh)
            if id(task) in others_ids
            else (task, True)
            for task in tasks
        ]

    def stored_tasks(self, db: Connection, tasks: Iterable[Task], lock: str = "") -> dict[Identity, Task]:
        """Return the stored tasks with the keys of others; ``lock`` is the end of the query."""
        keys = [{"chain": chain, "kind": kind, "key": key} for chain, kind, key in dict.fromkeys(map(_identity, tasks))]
        rows = db.execute(f"{_STORED} {lock}".encode(), (Json(keys),)).fetchall()
        return {_identity(task): task for task in map(self.task_of, rows)}

    def _row(self, identity: Identity, task: Task, now: float, is_held: bool) -> dict[str, Any]:
        chain, kind, key = identity
        return {
            "chain": chain,
            "kind": kind,
            "key": key,
            "lane": task.lane,
            "rank": task.rank,
            "due": task.due or now,
            "state": task.state,
            "number": task.announcement_number,
            "body": self._stored_text(task.body),
            "held": is_held,
            "host": self._sharing.place_of(task) if self._sharing else "",
            "turn": task.turn or None,
        }

    def _existing(
        self, db: Connection, task: Task, stored: Task | None, now: float, fresh: set[int]
    ) -> tuple[Task, bool]:
        """Return the stored task of the same key; True if an attempt with an unknown result stored it."""
        if stored is None:  # pruned since the insertion, or its turn was held since a moment ago
            return self._add(db, [task], now, fresh)[0]
        if self.is_doubtful(stored) and stored.id not in fresh:
            task.id, task.created, task.due = stored.id, stored.created, stored.due
            return task, True
        return stored, False

    def is_doubtful(self, stored: Task) -> bool:
        """Return True if an attempt with an unknown result may have stored this task."""
        return stored.created in self._database.doubtful and stored.held and stored.state == WAITING

    def merge(
        self, tasks: Iterable[Task], sources: Iterable[tuple[str, SourcePosition]], how: MergeFunction
    ) -> list[Task]:
        now, tasks, positions = self.now(), list(tasks), source_rows(sources)

        def work(db: Connection) -> list[Task]:
            editor = _Editor(self, db, now, self._allot())
            found: dict[int, list[Task]] = {}
            # In the order of their keys, which is that of ``add_tasks``.
            ordered = sorted(enumerate(tasks), key=lambda item: (*_identity(item[1]), item[0]))
            new = editor.add_first(task for _, task in ordered)
            for position, task in ordered:
                if id(task) in new:
                    found[position] = [task]
                    continue
                stored, is_new = editor.add(task)
                found[position] = [task] if is_new else editor.with_free(task, stored, how(editor, task, stored))
            _execute_each(db, UPSERT_SOURCE, positions)
            return [task for position in range(len(tasks)) for task in found[position]]

        return self._database.run(work, now)

    def reset_tasks(self, tasks: Iterable[Task], *, unless_done: bool = False) -> list[Task]:
        tasks = list(tasks)

        def work(db: Connection) -> list[Task]:
            ordered = sorted(tasks, key=lambda t: t.id)
            stored = {t.id for t in ordered if self.reset(db, t, unless_done=unless_done)}
            return [task for task in tasks if task.id in stored]

        return self._database.run(work)

    def reset(self, db: Connection, t: Task, *, unless_done: bool = False) -> bool:
        """Store a restarted task within a transaction; return False if another member runs it, see ``reset_tasks``."""
        t.lane = to_sqlite_text(t.lane)
        values = {
            "body": self._stored_text(t.body),
            "lane": t.lane,
            "rank": t.rank,
            "due": t.due,
            "state": t.state,
            "tries": t.tries,
            "created": t.created,
            "id": t.id,
            "me": self._membership.id,
            "unless_done": unless_done,
        }
        row = db.execute(_RESET.encode(), values).fetchone()
        t.held = bool(row and row[0])
        return row is not None

    def renew_tasks(self, tasks: Iterable[Task]) -> None:
        now, tasks = self.now(), list(tasks)

        def work(db: Connection) -> list[tuple[int, bool]]:
            stored = []
            for t in tasks:
                values = {"body": self._stored_text(t.body), "lane": to_sqlite_text(t.lane), "rank": t.rank, "now": now}
                row = db.execute(_RENEW.encode(), {**values, "id": t.id, "me": self._membership.id}).fetchone()
                stored.append((row[0], row[1]) if row else (t.id, False))
            return stored

        for t, (id_, is_held) in zip(tasks, self._database.run(work), strict=True):
            t.id, t.lane, t.due, t.created, t.held = id_, to_sqlite_text(t.lane), now, now, is_held
            t.state, t.tries, t.finished, t.reply = WAITING, 0, None, None

    # -- queries

    def find(self, chain: str, kind: str, key: str) -> Task | None:
        rows = self._database.read(_SELECT_KEY, key_values(chain, kind, key))
        return self.task_of(rows[0]) if rows else None

    def newer_keys(self, task: Task, prefix: str) -> list[str]:
        rows = self._database.read(
            f"SELECT key FROM tasks WHERE chain = %s AND kind = %s AND {_BEGINS} AND id > %s AND state IN (0, 1)",
            (task.chain, task.kind, *_prefix_values(prefix), task.id),
        )
        return [key for (key,) in rows]

    def states(self, chain: str, kind: str, prefix: str, part: str) -> list[tuple[int, int]]:
        rows = self._database.read(
            f"SELECT id, state FROM tasks WHERE chain = %s AND kind = %s AND {_BEGINS} AND strpos(key, %s) > 0 "
            "ORDER BY id",
            (chain, kind, *_prefix_values(prefix), to_sqlite_text(part)),
        )
        return [(int(id_), int(state)) for id_, state in rows]

    def ended(self, ids: Collection[int]) -> list[Task]:
        return self._tasks("id = ANY(?::bigint[]) AND state <> 0", list(ids))

    # -- claiming

    def claim(self, chain: str, lane: str, limit: int, now: float, *, in_flight: Collection[int] = ()) -> list[Task]:
        claimed: list[Task] = []
        values = {"chain": chain, "lane": lane, "now": now, "taken": list(in_flight), "me": self._membership.id}
        values["places"] = self._places()
        for rank in (FRESH, BACKLOG):
            given = {**values, "rank": rank, "limit": limit - len(claimed)}
            rows = self._database.fetch(_CLAIM, given)
            claimed += sorted((self._claimed_task(*row) for row in rows), key=lambda task: (task.due, task.id))
            if len(claimed) >= limit:
                break
        self._membership.held += len(claimed)
        return claimed

    def _places(self) -> list[str] | None:
        return self._sharing.places() if self._sharing else None

    def _claimed_task(self, *row: Any) -> Task:
        task = self.task_of(row[:-1])
        task.overtaken = row[-1]
        return task

    def next_due(self, chain: str, lane: str, now: float, *, in_flight: Collection[int] = ()) -> float | None:
        values = {"chain": chain, "lane": lane, "now": now, "in_flight": list(in_flight), "me": self._membership.id}
        values["places"] = self._places()
        rows = self._database.read(_NEXT_DUE, values)
        return min((float(due) for (due,) in rows), default=None)

    def lanes(self, chain: str) -> list[tuple[str, str]]:
        rows = self._database.read(
            'WITH RECURSIVE lanes (lane) AS ((SELECT min(lane) COLLATE "C" FROM tasks WHERE chain = %s AND state = 0) '
            "UNION ALL SELECT (SELECT min(lane) FROM tasks t WHERE t.chain = %s AND t.state = 0 "
            "AND t.lane > lanes.lane) FROM lanes WHERE lanes.lane IS NOT NULL) "
            "SELECT lane, (SELECT kind FROM tasks t WHERE t.chain = %s AND t.state = 0 AND t.lane = lanes.lane "
            "LIMIT 1) FROM lanes WHERE lane IS NOT NULL",
            (chain, chain, chain),
        )
        return [(lane, kind) for lane, kind in rows]

    # -- finishing

    def finish(self, outcomes: Iterable[Outcome]) -> Finished:
        outcomes = list(outcomes)
        if not outcomes:
            return Finished([], ())
        now = self.now()
        with self._unstored_lanes.storing(outcomes, now) as lanes:
            return self._finish(outcomes, lanes, now)

    def _finish(self, outcomes: Sequence[Outcome], lanes: Sequence[LaneRow], now: float) -> Finished:

        def work(db: Connection) -> Finished:
            stored = self._store_outcomes(db, outcomes, now)
            ours = [outcome for outcome in outcomes if outcome.task.id in stored]
            follow_ups = [task for outcome in ours for task in outcome.follow_ups]
            new = [task for task, is_new in self._add(db, follow_ups, now) if is_new]
            _execute_each(db, STORE_LANE, lanes)
            return Finished(new, [outcome for outcome in outcomes if outcome.task.id not in stored])

        is_single = not lanes and not any(outcome.follow_ups for outcome in outcomes)
        # Not fenced: the statement leaves out the outcomes of a buried member, and so their follow-ups.
        database = self._database
        finished = database.run_statement(work, now) if is_single else database.run(work, now, fenced=False)
        self._last_finish = now
        self._membership.held = max(0, self._membership.held - len(outcomes))
        return finished

    def _store_outcomes(self, db: Connection, outcomes: Sequence[Outcome], now: float) -> set[int]:
        """Store outcomes of tasks that no other member holds; return the ids of the tasks."""
        me = self._membership.id
        rows = [_outcome_row(outcome) for outcome in sorted(outcomes, key=lambda outcome: _identity(outcome.task))]
        finish = _FINISH_AND_FOLLOW if any(outcome.follow_ups for outcome in outcomes) else _FINISH
        values = {"rows": Json(rows), "now": now, "me": me, "token": f"{me} {now!r}"}
        stored = {id_ for (id_,) in db.execute(finish.encode(), values).fetchall()}
        missing = [row["id"] for row in rows if row["id"] not in stored]
        if missing and self._database.doubtful:  # perhaps stored by an attempt with an unknown result
            tokens = [f"{me} {at!r}" for at in self._database.doubtful]
            earlier = "SELECT id FROM tasks WHERE id = ANY(%s::bigint[]) AND done_by = ANY(%s::text[])"
            stored |= {id_ for (id_,) in db.execute(earlier, (missing, tokens)).fetchall()}
        return stored

    def store_lanes(self) -> None:
        if self._unstored_lanes:
            with self._unstored_lanes.storing((), self.now(), must_store=True) as lanes:
                self._database.run(lambda db: _execute_each(db, STORE_LANE, lanes))

    def mark_alive(self) -> float:
        """Store the states of lanes once all tasks are finished; the lease says that this process lives."""
        if not self._unstored_lanes:
            return float("inf")
        rest = self._last_finish + UNFLUSHED_SECONDS - self.now()
        if rest > 0:
            return rest + MARK_SLACK
        with suppress(JournalError):  # they stay in memory
            self.store_lanes()
        return float("inf")

    def finished_before_kill(self, chain: str, kinds: Sequence[str], seconds: float) -> list[Task]:
        where = (
            f"state = 1 AND finished BETWEEN ? AND ? AND chain = ? AND kind IN ({placeholders(kinds)}) "
            "AND starts_with(done_by, ?) ORDER BY finished, id"
        )
        return [
            task
            for member, at, _ in self._membership.killed()
            for task in self._tasks(where, at - seconds, at, chain, *kinds, f"{member} ")
        ]

    def seconds_after_kill(self) -> float:
        if self._after_kill is None:
            now = self.now()
            self._after_kill = max((now - killed.at for killed in self._membership.killed()), default=0.0)
        return self._after_kill

    # -- changes of waiting and failed tasks

    def make_due_now(self, chain: str, kind: str, number: int) -> list[Task]:
        now = self.now()
        values = {"now": now, "number": number, "chain": chain, "kind": kind, "me": self._membership.id}
        # In the hands of this member: they are submitted to its scheduler.
        rows = self._database.fetch(
            "UPDATE tasks SET due = %(now)s, holder = %(me)s WHERE announcement_number = %(number)s "
            f"AND chain = %(chain)s AND kind = %(kind)s AND state = 0 AND {_OURS} RETURNING {COLUMNS}",
            values,
        )
        return sorted((self.task_of(row) for row in rows), key=lambda task: task.id)

    def release(self, chain: str, lane: str | None = None) -> None:
        self._change(
            "due = %(now)s WHERE chain = %(chain)s AND state = 0 AND tries > 0 AND due > %(now)s "
            "AND (%(lane)s::text IS NULL OR lane = %(lane)s)",
            chain=chain,
            lane=lane,
        )

    def make_all_due_now(self, chain: str, kind: str) -> None:
        self._change(
            "due = %(now)s WHERE chain = %(chain)s AND state = 0 AND kind = %(kind)s AND due > %(now)s",
            chain=chain,
            kind=kind,
        )

    def _change(self, change: str, **values: Any) -> list[Any]:
        values |= {"now": self.now(), "me": self._membership.id}
        return self._database.fetch(f"UPDATE tasks SET {change} AND {_OURS} RETURNING {COLUMNS}", values)

    def retry(self, ids: Iterable[int]) -> list[Task]:
        wanted = list(ids)
        rows = self._change(
            "state = 0, tries = 0, due = %(now)s, created = %(now)s, finished = NULL, reply = NULL, failure = NULL "
            "WHERE id = ANY(%(ids)s::bigint[]) AND state = 2",
            ids=wanted,
        )
        retried = {row[0]: self.task_of(row) for row in rows}
        return [retried[id_] for id_ in wanted if id_ in retried]

    def fail_pending(
        self, chain: str, lane: str, *, exclude: Collection[int] = (), failure: str | None = None
    ) -> list[int]:
        rows = self._change(
            "state = 2, finished = %(now)s, failure = %(failure)s, holder = NULL WHERE chain = %(chain)s "
            "AND lane = %(lane)s AND state = 0 AND id <> ALL(%(without)s::bigint[])",
            chain=chain,
            lane=lane,
            without=list(exclude),
            failure=failure,
        )
        return sorted(row[0] for row in rows)

    # -- rows

    def _stored_text(self, text: str) -> str:
        return self._cipher.encrypt(to_sqlite_text(text))

    def task_of(self, row: Any) -> Task:
        id_, chain, kind, key, lane, rank, due, state, tries, created, number, body, reply, finished, holder, tried = (
            row
        )
        task = Task(chain, kind, key, lane, body, due, rank, number, id_, state, tries, created, reply, finished)
        task.body = self._cipher.decrypt(body)
        task.held = holder == self._membership.id
        task.tried_by = tuple(map(str, tried))
        return task


class _Editor:
    """The tasks within a transaction; a row that was read is locked until its end."""

    def __init__(self, tasks: PostgresTasks, db: Connection, now: float, allotment: Allotment | None) -> None:
        self._tasks = tasks
        self._db = db
        self._now = now
        self._allotment = allotment
        self._inserted: set[int] = set()
        self._known: dict[Identity, Task] = {}  # locked, and not changed since

    def add_first(self, tasks: Iterable[Task]) -> set[int]:
        """Store the first task of each key, if it is new; return ``id()`` of those. The known ones are locked."""
        first: dict[Identity, Task] = {}
        for task in tasks:
            first.setdefault(_identity(task), task)
        self._known = self._lock(first.values())
        unknown = [task for identity, task in first.items() if identity not in self._known]
        added = self._tasks._add(self._db, unknown, self._now, self._inserted, self._allotment)
        new = {id(task) for task, is_new in added if is_new}
        if raced := [task for task in unknown if id(task) not in new]:  # stored by another member in between
            self._known |= self._lock(raced)
        return new

    def _lock(self, tasks: Iterable[Task]) -> dict[Identity, Task]:
        found = self._tasks.stored_tasks(self._db, tasks, "ORDER BY t.chain, t.kind, t.key FOR UPDATE OF t")
        return {identity: task for identity, task in found.items() if not self._tasks.is_doubtful(task)}

    def add(self, task: Task) -> tuple[Task, bool]:
        if known := self._known.pop(_identity(task), None):
            return known, False
        ((stored, is_new),) = self._tasks._add(self._db, [task], self._now, self._inserted, self._allotment)
        if is_new:
            return stored, True
        return self.find(task.chain, task.kind, task.key) or stored, False  # locked

    def with_free(self, task: Task, stored: Task, found: list[Task]) -> list[Task]:
        """Return the tasks to run, also the stored one if another member stored it first and leaves it to this one."""
        is_new = stored.state == WAITING and not stored.tries and not stored.held
        if not is_new or self._allotment is None or not self._allotment.takes(stored):
            return found
        hold = "UPDATE tasks SET holder = %s WHERE id = %s AND holder IS NULL AND state = 0 AND tries = 0"
        if not self._db.execute(hold, (self._tasks._membership.id, stored.id)).rowcount:
            return found
        stored.held = True
        if stored.body == task.body:
            stored.context = task.context
        return [*found, stored]

    def find(self, chain: str, kind: str, key: str) -> Task | None:
        row = self._db.execute((_SELECT_KEY + "FOR UPDATE").encode(), key_values(chain, kind, key)).fetchone()
        return self._tasks.task_of(row) if row else None

    def update_body(self, task: Task) -> None:
        body = self._tasks._stored_text(task.body)
        self._db.execute("UPDATE tasks SET body = %s WHERE id = %s", (body, task.id))

    def reset(self, task: Task) -> None:
        task.held = self._tasks.reset(self._db, task)


def _held_identities(tasks: Mapping[Identity, Task], allotment: Allotment | None) -> set[Identity]:
    """Return which new tasks this member holds: those that are allotted to it, of each turn the first one."""
    held: set[Identity] = set()
    turns: set[tuple[str, str]] = set()
    for identity, task in tasks.items():
        turn = task.chain, task.turn
        if (allotment is None or allotment.takes(task)) and not (task.turn and turn in turns):
            held.add(identity)
            turns.add(turn)
    return held


_BEGINS = f"{ident('key')} >= %s AND {ident('key')} < %s AND starts_with(key, %s)"


def _prefix_values(prefix: str) -> tuple[str, str, str]:
    """Return the values for ``_BEGINS``."""
    text = to_sqlite_text(prefix)
    return (*prefix_range(text[:IDENT_PREFIX]), text)


def _identity(task: Task) -> Identity:
    return task.chain, task.kind, to_sqlite_text(task.key)


def key_values(chain: str, kind: str, key: str) -> Sequence[str]:
    """Return the values for ``OF_KEY``."""
    text = to_sqlite_text(key)
    return (chain, kind, *[text] * ident("%s").count("%s"))


def _execute_each(db: Connection, statement: str, rows: Iterable[Sequence[Any]]) -> None:
    """Execute a shared statement for each row, in this order."""
    for row in rows:
        db.execute(translated(statement).encode(), row)


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    task, delivery = outcome.task, outcome.delivery or NO_DELIVERY
    return {
        "id": task.id,
        "state": outcome.state,
        "rank": task.rank,
        "tries": task.tries,
        "due": outcome.due or task.due,
        "reply": None if outcome.reply is None else to_sqlite_text(outcome.reply),
        "size": delivery.size,
        "seconds": delivery.seconds,
        "destination": delivery.destination and to_sqlite_text(delivery.destination),
        "peer": delivery.peer and to_sqlite_text(delivery.peer),
        "failed": outcome.failure is not None or task.tries > 1,
        "failure": outcome.failure,
    }
