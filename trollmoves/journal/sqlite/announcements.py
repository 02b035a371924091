"""The numbered announcement log of each chain, from which clients request missed announcements."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

from trollmoves.journal.common.announcements import AnnouncementQueries
from trollmoves.journal.common.queries import placeholders
from trollmoves.journal.interface import MakeFunction
from trollmoves.journal.records import AnnouncementRecord, Version, to_sqlite_text
from trollmoves.journal.sqlite.database import JournalDatabase

_LATEST_VERSION = (  # of one file, 10 us faster
    "SELECT uri, size, mtime FROM announcements WHERE chain = ? AND uri = ? ORDER BY number DESC LIMIT 1"
)
_LATEST_VERSIONS = (  # of many files in one statement
    "SELECT f.value, a.size, a.mtime FROM json_each(?) f JOIN announcements a ON a.id = (SELECT id FROM announcements "
    "WHERE chain = ? AND uri = f.value ORDER BY number DESC LIMIT 1)"
)


class AnnouncementTable(JournalDatabase, AnnouncementQueries):
    """The announcements in a journal."""

    FIRST_WORD = "substr(message, 1, instr(message, ' ') - 1)"
    UNDELIVERED = (
        "NOT EXISTS (SELECT 1 FROM tasks t WHERE t.announcement_number = a.number AND t.chain = a.chain "
        "AND t.kind IN ({kinds}) AND (t.state = 1 OR t.state = 3 AND NOT EXISTS (SELECT 1 FROM tasks o "
        "WHERE o.announcement_number = a.number AND o.chain = a.chain AND o.kind = t.kind AND o.state IN (0, 2))))"
    )

    def __init__(
        self, path: str, *, synchronous: str = "normal", damage: str = "", on_damage: Callable[[], None] | None = None
    ) -> None:
        self._numbers: dict[str, int] = {}  # the last number by chain
        self._append_lock = threading.Lock()  # acquired before the lock of the database
        super().__init__(path, synchronous=synchronous, damage=damage, on_damage=on_damage)

    def _roll_back(self) -> None:
        self._numbers.clear()
        super()._roll_back()

    def append(self, chain: str, uris: Collection[str], make: MakeFunction) -> Sequence[AnnouncementRecord]:
        with self._append_lock:  # the file belongs to this process, so other transactions need not wait for ``make``
            records = make(self._latest_versions(chain, uris), self.last_number(chain) + 1)
            if records:
                self._append(chain, records)
            return records

    def _append(self, chain: str, records: Sequence[AnnouncementRecord]) -> None:
        now = self.now()
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO announcements (chain, number, uri, uid, size, mtime, created, message) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        chain,
                        a.number,
                        to_sqlite_text(a.uri),
                        to_sqlite_text(a.uid),
                        a.size,
                        a.mtime,
                        now,
                        to_sqlite_text(a.message),
                    )
                    for a in records
                ],
            )
            self._numbers[chain] = records[-1].number
            self._last_write = now

    def _latest_versions(self, chain: str, uris: Collection[str]) -> dict[str, Version]:
        by_text = {to_sqlite_text(uri): uri for uri in uris}
        if len(by_text) == 1:
            rows = self._read(_LATEST_VERSION, (chain, *by_text))
        else:
            rows = self._read(_LATEST_VERSIONS, (json.dumps(list(by_text)), chain))
        return {by_text[text]: (size, mtime) for text, size, mtime in rows}

    def last_number(self, chain: str) -> int:
        number = self._numbers.get(chain)
        if number is None:
            with self._transaction() as db:  # prevents an append between the query and the caching
                row = db.execute("SELECT max(number) FROM announcements WHERE chain = ?", (chain,)).fetchone()
                number = self._numbers[chain] = int(row[0] or 0)
        return number

    def latest_announcement(self, chain: str, uri: str) -> AnnouncementRecord | None:
        where = "chain = ? AND uri = ? ORDER BY number DESC LIMIT 1"
        return next(iter(self._records(where, chain, to_sqlite_text(uri))), None)

    def get_announcements(self, chain: str, numbers: Collection[int]) -> dict[int, AnnouncementRecord]:
        records = self._records(f"chain = ? AND number IN ({placeholders(numbers)})", chain, *numbers)
        return {record.number: record for record in records}

    def _read_until(
        self, statement: str, parameters: Sequence[Any], enough: Callable[[Sequence[object]], bool]
    ) -> list[Any]:
        return self._read(statement, parameters, enough)
