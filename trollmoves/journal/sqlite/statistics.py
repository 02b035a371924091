"""Counts the tasks of a journal on a separate connection, so that other threads do not wait."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from trollmoves.journal.common.statistics import StatisticsQueries
from trollmoves.journal.sqlite.database import JournalDatabase
from trollmoves.journal.sqlite.files import to_journal_error
from trollmoves.journal.sqlite.wanted import WANTED, add_functions

READ_TIMEOUT = 5.0  # s to wait for a lock of the file
FILES = ("", "-wal", "-shm")  # suffixes of the files of an open journal


class Statistics(JournalDatabase, StatisticsQueries):
    """The statistics of a journal."""

    WANTED = WANTED
    LAST_ANNOUNCED = (
        "SELECT chain, (SELECT created FROM announcements WHERE id = last) FROM "
        "(SELECT chain, max(id) AS last FROM announcements GROUP BY chain)"
    )

    @contextmanager
    def _reading(self) -> Iterator[Callable[..., list[Any]]]:
        try:
            uri = f"{Path(self.path).as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=READ_TIMEOUT, isolation_level=None)) as db:
                add_functions(db)
                db.execute("BEGIN")  # all queries read the same state

                def read(statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
                    return db.execute(statement, parameters).fetchall()

                yield read
        except sqlite3.Error as error:
            raise to_journal_error(f"the journal {self.path} cannot be read: {error}", error) from error

    def size(self) -> int:
        return journal_size(self.path)


def journal_size(path: str) -> int:
    """Return the bytes of the files of a journal."""
    size = 0
    for suffix in FILES:
        with suppress(OSError):
            size += os.stat(path + suffix).st_size
    return size
