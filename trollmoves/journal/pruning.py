"""How a journal stays small: what is over is shortened, what is old or too much goes, free space is given back."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from trollmoves.errors import JournalError
from trollmoves.journal.database import JournalDatabase
from trollmoves.journal.records import DONE, Task, to_sqlite_text
from trollmoves.journal.tasks import COLUMNS, row_of, task_of

log = logging.getLogger(__name__)

COMPACT_AFTER = 300.0  # s after its end for which a task stays as it is: peers ask again within this time
BATCH_SIZE = 200  # rows in one step, so that it holds up nobody for longer than a few ms
VACUUM_PAGES = 100  # of free space in one step
MAX_FREE_FRACTION = 0.25  # of the file that may be free space before some is given back; new rows use it up, too
FREE_PAGES = 1000  # that may be free in any case (4 MB)

Compactors = Mapping[str, Callable[[Task], str]]


@dataclass(frozen=True, slots=True)
class Retention:
    """What a journal keeps: seconds, and numbers of rows; announcements are counted by chain."""

    finished_for: float
    announced_for: float
    most_finished: int
    most_announced: int


class Pruning(JournalDatabase):
    """The upkeep of a journal."""

    def prune(self, keep: Retention, remains: Compactors, settled: float = COMPACT_AFTER) -> Iterator[int]:
        """Go once through all that can be made smaller; each step is a short transaction, and gives how much it did.

        What waits stays, and so do the newest announcement of each chain and the newest task, so that numbers go on.
        ``remains`` gives, by kind, what is left of the body of a task some time after it was done; its reply goes.
        """
        before = self.now() - settled
        yield from self._compact_finished(before, remains)
        yield from self._drop_finished(min(self._finished_before(keep), before))
        for chain in self._announcing():
            yield from self._drop_announced(chain, keep)
        yield from self._vacuum()

    def history_seconds(self) -> float:
        """Give the seconds before now of which it may not be known any more what was done; infinite when all is."""
        rows = self._read("SELECT value FROM meta WHERE key = 'forgotten'")
        return self.now() - float(rows[0][0]) if rows else float("inf")

    # -- what is over

    def _compact_finished(self, before: float, remains: Compactors) -> Iterator[int]:
        at, last = self._shortened_to(before)
        while True:
            with self._transaction() as db:
                rows = db.execute(
                    f"SELECT {COLUMNS} FROM tasks INDEXED BY tasks_finished WHERE state <> 0 AND finished <= ? "
                    "AND (finished, id) > (?, ?) ORDER BY finished, id LIMIT ?",
                    (before, at, last, BATCH_SIZE),
                ).fetchall()
                if rows:
                    _replace(
                        db, [one for one in map(task_of, rows) if one.state == DONE and one.kind in remains], remains
                    )
                    at, last = rows[-1][-1], rows[-1][0]
                    _set_meta(db, "shortened", f"{at!r} {last}")
            if not rows:
                return
            yield len(rows)

    def _shortened_to(self, before: float) -> tuple[float, int]:
        """Give the end and the id of the last task that was looked at."""
        rows = self._read("SELECT value FROM meta WHERE key = 'shortened'")
        at, _, last = rows[0][0].partition(" ") if rows else ("0", "", "0")
        return (float(at), int(last)) if float(at) <= before else (0.0, 0)  # the clock was set back

    def _finished_before(self, keep: Retention) -> float:
        """Give the end of the last task that is to go."""
        by_age = self.now() - keep.finished_for
        ((span,),) = self._read("SELECT (SELECT max(id) FROM tasks) - (SELECT min(id) FROM tasks)")
        if not span or span < keep.most_finished:
            return by_age
        # On a connection of its own: it counts much, and others go on meanwhile.
        rows = self._read_on_own_connection(
            "SELECT finished FROM tasks WHERE state <> 0 ORDER BY finished DESC LIMIT 1 OFFSET ?", keep.most_finished
        )
        return max(by_age, *(float(finished) for (finished,) in rows)) if rows else by_age

    def _drop_finished(self, before: float) -> Iterator[int]:
        while True:
            with self._transaction() as db:
                rows = db.execute(
                    "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks INDEXED BY tasks_finished WHERE state <> 0 "
                    "AND finished <= ? AND id < (SELECT max(id) FROM tasks) ORDER BY finished LIMIT ?) "
                    "RETURNING finished",
                    (before, BATCH_SIZE),
                ).fetchall()
                if rows:
                    _set_meta(db, "forgotten", repr(max(finished for (finished,) in rows)))
            if not rows:
                return
            yield len(rows)

    # -- announcements

    def _announcing(self) -> list[str]:
        """Give the chains that have announced something, by a jump from each to the next."""
        return [
            str(chain)
            for (chain,) in self._read(
                "WITH RECURSIVE chains (chain) AS (SELECT min(chain) FROM announcements UNION ALL "
                "SELECT (SELECT min(chain) FROM announcements a WHERE a.chain > chains.chain) FROM chains "
                "WHERE chains.chain IS NOT NULL) SELECT chain FROM chains WHERE chain IS NOT NULL"
            )
        ]

    def _drop_announced(self, chain: str, keep: Retention) -> Iterator[int]:
        before = self.now() - keep.announced_for
        while True:
            with self._transaction() as db:
                ((last,),) = db.execute("SELECT max(number) FROM announcements WHERE chain = ?", (chain,))
                oldest = db.execute(
                    "SELECT id, number, created FROM announcements WHERE chain = ? AND number < ? "
                    "ORDER BY number LIMIT ?",
                    (chain, last, BATCH_SIZE),
                ).fetchall()
                ids: list[tuple[int]] = []
                for id_, number, noted in oldest:
                    if noted >= before and number > last - keep.most_announced:
                        break
                    ids.append((id_,))
                db.executemany("DELETE FROM announcements WHERE id = ?", ids)
            if not ids:
                return
            yield len(ids)

    # -- space

    def _vacuum(self) -> Iterator[int]:
        """Make the file smaller when much of it is free."""
        most = max(FREE_PAGES, int(self._pragma("page_count") * MAX_FREE_FRACTION))
        if self._pragma("freelist_count") <= most:
            return
        while (free := self._pragma("freelist_count")) > most // 2:
            with self._transaction() as db:
                db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
            if self._pragma("freelist_count") >= free:
                return  # it was made without the means to do so
            yield VACUUM_PAGES

    def _pragma(self, name: str) -> int:
        return int(self._read(f"PRAGMA {name}")[0][0])

    def _read_on_own_connection(self, sql: str, *parameters: Any) -> list[Any]:
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
                return db.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"the journal {self.path} cannot be read: {error}") from error


def drop_body(task: Task) -> str:  # noqa: ARG001
    """Leave nothing of a body; the key alone says that the task is known."""
    return ""


def _replace(db: sqlite3.Connection, tasks: Sequence[Task], remains: Compactors) -> None:
    """Put shorter rows in the place of these. SQLite gives pages back when rows go, not when they become shorter."""
    shorter = []
    for task in tasks:
        body = _compacted(task, remains[task.kind])
        if body != task.body or task.reply is not None:
            task.body, task.reply = body, None
            shorter.append(task)
    db.executemany("DELETE FROM tasks WHERE id = ?", [(task.id,) for task in shorter])
    db.executemany(
        f"INSERT INTO tasks ({COLUMNS}) VALUES ({', '.join('?' * (COLUMNS.count(',') + 1))})", map(row_of, shorter)
    )


def _compacted(task: Task, remains: Callable[[Task], str]) -> str:
    try:
        return to_sqlite_text(remains(task))
    except Exception:  # what cannot be read cannot be shortened
        log.exception("[%s] %s %s: not shortened", task.chain, task.kind, task.key)
        return task.body


def _set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))
