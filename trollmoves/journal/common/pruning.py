"""Journal pruning: compact finished tasks, delete old rows."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

from trollmoves.journal.common.queries import OpenQueries
from trollmoves.journal.records import BATCH_SIZE, COMPACT_AFTER, DONE, Compactors, Retention, Task, to_sqlite_text

logger = logging.getLogger(__name__)

_DROP_LANES = (
    "DELETE FROM lanes WHERE updated < ? AND NOT EXISTS (SELECT 1 FROM tasks t "
    "WHERE t.chain = lanes.chain AND t.lane = lanes.lane AND t.state = 0)"
)
_SET_META = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


class PruningQueries(OpenQueries):
    """Pruning of a journal."""

    DROP_FINISHED: ClassVar[str]  # a batch of tasks that finished until ``?``, the oldest first, returning ``finished``

    @abstractmethod
    def _run(self, work: Callable[[Any], int]) -> int:
        """Return the result of ``work``, which gets a connection, in one transaction; it may be repeated."""

    @abstractmethod
    def _execute(self, db: Any, statement: str, parameters: Sequence[Any]) -> list[Any]:
        """Execute a statement in a transaction, and return the rows that it returns."""

    @abstractmethod
    def _compact(self, db: Any, before: float, after: tuple[float, int], compactors: Compactors) -> list[Any]:
        """Compact the next batch of tasks; return (finished, id) of those that were examined.

        They finished until ``before``, and come after ``after`` in the order of (finished, id).
        """

    @abstractmethod
    def _release(self) -> Iterator[int]:
        """Release the space that the engine does not release without a request, in steps."""

    def prune(self, retention: Retention, compactors: Compactors, min_age: float = COMPACT_AFTER) -> Iterator[int]:
        before = self.now() - min_age
        yield from self._compact_finished(before, compactors)
        finished_before = min(self._finished_before(retention), before)
        yield from self._in_batches(lambda db: self._drop_finished(db, finished_before))
        self._write(_DROP_LANES, (finished_before,))
        for (chain,) in self._read(self.CHAINS):
            drop = partial(
                self._drop_announced,
                chain=chain,
                before=self.now() - retention.announced_for,
                most=retention.most_announced,
            )
            yield from self._in_batches(drop)
        yield from self._release()

    def history_seconds(self) -> float:
        rows = self._read("SELECT value FROM meta WHERE key = 'forgotten'")
        return self.now() - float(rows[0][0]) if rows else float("inf")

    def _in_batches(self, work: Callable[[Any], int]) -> Iterator[int]:
        while count := self._run(work):
            yield count

    def _compact_finished(self, before: float, compactors: Compactors) -> Iterator[int]:
        rows = self._read("SELECT value FROM meta WHERE key = 'shortened'")
        at, _, last = rows[0][0].partition(" ") if rows else ("0", "", "0")
        examined = (float(at), int(last)) if float(at) <= before else (0.0, 0)  # the clock was set back

        def work(db: Any) -> int:
            nonlocal examined
            found = self._compact(db, before, examined, compactors)
            if found:
                examined = found[-1]
                self._execute(db, _SET_META, ("shortened", f"{examined[0]!r} {examined[1]}"))
            return len(found)

        yield from self._in_batches(work)

    def _finished_before(self, retention: Retention) -> float:
        """Return the finish time of the last task to delete."""
        by_age = self.now() - retention.finished_for
        ((span,),) = self._read("SELECT (SELECT max(id) FROM tasks) - (SELECT min(id) FROM tasks)")
        if not span or span < retention.most_finished:
            return by_age
        rows = self._read_many(
            "SELECT finished FROM tasks WHERE state <> 0 ORDER BY finished DESC LIMIT 1 OFFSET ?",
            (retention.most_finished,),
        )
        return max(by_age, *(float(finished) for (finished,) in rows)) if rows else by_age

    def _drop_finished(self, db: Any, before: float) -> int:
        rows = self._execute(db, self.DROP_FINISHED, (before,))
        if rows:
            self._execute(db, _SET_META, ("forgotten", repr(max(finished for (finished,) in rows))))
        return len(rows)

    def _drop_announced(self, db: Any, *, chain: str, before: float, most: int) -> int:
        """Delete a batch of announcements; the last one stays, so that the numbers continue."""
        ((last,),) = self._execute(db, "SELECT max(number) FROM announcements WHERE chain = ?", (chain,))
        oldest = "SELECT number, created FROM announcements WHERE chain = ? AND number < ? ORDER BY number LIMIT ?"
        count = through = 0
        for number, created in self._execute(db, oldest, (chain, last, BATCH_SIZE)):
            if created >= before and number > last - most:
                break
            count, through = count + 1, number
        if count:
            self._execute(db, "DELETE FROM announcements WHERE chain = ? AND number <= ?", (chain, through))
        return count


def compacted_body(task: Task, compactors: Compactors) -> str | None:
    """Return the body of a finished task that replaces its body and reply, None if they stay as they are."""
    if task.state != DONE or task.kind not in compactors:
        return None
    body = task.body
    try:
        body = to_sqlite_text(compactors[task.kind](task))
    except Exception:  # an unreadable body stays as it is
        logger.exception("[%s] %s %s: cannot compact its body, keeping it", task.chain, task.kind, task.key)
    return body if body != task.body or task.reply is not None else None
