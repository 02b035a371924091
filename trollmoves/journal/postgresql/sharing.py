"""The shared lanes of a fleet in PostgreSQL: parts of their limits, outages, and the wake-up of other members.

``slots`` has a row for each lane that has tasks at a member. All changes are made under one advisory lock, so the parts
of a lane never exceed its limit together; a part that was reduced is given back when its tasks have ended.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress

import psycopg
from psycopg.types.json import Json

from trollmoves.errors import JournalError
from trollmoves.journal.postgresql.database import Connection, PostgresDatabase
from trollmoves.journal.postgresql.members import FLEET, NOTIFY, Membership, addresses_of
from trollmoves.journal.records import WAITING, Task, to_sqlite_text
from trollmoves.journal.sharing import LaneDemand, Outage, WorkSource

logger = logging.getLogger(__name__)

NOTIFY_INTERVAL = 0.02  # s between two wake-ups of other members by this one: each takes a lock of the whole engine
FORGET_AFTER = 5.0  # s after the end of a pause in which an outage is kept without a task that waits
LISTEN_TIMEOUT = 1.0  # s between two looks at whether to stop
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('trollmoves slots ' || current_schema()))"
_MEMBERS = (
    "SELECT l.member, m.addresses FROM leases l JOIN members m ON m.id = l.member "
    "WHERE starts_with(l.what, %s) ORDER BY l.member"
)
_INTERRUPTED = (
    "SELECT announcement_number FROM tasks WHERE chain = %(chain)s AND kind = %(kind)s AND state = 0 "
    "AND announcement_number IS NOT NULL AND %(member)s = ANY(tried_by) UNION "
    "SELECT announcement_number FROM tasks WHERE chain = %(chain)s AND kind = %(kind)s AND state <> 0 "
    "AND announcement_number IS NOT NULL AND %(member)s = ANY(tried_by) AND finished >= %(at)s"
)
_DIVIDE = (
    "WITH asked AS (SELECT * FROM json_to_recordset(%(rows)s::json) AS r "
    "(place int, chain text, lane text, most int, used int, wanted bool)), "
    "others AS (SELECT a.place, coalesce(sum(s.number) FILTER (WHERE s.member <> %(me)s), 0) AS number, "
    "count(*) FILTER (WHERE s.wanted AND s.member <> %(me)s) AS wanting, "
    "min(s.number) FILTER (WHERE s.wanted AND s.member <> %(me)s) AS fewest, bool_or(s.member = %(me)s) AS known "
    "FROM asked a LEFT JOIN slots s ON s.chain = a.chain AND s.lane = a.lane GROUP BY a.place), "
    # The first part leaves the same to members that receive the same messages a moment later.
    "equal AS (SELECT a.*, o.number, o.fewest, a.most::numeric / CASE WHEN NOT a.wanted THEN greatest(%(members)s, 1) "
    "ELSE greatest(o.wanting + 1, CASE WHEN o.known THEN 1 ELSE %(members)s END) END AS part "
    "FROM asked a JOIN others o USING (place)), "
    # The remainder of the division is for members that ask when no other one has less than its equal part.
    "parts AS (SELECT place, chain, lane, used, wanted, greatest(0, least(most - number, CASE "
    "WHEN wanted AND (fewest IS NULL OR fewest >= floor(part)) THEN ceil(part) "
    "WHEN wanted THEN greatest(1, floor(part)) ELSE floor(part) END))::int AS part FROM equal), "
    "stored AS (INSERT INTO slots SELECT chain, lane, %(me)s, greatest(part, used), wanted FROM parts "
    "ORDER BY chain, lane ON CONFLICT (chain, lane, member) DO UPDATE "
    "SET number = excluded.number, wanted = excluded.wanted) "
    "SELECT part FROM parts ORDER BY place"
)
_FIND = (
    'WITH RECURSIVE chains AS (SELECT unnest(%(chains)s::text[]) COLLATE "C" AS chain), '
    "lanes (chain, lane) AS (SELECT chain, (SELECT min(lane) FROM tasks t WHERE t.chain = c.chain AND t.state = 0) "
    "FROM chains c UNION ALL SELECT l.chain, (SELECT min(t.lane) FROM tasks t WHERE t.chain = l.chain AND t.state = 0 "
    "AND t.lane > l.lane) FROM lanes l WHERE l.lane IS NOT NULL) "
    "SELECT l.chain, l.lane, f.kind FROM lanes l JOIN LATERAL (SELECT kind FROM tasks t WHERE t.chain = l.chain "
    "AND t.lane = l.lane AND t.state = 0 AND t.rank IN (0, 1) AND t.due <= %(now)s AND t.holder IS NULL "
    "AND t.place = ANY(%(places)s::text[]) LIMIT 1) f ON true WHERE l.lane IS NOT NULL"
)
# No task of the lane will end the outage: another member has run the last one.
_FORGET = (
    "DELETE FROM outages o WHERE paused_until < %(before)s AND NOT EXISTS (SELECT 1 FROM tasks t "
    "WHERE t.chain = o.chain AND t.lane = o.lane AND t.state = 0) RETURNING chain, lane"
)
_RELEASE = (
    "UPDATE tasks SET place = '' WHERE id IN (SELECT id FROM tasks WHERE id = ANY(%(ids)s::bigint[]) AND state = 0 "
    "AND place NOT IN ('', %(host)s) ORDER BY chain, kind, key FOR UPDATE)"
)
_KEYS = (
    "SELECT t.chain, t.kind, t.key FROM unnest(%s::text[], %s::text[]) AS wanted (chain, kind) "
    "JOIN tasks t ON t.chain = wanted.chain AND t.kind = wanted.kind"
)
Identity = tuple[str, str, str]


class Allotment:
    """Which tasks of one transaction this member holds: those of its keys, as long as their lanes have room."""

    def __init__(self, sharing: PostgresSharing) -> None:
        self._sharing = sharing
        self._source = sharing.source
        self._rooms: dict[tuple[str, str], int] = {}
        self.crowded = False

    def takes(self, task: Task) -> bool:
        """Return True if this member is to hold a task, which then uses room."""
        if task.state != WAITING or self._source is None or not self._source.is_shared(task.chain, task.kind):
            return True
        key = task.chain, task.lane
        if self._source.is_requested(task.chain, task.kind):
            if self._source.has_part(*key):
                return True
            self._source.on_free(crowded=True)  # it gets a part then, and runs the task unless another member does
            return False
        if not self._sharing.owns(task.key):
            self._source.on_free(crowded=False)
            return False
        if key not in self._rooms:
            self._rooms[key] = self._source.room(*key)
        if self._rooms[key] <= 0:
            self._source.on_free(crowded=True)
            self.crowded = True
            return False
        self._rooms[key] -= 1
        return True


class PostgresSharing:
    """The shared lanes of one fleet, for one member. Any thread."""

    def __init__(self, database: PostgresDatabase, membership: Membership) -> None:
        self._database = database
        self._membership = membership
        self.host = membership.name
        self.source: WorkSource | None = None
        self._members: Sequence[int] = (membership.id,)
        self._addresses: Mapping[int, Mapping[str, str]] = {}  # by member and chain; replaced, never modified
        self._own_addresses: dict[str, str] = {}
        self._address_lock = threading.Lock()  # guards it
        self._kinds_of_host: dict[tuple[str, str], bool] = {}  # by chain and kind: until another host has stored it
        self._places: Mapping[str, str] = {}  # of the files, by chain; replaced, never modified
        self._starved: Collection[tuple[str, str]] = ()
        self._notified = 0.0  # monotonic
        self._stop = threading.Event()
        self._listener: threading.Thread | None = None

    def attach(self, source: WorkSource) -> None:
        self.source = source

    def keep_on_host(self, chain: str, kind: str, *, until_shared: bool = False) -> None:
        """Leave new tasks of this kind to members on this host, or on each host that has stored them."""
        self._kinds_of_host[chain, kind] = until_shared

    def keep_files(self, chain: str, port: int | None) -> str:
        place = "" if port is None else f"{self.host}:{port}"
        self._places = {**self._places, chain: place}
        return place

    def place_of_files(self, chain: str) -> str:
        """Return the place of the files of a chain, empty if all members have them."""
        return self._places.get(chain, "")

    def places(self) -> list[str]:
        """Return the places of the tasks that this member may run."""
        return ["", self.host, *filter(None, self._places.values())]

    def place_of(self, task: Task) -> str:
        """Return the place where a new task must be run, empty for all."""
        place = self.place_of_files(task.chain)
        return place or (self.host if (task.chain, task.kind) in self._kinds_of_host else "")

    def release_from_hosts(self, db: Connection, tasks: Iterable[Task]) -> None:
        """Let all members run those of these stored tasks that a member on another host has stored."""
        ids = [t.id for t in tasks if t.state == WAITING and self._kinds_of_host.get((t.chain, t.kind))]
        if ids:
            db.execute(_RELEASE, {"ids": ids, "host": self.host})

    def owns(self, key: str) -> bool:
        """Return True if the key belongs to this member; all members agree about this without a query."""
        members = self._members
        return members[zlib.crc32(to_sqlite_text(key).encode()) % len(members)] == self._membership.id

    def notify(self, db: Connection) -> None:
        """Wake the other members when a transaction ends, unless that was done a moment ago."""
        if time.monotonic() - self._notified > NOTIFY_INTERVAL:
            self._notified = time.monotonic()
            db.execute(NOTIFY)

    # -- looks, at most one at a time

    def refresh(self) -> bool:
        rows = self._database.read(_MEMBERS, (f"{FLEET} ",))
        self._members = [member for member, _ in rows] or (self._membership.id,)
        self._addresses = {member: addresses_of(addresses) for member, addresses in rows}
        self._starved = self._database.read("SELECT chain, lane FROM slots WHERE wanted AND number = 0")
        return bool(self._database.read("SELECT 1 FROM members WHERE killed_at IS NOT NULL LIMIT 1"))

    def is_first(self) -> bool:
        self.refresh()
        return self._members[0] == self._membership.id

    def set_address(self, chain: str, address: str | None) -> None:
        store = "UPDATE members SET addresses = %s WHERE id = %s AND NOT gone"
        with self._address_lock:
            self._own_addresses.pop(chain, None)
            if address:
                self._own_addresses[chain] = address
            values = Json(dict(self._own_addresses)), self._membership.id
            self._database.run_statement(lambda db: db.execute(store, values))

    def addresses(self, chain: str) -> list[str]:
        found = {**self._addresses, self._membership.id: self._own_addresses}
        return list(dict.fromkeys(found[member][chain] for member in sorted(found) if chain in found[member]))

    def killed_addresses(self, chain: str) -> set[str]:
        return {killed.addresses[chain] for killed in self._membership.killed() if chain in killed.addresses}

    def interrupted_numbers(self, chain: str, kind: str) -> set[int]:
        return {
            number
            for member, at, _ in self._membership.killed()
            for (number,) in self._database.read(
                _INTERRUPTED, {"chain": chain, "kind": kind, "member": member, "at": at}
            )
        }

    def find_work(self, chains: Collection[str]) -> list[tuple[str, str, str]]:
        values = {"chains": sorted(chains), "now": self._database.now(), "places": self.places()}
        return [(chain, lane, kind) for chain, lane, kind in self._database.read(_FIND, values)]

    def keys(self, kinds: Collection[tuple[str, str]]) -> dict[tuple[str, str], set[str]]:
        found: dict[tuple[str, str], set[str]] = {}
        for chain, kind, key in self._database.read(_KEYS, tuple(map(list, zip(*kinds, strict=True)))):
            found.setdefault((chain, kind), set()).add(key)
        return found

    def starved(self) -> Collection[tuple[str, str]]:
        return self._starved

    def divide(self, demands: Sequence[LaneDemand], released: Collection[tuple[str, str]]) -> list[int]:
        rows = [
            {"place": n, "chain": d.chain, "lane": d.lane, "most": d.limit, "used": d.used, "wanted": d.wants}
            for n, d in enumerate(demands)
        ]
        values = {"rows": Json(rows), "me": self._membership.id, "members": len(self._members)}

        def work(db: Connection) -> list[int]:
            db.execute(_LOCK)
            for chain, lane in sorted(released):
                db.execute(
                    "DELETE FROM slots WHERE chain = %s AND lane = %s AND member = %s",
                    (chain, lane, self._membership.id),
                )
            return [part for (part,) in db.execute(_DIVIDE.encode(), values).fetchall()]

        return self._database.run(work)

    # -- outages

    def outages(self) -> dict[tuple[str, str], Outage]:
        rows = self._database.read("SELECT chain, lane, failures, paused_until, held FROM outages")
        outages = {(chain, lane): Outage(*outage) for chain, lane, *outage in rows}
        forgotten_before = self._database.now() - FORGET_AFTER
        if any(outage.paused_until < forgotten_before for outage in outages.values()):
            for key in self._database.fetch(_FORGET, {"before": forgotten_before}):
                outages.pop(key, None)
        return outages

    def store_outage(self, chain: str, lane: str, outage: Outage | None) -> None:
        if outage is None:
            end = "DELETE FROM outages WHERE chain = %s AND lane = %s"
            self._database.run(lambda db: db.execute(end, (chain, lane)))
            return
        store = (
            "INSERT INTO outages VALUES (%s, %s, %s, %s, %s) ON CONFLICT (chain, lane) DO UPDATE SET "
            "failures = excluded.failures, paused_until = excluded.paused_until, held = excluded.held, prober = NULL"
        )
        self._database.run(lambda db: db.execute(store, (chain, lane, *outage)))

    def take_probe(self, chain: str, lane: str) -> bool:
        change = (
            "UPDATE outages SET prober = %(me)s WHERE chain = %(chain)s AND lane = %(lane)s "
            "AND (prober IS NULL OR prober = %(me)s) RETURNING 1"
        )
        return bool(self._database.fetch(change, {"me": self._membership.id, "chain": chain, "lane": lane}))

    # -- wake-up by other members

    def listen(self, on_work: Callable[[], None]) -> None:
        self._listener = threading.Thread(target=self._listen, args=(on_work,), name="journal-listen", daemon=True)
        self._listener.start()

    def _listen(self, on_work: Callable[[], None]) -> None:
        db: Connection | None = None
        while not self._stop.is_set():
            try:
                if db is None or db.closed:
                    db = self._database.connect()
                    ((channel,),) = db.execute("SELECT 'trollmoves ' || md5(current_schema())").fetchall()
                    db.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
                for _ in db.notifies(timeout=LISTEN_TIMEOUT, stop_after=1):
                    on_work()
            except (psycopg.Error, JournalError) as error:
                logger.debug("wake-ups for %s are not received now: %s", self._database.path, error)
                if db is not None:
                    with suppress(psycopg.Error):
                        db.close()
                self._stop.wait(LISTEN_TIMEOUT)
        if db is not None:
            db.close()

    def stop(self) -> None:
        """End the thread of ``listen``."""
        self._stop.set()
        if self._listener is not None:
            self._listener.join(2 * LISTEN_TIMEOUT)
