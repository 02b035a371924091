"""The members of a fleet: each start of a daemon is one, has a lease, and loses its tasks when the lease expires.

All times are those of the engine's clock. A member renews its lease five times in its duration. One that could not do
this for FENCED_AFTER of its duration fences itself: it completes no transfer, because another member may take over its
tasks. Any member buries those with an expired lease: their tasks and leases become free.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from trollmoves import __version__
from trollmoves.errors import JournalError
from trollmoves.journal.clock import boot_time
from trollmoves.journal.postgresql.database import Connection, PostgresDatabase
from trollmoves.journal.views import MemberRow

logger = logging.getLogger(__name__)

LEASE = 10.0  # s
FLEET = "fleet"  # the lease of the member that works; with its id for each one of several that work
RENEWALS = 5  # in the duration of a lease
FENCED_AFTER = 0.7  # of the duration of a lease without a renewal
MAX_TRIED = 8  # lives that are kept with a task
_SHARING = f"{FLEET} "
_FREE_PROBE = "UPDATE outages SET prober = NULL WHERE prober"
NOTIFY = "SELECT pg_notify('trollmoves ' || md5(current_schema()), '')"  # tasks are free
_CLOCK = "extract(epoch FROM clock_timestamp())::float8"
TRIED = (
    "CASE WHEN holder = ANY(tried_by) OR holder IS NULL THEN tried_by "
    f"ELSE (tried_by || holder)[greatest(cardinality(tried_by) - {MAX_TRIED - 2}, 1):] END"
)


class KilledMember(NamedTuple):
    """A member that was killed: when it last lived, and the addresses at which it received the requests of chains."""

    id: int
    at: float
    addresses: Mapping[str, str]


class Membership:
    """This process as a member of a fleet; its thread renews the lease. Any thread.

    ``on_lost`` is called once, on the thread, when another member has buried this one: the process must open the
    journal again, to become a new member.
    """

    def __init__(
        self,
        database: PostgresDatabase,
        name: str,
        on_lost: Callable[[], None] | None,
        lease: float,
    ) -> None:
        """Become a member with a lease of ``lease`` seconds, and bury those of ended processes on this host."""
        self.lease = lease
        self.name = name or socket.gethostname()
        self.is_lost = False
        self.held = 0  # tasks that this member holds, as of the last renewal
        self._database = database
        self._on_lost = on_lost
        self._stop = threading.Event()
        self._connected_since = boot_time()
        self._killed: Sequence[KilledMember] = ()
        self._killed_lock = threading.Lock()
        self._process = ProcessId.own()
        started = boot_time()
        self.id = int(database.run_statement(self._register))
        self.life = str(self.id)
        database.member = self.id
        self._fenced_at = started + FENCED_AFTER * self.lease
        with suppress(JournalError):
            self.bury_ended()
        self._thread = threading.Thread(target=self._renew_all, name="journal-lease", daemon=True)
        self._thread.start()

    def still(self) -> bool:
        """Return True while no other member can have taken over the tasks of this one."""
        return boot_time() < self._fenced_at and not self.is_lost

    def _register(self, db: Connection) -> Any:
        row = db.execute(
            "INSERT INTO members (name, process, version, started, renewed, lease_until) "
            f"SELECT %s, %s, %s, t, t, t + %s FROM (SELECT {_CLOCK} AS t) clock RETURNING id",
            (self.name, str(self._process), __version__, self.lease),
        ).fetchone()
        assert row is not None  # noqa: S101
        return row[0]

    # -- the lease of this member

    def _renew_all(self) -> None:
        db: Connection | None = None
        while not self._stop.wait(self.lease / RENEWALS):
            try:
                if db is None or db.closed:
                    db = self._database.connect()
                    self._connected_since = boot_time()
                    db.execute("SET lock_timeout TO '1s'")  # a burial that waits longer would prevent the next renewal
                self._renew(db)
                if self.is_lost:
                    break
                self._bury_expired(db)
            except (psycopg.Error, JournalError) as error:
                logger.debug("the lease of this member of %s cannot be renewed now: %s", self._database.path, error)
                if db is not None:
                    db.close()
        if db is not None:
            db.close()

    def _renew(self, db: Connection) -> None:
        started = boot_time()  # before the request: the engine counts from a later time
        row = db.execute(
            f"UPDATE members SET renewed = {_CLOCK}, lease_until = {_CLOCK} + %s WHERE id = %s AND NOT gone "
            "RETURNING (SELECT count(*) FROM tasks WHERE holder = %s AND state = 0)",
            (self.lease, self.id, self.id),
        ).fetchone()
        if row is None:
            self.is_lost = True
            logger.error(
                "another member of %s has taken over the tasks of this one, which did not renew its lease in time; "
                "opening the journal as a new member",
                self._database.path,
            )
            self._database.damage = "another member has taken over the tasks of this one"
            if self._on_lost:
                self._on_lost()
            return
        self._fenced_at = started + FENCED_AFTER * self.lease
        self.held = row[0]

    def leave(self) -> None:
        """Give back all leases and tasks; JournalError if the engine does not answer."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        if not self.is_lost:
            self._database.run(self._bury_self)
        self.is_lost = True

    def _bury_self(self, db: Connection) -> None:
        db.execute("SELECT 1 FROM members WHERE id = %s FOR UPDATE", (self.id,))  # waits for its other transactions
        _bury(db, [self.id], killed=False)

    # -- leases for a function

    def take(self, what: str) -> bool:
        """Take a lease, such as "fleet", or keep it; return False if another member has it."""

        def work(db: Connection) -> bool:
            row = db.execute(
                "INSERT INTO leases SELECT %s, id FROM members WHERE id = %s AND NOT gone AND (%s OR NOT EXISTS "
                "(SELECT 1 FROM leases WHERE starts_with(what, %s))) FOR KEY SHARE "
                "ON CONFLICT (what) DO UPDATE SET member = leases.member RETURNING member",
                (what, self.id, what != FLEET, _SHARING),
            ).fetchone()
            return row is not None and row[0] == self.id

        return self._database.run_statement(work)

    def take_share(self) -> bool:
        """Become one of several members that work; return False while one works alone."""

        def work(db: Connection) -> bool:
            return bool(
                db.execute(
                    "INSERT INTO leases SELECT %s, id FROM members WHERE id = %s AND NOT gone "
                    "AND NOT EXISTS (SELECT 1 FROM leases WHERE what = %s) FOR KEY SHARE "
                    "ON CONFLICT (what) DO UPDATE SET member = leases.member",
                    (f"{_SHARING}{self.id}", self.id, FLEET),
                ).rowcount
            )

        return self._database.run_statement(work)

    # -- burials

    def _bury_expired(self, db: Connection) -> None:
        """Bury members with an expired lease; not until each one could renew it after an outage of the engine."""
        if boot_time() - self._connected_since < self.lease:
            return
        with db.transaction():
            rows = db.execute(
                f"SELECT id, name, {_CLOCK} - renewed FROM members WHERE NOT gone AND lease_until < {_CLOCK} "
                f"AND id <> %s AND extract(epoch FROM pg_postmaster_start_time()) + %s < {_CLOCK} "
                "ORDER BY id FOR UPDATE SKIP LOCKED",
                (self.id, self.lease),
            ).fetchall()
            freed = _bury(db, [id_ for id_, _, _ in rows], killed=True)
        for _, name, ago in rows:
            logger.warning(
                "the member %s of %s did not renew its lease for %.1f s: its tasks are free (%d in all)",
                *(name, self._database.path, ago, freed),
            )

    def bury_ended(self) -> None:
        """Bury members of ended processes on this host, without waiting for the end of their leases."""

        def work(db: Connection) -> int:
            rows = db.execute(
                "SELECT id, process FROM members WHERE NOT gone AND id <> %s ORDER BY id FOR UPDATE SKIP LOCKED",
                (self.id,),
            ).fetchall()
            processes = [(id_, ProcessId.parse(text)) for id_, text in rows]
            return _bury(db, [id_ for id_, one in processes if one.is_here() and one.has_ended()], killed=True)

        self._database.run(work)

    def killed(self) -> Sequence[KilledMember]:
        """Return the killed members that this one replaces: each is replaced by the first one that calls this."""
        with self._killed_lock:
            new = self._database.run_statement(
                lambda db: [
                    KilledMember(id_, at, addresses_of(addresses))
                    for id_, at, addresses in db.execute(
                        "WITH killed AS (SELECT id, killed_at FROM members WHERE killed_at IS NOT NULL "
                        "ORDER BY id FOR UPDATE SKIP LOCKED) "
                        "UPDATE members m SET killed_at = NULL FROM killed WHERE m.id = killed.id "
                        "RETURNING m.id, killed.killed_at, m.addresses"
                    ).fetchall()
                ]
            )
            self._killed = [*self._killed, *new]
            return self._killed


