"""Queries of the numbered announcement log of each chain that are the same in all engines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from trollmoves.journal.common.queries import Queries, placeholders
from trollmoves.journal.records import AnnouncementRecord

COLUMNS = "number, uri, uid, size, mtime, message, created"
_MESSAGE = 5  # its index in them
SCAN_BATCH = 2000  # announcements examined in one query
MAX_PAGE_LENGTH = 250_000  # characters of the messages in one result; a line of 20 kB/s carries them within 15 s
MAX_LIST_LENGTH = 4_000_000  # characters of the names in one result


class AnnouncementQueries(Queries):
    """The announcements in a journal."""

    FIRST_WORD: ClassVar[str]  # of a message
    UNDELIVERED: ClassVar[str]  # condition of announcements ``a`` without a finished task of ``{kinds}``

    @abstractmethod
    def last_number(self, chain: str) -> int: ...

    def _here(self, chain: str) -> tuple[str, Sequence[str]]:  # noqa: ARG002
        """Return the condition for announcements of files that this process can have, and its values."""
        return "", ()

    @abstractmethod
    def _read_until(
        self, statement: str, parameters: Sequence[Any], enough: Callable[[Sequence[object]], bool]
    ) -> list[Any]:
        """Return the rows of a query, through the first one for which ``enough`` returns True."""

    def _records(self, where: str, *parameters: Any) -> list[AnnouncementRecord]:
        rows = self._read(f"SELECT {COLUMNS} FROM announcements WHERE {where}", parameters)
        return [AnnouncementRecord(*row) for row in rows]

    def get_announcement(self, chain: str, number: int) -> AnnouncementRecord | None:
        return next(iter(self._records("chain = ? AND number = ?", chain, number)), None)

    def announcements_after(self, chain: str, number: int, limit: int) -> list[AnnouncementRecord]:
        here, values = self._here(chain)
        rows = self._read_until(
            f"SELECT {COLUMNS} FROM announcements WHERE chain = ? AND number > ? {here} ORDER BY number LIMIT ?",
            (chain, number, *values, limit),
            _length_limit(MAX_PAGE_LENGTH, _MESSAGE),
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
        here, values = self._here(chain)
        return self._read_until(
            f"SELECT {self.FIRST_WORD}, uid FROM announcements WHERE chain = ? {here} ORDER BY number DESC LIMIT ?",
            (chain, *values, limit),
            _length_limit(MAX_LIST_LENGTH),
        )

    def undelivered_announcements(
        self, chain: str, kinds: Sequence[str], after: int, limit: int
    ) -> list[AnnouncementRecord]:
        undelivered = self.UNDELIVERED.format(kinds=placeholders(kinds))
        here, values = self._here(chain)
        found: list[AnnouncementRecord] = []
        length = 0
        last = self.last_number(chain)
        while after < last and len(found) < limit:  # in batches: nearly all may have been delivered
            rows = self._read_until(
                f"SELECT {COLUMNS} FROM announcements a WHERE chain = ? AND number > ? AND number <= ? "
                f"AND {undelivered} {here} ORDER BY number LIMIT ?",
                (chain, after, after + SCAN_BATCH, *kinds, *values, limit - len(found)),
                _length_limit(MAX_PAGE_LENGTH - length, _MESSAGE),
            )
            found += [AnnouncementRecord(*row) for row in rows]
            length += sum(len(row[_MESSAGE]) for row in rows)
            if length >= MAX_PAGE_LENGTH:
                break
            after += SCAN_BATCH
        return found


def _length_limit(limit: int, column: int = -1) -> Callable[[Sequence[object]], bool]:
    """Return a function that returns True once the rows passed to it have ``limit`` characters in a column."""
    length = 0

    def is_reached(row: Sequence[object]) -> bool:
        nonlocal length
        length += len(str(row[column]))
        return length >= limit

    return is_reached
