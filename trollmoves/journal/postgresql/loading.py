"""Copy the rows of a journal of another engine into an empty one on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable

from psycopg import sql

from trollmoves.errors import JournalUnusable
from trollmoves.journal.postgresql.database import Connection, PostgresDatabase
from trollmoves.journal.postgresql.location import parse_location
from trollmoves.journal.postgresql.secrets import LoginCipher
from trollmoves.journal.views import TableRows

_WITH_IDS = ("tasks", "announcements")


def migrate(url: str) -> str:
    """Create the tables of a journal, or migrate them to this version; return its URL without a password."""
    database = PostgresDatabase(parse_location(url))
    database.close_connections()
    return database.path


def load(url: str, tables: Iterable[TableRows]) -> dict[str, int]:
    """Copy tables into the journal at a URL in one transaction; return the numbers of rows.

    Numbers, ids and the identity are kept. Logins are encrypted.

    Raises:
        JournalUnusable: the journal is not empty, or a daemon has it open.
    """
    location = parse_location(url)
    cipher = LoginCipher(location.key_file)
    database = PostgresDatabase(location)
    try:
        with database.connection() as db, db.transaction():
            return _load(db, database.path, tables, cipher)
    finally:
        database.close_connections()


def _load(db: Connection, path: str, tables: Iterable[TableRows], cipher: LoginCipher) -> dict[str, int]:
    db.execute("SET LOCAL statement_timeout = 0")
    db.execute("LOCK TABLE members, tasks, announcements IN EXCLUSIVE MODE")
    row = db.execute(
        "SELECT EXISTS (SELECT FROM tasks) OR EXISTS (SELECT FROM announcements), "
        "EXISTS (SELECT FROM members WHERE NOT gone)"
    ).fetchone()
    if row != (False, False):
        raise JournalUnusable(f"the journal {path} must be empty and not in use: name a new schema (?schema=NAME)")
    counts: dict[str, int] = {}
    for table, columns, rows in tables:
        if table == "meta":
            for key, value in rows:
                db.execute(
                    "INSERT INTO meta VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                    (key, value),
                )
            continue
        body = columns.index("body") if "body" in columns else None
        copy = sql.SQL("COPY {} ({}) FROM STDIN").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        counts[table] = 0
        with db.cursor().copy(copy) as target:
            for values in rows:
                if body is not None:
                    values = (*values[:body], cipher.encrypt(str(values[body])), *values[body + 1 :])
                target.write_row(values)
                counts[table] += 1
    db.execute("INSERT INTO logs SELECT chain, max(number) FROM announcements GROUP BY chain")
    for table in _WITH_IDS:
        db.execute(
            sql.SQL(
                "SELECT setval(pg_get_serial_sequence({}, 'id'), (SELECT coalesce(max(id), 0) + 1 FROM {}))"
            ).format(sql.Literal(table), sql.Identifier(table))
        )
    return counts
