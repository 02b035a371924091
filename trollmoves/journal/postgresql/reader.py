"""Reads a journal on PostgreSQL without being a member of its fleet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trollmoves.errors import JournalError
from trollmoves.journal.common.reader import ReaderQueries, wanted
from trollmoves.journal.postgresql.database import PostgresDatabase
from trollmoves.journal.postgresql.location import parse_location
from trollmoves.journal.postgresql.members import members_of
from trollmoves.journal.postgresql.queries import PostgresQueries
from trollmoves.journal.postgresql.secrets import without_encrypted
from trollmoves.journal.views import MemberRow, TaskRow


class PostgresReader(PostgresQueries, ReaderQueries):
    """A connection to a journal that only reads. One thread."""

    # NULL if the body is encrypted, or of a legacy client.
    WANTED = wanted("""substring({} from '"request": \\{{"id": "(([^"\\\\]|\\\\.)*)/')""")
    OLDEST_REPLY = "(array_agg(t.reply ORDER BY coalesce(a.created, t.created)))[1]"
    STEP = "trunc(finished / ?)::bigint"

    def __init__(self, url: str) -> None:
        """Connect; JournalError if the journal does not exist, or was written by another version."""
        self._database = PostgresDatabase(parse_location(url), creates=False)
        self.path = self._database.path
        self.meta = dict(self._read("SELECT key, value FROM meta"))

    def __exit__(self, *_: object) -> None:
        self._database.close_connections()

    def _tasks(self, *arguments: Any, **options: Any) -> list[TaskRow]:
        return [row._replace(body=without_encrypted(row.body)) for row in super()._tasks(*arguments, **options)]

    def _ranges(self, table: str) -> Iterator[tuple[int, int]]:  # noqa: ARG002
        yield 0, 2**63 - 1  # a long query delays no other one

    # -- the database

    def members(self) -> list[MemberRow]:
        return members_of(self._database)

    def size(self) -> int:
        return self._database.size()

    def _sizes(self) -> tuple[int, int, int]:
        return self._database.size(), 0, 0

    def back_up(self, copy: str) -> None:
        """Raise JournalError: PostgreSQL has programs for backups."""
        schema = self._database.location.schema
        raise JournalError(f"cannot write the backup {copy}: use pg_dump --schema={schema}, or a backup of the cluster")
