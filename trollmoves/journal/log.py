"""The numbered log of each chain, from which a peer may ask for what it missed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from trollmoves.journal.file import File
from trollmoves.journal.rows import Announced, storable

_COLUMNS = "number, uri, uid, size, mtime, message"
_LOOKED_AT_ONCE = 2000  # announcements looked through at one time


class Log(File):
    """The announcements in a journal."""

    def __init__(
        self, path: str, *, synchronous: str = "normal", damage: str = "", on_damage: Callable[[], None] | None = None
    ) -> None:
        self._numbers: dict[str, int] = {}  # the last one by chain
        super().__init__(path, synchronous=synchronous, damage=damage, on_damage=on_damage)

    def _roll_back(self) -> None:
        self._numbers.clear()
        super()._roll_back()

    def announce(self, chain: str, announced: Sequence[Announced]) -> None:
        """Append to the log of a chain. The numbers must continue those of the chain (see ``last_number``)."""
        now = self.now()
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO announcements (chain, number, uri, uid, size, mtime, noted, message) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (chain, a.number, storable(a.uri), storable(a.uid), a.size, a.mtime, now, storable(a.message))
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

    def announced(self, chain: str, uri: str) -> Announced | None:
        """Give the newest announcement of a file, None when this chain never announced it."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND uri = ? ORDER BY number DESC LIMIT 1",
            (chain, storable(uri)),
        )
        return Announced(*rows[0]) if rows else None

    def versions(self, chain: str, uris: Iterable[str]) -> dict[str, tuple[int | None, int | None]]:
        """Give (size, mtime) of the newest announcement of each file that this chain announced."""
        found: dict[str, tuple[int | None, int | None]] = {}
        for uri in uris:
            rows = self._read(
                "SELECT size, mtime FROM announcements WHERE chain = ? AND uri = ? ORDER BY number DESC LIMIT 1",
                (chain, storable(uri)),
            )
            if rows:
                found[uri] = rows[0]
        return found

    def announcement(self, chain: str, number: int) -> Announced | None:
        """Give one announcement by its number."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND number = ?",
            (chain, number),
        )
        return Announced(*rows[0]) if rows else None

    def announcements(self, chain: str, numbers: Collection[int]) -> dict[int, Announced]:
        """Give announcements by their numbers, as far as there are such."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND number IN ({','.join('?' * len(numbers))})",
            (chain, *numbers),
        )
        return {row[0]: Announced(*row) for row in rows}

    def announced_after(self, chain: str, number: int, limit: int) -> list[Announced]:
        """Give the announcements that came after ``number``, oldest first, at most ``limit``."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? AND number > ? ORDER BY number LIMIT ?",
            (chain, number, limit),
        )
        return [Announced(*row) for row in rows]

    def number_before(self, chain: str, noted: float) -> int:
        """Give the number of the last announcement made before a time (see ``now``), 0 when there is none."""
        low = int(self._read("SELECT min(number) FROM announcements WHERE chain = ?", (chain,))[0][0] or 1) - 1
        high = self.last_number(chain)
        before = 0
        while low < high:  # by halves: there may be very many after that time
            middle = (low + high + 1) // 2
            rows = self._read(
                "SELECT number, noted FROM announcements WHERE chain = ? AND number <= ? ORDER BY number DESC LIMIT 1",
                (chain, middle),
            )
            if not rows or rows[0][1] >= noted:
                high = middle - 1
            else:
                before, low = int(rows[0][0]), middle
        return before

    def newest(self, chain: str, limit: int) -> list[Announced]:
        """Give the newest announcements of a chain, newest first."""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM announcements WHERE chain = ? ORDER BY number DESC LIMIT ?",
            (chain, limit),
        )
        return [Announced(*row) for row in rows]

    def undelivered(self, chain: str, kinds: Sequence[str], after: int, limit: int) -> list[Announced]:
        """Give announcements after a number that no finished task of ``kinds`` is about, oldest first."""
        marks = ",".join("?" * len(kinds))
        found: list[Announced] = []
        last = self.last_number(chain)
        while after < last and len(found) < limit:  # in pieces: nearly all may have been delivered
            rows = self._read(
                f"SELECT {_COLUMNS} FROM announcements a WHERE chain = ? AND number > ? AND number <= ? "
                "AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.about = a.number AND t.chain = a.chain "
                f"AND t.kind IN ({marks}) AND t.state = 1) ORDER BY number LIMIT ?",
                (chain, after, after + _LOOKED_AT_ONCE, *kinds, limit - len(found)),
            )
            found += [Announced(*row) for row in rows]
            after += _LOOKED_AT_ONCE
        return found
