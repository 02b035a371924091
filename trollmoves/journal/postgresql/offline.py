"""Commands on a journal on PostgreSQL while its daemon does not run on this host."""

from __future__ import annotations

from trollmoves.errors import JournalError, JournalUnusable
from trollmoves.journal.postgresql.database import Connection, PostgresDatabase
from trollmoves.journal.postgresql.location import parse_location
from trollmoves.journal.postgresql.members import ProcessId
from trollmoves.journal.postgresql.orders import store_order


def running_pid(url: str) -> int | None:
    """Return the id of the process on this host that is a member, None if none is, or the engine does not answer."""
    try:
        database = PostgresDatabase(parse_location(url), creates=False)
    except JournalError:
        return None
    try:
        rows = database.read("SELECT process FROM members WHERE NOT gone ORDER BY id DESC")
    except JournalError:
        return None
    finally:
        database.close_connections()
    processes = (ProcessId.parse(process) for (process,) in rows)
    return next((process.pid for process in processes if process.is_here() and not process.has_ended()), None)


def record_offline(url: str, key: str, body: str) -> None:
    """Store an order while no member works or waits; the next one carries it out.

    Raises:
        JournalUnusable: a member on another host would not carry it out.
        JournalError: the journal does not exist, cannot be written now, or a daemon on this host starts or stops.
    """
    database = PostgresDatabase(parse_location(url), creates=False)

    def work(db: Connection) -> None:
        db.execute("LOCK TABLE members IN SHARE ROW EXCLUSIVE MODE")  # a member that starts now waits for the order
        rows = db.execute(
            "SELECT name, process FROM members WHERE NOT gone "
            "AND lease_until > extract(epoch FROM clock_timestamp()) ORDER BY id"
        ).fetchall()
        for name, text in rows:
            process = ProcessId.parse(text)
            if not process.is_here():
                raise JournalUnusable(f"the journal {database.path} is in use by {name}: give the order on that host")
            if not process.has_ended():
                raise JournalError(f"the journal {database.path} is in use by process {process.pid}")
        store_order(db, key, body, database.now())

    try:
        database.run(work)
    finally:
        database.close_connections()
