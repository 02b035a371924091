"""Counts the tasks of a journal on a separate connection, so that other threads do not wait."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from trollmoves.journal.sqlite.database import JournalDatabase
from trollmoves.journal.sqlite.files import to_journal_error
from trollmoves.journal.sqlite.wanted import WANTED, add_functions
from trollmoves.journal.views import JournalStatistics, LaneBacklog

READ_TIMEOUT = 5.0  # s to wait for a lock of the file
FILES = ("", "-wal", "-shm")  # suffixes of the files of an open journal
MAX_SCANNED = 100_000  # finished tasks that are searched for the last one of each chain


class Statistics(JournalDatabase):
    """The statistics of a journal."""

    def statistics(self) -> JournalStatistics:
        with _opened(self.path) as db:
            db.execute("BEGIN")
            backlog = db.execute(
                "SELECT chain, lane, number, (SELECT created FROM tasks WHERE id = first) FROM (SELECT chain, lane, "
                "count(*) AS number, min(id) AS first FROM tasks INDEXED BY tasks_waiting WHERE state = 0 "
                "GROUP BY chain, lane)"
            ).fetchall()
            held = db.execute(
                "SELECT chain, lane, count(*) FROM tasks INDEXED BY tasks_failure WHERE failure = 'held' AND state = 0 "
                "GROUP BY chain, lane"
            ).fetchall()
            failed = db.execute(
                "SELECT chain, kind, count(*) FROM tasks INDEXED BY tasks_failed WHERE state = 2 GROUP BY chain, kind"
            ).fetchall()
            failing = db.execute(
                "SELECT chain, lane FROM lanes l WHERE failure IS NOT NULL AND (EXISTS (SELECT 1 FROM tasks t "
                "WHERE t.chain = l.chain AND t.lane = l.lane AND t.state = 0) OR EXISTS (SELECT 1 FROM tasks t "
                "INDEXED BY tasks_failure WHERE t.chain = l.chain AND t.lane = l.lane AND t.state = 2 "
                f"AND t.failure IN ('held', 'outage', 'retry') AND {WANTED}))"
            ).fetchall()
        held_by_lane = {(chain, lane): count for chain, lane, count in held}
        return JournalStatistics(
            tuple(
                LaneBacklog(chain, lane, count, oldest, held_by_lane.get((chain, lane), 0))
                for chain, lane, count, oldest in backlog
            ),
            {(chain, kind): count for chain, kind, count in failed},
            failing,
        )

    def last_times(self) -> dict[tuple[str, str], float]:
        with _opened(self.path) as db:
            tasks = db.execute(
                "SELECT chain, kind, max(finished) FROM (SELECT chain, kind, finished, state FROM tasks "
                "INDEXED BY tasks_finished WHERE state <> 0 ORDER BY finished DESC LIMIT ?) WHERE state = 1 "
                "GROUP BY chain, kind",
                (MAX_SCANNED,),
            ).fetchall()
            announced = db.execute(
                "SELECT chain, 'announce', (SELECT created FROM announcements WHERE id = last) FROM "
                "(SELECT chain, max(id) AS last FROM announcements GROUP BY chain)"
            ).fetchall()
        return {(chain, kind): time for chain, kind, time in (*tasks, *announced)}

    def last_file_time(self, chain: str, kind: str, since: float = 0.0) -> float:
        with _opened(self.path) as db:
            if kind == "announce":
                row = db.execute(
                    "SELECT created FROM announcements WHERE chain = ? ORDER BY number DESC LIMIT 1", (chain,)
                ).fetchone()
            else:
                row = db.execute(
                    "SELECT finished FROM (SELECT chain, kind, finished, state FROM tasks INDEXED BY tasks_finished "
                    "WHERE state <> 0 AND finished > ? ORDER BY finished DESC LIMIT ?) "
                    "WHERE state = 1 AND chain = ? AND kind = ? LIMIT 1",
                    (since, MAX_SCANNED, chain, kind),
                ).fetchone()
        return float(row[0]) if row else 0.0

    def count_finished(self, since: float) -> dict[tuple[str, str, int], int]:
        with _opened(self.path) as db:
            tasks = db.execute(
                "SELECT chain, kind, state, count(*) FROM tasks INDEXED BY tasks_finished WHERE state <> 0 "
                "AND finished >= ? GROUP BY chain, kind, state",
                (since,),
            ).fetchall()
            announced = db.execute(
                "SELECT chain, 'announce', 1, count(*) FROM announcements WHERE created >= ? GROUP BY chain", (since,)
            ).fetchall()
        return {(chain, kind, state): count for chain, kind, state, count in (*tasks, *announced)}

    def size(self) -> int:
        return journal_size(self.path)


def journal_size(path: str) -> int:
    """Return the bytes of the files of a journal."""
    size = 0
    for suffix in FILES:
        with suppress(OSError):
            size += os.stat(path + suffix).st_size
    return size


@contextmanager
def _opened(path: str) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True, timeout=READ_TIMEOUT)) as db:
            add_functions(db)
            yield db
    except sqlite3.Error as error:
        raise to_journal_error(f"the journal {path} cannot be read: {error}", error) from error
