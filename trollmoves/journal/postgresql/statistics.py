"""Counts the tasks of a journal on PostgreSQL."""

from __future__ import annotations

from trollmoves.journal.common.statistics import StatisticsQueries
from trollmoves.journal.postgresql.queries import PostgresQueries
from trollmoves.journal.postgresql.reader import PostgresReader


class PostgresStatistics(PostgresQueries, StatisticsQueries):
    """The statistics of a journal."""

    WANTED = PostgresReader.WANTED
    LAST_ANNOUNCED = (
        "SELECT chain, (SELECT created FROM announcements a WHERE a.chain = logs.chain ORDER BY number DESC LIMIT 1) "
        "FROM logs"
    )

    def size(self) -> int:
        return self._database.size()