def addresses_of(value: Any) -> dict[str, str]:
    """Return the addresses by chain in a row of ``members``; its default is an empty list."""
    return value if isinstance(value, dict) else {}


def members_of(database: PostgresDatabase) -> list[MemberRow]:
    """Return the present members, oldest first."""
    rows = database.read(
        f"SELECT id::text, name, version, {_CLOCK} - renewed, "
        "ARRAY(SELECT what FROM leases WHERE member = members.id ORDER BY what), "
        "(SELECT count(*) FROM tasks WHERE holder = members.id AND state = 0), "
        "ARRAY(SELECT '[' || chain || '] ' || lane || ' ' || number FROM slots WHERE member = members.id "
        "AND number > 0 ORDER BY chain, lane) "
        "FROM members WHERE NOT gone ORDER BY id"
    )
    return [MemberRow(*row) for row in rows]


def _bury(db: Connection, ids: list[int], *, killed: bool) -> int:
    """Free the tasks and leases of members within a transaction that has locked their rows; return the number of tasks.

    No task or lease is added for them in between: each transaction that does so locks the row of its member.
    """
    if not ids:
        return 0
    freed = db.execute(
        f"UPDATE tasks SET holder = NULL, tried_by = {TRIED} WHERE holder = ANY(%s::bigint[]) AND state = 0", (ids,)
    ).rowcount
    for change in ("DELETE FROM leases WHERE member", "DELETE FROM slots WHERE member", _FREE_PROBE):
        db.execute(f"{change} = ANY(%s::bigint[])".encode(), (ids,))
    if freed:
        db.execute(NOTIFY)
    # Alive when it last renewed its lease, or finished a task.
    db.execute(
        "UPDATE members m SET gone = true, killed_at = CASE WHEN %s THEN greatest(renewed, (SELECT max(finished) "
        "FROM tasks WHERE state <> 0 AND finished > m.renewed AND starts_with(done_by, m.id || ' '))) END "
        "WHERE id = ANY(%s::bigint[])",
        (killed, ids),
    )
    return freed


@dataclass(frozen=True)
class ProcessId:
    """What identifies a process on all hosts; its text is in the row of a member."""

    where: str  # boot and namespace
    pid: int
    started: str  # clock ticks since the boot

    @classmethod
    def own(cls) -> ProcessId:
        """Return that of this process."""
        return cls(_here(), os.getpid(), _start_time(os.getpid()))

    @classmethod
    def parse(cls, text: str) -> ProcessId:
        """Return the one with this text."""
        where, pid, started = text.rsplit(" ", 2)
        return cls(where, int(pid), started)

    def __str__(self) -> str:
        return f"{self.where} {self.pid} {self.started}"

    def is_here(self) -> bool:
        """Return True if it ran on this host, since its boot."""
        return self.where == _here()

    def has_ended(self) -> bool:
        """Return True if a process of this host has ended."""
        return _start_time(self.pid) != self.started


def _here() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()}/unknown"


def _start_time(pid: int) -> str:
    """Return the start time of a process in clock ticks since the boot, empty if it does not run."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if status[0] in ("Z", "X") else status[19]
