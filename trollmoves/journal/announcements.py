"""The numbered announcement log of each chain, from which clients request missed announcements."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from trollmoves.journal.database import JournalDatabase
from trollmoves.journal.records import AnnouncementRecord, to_sqlite_text

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
        super().__init__(path, synchronous=synchronous, damage=damage, on_damage=on_damage)

    def _roll_back(self) -> None:
        self._numbers.clear()
        super()._roll_back()

    def append_announcements(self, chain: str, records: Sequence[AnnouncementRecord]) -> None:
        """Append to the log of a chain. The numbers must continue after ``last_number``."""
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
            if records:
                self._numbers[chain] = records[-1].number
                self._last_write = now

    def last_number(self, chain: str) -> int:
        """Return the number of the newest announcement of a chain, 0 if there is none."""
        number = self._numbers.get(chain)
        if number is None:
            with self._transaction() as db:  # prevents an append between the query and the caching
                row = db.execute("SELECT max(number) FROM announcements WHERE chain = ?", (chain,)).fetchone()
                number = self._numbers[chain] = int(row[0] or 0)
        return number

    def latest_announcement(self, chain: str, uri: str) -> AnnouncementRecord | None:
        """Return the newest announcement of a file, None if this chain never announced it."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND uri = ? ORDER BY number DESC LIMIT 1",
            (chain, to_sqlite_text(uri)),
        )
        return AnnouncementRecord(*rows[0]) if rows else None

    def latest_versions(self, chain: str, uris: Iterable[str]) -> dict[str, tuple[int | None, int | None]]:
        """Return (size, mtime in ns) of the newest announcement of each file that this chain announced."""
        found: dict[str, tuple[int | None, int | None]] = {}
        for uri in uris:
            rows = self._read(
                "SELECT size, mtime FROM announcements WHERE chain = ? AND uri = ? ORDER BY number DESC LIMIT 1",
                (chain, to_sqlite_text(uri)),
            )
            if rows:
                found[uri] = rows[0]
        return found

    def get_announcement(self, chain: str, number: int) -> AnnouncementRecord | None:
        """Return the announcement with this number, None if there is none."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND number = ?",
            (chain, number),
        )
        return AnnouncementRecord(*rows[0]) if rows else None

    def get_announcements(self, chain: str, numbers: Collection[int]) -> dict[int, AnnouncementRecord]:
        """Return the announcements with these numbers, by number, without missing ones."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND number IN ({','.join('?' * len(numbers))})",
            (chain, *numbers),
        )
        return {row[0]: AnnouncementRecord(*row) for row in rows}

    def announcements_after(self, chain: str, number: int, limit: int) -> list[AnnouncementRecord]:
        """Return at most ``limit`` announcements with numbers above ``number``, oldest first.

        The messages of all but the last one have less than ``MAX_PAGE_LENGTH`` characters together.
        """
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND number > ? ORDER BY number LIMIT ?",
            (chain, number, limit),
            _length_limit(MAX_PAGE_LENGTH),
        )
        return [AnnouncementRecord(*row) for row in rows]

    def number_before(self, chain: str, created: float) -> int:
        """Return the number of the last announcement created before a time (see ``now``), 0 if there is none."""
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
        """Return (first word of the message, uid) of at most ``limit`` announcements of a chain, newest first.

        All but the last one have less than ``MAX_LIST_LENGTH`` characters together.
        """
        return self._read(
            "SELECT substr(message, 1, instr(message, ' ') - 1), uid FROM announcements WHERE chain = ? "
            "ORDER BY number DESC LIMIT ?",
            (chain, limit),
            _length_limit(MAX_LIST_LENGTH),
        )

    def undelivered_announcements(
        self, chain: str, kinds: Sequence[str], after: int, limit: int
    ) -> list[AnnouncementRecord]:
        """Return announcements after a number without a finished task of ``kinds``, oldest first.

        A dropped task counts as finished, unless another one of the announcement waits or has failed.
        The messages of all but the last one have less than ``MAX_PAGE_LENGTH`` characters together.
        """
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
