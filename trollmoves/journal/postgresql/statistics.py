"""Counts the tasks of a journal on PostgreSQL."""

from __future__ import annotations

from trollmoves.journal.postgresql.database import PostgresDatabase
from trollmoves.journal.postgresql.reader import PostgresReader
from trollmoves.journal.views import JournalStatistics, LaneBacklog

MAX_SCANNED = 100_000  # finished tasks that are searched for the last one of each chain


class PostgresStatistics:
    """The statistics of a journal."""

    _database: PostgresDatabase

    def statistics(self) -> JournalStatistics:
        read = self._database.read
        backlog = read(
            "SELECT chain, lane, number, (SELECT created FROM tasks WHERE id = first), held FROM (SELECT chain, lane, "
            "count(*) AS number, min(id) AS first, count(*) FILTER (WHERE failure = 'held') AS held FROM tasks "
            "WHERE state = 0 GROUP BY chain, lane) lanes ORDER BY chain, lane"
        )
        failed = read("SELECT chain, kind, count(*) FROM tasks WHERE state = 2 GROUP BY chain, kind")
        failing = read(
            "SELECT chain, lane FROM lanes l WHERE failure IS NOT NULL AND EXISTS (SELECT 1 FROM tasks t "
            "WHERE t.chain = l.chain AND t.lane = l.lane AND (t.state = 0 OR (t.state = 2 "
            f"AND t.failure IN ('held', 'outage', 'retry') AND {PostgresReader.WANTED}))) ORDER BY chain, lane"
        )
        return JournalStatistics(
            tuple(LaneBacklog(*row) for row in backlog),
            {(chain, kind): count for chain, kind, count in failed},
            failing,
        )

    def last_times(self) -> dict[tuple[str, str], float]:
        tasks = self._database.read(
            "SELECT chain, kind, max(finished) FROM (SELECT chain, kind, finished, state FROM tasks "
            "WHERE state <> 0 ORDER BY finished DESC LIMIT %s) recent WHERE state = 1 GROUP BY chain, kind",
            (MAX_SCANNED,),
        )
        announced = self._database.read(
            "SELECT chain, 'announce', (SELECT created FROM announcements a WHERE a.chain = logs.chain "
            "ORDER BY number DESC LIMIT 1) FROM logs"
        )
        return {(chain, kind): time for chain, kind, time in (*tasks, *announced) if time is not None}

    def last_file_time(self, chain: str, kind: str, since: float = 0.0) -> float:
        if kind == "announce":
            rows = self._database.read(
                "SELECT created FROM announcements WHERE chain = %s ORDER BY number DESC LIMIT 1", (chain,)
            )
        else:
            rows = self._database.read(
                "SELECT finished FROM (SELECT chain, kind, finished, state FROM tasks "
                "WHERE state <> 0 AND finished > %s ORDER BY finished DESC LIMIT %s) recent "
                "WHERE state = 1 AND chain = %s AND kind = %s LIMIT 1",
                (since, MAX_SCANNED, chain, kind),
            )
        return float(rows[0][0]) if rows else 0.0

    def count_finished(self, since: float) -> dict[tuple[str, str, int], int]:
        tasks = self._database.read(
            "SELECT chain, kind, state::int, count(*) FROM tasks WHERE state <> 0 AND finished >= %s "
            "GROUP BY chain, kind, state",
            (since,),
        )
        announced = self._database.read(
            "SELECT chain, 'announce', 1, count(*) FROM announcements WHERE created >= %s GROUP BY chain", (since,)
        )
        return {(chain, kind, state): count for chain, kind, state, count in (*tasks, *announced)}

    def size(self) -> int:
        return self._database.size()
