"""The numbered announcement log of each chain, from which clients request missed announcements."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Sequence

from trollmoves.journal.interface import MakeFunction
from trollmoves.journal.records import AnnouncementRecord, Version, to_sqlite_text
from trollmoves.journal.sqlite.database import JournalDatabase

_LATEST_VERSION = (  # a quarter less time to announce a single file
    "SELECT uri, size, mtime FROM announcements WHERE chain = ? AND uri = ? ORDER BY number DESC LIMIT 1"
)
_LATEST_VERSIONS = (  # of many files in one statement
    "SELECT f.value, a.size, a.mtime FROM json_each(?) f JOIN announcements a ON a.id = (SELECT id FROM announcements "
    "WHERE chain = ? AND uri = f.value ORDER BY number DESC LIMIT 1)"
)
_COLUMNS = "number, uri, uid, size, mtime, message"
SCAN_BATCH = 2000  # announcements examined in one query
MAX_PAGE_LENGTH = 250_000  # characters of the messages in one result; a line of 20 kB/s carries them within 15 s
MAX_LIST_LENGTH = 4_000_000  # characters of the names in one result


class AnnouncementTable(JournalDatabase):
    """The announcements in a journal."""

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
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND uri = ? ORDER BY number DESC LIMIT 1",
            (chain, to_sqlite_text(uri)),
        )
        return AnnouncementRecord(*rows[0]) if rows else None

    def get_announcement(self, chain: str, number: int) -> AnnouncementRecord | None:
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND number = ?",
            (chain, number),
        )
        return AnnouncementRecord(*rows[0]) if rows else None

    def get_announcements(self, chain: str, numbers: Collection[int]) -> dict[int, AnnouncementRecord]:
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND number IN ({','.join('?' * len(numbers))})",
            (chain, *numbers),
        )
        return {row[0]: AnnouncementRecord(*row) for row in rows}

    def announcements_after(self, chain: str, number: int, limit: int) -> list[AnnouncementRecord]:
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND number > ? ORDER BY number LIMIT ?",
            (chain, number, limit),
            _length_limit(MAX_PAGE_LENGTH),
        )
        return [AnnouncementRecord(*row) for row in rows]

    def number_before(self, chain: str, created: float) -> int:
        low = int(self._read("SELECT min(number) FROM announcements WHERE chain = ?", (chain,))[0][0] or 1) - 1
        high = self.last_number(chain)
        before = 0
        while low < high:  # binary search: many announcements may be newer
            middle = (low + high + 1) // 2
            rows = self._read(
                "SELECT number, created FROM announcements "
                "WHERE chain = ? AND number <= ? ORDER BY number DESC LIMIT 1",
                (chain, middle),
            )
            if not rows or rows[0][1] >= created:
                high = middle - 1
            else:
                before, low = int(rows[0][0]), middle
        return before

    def newest_files(self, chain: str, limit: int) -> list[tuple[str, str]]:
        return self._read(
            "SELECT substr(message, 1, instr(message, ' ') - 1), uid FROM announcements WHERE chain = ? "
            "ORDER BY number DESC LIMIT ?",
            (chain, limit),
            _length_limit(MAX_LIST_LENGTH),
        )

    def undelivered_announcements(
        self, chain: str, kinds: Sequence[str], after: int, limit: int
    ) -> list[AnnouncementRecord]:
        placeholders = ",".join("?" * len(kinds))
        found: list[AnnouncementRecord] = []
        length = 0
        last = self.last_number(chain)
        while after < last and len(found) < limit:  # in batches: nearly all may have been delivered
            rows = self._read(
                f"SELECT {_COLUMNS} FROM announcements a WHERE chain = ? AND number > ? AND number <= ? "
                "AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.announcement_number = a.number AND t.chain = a.chain "
                f"AND t.kind IN ({placeholders}) AND (t.state = 1 OR t.state = 3 AND NOT EXISTS (SELECT 1 FROM tasks o "
                "WHERE o.announcement_number = a.number AND o.chain = a.chain AND o.kind = t.kind AND o.state IN (0, 2)"
                "))) ORDER BY number LIMIT ?",
                (chain, after, after + SCAN_BATCH, *kinds, limit - len(found)),
                _length_limit(MAX_PAGE_LENGTH - length),
            )
            found += [AnnouncementRecord(*row) for row in rows]
            length += sum(len(row[-1]) for row in rows)
            if length >= MAX_PAGE_LENGTH:
                break
            after += SCAN_BATCH
        return found


def _length_limit(limit: int) -> Callable[[Sequence[object]], bool]:
    """Return a function that returns True once the rows passed to it have ``limit`` characters in their last column."""
    length = 0

    def is_reached(row: Sequence[object]) -> bool:
        nonlocal length
        length += len(str(row[-1]))
        return length >= limit

    return is_reached
