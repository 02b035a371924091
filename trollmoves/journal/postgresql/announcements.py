"""The numbered announcement log of each chain on PostgreSQL.

The numbers of a log are given under the lock of its row in ``logs``, not by a sequence: a reader that has all numbers
up to N never misses a lower one that is committed later.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from psycopg.types.json import Json

from trollmoves.errors import JournalError
from trollmoves.journal.common.announcements import COLUMNS, AnnouncementQueries
from trollmoves.journal.interface import MakeFunction
from trollmoves.journal.postgresql.database import Connection
from trollmoves.journal.postgresql.queries import PostgresQueries
from trollmoves.journal.postgresql.sharing import PostgresSharing
from trollmoves.journal.records import AnnouncementRecord, Version, to_sqlite_text

SCAN_RECENT = 10_000  # newest announcements that are searched for those of a failed call
MAX_DOUBTFUL_APPENDS = 100
_LATEST = (  # of many files in one statement
    "SELECT u.uri, a.size, a.mtime FROM unnest(%s::text[]) u (uri) CROSS JOIN LATERAL (SELECT size, mtime "
    "FROM announcements WHERE chain = %s AND (%s = '' OR place = %s) AND md5(uri) = md5(u.uri) AND uri = u.uri "
    "ORDER BY number DESC LIMIT 1) a"
)
_INSERT = (
    "INSERT INTO announcements (chain, number, uri, uid, size, mtime, created, message, place) "
    "SELECT %(chain)s, number, uri, uid, size, mtime, %(now)s, message, %(place)s "
    "FROM json_to_recordset(%(rows)s::json) AS r "
    "(number bigint, uri text, uid text, size bigint, mtime bigint, message text)"
)

_LAST_HERE = (  # all earlier ones may be pruned
    "SELECT coalesce((SELECT max(number) FROM announcements WHERE chain = %s AND place = %s), "
    "(SELECT last FROM logs WHERE chain = %s), 0)"
)


class PostgresAnnouncements(PostgresQueries, AnnouncementQueries):
    """The announcements in a journal."""

    FIRST_WORD = "split_part(message, ' ', 1)"
    UNDELIVERED = (
        # By OFFSET 0 the planner cannot read all tasks of the chain instead, as it does without statistics.
        "NOT EXISTS (SELECT 1 FROM (SELECT kind, state FROM tasks WHERE announcement_number = a.number "
        "AND tasks.chain = a.chain OFFSET 0) t WHERE t.kind IN ({kinds}) AND (t.state = 1 "
        "OR (t.state = 3 AND NOT EXISTS (SELECT 1 FROM (SELECT kind, state FROM tasks "
        "WHERE announcement_number = a.number AND tasks.chain = a.chain OFFSET 0) o "
        "WHERE o.kind = t.kind AND o.state IN (0, 2)))))"
    )

    _sharing: PostgresSharing | None
    _doubtful_appends: dict[str, list[float]]  # by chain, the times of failed calls that may have been stored
    _last_here: dict[str, int]  # the last number of an announcement at the place of this member, by chain

    def append(self, chain: str, uris: Collection[str], make: MakeFunction) -> Sequence[AnnouncementRecord]:
        now = self._database.now()
        doubtful, place = self._doubtful_appends.get(chain, []), self._place_of(chain)

        def work(db: Connection) -> Sequence[AnnouncementRecord]:
            last = _lock_log(db, chain)
            earlier = _appended_at(db, chain, [*doubtful, *([now] if now in self._database.doubtful else ())])
            records = make(_latest_versions(db, chain, place, uris), last + 1)
            if records:
                rows = [_row(record) for record in records]
                db.execute(_INSERT.encode(), {"chain": chain, "now": now, "place": place, "rows": Json(rows)})
                db.execute("UPDATE logs SET last = %s WHERE chain = %s", (records[-1].number, chain))
            return [*earlier, *records] if earlier else records

        try:
            records = self._database.run(work, now)
        except JournalError:
            self._last_here.pop(chain, None)
            if now in self._database.doubtful:
                self._doubtful_appends[chain] = [*doubtful, now][-MAX_DOUBTFUL_APPENDS:]
            raise
        self._doubtful_appends.pop(chain, None)
        if records and place:
            self._last_here[chain] = records[-1].number
        return records

    def _place_of(self, chain: str) -> str:
        return self._sharing.place_of_files(chain) if self._sharing else ""

    def _here(self, chain: str) -> tuple[str, Sequence[str]]:
        place = self._place_of(chain)
        return ("AND place = ?", (place,)) if place else ("", ())

    def last_number(self, chain: str) -> int:
        if not (place := self._place_of(chain)):
            rows = self._database.read("SELECT last FROM logs WHERE chain = %s", (chain,))
            return int(rows[0][0]) if rows else 0
        if (number := self._last_here.get(chain)) is not None:
            return number
        ((number,),) = self._database.read(_LAST_HERE, (chain, place, chain))
        return self._last_here.setdefault(chain, int(number))  # unless there is a newer one by now

    def latest_announcement(self, chain: str, uri: str) -> AnnouncementRecord | None:
        text = to_sqlite_text(uri)
        here, values = self._here(chain)
        where = f"chain = ? AND md5(uri) = md5(?) AND uri = ? {here} ORDER BY number DESC LIMIT 1"
        return next(iter(self._records(where, chain, text, text, *values)), None)

    def get_announcements(self, chain: str, numbers: Collection[int]) -> dict[int, AnnouncementRecord]:
        records = self._records("chain = ? AND number = ANY(?::bigint[])", chain, list(numbers))
        return {record.number: record for record in records}


def _appended_at(db: Connection, chain: str, times: Sequence[float]) -> list[AnnouncementRecord]:
    """Return the announcements that failed calls of these times have stored: they are not published yet."""
    if not times:
        return []
    rows = db.execute(
        # Not by number: after a fail-over the numbers have a gap.
        f"SELECT {COLUMNS} FROM (SELECT * FROM announcements WHERE chain = %s ORDER BY number DESC "
        f"LIMIT {SCAN_RECENT}) recent WHERE created = ANY(%s::float8[]) ORDER BY number".encode(),
        (chain, list(times)),
    ).fetchall()
    return [AnnouncementRecord(*row) for row in rows]


def _lock_log(db: Connection, chain: str) -> int:
    """Lock the log of a chain until the end of the transaction, and return its last number."""
    select = "SELECT last FROM logs WHERE chain = %s FOR UPDATE"
    row = db.execute(select, (chain,)).fetchone()
    if row is None:
        db.execute("INSERT INTO logs VALUES (%s, 0) ON CONFLICT (chain) DO NOTHING", (chain,))
        row = db.execute(select, (chain,)).fetchone()
    assert row is not None  # noqa: S101
    return int(row[0])


def _latest_versions(db: Connection, chain: str, place: str, uris: Collection[str]) -> dict[str, Version]:
    if not uris:
        return {}
    by_text = {to_sqlite_text(uri): uri for uri in uris}
    rows = db.execute(_LATEST.encode(), (list(by_text), chain, place, place)).fetchall()
    return {by_text[text]: (size, mtime) for text, size, mtime in rows}


def _row(a: AnnouncementRecord) -> dict[str, Any]:
    texts = {"uri": to_sqlite_text(a.uri), "uid": to_sqlite_text(a.uid), "message": to_sqlite_text(a.message)}
    return {"number": a.number, "size": a.size, "mtime": a.mtime, **texts}
