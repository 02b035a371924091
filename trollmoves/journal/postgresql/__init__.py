"""A journal on PostgreSQL, which several members of a fleet share. Only this package uses psycopg.

Tables: see ``schema``. Logins in the bodies of tasks are encrypted (``secrets``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from trollmoves.errors import JournalError
from trollmoves.journal.clock import boot_time
from trollmoves.journal.common.sources import SourceQueries
from trollmoves.journal.common.statistics import StatisticsQueries
from trollmoves.journal.postgresql.announcements import PostgresAnnouncements
from trollmoves.journal.postgresql.database import PostgresDatabase
from trollmoves.journal.postgresql.loading import load, migrate
from trollmoves.journal.postgresql.location import parse_location
from trollmoves.journal.postgresql.members import FLEET, LEASE, Membership, members_of
from trollmoves.journal.postgresql.offline import record_offline, running_pid
from trollmoves.journal.postgresql.orders import PostgresOrders
from trollmoves.journal.postgresql.pruning import PostgresPruning
from trollmoves.journal.postgresql.reader import PostgresReader
from trollmoves.journal.postgresql.secrets import LoginCipher
from trollmoves.journal.postgresql.sharing import PostgresSharing
from trollmoves.journal.views import MemberRow

__all__ = ["PostgresJournal", "PostgresReader", "load", "migrate", "record_offline", "running_pid"]

CLOCK_INTERVAL = 60.0  # s between two comparisons with the clock of the engine


class PostgresJournal(PostgresOrders, PostgresAnnouncements, PostgresPruning, StatisticsQueries, SourceQueries):
    """An open journal, and this process as a member of its fleet, until ``close``."""

    WANTED = PostgresReader.WANTED
    LAST_ANNOUNCED = (
        "SELECT chain, (SELECT created FROM announcements a WHERE a.chain = logs.chain ORDER BY number DESC LIMIT 1) "
        "FROM logs"
    )
    replaced = False

    def __init__(
        self,
        url: str,
        *,
        synchronous: str = "normal",
        name: str = "",
        lease: float = LEASE,
        on_damage: Callable[[], None] | None = None,
        sharing: bool = False,
    ) -> None:
        """Open or create the journal at a URL (see ``parse_location``), as a new member; see also ``open_journal``.

        ``synchronous``: "normal" (a committed row survives the death of the engine, perhaps not a fail-over to its
        standby) or "full" (as the engine is configured). ``name``: of this member, for people; by default that of the
        host. ``on_damage`` is called when another member has taken over the tasks of this one.

        Raises:
            JournalUnusable: the URL, the login, the rights or the version is wrong.
            JournalError: the engine cannot be reached now.
        """
        location = parse_location(url)
        cipher = LoginCipher(location.key_file)
        database = PostgresDatabase(location, synchronous_commit="local" if synchronous == "normal" else "")
        try:
            membership = Membership(database, name, on_damage, lease)
        except BaseException:
            database.close_connections()
            raise
        self.sharing = PostgresSharing(database, membership) if sharing else None
        super().__init__(database, membership, cipher, self.sharing)
        self._url = url
        self.path = database.path
        self.identity = database.identity
        self.life = membership.life
        self._doubtful_appends = {}
        self._last_here = {}
        self._clock_measured = boot_time()

    @property
    def damage(self) -> str:
        """Why the journal cannot be used until it is opened again; empty while it can."""
        return self._database.damage

    def still(self) -> bool:
        return self._membership.still()

    def open_reader(self) -> PostgresReader:
        return PostgresReader(self._url)

    def take(self, what: str) -> bool:
        return self._membership.take_share() if self.sharing and what == FLEET else self._membership.take(what)

    def keep_on_host(self, chain: str, kind: str, *, until_shared: bool = False) -> None:
        if self.sharing:
            self.sharing.keep_on_host(chain, kind, until_shared=until_shared)

    def members(self) -> list[MemberRow]:
        return members_of(self._database)

    def size(self) -> int:
        return self._database.size()

    def record_owner(self, role: str, config_file: str) -> None:
        for key, value in (("role", role), ("config", os.path.abspath(config_file))):
            self._store_meta(key, value)

    def check_writable(self) -> None:
        self._store_meta("time", repr(self.now()))

    def check_file(self) -> None:
        """Compare the clock with that of the engine; call it every minute."""
        if boot_time() - self._clock_measured > CLOCK_INTERVAL / 2:
            with suppress(JournalError):
                self.check_writable()
                self._database.measure_clock()
                self._clock_measured = boot_time()

    def _store_meta(self, key: str, value: str) -> None:
        store = "INSERT INTO meta VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        self._database.run_statement(lambda db: db.execute(store, (key, value)))

    def close(self) -> None:
        """Write the states of lanes, give back all tasks and leases, and close the connections."""
        if self.sharing:
            self.sharing.stop()
        with suppress(JournalError):
            self.store_lanes()
        with suppress(JournalError):
            self._membership.leave()
        self._database.close_connections()
