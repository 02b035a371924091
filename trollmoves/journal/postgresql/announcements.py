"""The numbered announcement log of each chain on PostgreSQL.

The numbers of a log are given under the lock of its row in ``logs``, not by a sequence: a reader that has all numbers
up to N never misses a lower one that is committed later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from psycopg.types.json import Json

from trollmoves.errors import JournalError
from trollmoves.journal.interface import MakeFunction
from trollmoves.journal.postgresql.database import Connection, PostgresDatabase
from trollmoves.journal.records import AnnouncementRecord, Version, to_sqlite_text

_COLUMNS = "number, uri, uid, size, mtime, message"
SCAN_BATCH = 2000  # announcements examined in one query
SCAN_RECENT = 10_000  # newest announcements that are searched for those of a failed call
MAX_DOUBTFUL_APPENDS = 100
MAX_PAGE_LENGTH = 250_000  # characters of the messages in one result; a line of 20 kB/s carries them within 15 s
MAX_LIST_LENGTH = 4_000_000  # characters of the names in one result
_LATEST = (  # of many files in one statement
    "SELECT u.uri, a.size, a.mtime FROM unnest(%s::text[]) u (uri) CROSS JOIN LATERAL (SELECT size, mtime "
    "FROM announcements WHERE chain = %s AND md5(uri) = md5(u.uri) AND uri = u.uri ORDER BY number DESC LIMIT 1) a"
)
_INSERT = (
    "INSERT INTO announcements (chain, number, uri, uid, size, mtime, created, message) "
    "SELECT %(chain)s, number, uri, uid, size, mtime, %(now)s, message FROM json_to_recordset(%(rows)s::json) "
    "AS r (number bigint, uri text, uid text, size bigint, mtime bigint, message text)"
)


class PostgresAnnouncements:
    """The announcements in a journal."""

    _database: PostgresDatabase
    _doubtful_appends: dict[str, list[float]]  # by chain, the times of failed calls that may have been stored

    def append(self, chain: str, uris: Collection[str], make: MakeFunction) -> Sequence[AnnouncementRecord]:
        now = self._database.now()
        doubtful = self._doubtful_appends.get(chain, [])

        def work(db: Connection) -> Sequence[AnnouncementRecord]:
            last = _lock_log(db, chain)
            earlier = _appended_at(db, chain, last, [*doubtful, *([now] if now in self._database.doubtful else ())])
            records = make(_latest_versions(db, chain, uris), last + 1)
            if records:
                rows = [_row(record) for record in records]
                db.execute(_INSERT.encode(), {"chain": chain, "now": now, "rows": Json(rows)})
                db.execute("UPDATE logs SET last = %s WHERE chain = %s", (records[-1].number, chain))
            return [*earlier, *records] if earlier else records

        try:
            records = self._database.run(work, now)
        except JournalError:
            if now in self._database.doubtful:
                self._doubtful_appends[chain] = [*doubtful, now][-MAX_DOUBTFUL_APPENDS:]
            raise
        self._doubtful_appends.pop(chain, None)
        return records

    def last_number(self, chain: str) -> int:
        rows = self._database.read("SELECT last FROM logs WHERE chain = %s", (chain,))
        return int(rows[0][0]) if rows else 0

    def _records(self, where: str, *parameters: Any) -> list[AnnouncementRecord]:
        rows = self._database.read(f"SELECT {_COLUMNS} FROM announcements WHERE {where}", parameters)
        return [AnnouncementRecord(*row) for row in rows]

    def latest_announcement(self, chain: str, uri: str) -> AnnouncementRecord | None:
        text = to_sqlite_text(uri)
        where = "chain = %s AND md5(uri) = md5(%s) AND uri = %s ORDER BY number DESC LIMIT 1"
        return next(iter(self._records(where, chain, text, text)), None)

    def get_announcement(self, chain: str, number: int) -> AnnouncementRecord | None:
        return next(iter(self._records("chain = %s AND number = %s", chain, number)), None)

    def get_announcements(self, chain: str, numbers: Collection[int]) -> dict[int, AnnouncementRecord]:
        records = self._records("chain = %s AND number = ANY(%s::bigint[])", chain, list(numbers))
        return {record.number: record for record in records}

    def announcements_after(self, chain: str, number: int, limit: int) -> list[AnnouncementRecord]:
        rows = self._database.stream(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = %s AND number > %s ORDER BY number LIMIT %s",
            (chain, number, limit),
            _length_limit(MAX_PAGE_LENGTH),
        )
        return [AnnouncementRecord(*row) for row in rows]

    def number_before(self, chain: str, created: float) -> int:
        read = self._database.read
        low = int(read("SELECT min(number) FROM announcements WHERE chain = %s", (chain,))[0][0] or 1) - 1
        high = self.last_number(chain)
        before = 0
        while low < high:  # binary search: many announcements may be newer
            middle = (low + high + 1) // 2
            rows = read(
                "SELECT number, created FROM announcements WHERE chain = %s AND number <= %s "
                "ORDER BY number DESC LIMIT 1",
                (chain, middle),
            )
            if not rows or rows[0][1] >= created:
                high = middle - 1
            else:
                before, low = int(rows[0][0]), middle
        return before

    def newest_files(self, chain: str, limit: int) -> list[tuple[str, str]]:
        return self._database.stream(
            "SELECT split_part(message, ' ', 1), uid FROM announcements WHERE chain = %s ORDER BY number DESC LIMIT %s",
            (chain, limit),
            _length_limit(MAX_LIST_LENGTH),
        )

    def undelivered_announcements(
        self, chain: str, kinds: Sequence[str], after: int, limit: int
    ) -> list[AnnouncementRecord]:
        found: list[AnnouncementRecord] = []
        length = 0
        last = self.last_number(chain)
        while after < last and len(found) < limit:  # in batches: nearly all may have been delivered
            rows = self._database.stream(
                f"SELECT {_COLUMNS} FROM announcements a WHERE chain = %s AND number > %s AND number <= %s "
                # By OFFSET 0 the planner cannot read all tasks of the chain instead, as it does without statistics.
                "AND NOT EXISTS (SELECT 1 FROM (SELECT kind, state FROM tasks WHERE announcement_number = a.number "
                "AND tasks.chain = a.chain OFFSET 0) t WHERE t.kind = ANY(%s::text[]) AND (t.state = 1 "
                "OR (t.state = 3 AND NOT EXISTS (SELECT 1 FROM (SELECT kind, state FROM tasks "
                "WHERE announcement_number = a.number AND tasks.chain = a.chain OFFSET 0) o "
                "WHERE o.kind = t.kind AND o.state IN (0, 2))))) ORDER BY number LIMIT %s",
                (chain, after, after + SCAN_BATCH, list(kinds), limit - len(found)),
                _length_limit(MAX_PAGE_LENGTH - length),
            )
            found += [AnnouncementRecord(*row) for row in rows]
            length += sum(len(row[-1]) for row in rows)
            if length >= MAX_PAGE_LENGTH:
                break
            after += SCAN_BATCH
        return found


def _appended_at(db: Connection, chain: str, last: int, times: Sequence[float]) -> list[AnnouncementRecord]:
    """Return the announcements that failed calls of these times have stored: they are not published yet."""
    if not times:
        return []
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM announcements WHERE chain = %s AND number > %s AND created = ANY(%s::float8[]) "
        "ORDER BY number".encode(),
        (chain, last - SCAN_RECENT, list(times)),
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


def _latest_versions(db: Connection, chain: str, uris: Collection[str]) -> dict[str, Version]:
    if not uris:
        return {}
    by_text = {to_sqlite_text(uri): uri for uri in uris}
    rows = db.execute(_LATEST.encode(), (list(by_text), chain)).fetchall()
    return {by_text[text]: (size, mtime) for text, size, mtime in rows}


def _row(a: AnnouncementRecord) -> dict[str, Any]:
    texts = {"uri": to_sqlite_text(a.uri), "uid": to_sqlite_text(a.uid), "message": to_sqlite_text(a.message)}
    return {"number": a.number, "size": a.size, "mtime": a.mtime, **texts}


def _length_limit(limit: int) -> Callable[[Sequence[object]], bool]:
    """Return a function that returns True once the rows passed to it have ``limit`` characters in their last column."""
    length = 0

    def is_reached(row: Sequence[object]) -> bool:
        nonlocal length
        length += len(str(row[-1]))
        return length >= limit

    return is_reached
