"""Queries that count the tasks of a journal, the same in all engines."""

from __future__ import annotations

from typing import ClassVar

from trollmoves.journal.common.queries import OpenQueries
from trollmoves.journal.views import JournalStatistics, LaneBacklog

MAX_SCANNED = 100_000  # finished tasks that are searched for the last one of each chain


class StatisticsQueries(OpenQueries):
    """The statistics of a journal."""

    WANTED: ClassVar[str]  # see ``reader.wanted``
    LAST_ANNOUNCED: ClassVar[str]  # chain, and the time of its last announcement

    def statistics(self) -> JournalStatistics:
        with self._reading() as read:
            backlog = read(
                "SELECT chain, lane, number, (SELECT created FROM tasks WHERE id = first) FROM (SELECT chain, lane, "
                "count(*) AS number, min(id) AS first FROM tasks INDEXED BY tasks_waiting WHERE state = 0 "
                "GROUP BY chain, lane) groups ORDER BY chain, lane"
            )
            held = read(
                "SELECT chain, lane, count(*) FROM tasks INDEXED BY tasks_failure WHERE failure = 'held' AND state = 0 "
                "GROUP BY chain, lane"
            )
            failed = read(
                "SELECT chain, kind, count(*) FROM tasks INDEXED BY tasks_failed WHERE state = 2 GROUP BY chain, kind"
            )
            failing = read(
                "SELECT chain, lane FROM lanes l WHERE failure IS NOT NULL AND (EXISTS (SELECT 1 FROM tasks t "
                "WHERE t.chain = l.chain AND t.lane = l.lane AND t.state = 0) OR EXISTS (SELECT 1 FROM tasks t "
                "INDEXED BY tasks_failure WHERE t.chain = l.chain AND t.lane = l.lane AND t.state = 2 "
                f"AND t.failure IN ('held', 'outage', 'retry') AND {self.WANTED})) ORDER BY chain, lane"
            )
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
        with self._reading() as read:
            tasks = read(
                "SELECT chain, kind, max(finished) FROM (SELECT chain, kind, finished, state FROM tasks "
                "INDEXED BY tasks_finished WHERE state <> 0 ORDER BY finished DESC LIMIT ?) recent WHERE state = 1 "
                "GROUP BY chain, kind",
                (MAX_SCANNED,),
            )
            announced = [(chain, "announce", time) for chain, time in read(self.LAST_ANNOUNCED)]
        return {(chain, kind): time for chain, kind, time in (*tasks, *announced) if time is not None}

    def last_file_time(self, chain: str, kind: str, since: float = 0.0) -> float:
        with self._reading() as read:
            if kind == "announce":
                rows = read("SELECT created FROM announcements WHERE chain = ? ORDER BY number DESC LIMIT 1", (chain,))
            else:
                rows = read(
                    "SELECT finished FROM (SELECT chain, kind, finished, state FROM tasks INDEXED BY tasks_finished "
                    "WHERE state <> 0 AND finished > ? ORDER BY finished DESC LIMIT ?) recent "
                    "WHERE state = 1 AND chain = ? AND kind = ? LIMIT 1",
                    (since, MAX_SCANNED, chain, kind),
                )
        return float(rows[0][0]) if rows else 0.0

    def count_finished(self, since: float) -> dict[tuple[str, str, int], int]:
        with self._reading() as read:
            tasks = read(
                "SELECT chain, kind, state, count(*) FROM tasks INDEXED BY tasks_finished WHERE state <> 0 "
                "AND finished >= ? GROUP BY chain, kind, state",
                (since,),
            )
            announced = read("SELECT chain, count(*) FROM announcements WHERE created >= ? GROUP BY chain", (since,))
        counts = {(chain, kind, state): count for chain, kind, state, count in tasks}
        return counts | {(chain, "announce", 1): count for chain, count in announced}
