"""The numbered log of each chain, from which a peer may ask for what it missed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from trollmoves.journal.database import JournalDatabase
from trollmoves.journal.records import AnnouncementRecord, to_sqlite_text

_COLUMNS = "number, uri, uid, size, mtime, message"
SCAN_BATCH = 2000  # announcements looked through at one time


class AnnouncementTable(JournalDatabase):
    """The announcements in a journal."""

    def __init__(
        self, path: str, *, synchronous: str = "normal", damage: str = "", on_damage: Callable[[], None] | None = None
    ) -> None:
        self._numbers: dict[str, int] = {}  # the last one by chain
        super().__init__(path, synchronous=synchronous, damage=damage, on_damage=on_damage)

    def _roll_back(self) -> None:
        self._numbers.clear()
        super()._roll_back()

    def append_announcements(self, chain: str, announced: Sequence[AnnouncementRecord]) -> None:
        """Append to the log of a chain. The numbers must continue those of the chain (see ``last_number``)."""
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
                    for a in announced
                ],
            )
            if announced:
                self._numbers[chain] = announced[-1].number

    def last_number(self, chain: str) -> int:
        """Give the number of the newest announcement of a chain, 0 when there was none."""
        number = self._numbers.get(chain)
        if number is None:
            with self._transaction() as db:  # nobody announces between the look and the remembering
                row = db.execute("SELECT max(number) FROM announcements WHERE chain = ?", (chain,)).fetchone()
                number = self._numbers[chain] = int(row[0] or 0)
        return number

    def latest_announcement(self, chain: str, uri: str) -> AnnouncementRecord | None:
        """Give the newest announcement of a file, None when this chain never announced it."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND uri = ? ORDER BY number DESC LIMIT 1",
            (chain, to_sqlite_text(uri)),
        )
        return AnnouncementRecord(*rows[0]) if rows else None

    def latest_versions(self, chain: str, uris: Iterable[str]) -> dict[str, tuple[int | None, int | None]]:
        """Give (size, mtime) of the newest announcement of each file that this chain announced."""
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
        """Give one announcement by its number."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND number = ?",
            (chain, number),
        )
        return AnnouncementRecord(*rows[0]) if rows else None

    def get_announcements(self, chain: str, numbers: Collection[int]) -> dict[int, AnnouncementRecord]:
        """Give announcements by their numbers, as far as there are such."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND number IN ({','.join('?' * len(numbers))})",
            (chain, *numbers),
        )
        return {row[0]: AnnouncementRecord(*row) for row in rows}

    def announcements_after(self, chain: str, number: int, limit: int) -> list[AnnouncementRecord]:
        """Give the announcements that came after ``number``, oldest first, at most ``limit``."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND number > ? ORDER BY number LIMIT ?",
            (chain, number, limit),
        )
        return [AnnouncementRecord(*row) for row in rows]

    def number_before(self, chain: str, noted: float) -> int:
        """Give the number of the last announcement made before a time (see ``now``), 0 when there is none."""
        low = int(self._read("SELECT min(number) FROM announcements WHERE chain = ?", (chain,))[0][0] or 1) - 1
        high = self.last_number(chain)
        before = 0
        while low < high:  # by halves: there may be very many after that time
            middle = (low + high + 1) // 2
            rows = self._read(
                "SELECT number, created FROM announcements "
                "WHERE chain = ? AND number <= ? ORDER BY number DESC LIMIT 1",
                (chain, middle),
            )
            if not rows or rows[0][1] >= noted:
                high = middle - 1
            else:
                before, low = int(rows[0][0]), middle
        return before

    def newest_announcements(self, chain: str, limit: int) -> list[AnnouncementRecord]:
        """Give the newest announcements of a chain, newest first."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? ORDER BY number DESC LIMIT ?",
            (chain, limit),
        )
        return [AnnouncementRecord(*row) for row in rows]

    def undelivered_announcements(
        self, chain: str, kinds: Sequence[str], after: int, limit: int
    ) -> list[AnnouncementRecord]:
        """Give announcements after a number that no finished task of ``kinds`` is about, oldest first."""
        marks = ",".join("?" * len(kinds))
        found: list[AnnouncementRecord] = []
        last = self.last_number(chain)
        while after < last and len(found) < limit:  # in pieces: nearly all may have been delivered
            rows = self._read(
                f"SELECT {_COLUMNS} FROM announcements a WHERE chain = ? AND number > ? AND number <= ? "
                "AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.announcement_number = a.number AND t.chain = a.chain "
                f"AND t.kind IN ({marks}) AND t.state = 1) ORDER BY number LIMIT ?",
                (chain, after, after + SCAN_BATCH, *kinds, limit - len(found)),
            )
            found += [AnnouncementRecord(*row) for row in rows]
            after += SCAN_BATCH
        return found
