"""Members of this version go on while one of a later version migrates the tables of their journal on PostgreSQL."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psycopg
import pytest

from trollmoves.journal import DONE, LaneDemand, Outage, Outcome, SourcePosition
from trollmoves.journal.postgresql import PostgresJournal
from trollmoves.journal.postgresql.schema import MIGRATIONS, layout_of, prepare_schema
from trollmoves.tests.helpers.journals import announced, new_schema, shared_server, task
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql

pytestmark = pytest.mark.skipif(bool(postgresql.missing()), reason=f"missing: {postgresql.missing()}")

TABLES = ("meta", "members", "leases", "logs", "tasks", "announcements", "sources", "lanes", "slots", "outages")
LATER = (  # as a later version may migrate: only additions
    *MIGRATIONS,
    "".join(f"ALTER TABLE {table} ADD COLUMN later text NOT NULL DEFAULT 'x';" for table in TABLES)
    + "CREATE TABLE later (key text PRIMARY KEY); CREATE INDEX tasks_later ON tasks (chain, later) WHERE state = 0",
)
MORE = 5  # rounds of each member after an event


class Member:
    """A member that shares work: its thread makes all kinds of changes, in rounds."""

    def __init__(self, url: str, name: str) -> None:
        self.journal = PostgresJournal(url, name=name, sharing=True)
        self.name = name
        self.rounds = 0
        self.errors: list[Exception] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name)
        self._thread.start()

    def _work(self) -> None:
        for number in itertools.count():
            if self._stopping.is_set():
                return
            try:
                self._make_changes(number)
            except Exception as error:
                self.errors.append(error)
                return
            self.rounds += 1

    def _make_changes(self, number: int) -> None:
        journal, sharing = self.journal, self.journal.sharing
        assert sharing
        assert journal.take("fleet")
        tasks = [task(f"{self.name} {number} {n}", f"lane {self.name}") for n in range(5)]
        journal.add_tasks(tasks, [("chain", SourcePosition(f"log {self.name}", "host:1", number))])
        again = task(f"{self.name} {number} merged", f"lane {self.name}")
        journal.merge([again], (), lambda *_: [])
        journal.append("chain", (), lambda _, first: [announced(first)])
        sharing.refresh()
        sharing.divide([LaneDemand("chain", f"lane {self.name}", 4, 0, wants=True)], ())
        sharing.store_outage("chain", f"lane {self.name}", Outage(1, 0.0, held=False) if number % 2 else None)
        claimed = journal.claim("chain", f"lane {self.name}", 10, journal.now() + 1)
        journal.finish([Outcome(one, DONE) for one in claimed])
        journal.store_lanes()

    def goes_on(self) -> None:
        """Wait for further rounds."""
        wanted = self.rounds + MORE
        until(lambda: self.errors or self.rounds >= wanted, what=f"{self.name} goes on")
        assert self.errors == []

    def stop(self) -> None:
        """Stop the thread."""
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def url() -> str:
    """Return the URL of a new journal."""
    return new_schema(shared_server())


@pytest.fixture
def members(url: str) -> Iterator[list[Member]]:
    """Return two members at work."""
    members = [Member(url, name) for name in ("one", "two")]
    yield members
    for member in members:
        member.stop()
        member.journal.close()


def test_members_that_start_together_create_the_tables_once(url: str) -> None:
    """Of members that wait for each other to create the tables, one does, and all use them."""
    schema = url.rpartition("schema=")[2]
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with psycopg.connect(shared_server().url, autocommit=True) as db, ThreadPoolExecutor(3) as pool:
        with db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(hashtext('trollmoves ' || %s))", (schema,))
            opened = [pool.submit(PostgresJournal, url) for _ in range(3)]
            until(lambda: db.execute(waiting).fetchall() == [(3,)], what="all wait for the lock")
        journals = [one.result() for one in opened]
    assert len({journal.identity for journal in journals}) == 1
    for journal in journals:
        journal.close()


def test_migration_under_load(url: str, members: list[Member]) -> None:
    """A migration that cannot lock a table in time is given up, and repeated; members go on before and afterwards."""
    schema = url.rpartition("schema=")[2]

    def migrate() -> bool:
        with psycopg.connect(shared_server().url, autocommit=True) as db:
            db.execute(f"SET search_path TO {schema}".encode())
            with suppress(psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                prepare_schema(db, schema, LATER)
            return layout_of(db, schema) == len(LATER)

    for member in members:
        member.goes_on()
    with psycopg.connect(shared_server().url) as reader:
        reader.execute(f"LOCK TABLE {schema}.tasks IN ACCESS SHARE MODE".encode())
        assert not migrate()
        for member in members:
            member.goes_on()
    until(migrate, 60, "the tables are migrated")
    for member in members:
        member.goes_on()
    for member in members:
        member.stop()
    late = PostgresJournal(url)
    assert late.count("chain") == {"waiting": 0, "done": 6 * sum(member.rounds for member in members), "failed": 0}
    assert late.last_number("chain") == sum(member.rounds for member in members)
    late.close()
